"""Loaded aggregates, kept for the next command, each in the hands of one thread at a time."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from scoring.forks import call_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from scoring.user_score import UserScore

T = TypeVar("T")


class CheckOutCache:
    """A bounded cache whose objects leave it while they are worked on.

    The library's own cache hands the same object to several threads and advances it in place.
    Here ``take`` removes the object, so nobody can see it half-advanced, and ``give_back`` returns
    it only when its state is what the event store holds; after a failure it is simply dropped.
    """

    def __init__(self, *, maxsize: int) -> None:
        """Keep at most ``maxsize`` aggregates, dropping the least recently used.

        Zero and less mean no limit, as in the library.
        """
        self._maxsize = maxsize
        self._scores: OrderedDict[str, UserScore] = OrderedDict()
        self._lock = Lock()
        call_in_child(self, CheckOutCache.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who holds the lock: in a child that was forked, perhaps a thread of the parent."""
        self._lock = Lock()

    def take(self, user_id: str) -> UserScore | None:
        """Remove and return the user's aggregate, or return ``None``."""
        with self._lock:
            return self._scores.pop(user_id, None)

    def look(self, user_id: str, read: Callable[[UserScore], T]) -> T | None:
        """Return what is read from the user's aggregate, which stays here, or ``None``."""
        with self._lock:
            score = self._scores.get(user_id)
            return None if score is None else read(score)

    def clear(self) -> None:
        """Drop all that are here."""
        with self._lock:
            self._scores.clear()

    def give_back(self, score: UserScore) -> None:
        """Return an aggregate that has no pending events; of two, the later one stays."""
        with self._lock:
            other = self._scores.get(score.user_id)
            if other is not None and other.version > score.version:
                return
            self._scores[score.user_id] = score
            while 0 < self._maxsize < len(self._scores):
                self._scores.popitem(last=False)
