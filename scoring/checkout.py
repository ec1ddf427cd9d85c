"""Loaded aggregates, kept for the next command, each in the hands of one thread at a time.

In a child that was forked both classes begin with locks of their own: a thread of the parent may
have held one, and here it never lets go.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from threading import Lock, RLock
from typing import TYPE_CHECKING

from eventsourcing.persistence import OperationalError

from scoring.forks import call_in_child
from scoring.retries import remaining_seconds

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scoring.user_score import UserScore


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
        """Forget who holds the lock."""
        self._lock = Lock()

    def take(self, user_id: str) -> UserScore | None:
        """Remove and return the user's aggregate, or return ``None``."""
        with self._lock:
            return self._scores.pop(user_id, None)

    def clear(self) -> None:
        """Drop all that are here."""
        with self._lock:
            self._scores.clear()

    def give_back(self, score: UserScore) -> None:
        """Return an aggregate that has no pending events."""
        with self._lock:
            self._scores[score.user_id] = score
            while 0 < self._maxsize < len(self._scores):
                self._scores.popitem(last=False)


class StripedLocks:
    """A fixed number of locks shared out over user ids.

    Threads of one process that grant to the same user take turns instead of losing races.
    """

    def __init__(self, *, stripes: int = 256) -> None:
        """Make the locks."""
        self._locks = [RLock() for _ in range(stripes)]
        call_in_child(self, StripedLocks.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who holds the locks."""
        self._locks = [RLock() for _ in self._locks]

    def hold(self, user_ids: Collection[str]) -> HeldLocks:
        """Return what holds the locks of these users in its ``with`` block."""
        # Always taken in one order, so that none waits for ever.
        stripes = sorted({hash(user_id) % len(self._locks) for user_id in user_ids})
        return HeldLocks([self._locks[stripe] for stripe in stripes])


class HeldLocks:
    """Locks that are taken together, in the order given, and released together."""

    def __init__(self, wanted: Sequence[RLock]) -> None:
        """Take none yet."""
        self._wanted = wanted
        self._taken: list[RLock] = []

    def __enter__(self) -> None:
        """Take them.

        Raises:
            OperationalError: if who holds one does not let go while the command has time.
        """
        try:
            for lock in self._wanted:
                # Put down before it is taken: a signal handler may raise the moment that it is.
                self._taken.append(lock)
                if not lock.acquire(timeout=remaining_seconds()):
                    raise OperationalError(
                        "another command of this process, for the same users, still waits for it"
                    )
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc_info: object) -> None:
        """Release those that this thread has."""
        for lock in self._taken:
            with suppress(RuntimeError):  # which says that this thread does not have it
                lock.release()
