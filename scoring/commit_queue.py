"""Commits of several threads go together: who finds nobody committing takes what is waiting.

There is no thread for it. The first one leads: it commits its own and what is waiting, and wakes
whoever has waited longest to lead next. Nobody waits for more than the commit that is under way and
the one after it, which has everything that waits by then.

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

_LOOKS_AGAIN_SECONDS: Final = 0.1
"""After which those who wait notice that whoever was to lead was interrupted."""

_GATHERS_SECONDS: Final = 0.002
"""For which who leads next waits for those of the last group, who were woken and may come back.

The more go together, the less processor time each takes: waking threads costs as much as grants.
"""


_STOPS_GATHERING_FOR: Final = 4
"""For so many commits nobody is waited for, after some did not come back in time."""


class _Ticket(Generic[MemberT]):
    """A member that waits, and what its thread is woken by.

    Attributes:
        member: What is to be committed.
        is_over: Whether its group has been, whatever came of it.
        is_withdrawn: Whether its thread does not wait any more.
    """

    def __init__(self, member: MemberT) -> None:
        """Begin to wait."""
        self.member = member
        self.is_over = False
        self.is_withdrawn = False
        # Of one thread, so that nobody is woken in vain.
        self._sleep = _sleep()

    def wait(self, seconds: float) -> None:
        """Return when woken, or after so many seconds."""
        self._sleep.acquire(timeout=seconds)

    def wake(self) -> None:
        """Wake who waits."""
        _wake(self._sleep)


def _sleep() -> Lock:
    """Return what one thread sleeps on by acquiring it."""
    sleep = Lock()
    sleep.acquire()
    return sleep


def _wake(sleep: Lock) -> None:
    with suppress(RuntimeError):  # which says that it was woken already
        sleep.release()


class CommitQueue(Generic[MemberT]):
    """Has members of several threads committed together, and nothing else meanwhile."""

    def __init__(self, commit: Callable[[Sequence[MemberT]], None], *, most: int) -> None:
        """Have members committed by a function, at most so many at a time.

        It tells each member what came of it, and raises only what interrupts its thread.
        """
        self._commit = commit
        self._most = most
        self.reset_after_fork()
        call_in_child(self, CommitQueue.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who waits or leads: in a child that was forked, threads of the parent."""
        self._leadership = RLock()
        self._waiting: deque[_Ticket[MemberT]] = deque()
        self._gathering = _sleep()
        self._gathers_not_for = 0
        self._last_size = 0
        self._last_ended_at = 0.0

    def join(self, member: MemberT) -> None:
        """Have a member committed: at once if nobody is committing, else with all who wait.

        It may come back without having been told anything: when whoever led was interrupted, and
        when there was no time left.
        """
        ticket: _Ticket[MemberT] | None = None
        try:
            if not self._leadership.acquire(blocking=False):
                ticket = _Ticket(member)
                self._waiting.append(ticket)
                if len(self._waiting) + 1 >= self._last_size:
                    _wake(self._gathering)
                if not self._comes_to_lead(ticket):
                    return
                ticket.is_withdrawn = True
            self._lead([member])
        except BaseException:
            if ticket is not None:
                ticket.is_withdrawn = True
            self._wake_next()  # for it may have been this one's turn
            raise
        finally:
            # Nothing written in Python is called before it, where an exception might come from.
            try:
                self._leadership.release()
            except RuntimeError:
                has_led = False
            else:
                has_led = True
            if has_led and self._waiting:
                self._wake_next()

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
            try:  # likewise
                self._leadership.release()
            except RuntimeError:
                pass
            finally:
                self._wake_next()

    def _comes_to_lead(self, ticket: _Ticket[MemberT]) -> bool:
        ends_at = time.monotonic() + remaining_seconds()
        while not self._leadership.acquire(blocking=False):
            seconds = ends_at - time.monotonic()
            if seconds <= 0.0:
                ticket.is_withdrawn = True
                return False
            ticket.wait(min(seconds, _LOOKS_AGAIN_SECONDS))
            if ticket.is_over:
                return False
        return not ticket.is_over

    def _lead(self, group: list[MemberT]) -> None:
        tickets: list[_Ticket[MemberT]] = []
        self._gather()
        try:
            while self._waiting and len(group) < self._most:
                ticket = self._waiting.popleft()
                if not ticket.is_withdrawn:
                    tickets.append(ticket)
                    group.append(ticket.member)
            if group:
                self._commit(group)
        finally:
            self._last_size, self._last_ended_at = len(group), time.monotonic()
            for ticket in tickets:
                ticket.is_over = True
                ticket.wake()

    def _gather(self) -> None:
        # Otherwise the one who led commits its next one alone while the others wake up, and every
        # second commit is nearly empty.
        if self._gathers_not_for:
            self._gathers_not_for -= 1
            return
        ends_at = self._last_ended_at + _GATHERS_SECONDS
        while len(self._waiting) + 1 < self._last_size:
            seconds = ends_at - time.monotonic()
            if seconds <= 0.0:
                return
            if not self._gathering.acquire(timeout=seconds):
                self._gathers_not_for = _STOPS_GATHERING_FOR
                return

    def _wake_next(self) -> None:
        for ticket in tuple(self._waiting):
            if not ticket.is_withdrawn:
                ticket.wake()
                return
