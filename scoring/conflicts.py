"""Logging conflicts: the first ones with what differs, the others as a number.

Who imports a file again whose ids mean something else by now has a conflict in every line.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from scoring.forks import call_in_child

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

LOGGED_IN_FULL: Final = 10
"""So many conflicts are logged one by one in a window."""

WINDOW_SECONDS: Final = 60.0


class Conflict(NamedTuple):
    """A command whose id, or whose key's grant, says otherwise.

    Attributes:
        what: What it is about, as the beginning of a sentence.
        kept: What is recorded.
        given: The same fields, as the caller gave them.
    """

    what: str
    kept: Mapping[str, object]
    given: Mapping[str, object]


class ConflictLog:
    """Logs the conflicts of one application; threads may share it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = Lock()
        self._window_began = time.monotonic()
        self._count = 0
        call_in_child(self, ConflictLog.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who holds the lock."""
        self._lock = Lock()

    def add(self, conflict: Conflict) -> None:
        """Log a conflict, or count it, without ever raising."""
        with self._lock:
            is_over = time.monotonic() - self._window_began > WINDOW_SECONDS
            left_out = self._begin_window() if is_over else 0
            self._count += 1
            number = self._count
        self._log_left_out(left_out)
        if number > LOGGED_IN_FULL:
            return
        what, kept, given = conflict
        names = [name for name in kept if kept[name] != given[name]]
        more = "; further ones are counted" if number == LOGGED_IN_FULL else ""
        with suppress(Exception):  # a broken log handler must not fail a recorded call
            logger.warning(
                "%s: given %s, kept %s%s", what, _listed(given, names), _listed(kept, names), more
            )

    def close(self) -> None:
        """Log how many were left out, if any were."""
        with self._lock:
            left_out = self._begin_window()
        self._log_left_out(left_out)

    def _begin_window(self) -> int:
        left_out = max(0, self._count - LOGGED_IN_FULL)
        self._window_began, self._count = time.monotonic(), 0
        return left_out

    @staticmethod
    def _log_left_out(count: int) -> None:
        if count:
            with suppress(Exception):
                logger.warning("%d further conflicts were not logged one by one", count)


def _listed(values: Mapping[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {_said(values[name])}" for name in names)


def _said(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)
