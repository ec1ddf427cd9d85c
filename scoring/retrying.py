"""One bound and one pace for everything that is tried again."""

from __future__ import annotations

import random
import sqlite3
import time
from typing import TYPE_CHECKING, Final, TypeVar

from eventsourcing.persistence import (
    ConnectionPoolClosedError,
    DataError,
    InterfaceError,
    MapperDeserialisationError,
    NotSupportedError,
    PersistenceError,
    ProgrammingError,
)
from eventsourcing.utils import TopicError

from scoring.errors import ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_ATTEMPTS: Final = 30
"""How often a command is tried; with the pauses below that is about five seconds."""

MAX_SECONDS: Final = 30.0
"""No attempt is begun later than this; one attempt takes as long as the store's own timeouts."""

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

OPENING_FAILED: Final = "the event store cannot be opened: "
"""How the message of ``opening`` begins, for those who can say more."""

_MAX_OPENING_ATTEMPTS: Final = 12

_LONGEST_PAUSE_SECONDS: Final = 0.5
_FIRST_PAUSE_SECONDS: Final = 0.002


def pause(attempt: int) -> None:
    """Wait before attempt ``attempt + 1``: longer each time, and never in step with others."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10))
    time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret


def is_hopeless(error: Exception) -> bool:
    """Tell whether trying again cannot help."""
    return isinstance(error, _HOPELESS)


def in_words(error: Exception) -> str:
    """Return what a store's error says; some of the library's say nothing."""
    if isinstance(error, ConnectionPoolClosedError):
        return "it was closed, so open it again"
    return str(error) or type(error).__name__


class Deadline:
    """Says when to stop trying, by number and by time."""

    def __init__(self, *, max_attempts: int = MAX_ATTEMPTS) -> None:
        """Begin with the first attempt, now."""
        self.attempts = 1
        self._max_attempts = max_attempts
        self._began = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the attempt that just failed was the last."""
        return self.attempts >= self._max_attempts or self.seconds >= MAX_SECONDS

    @property
    def seconds(self) -> float:
        """How long it has been tried."""
        return time.monotonic() - self._began

    def pause(self) -> None:
        """Wait and count the next attempt."""
        pause(self.attempts)
        self.attempts += 1


def reading(read: Callable[[], T]) -> T:
    """Read from the event store, again after a failure that may pass.

    Raises:
        ScoringError: if the store failed and stayed so.
    """
    deadline = Deadline()
    while True:
        try:
            return read()
        except STORE_ERRORS as error:
            if is_hopeless(error) or deadline.is_over:
                raise ScoringError(f"the event store cannot be read: {in_words(error)}") from error
        deadline.pause()


def opening(construct: Callable[[], T]) -> T:
    """Open a part of the event store, again when others create the same tables at this moment.

    PostgreSQL's ``CREATE TABLE IF NOT EXISTS`` and SQLite's change to WAL mode both fail in all
    but one of several processes that open a new store together.

    Raises:
        ScoringError: if it failed and stayed so.
    """
    deadline = Deadline(max_attempts=_MAX_OPENING_ATTEMPTS)
    while True:
        try:
            return construct()
        except STORE_ERRORS as error:
            if isinstance(error, InterfaceError | DataError) or deadline.is_over:
                raise ScoringError(f"{OPENING_FAILED}{in_words(error)}") from error
        deadline.pause()
