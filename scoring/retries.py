"""What is tried again: how often, for how long and at what pace, in the terms of tenacity.

A policy is a ``Retrying`` of tenacity's. ``Retries`` keeps to one, from the first failure on.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from threading import local
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import ReferenceType, ref

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
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from scoring.errors import EventStoreNotOpened, ScoringError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

T = TypeVar("T")

MAX_SECONDS: Final = 30.0
"""No command takes longer than about this, whatever the store does."""

ATTEMPT_SECONDS: Final = 10.0
"""How long one statement may be without an answer, so that there is time to try another way."""

_LEAST_SECONDS: Final = 0.5
"""What a statement is given when the command's time is over, so that it can end in order."""

_RESTS_FOR_SECONDS: Final = 5.0
"""By when a command that keeps losing races has stopped resting between them."""

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


class _Running(local):
    """What a thread, or a greenlet, does at this moment.

    Not a context variable: those of CPython 3.11 are freed while they are changed, if the garbage
    collector comes in between and a finaliser changes another one.
    """

    limit: ReferenceType[TimeLimit] | None = None


_running: Final = _Running()


class TimeLimit:
    """Ends what is done in its ``with`` block after ``MAX_SECONDS``, or with the block around it.

    The policies here stop trying then, and ``remaining_seconds`` counts down.
    """

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        ends_at = self._began + MAX_SECONDS
        outer = _ends_at()
        self.ends_at = ends_at if outer is None else min(outer, ends_at)
        self._outer = _running.limit
        # Should an exception from a signal handler come as __exit__ begins, it ends with this.
        _running.limit = ref(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _running.limit = self._outer

    @property
    def elapsed_seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._began


def _ends_at() -> float | None:
    limit = None if _running.limit is None else _running.limit()
    return None if limit is None else limit.ends_at


def remaining_seconds() -> float:
    """Return how long what is done at this moment may still take; never nothing at all."""
    ends_at = _ends_at()
    if ends_at is None:
        return MAX_SECONDS
    return max(_LEAST_SECONDS, ends_at - time.monotonic())


def is_hopeless(error: BaseException) -> bool:
    """Tell whether trying again cannot help."""
    return isinstance(error, _HOPELESS)


def in_words(error: Exception) -> str:
    """Return what a store's error says, in one line; some of the library's say nothing."""
    if isinstance(error, ConnectionPoolClosedError):
        return "it was closed, so open it again"
    # PostgreSQL goes on with hints, and with where in the statement it was.
    return str(error).partition("\n")[0] or type(error).__name__


class Retries:
    """The attempts at one thing: counts failures in a row, and backs off as a policy says.

    The policy is entered at the first failure: what succeeds at once costs nothing, and time
    counts from when things began to fail.
    """

    failures = 0
    _state: RetryCallState | None = None

    def __init__(self, policy: Retrying) -> None:
        self._policy = policy

    def reset(self) -> None:
        """Something went well: the next failure is the first one."""
        self.failures = 0
        self._state = None

    def back_off(self, failure: Exception) -> None:
        """Wait before the next attempt, or raise the failure if there is to be none."""
        self.failures += 1
        state = self._state
        if state is None:
            # A copy, since it keeps what it is about: a signal handler may come in between.
            policy = self._policy.copy()
            policy.begin()
            state = self._state = RetryCallState(policy, None, (), {})
        state.set_exception((type(failure), failure, failure.__traceback__))
        pause_seconds: Any = state.retry_object.iter(state)
        state.prepare_for_next_attempt()
        state.retry_object.sleep(pause_seconds)

    def call(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, called until it does or the policy raises its failure."""
        while True:
            try:
                result = work()
            except Exception as failure:  # noqa: BLE001 - the policy says which of them may pass
                self.back_off(failure)
            else:
                self.reset()
                return result


class _StopInTime(stop_base):
    """Stops when the time of what is done at this moment is over."""

    def __call__(self, retry_state: RetryCallState) -> bool:  # noqa: ARG002 - as tenacity calls it
        ends_at = _ends_at()
        return ends_at is not None and time.monotonic() >= ends_at


def _pause_after_losing(state: RetryCallState) -> float:
    # Where many race for one user, those who came last rest, so that commits that are bound to
    # fail do not hold up the others, and those who have waited longest do not.
    rested = (state.seconds_since_start or 0.0) / _RESTS_FOR_SECONDS
    return PACE(state) * max(0.01, 1.0 - rested)


PACE: Final = wait_random_exponential(multiplier=0.004, max=0.5)
"""Longer each time, and never in step with others."""

STORE_FAILURES: Final = Retrying(
    retry=retry_if_exception(lambda e: isinstance(e, STORE_ERRORS) and not is_hopeless(e)),
    # A failure that comes at once and again, which takes five seconds, is not worth half a minute.
    stop=stop_after_attempt(30) | _StopInTime(),
    wait=PACE,
    reraise=True,
)
"""For failures of the event store."""

LOST_RACES: Final = Retrying(stop=_StopInTime(), wait=_pause_after_losing, reraise=True)
"""For commits that others were faster than: these have got on, and the next time it may be us."""

_COLLISIONS: Final = STORE_FAILURES.copy(
    retry=retry_if_exception(
        lambda e: isinstance(e, STORE_ERRORS) and not isinstance(e, InterfaceError | DataError)
    ),
    stop=stop_after_attempt(12) | _StopInTime(),
)
"""For several who make the tables of a new store."""


@contextmanager
def reads_translated() -> Iterator[None]:
    """Turn what the event store raises when it is read into ``ScoringError`` with one sentence."""
    try:
        yield
    except STORE_ERRORS as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ScoringError:
    return ScoringError(f"the event store cannot be read: {in_words(error)}")


def read_event_store(read: Callable[[], T]) -> T:
    """Return what ``read`` returns, called again after a failure that may pass.

    Raises:
        ScoringError: if the store failed and stayed so.
    """
    try:  # not reads_translated(), which takes as long as all the rest here
        with TimeLimit():
            return Retries(STORE_FAILURES).call(read)
    except STORE_ERRORS as error:
        raise _unreadable(error) from error


def open_event_store(construct: Callable[[], T]) -> T:
    """Return what ``construct`` makes, called again when others make the same at this moment.

    PostgreSQL's ``CREATE TABLE IF NOT EXISTS`` and SQLite's change to WAL mode both fail in all
    but one of several processes that open a new store together.

    Raises:
        EventStoreNotOpened: if it failed and stayed so.
    """
    try:
        with TimeLimit():
            return Retries(_COLLISIONS).call(construct)
    except STORE_ERRORS as error:
        raise EventStoreNotOpened(in_words(error)) from error
