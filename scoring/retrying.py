"""One bound and one pace for everything that is tried again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from eventsourcing.persistence import (
    DataError,
    NotSupportedError,
    PersistenceError,
    ProgrammingError,
)

from scoring.errors import ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_ATTEMPTS: Final = 30
"""How often a command is tried; with the pauses below that is about ten seconds."""

_LONGEST_PAUSE_SECONDS: Final = 0.5
_FIRST_PAUSE_SECONDS: Final = 0.002


def pause(attempt: int) -> None:
    """Wait before attempt ``attempt + 1``: longer each time, and never in step with others."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10))
    time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret


def is_hopeless(error: PersistenceError) -> bool:
    """Tell whether trying again cannot help."""
    return isinstance(error, DataError | NotSupportedError | ProgrammingError)


def reading(read: Callable[[], T]) -> T:
    """Read from the event store, again after a failure that may pass.

    Raises:
        ScoringError: if the store failed and stayed so.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return read()
        except PersistenceError as error:
            if is_hopeless(error) or attempt == MAX_ATTEMPTS:
                raise ScoringError(f"the event store cannot be read: {error}") from error
        pause(attempt)
    raise AssertionError("unreachable")  # pragma: no cover - the loop returns or raises
