"""Exceptions that reach a thread at a moment of a test's choice, as from a signal handler."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def interrupted(number: int, call: Callable[[], T], *within: str) -> T:
    """Make a call, and raise where an interrupt may come for the n-th time.

    CPython looks for one as a function in Python begins and when one in C returns; ``within`` are
    parts of the names of the files where it counts, by default all.
    """
    places = count(1)

    def look(frame: FrameType, event: str, _: object) -> None:
        if event not in {"call", "c_return"}:
            return
        if within and not any(part in frame.f_code.co_filename for part in within):
            return
        if next(places) == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    gc.disable()  # or a finaliser of an earlier test's may be what is interrupted, and ignore it
    sys.setprofile(look)
    try:
        return call()
    finally:
        sys.setprofile(None)
        gc.enable()
