"""Loaded aggregates, kept for the next command, each in the hands of one thread at a time."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock
from typing import TYPE_CHECKING, TypeVar

from scoring.forks import call_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scoring.user_score import UserScore

T = TypeVar("T")


class CheckOutCache:
    """A bounded cache whose objects leave it while they are worked on.

    The library's own cache hands the same object to several threads and advances it in place.
    Here checking out removes the object, so nobody can see it half-advanced, and it is checked in
    only when its state is what the event store holds; after a failure it is simply dropped.
    """

    def __init__(self, *, maxsize: int) -> None:
        """Keep at most ``maxsize`` aggregates, dropping the least recently used.

        Zero and less mean no limit, as in the library.
        """
        self._maxsize = maxsize
        self._scores: OrderedDict[str, UserScore] = OrderedDict()
        # One that a signal handler, which may grant, too, finds held by its own thread.
        self._lock = RLock()
        call_in_child(self, CheckOutCache.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who holds the lock: in a child that was forked, perhaps a thread of the parent."""
        self._lock = RLock()

    def check_out(self, user_ids: Iterable[str]) -> dict[str, UserScore]:
        """Remove the aggregates of users, and return by user id those that were here."""
        with self._lock:
            found = {user_id: self._scores.pop(user_id, None) for user_id in user_ids}
        return {user_id: score for user_id, score in found.items() if score is not None}

    def peek(self, user_id: str, read: Callable[[UserScore], T]) -> T | None:
        """Return what is read from the user's aggregate, which stays here, or ``None``."""
        with self._lock:
            score = self._scores.get(user_id)
            return None if score is None else read(score)

    def clear(self) -> None:
        """Drop all that are here."""
        with self._lock:
            self._scores.clear()

    def check_in(self, scores: Iterable[UserScore]) -> None:
        """Keep aggregates that have no pending events; of two of one user, the later one stays."""
        with self._lock:
            for score in scores:
                other = self._scores.get(score.user_id)
                if other is None or other.version <= score.version:
                    self._scores[score.user_id] = score
            while 0 < self._maxsize < len(self._scores):
                self._scores.popitem(last=False)
