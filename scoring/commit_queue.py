"""Commits of several threads go together: who finds nobody committing takes what is waiting.

There is no thread for it. The first one leads: it commits its own and what is waiting, and wakes
them. Nobody waits for more than the commit that is under way and the one after it, which has
everything that waits by then.

An exception may reach a thread at any moment, as from a signal handler. So who leads holds a lock
that knows which thread has it, and nobody depends on being woken: who waits looks now and then
whether anybody leads.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from threading import Lock, RLock
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from eventsourcing.persistence import OperationalError

from scoring.forks import call_in_child
from scoring.retries import remaining_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
MemberT = TypeVar("MemberT")

_LOOK_AGAIN_SECONDS: Final = 0.1
"""After which those who wait notice that whoever was to lead was interrupted."""

_GATHER_SECONDS_EACH: Final = 0.0003
_MAX_GATHER_SECONDS: Final = 0.003
"""How long, for each of the last group, and at most, the next one waits for them to come back.

The more go together, the less each takes. Where the interpreter lock goes from thread to thread
between two cores, each takes some 0.05 ms to come back, and several times as long where other
processes want the cores, too.
"""

_COMMITS_WITHOUT_GATHERING: Final = 4
"""For so many commits nobody is waited for, after some did not come back in time."""


class _Ticket(Generic[MemberT]):
    """A member that waits, and what its thread is woken by.

    Attributes:
        member: What is to be committed.
        is_over: Whether its group has been, whatever came of it, or its thread does not wait.
        keeps_time: Whether its thread notices when others have been waited for long enough.
    """

    __slots__ = ("_ends_at", "_sleep", "is_over", "keeps_time", "member")

    def __init__(self, member: MemberT, *, keeps_time: bool) -> None:
        self.member = member
        self.keeps_time = keeps_time
        self.is_over = False
        self._ends_at = time.monotonic() + remaining_seconds()
        # Of one thread, so that nobody is woken in vain.
        self._sleep = Lock()
        self._sleep.acquire()

    def wait(self, seconds: float) -> None:
        """Return when woken, after so many seconds, or when there is no time left."""
        rest = self._ends_at - time.monotonic()
        if rest <= 0.0:
            self.is_over = True
        else:
            self._sleep.acquire(timeout=min(rest, seconds))

    def wake(self) -> None:
        """Wake who waits."""
        try:  # noqa: SIM105 - suppress() takes ten times as long
            self._sleep.release()
        except RuntimeError:
            pass  # it was woken already


class CommitQueue(Generic[MemberT]):
    """Has members of several threads committed together, and nothing else meanwhile."""

    def __init__(self, commit: Callable[[Sequence[MemberT]], None], *, max_members: int) -> None:
        """Have members committed by a function, at most so many at a time.

        It tells each member what came of it, and raises only what interrupts its thread.
        """
        self._commit = commit
        self._max_members = max_members
        self.reset_after_fork()
        call_in_child(self, CommitQueue.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who waits or leads: in a child that was forked, threads of the parent."""
        self._leadership = RLock()
        self._waiting: deque[_Ticket[MemberT]] = deque()
        self._expected = 0
        self._ended_at = 0.0
        self._commits_without_gathering = 0

    def join(self, member: MemberT) -> None:
        """Have a member committed: at once if nobody is committing, else with all who wait.

        It may come back without having been told anything: when whoever led was interrupted, and
        when there was no time left.
        """
        ticket: _Ticket[MemberT] | None = None
        try:
            while True:
                seconds = self._seconds_to_gather(ticket)
                if seconds <= 0.0:
                    if self._try_to_lead([member], ticket):
                        return
                    seconds = _LOOK_AGAIN_SECONDS
                if ticket is None:
                    ticket = _Ticket(member, keeps_time=not self._waiting)
                    self._waiting.append(ticket)
                    continue  # for whoever led may just have ended
                ticket.wait(seconds if ticket.keeps_time else _LOOK_AGAIN_SECONDS)
                if ticket.is_over:
                    return
        except BaseException:
            if ticket is not None:
                ticket.is_over = True
                with suppress(ValueError):  # whoever leads has it already
                    self._waiting.remove(ticket)
            self._wake_next()  # for it may have been this one's turn
            raise

    def alone(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, done while nobody commits, and after those who wait.

        Raises:
            OperationalError: if others do not end while the command has time.
        """
        try:
            if not self._leadership.acquire(timeout=remaining_seconds()):
                raise OperationalError("another command of this process still waits for it")
            self._lead([])
            return work()
        finally:
            try:
                self._leadership.release()
            except RuntimeError:
                pass
            finally:
                self._wake_next()

    def _seconds_to_gather(self, own: _Ticket[MemberT] | None) -> float:
        # Otherwise the one who led commits its next one alone while the others wake up, and every
        # second commit is nearly empty.
        if len(self._waiting) + (own is None) >= self._expected:
            return 0.0
        seconds = min(self._expected * _GATHER_SECONDS_EACH, _MAX_GATHER_SECONDS)
        return self._ended_at + seconds - time.monotonic()

    def _try_to_lead(self, group: list[MemberT], own: _Ticket[MemberT] | None) -> bool:
        """Commit a group and all who wait, unless somebody else leads; return whether it did."""
        try:
            # Nothing written in Python is called before it, where an exception might come from.
            if not self._leadership.acquire(blocking=False):
                return False
            if own is None or not own.is_over:  # since it was looked at last
                if own is not None:
                    own.is_over = True
                self._lead(group)
        finally:
            try:  # noqa: SIM105 - likewise
                self._leadership.release()
            except RuntimeError:
                pass  # it did not lead
        self._wake_next()
        return True

    def _lead(self, group: list[MemberT]) -> None:
        tickets: list[_Ticket[MemberT]] = []
        # Nobody is waited for by what is called from within the commit.
        expected, self._expected = self._expected, 0
        try:
            while self._waiting and len(group) < self._max_members:
                ticket = self._waiting.popleft()
                if not ticket.is_over:
                    tickets.append(ticket)
                    group.append(ticket.member)
            if group:
                self._commit(group)
        finally:
            if len(group) < expected:
                self._commits_without_gathering = _COMMITS_WITHOUT_GATHERING
            elif self._commits_without_gathering:
                self._commits_without_gathering -= 1
            else:
                self._expected = len(group) + len(self._waiting)
            self._ended_at = time.monotonic()
            for ticket in tickets:
                ticket.is_over = True
                ticket.wake()

    def _wake_next(self) -> None:
        for ticket in self._waiting.copy():  # in one step, unlike a tuple
            if not ticket.is_over:
                ticket.keeps_time = True
                ticket.wake()
                return
