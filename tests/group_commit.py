"""Calls of several threads that wait for a commit together, and commits that a test watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any
from uuid import UUID

from eventsourcing.application import ProcessingEvent

from concurrency import until
from scoring import Scoring
from scoring.event_store import RecordedEvents

Commit = Callable[[], RecordedEvents]


class Watched(Scoring):
    """Keeps what each commit was given, and has a test's function do it, if there is one."""

    def __init__(self, env: dict[str, str], **options: Any) -> None:
        self.commits: list[list[Any]] = []
        self.instead: list[Callable[[Commit], RecordedEvents]] = []
        super().__init__(env, **options)

    def commit(self, processing_event: ProcessingEvent[UUID]) -> RecordedEvents:
        self.commits.append(list(processing_event.events))

        def really() -> RecordedEvents:
            return super(Watched, self).commit(processing_event)

        return self.instead.pop(0)(really) if self.instead else really()


def failing(
    error: BaseException, *, done: bool, then: Callable[[], object] = lambda: None
) -> Callable[[Commit], RecordedEvents]:
    """Do a commit or not, have something else done, and raise."""

    def instead(commit: Commit) -> RecordedEvents:
        if done:
            commit()
        then()
        raise error

    return instead


@contextmanager
def commit_under_way(app: Scoring) -> Iterator[None]:
    """Inside the block, another thread of the process commits."""
    begun, end = Event(), Event()

    def hold() -> None:
        begun.set()
        end.wait()

    with ThreadPoolExecutor(1) as other:
        holding = other.submit(app._queue.alone, hold)
        begun.wait()
        try:
            yield
        finally:
            end.set()
            holding.result()


def together(app: Scoring, calls: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
    """Make these calls, each in a thread of its own, so that they wait for one commit in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = []
        with commit_under_way(app):
            for number, call in enumerate(calls, start=1):
                futures.append(threads.submit(call))
                until(lambda number=number: len(app._queue._waiting) >= number)  # type: ignore[misc]
    return futures
