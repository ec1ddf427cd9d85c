"""One bound and one pace for everything that is tried again."""

from __future__ import annotations

import random
import sqlite3
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

from eventsourcing.persistence import (
    ConnectionPoolClosedError,
    DataError,
    IntegrityError,
    InterfaceError,
    MapperDeserialisationError,
    NotSupportedError,
    PersistenceError,
    ProgrammingError,
)
from eventsourcing.utils import TopicError

from scoring.errors import EventStoreNotOpened, ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from typing import Self

T = TypeVar("T")

MAX_FAILURES: Final = 30
"""How often a store may fail at once; with the pauses below that is about five seconds."""

MAX_SECONDS: Final = 30.0
"""No command takes longer than about this, whatever the store does."""

ATTEMPT_SECONDS: Final = 10.0
"""How long one statement may be without an answer, so that there is time to try another way."""

_LEAST_SECONDS: Final = 0.5
"""What a statement is given when the command's time is over, so that it can end in order."""

STORE_ERRORS: Final = (
    *(PersistenceError, sqlite3.Error, MapperDeserialisationError, TopicError),
    ConnectionPoolClosedError,
)
"""What a store may raise: some of sqlite3's own errors pass through the library untranslated."""

_HOPELESS: Final = (
    *(DataError, NotSupportedError, ProgrammingError),
    *(MapperDeserialisationError, TopicError),  # another cipher's key, or an event of the future
    ConnectionPoolClosedError,
)

_MAX_OPENING_ATTEMPTS: Final = 12

_LONGEST_PAUSE_SECONDS: Final = 0.5
_RESTS_FOR_SECONDS: Final = 5.0
"""By when a command that keeps losing races has stopped resting between them."""
_FIRST_PAUSE_SECONDS: Final = 0.002

_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)


def remaining_seconds() -> float:
    """Return how long what is done at this moment may still take; never nothing at all."""
    ends_at = _ends_at.get()
    if ends_at is None:
        return MAX_SECONDS
    return max(_LEAST_SECONDS, ends_at - time.monotonic())


def is_hopeless(error: Exception) -> bool:
    """Tell whether trying again cannot help."""
    return isinstance(error, _HOPELESS)


def in_words(error: Exception) -> str:
    """Return what a store's error says; some of the library's say nothing."""
    if isinstance(error, ConnectionPoolClosedError):
        return "it was closed, so open it again"
    return str(error) or type(error).__name__


class Deadline:
    """Says when to stop trying; inside its ``with`` block ``remaining_seconds`` counts down.

    A failure counts, for one that comes at once and again is not worth half a minute. A race that
    was lost does not: whoever won it has got on, and the next time it may be us.
    """

    def __init__(self, *, max_failures: int = MAX_FAILURES) -> None:
        """Begin with the first attempt, now."""
        self.attempts = 1
        self._failures = 0
        self._max_failures = max_failures
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        """Have statements end in time."""
        ends_at = self._began + MAX_SECONDS
        outer = _ends_at.get()
        self._token: Token[float | None] = _ends_at.set(
            ends_at if outer is None else min(outer, ends_at)
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Go back to what counted before."""
        _ends_at.reset(self._token)

    @property
    def seconds(self) -> float:
        """How long it has been tried."""
        return time.monotonic() - self._began

    def is_over(self, failure: Exception) -> bool:
        """Tell whether the attempt that just failed was the last."""
        if not isinstance(failure, IntegrityError):
            self._failures += 1
        return self._failures >= self._max_failures or self.seconds >= MAX_SECONDS

    def pause(self, failure: Exception) -> None:
        """Wait before the next attempt: longer each time, and never in step with others."""
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(self.attempts, 10))
        if isinstance(failure, IntegrityError):
            # Where many race for one user, those who came last rest, so that commits that are
            # bound to fail do not hold up the others, and those who have waited longest do not.
            longest *= max(0.01, 1.0 - self.seconds / _RESTS_FOR_SECONDS)
        time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret
        self.attempts += 1


def reading(read: Callable[[], T]) -> T:
    """Read from the event store, again after a failure that may pass.

    Raises:
        ScoringError: if the store failed and stayed so.
    """
    with Deadline() as deadline:
        while True:
            try:
                return read()
            except STORE_ERRORS as error:
                if is_hopeless(error) or deadline.is_over(error):
                    raise ScoringError(
                        f"the event store cannot be read: {in_words(error)}"
                    ) from error
                deadline.pause(error)


def opening(construct: Callable[[], T]) -> T:
    """Open a part of the event store, again when others create the same tables at this moment.

    PostgreSQL's ``CREATE TABLE IF NOT EXISTS`` and SQLite's change to WAL mode both fail in all
    but one of several processes that open a new store together.

    Raises:
        EventStoreNotOpened: if it failed and stayed so.
    """
    with Deadline(max_failures=_MAX_OPENING_ATTEMPTS) as deadline:
        while True:
            try:
                return construct()
            except STORE_ERRORS as error:
                if isinstance(error, InterfaceError | DataError) or deadline.is_over(error):
                    raise EventStoreNotOpened(in_words(error)) from error
                deadline.pause(error)
