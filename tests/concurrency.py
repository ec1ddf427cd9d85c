"""Doing things at once or meanwhile, in threads, and waiting for what others do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event
from typing import TypeVar

T = TypeVar("T")

_TICK_SECONDS = 0.05


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """Do something in so many threads, told a number each; raise what one of them raised."""
    together = Barrier(count)

    def begin(number: int) -> T:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


@contextmanager
def meanwhile(*works: Callable[[Event], object]) -> Iterator[Event]:
    """Do something in a thread each while the block runs; yield what tells them that it is over.

    Raises what one of them raised.
    """
    over = Event()
    with ThreadPoolExecutor(len(works)) as threads:
        done = [threads.submit(work, over) for work in works]
        try:
            yield over
        finally:
            over.set()
    for each in done:
        each.result()


@contextmanager
def lasting_at_most(seconds: float) -> Iterator[None]:
    """What the block does takes no longer; a limit allows for a machine that is busy.

    While the machine, or this process, stands still nothing is done, and no time counts.
    """
    took = 0.0

    def count(over: Event) -> None:
        nonlocal took
        while not over.wait(_TICK_SECONDS):
            took += _TICK_SECONDS

    with meanwhile(count):
        yield
    assert took < seconds


def until(condition: Callable[[], object], *, every_seconds: float = 0.001) -> None:
    """Wait until something is so, for a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(every_seconds)
