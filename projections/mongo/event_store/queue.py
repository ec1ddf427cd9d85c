"""Commits of several threads go together: who finds nobody committing takes what is waiting.

There is no thread for it. The first one leads: it commits what is waiting, its own among it, and
then hands over to whoever has waited longest.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import TYPE_CHECKING

from scoring.forks import call_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from eventsourcing.persistence import Tracking
    from pymongo.client_session import ClientSession

    from projections.mongo.event_store.documents import Document


@dataclass(eq=False, slots=True)
class Commit:
    """What one caller wants recorded, all or nothing.

    Attributes:
        events: As they are stored.
        tracking: The position of another application that goes with them.
        write: What else goes with them, in the same transaction; called once for each attempt.
        predecessors: By stream, the version that has to be stored for its first new event.
        newest: An event that has to be stored unchanged.
        first: The position of the first event, once it is recorded.
        error: What it failed with.
        is_over: Whether it is recorded or failed.
        has_led: Whether it was committed, or tried, by the caller's own thread.
        tokens: Of its attempts, one for each leader that tried.
        is_unknown: Whether the outcome of one of them is not known.
        turn: Set when it is over, and when its caller is to lead.
    """

    events: list[Document]
    tracking: Tracking | None = None
    write: Callable[[ClientSession], object] | None = None
    predecessors: Mapping[UUID | str, int] = field(default_factory=dict)
    newest: tuple[bytes | str, int, bytes] | None = None
    first: int = 0
    error: BaseException | None = None
    is_over: bool = False
    has_led: bool = False
    tokens: set[bytes] = field(default_factory=set)
    is_unknown: bool = False
    turn: Event = field(default_factory=Event)

    def succeed(self, first: int) -> None:
        """Be recorded, the first event at this position."""
        self.first = first
        self._end()

    def fail(self, error: BaseException) -> None:
        """Not be recorded, or not for certain."""
        self.error = error
        self._end()

    def _end(self) -> None:
        self.is_over = True
        self.turn.set()


class CommitQueue:
    """Commits that wait, in the order in which they came."""

    def __init__(self, append: Callable[[list[Commit]], None], *, most_events: int) -> None:
        """Have groups of up to so many events appended; a larger commit goes alone."""
        self._append = append
        self._most_events = most_events
        self.reset_after_fork()
        call_in_child(self, CommitQueue.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget who waits or leads: in a child that was forked, threads of the parent."""
        self._lock = Lock()
        self._waiting: deque[Commit] = deque()
        self._is_led = False

    def record(self, commit: Commit) -> None:
        """Return when a commit is recorded.

        Raises:
            PersistenceError: if it is not, or not for certain.
        """
        with self._lock:
            self._waiting.append(commit)
            leads, self._is_led = not self._is_led, True
        try:
            if not leads:
                commit.turn.wait()
            if not commit.is_over:
                self._lead(commit)
        except BaseException:
            self._leave(commit, leads=leads)
            raise
        if commit.error is not None:
            raise commit.error

    def _lead(self, leader: Commit) -> None:
        group: list[Commit] = []
        try:
            self._take(group)
            self._append(group)
        except BaseException:
            # What interrupts the leader is nothing to the others: the next one asks about them.
            with self._lock:
                others = [each for each in group if not (each.is_over or each is leader)]
                self._waiting.extendleft(reversed(others))
            raise
        finally:
            leader.has_led = True
            self._hand_over()

    def _take(self, group: list[Commit]) -> None:
        with self._lock:
            group.append(self._waiting.popleft())
            events = len(group[0].events)
            held = {(item["s"], item["v"]) for item in group[0].events}
            while self._waiting and group[0].tracking is None:
                commit = self._waiting[0]
                events += len(commit.events)
                keys = {(item["s"], item["v"]) for item in commit.events}
                # The index is unique across documents, not within one.
                if events > self._most_events or commit.tracking or not held.isdisjoint(keys):
                    break
                held |= keys
                group.append(self._waiting.popleft())

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting[0].turn.set()
            else:
                self._is_led = False

    def _leave(self, commit: Commit, *, leads: bool) -> None:
        with self._lock, suppress(ValueError):
            self._waiting.remove(commit)
        # Interrupted as its turn came: then it is the next one's.
        if (leads or commit.turn.is_set()) and not (commit.is_over or commit.has_led):
            self._hand_over()
