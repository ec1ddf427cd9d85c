"""Processes of a test's own, forked from one that has their imports behind it.

Python, and all that writers and the modules of tests import, take most of a second of processor
time. They are not forked from the process that tests: that has threads, and connections that
children must not share.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest


@cache
def forks() -> ForkServerContext:
    """Return what makes such processes, and their queues and barriers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "psycopg", "projections", "dual_writers"])
    with pytest.MonkeyPatch.context() as patch:
        # In Python 3.11 the server is not told in any other way where its imports are.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context
