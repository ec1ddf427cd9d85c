"""Processes of a test's own, and what happens in a child of the process that tests."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from unittest.mock import patch


@cache
def forks() -> ForkServerContext:
    """Return what makes processes that have their imports behind them, their queues and barriers.

    Python, and all that writers and the modules of tests import, take most of a second of
    processor time. They are not forked from the process that tests: that has threads, and
    connections that children must not share.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "psycopg", "projections", "dual_writers"])
    # In Python 3.11 the server is not told in any other way where its imports are.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def in_child(work: Callable[[], object]) -> str:
    """Fork, do the work in the child, and return what it returned or raised, as text.

    That is empty where the child died before it had done it.
    """
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            said = str(work())
        except BaseException as error:  # noqa: BLE001 - the parent wants to know
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
