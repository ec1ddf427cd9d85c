"""Recording a chunk of commands in one transaction, with a truthful receipt for each.

The event store decides: a chunk is committed hopefully, without asking first which ids are free.
If the store refuses it, the claims tell why: an id that was taken is answered from the original, a
claim with one of our own tokens means that an attempt had been committed although its answer was
lost, and no claim at all means that somebody else advanced a user's stream first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from eventsourcing.application import ProcessingEvent
from eventsourcing.persistence import ConnectionPoolClosedError, IntegrityError
from eventsourcing.utils import get_topic

from scoring.contributions import Contribution
from scoring.errors import ScoringError, StreamHasGap
from scoring.event_store import StoreWentBack
from scoring.grants import Grant
from scoring.receipts import ReceiptT
from scoring.retries import (
    LOST_RACES,
    STORE_ERRORS,
    STORE_FAILURES,
    Retries,
    TimeLimit,
    is_hopeless,
    read_event_store,
)
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from uuid import UUID

    from eventsourcing.persistence import ApplicationRecorder, Recording

    from scoring.checkout import StripedLocks
    from scoring.conflicts import ConflictLog
    from scoring.event_store import Place
    from scoring.user_scores import UserScores

CommandT = TypeVar("CommandT", Grant, Contribution)
AttemptT = TypeVar("AttemptT", bound="Attempt")

ANSWERED_FOR: Final = (UserScore.GrantRecorded, UserScore.BucketSet)
"""The events whose positions are in receipts."""

_SEARCH_WINDOW: Final = 1000
_WORTH_A_QUERY: Final = 500  # commands in a chunk


class RefusedAt(Exception):  # noqa: N818 - internal, never reaches a caller
    """A command of the chunk cannot be recorded or answered for; nothing was committed."""

    def __init__(self, index: int, error: ScoringError) -> None:
        """Keep which command it was, by its index in the chunk."""
        super().__init__(str(error))
        self.index = index
        self.error = error


@dataclass
class Attempt:
    """What one attempt at a chunk wants to commit."""

    scores: dict[str, UserScore] = field(default_factory=dict)
    """By user id: the aggregates it works on."""
    events: Sequence[Any] = ()
    """What was sent to the store."""

    @property
    def proof(self) -> Any:
        """The event by which it is recognised in the store: a claim, which has a token, if any."""
        claims = (event for event in self.events if isinstance(event, GrantClaimed))
        # Not the first one: whoever opens a user's stream at the same moment records the same.
        return next(claims, self.events[-1])


@dataclass(frozen=True, slots=True)
class WriteSide:
    """What commands work on.

    Attributes:
        commit: Records what was collected from aggregates, in one transaction.
        recorder: The event store's recorder, which knows positions.
        scores: The users' aggregates.
        locks: Held by the command that works on a user.
        conflicts: Told of each id that was taken with another payload.
    """

    commit: Callable[[ProcessingEvent[UUID]], list[Recording[UUID]]]
    recorder: ApplicationRecorder
    scores: UserScores
    locks: StripedLocks
    conflicts: ConflictLog


class ChunkRecorder(ABC, Generic[CommandT, ReceiptT, AttemptT]):
    """Commits the commands of one chunk until there is a truthful receipt for each; used once."""

    _subject: ClassVar[str]
    _cure: ClassVar[str]

    def __init__(self, write_side: WriteSide, commands: Sequence[CommandT]) -> None:
        """Prepare to record these commands."""
        self._write_side = write_side
        self._scores = write_side.scores
        self._commands: Sequence[CommandT] = commands
        self._users = list(dict.fromkeys(command.user_id for command in commands))
        # By grant id: the grant that was found to hold the id already.
        self._originals: dict[str, UserScore.GrantRecorded] = {}
        self._sent: list[AttemptT] = []

    @abstractmethod
    def _grant_id_of(self, command: CommandT) -> str | None:
        """Return the grant id that a command is about, if it is about one."""

    @abstractmethod
    def _decide(self) -> AttemptT:
        """Return what to commit, decided on aggregates whose users' locks are held."""

    @abstractmethod
    def _answers(
        self, attempt: AttemptT, positions: dict[Place, int], newest: int
    ) -> list[ReceiptT]:
        """Answer for an attempt that is committed.

        Args:
            attempt: Whose scores nobody else changes as yet.
            positions: Of its grants and buckets.
            newest: The position of the last of them, or of the store where it has none.
        """

    @property
    def found_taken_ids(self) -> bool:
        """Whether some of the ids had been recorded before."""
        return bool(self._originals)

    def receipts(self, *, ask_first: bool = False) -> list[ReceiptT]:
        """Commit the chunk and return a receipt for each command, in order.

        Args:
            ask_first: Look the ids up before the first attempt: cheaper when many are taken, as
                when a file is imported again, and dearer when none is.

        Raises:
            RefusedAt: if an aggregate refused a command.
            ScoringError: if the store failed and stayed so.
        """
        try:
            with TimeLimit() as limit:
                if ask_first or self._begins_with_taken_id():
                    read_event_store(lambda: self._learn_originals(self._commands))
                return self._receipts_within(limit)
        except ConnectionPoolClosedError as error:
            # Perhaps between the commit and giving back the connection.
            raise ScoringError(
                f"the event store was closed, so it is unknown whether {self._subject} are "
                f"recorded: {self._cure}, on one that is open"
            ) from error

    def _begins_with_taken_id(self) -> bool:
        # As what is imported again does: a query for one id, where a commit in vain costs more.
        if len(self._commands) < _WORTH_A_QUERY:
            return False
        first = [command for command in self._commands if self._grant_id_of(command)][:1]
        read_event_store(lambda: self._learn_originals(first))
        return self.found_taken_ids

    def _receipts_within(self, limit: TimeLimit) -> list[ReceiptT]:
        races, failures = Retries(LOST_RACES), Retries(STORE_FAILURES)
        while True:
            taken_before = len(self._originals)
            failure: Exception
            try:
                with self._write_side.locks.hold(self._users):
                    return self._try_to_commit()
            except RefusedAt as refused:
                # A taken id is answered even where a new one would be refused.
                failure = refused
            except ConnectionPoolClosedError:
                raise
            except STORE_ERRORS as error:
                if is_hopeless(error):
                    raise ScoringError(
                        f"the event store refused {self._subject}: {error}"
                    ) from error
                failure = error
            try:
                # Asked after any failure: the commit may have been done and its answer lost.
                receipts = self._receipts_of_lost_commit()
                if receipts is not None:
                    return receipts
                self._learn_originals(self._commands)
            except ConnectionPoolClosedError:
                raise
            except STORE_ERRORS as error:
                failure = error
                if is_hopeless(error):
                    raise ScoringError(self._unknown("cannot be read", error)) from error
            if len(self._originals) > taken_before:
                continue  # something was learnt, and there are only so many ids to learn about
            if isinstance(failure, RefusedAt):
                raise failure
            retries = races if isinstance(failure, IntegrityError) else failures
            try:
                retries.back_off(failure)
            except STORE_ERRORS:
                raise ScoringError(self._exhausted(failure, retries, limit)) from failure

    def _try_to_commit(self) -> list[ReceiptT]:
        attempt = self._decide()
        changed = [score for score in attempt.scores.values() if score.pending_events]
        positions: dict[Place, int] = {}
        # All that the receipts need is read before the commit: after it, nothing may fail.
        if changed:
            processing_event = collected(changed)
            attempt.events = processing_event.events
            self._sent.append(attempt)
            recordings = self._write_side.commit(processing_event)
            positions = {
                place_of(recording.domain_event): recording.notification.id
                for recording in recordings
                if isinstance(recording.domain_event, ANSWERED_FOR)
            }
            newest = max(positions.values())
        else:
            newest = self._write_side.recorder.max_notification_id() or 0
        for score in attempt.scores.values():
            self._scores.give_back(score)
        return self._answers(attempt, positions, newest)

    def _receipts_of_lost_commit(self) -> list[ReceiptT] | None:
        recorded = self._scores.are_recorded([attempt.proof for attempt in self._sent])
        for attempt, is_recorded in zip(self._sent, recorded, strict=True):
            if is_recorded:
                positions = self._search_positions(
                    {place_of(event) for event in attempt.events if isinstance(event, ANSWERED_FOR)}
                )
                return self._answers(attempt, positions, max(positions.values()))
        return None

    def _learn_originals(self, commands: Sequence[CommandT]) -> None:
        named = dict.fromkeys(map(self._grant_id_of, commands))
        claims = self._scores.claims_on(
            [grant_id for grant_id in named if grant_id and grant_id not in self._originals]
        )
        grants = self._scores.claimed_grants(list(claims.values()))
        for grant_id, grant in zip(claims, grants, strict=True):
            if isinstance(grant, ScoringError):
                raise RefusedAt([*map(self._grant_id_of, self._commands)].index(grant_id), grant)
            self._originals[grant_id] = grant

    def _loaded(
        self,
        load: Callable[[Sequence[str]], dict[str, UserScore]],
        user_ids: Sequence[str],
    ) -> dict[str, UserScore]:
        try:
            return load(user_ids)
        except StreamHasGap as error:
            users = [command.user_id for command in self._commands]
            raise RefusedAt(users.index(error.user_id), error) from error.__cause__

    def _exhausted(self, failure: Exception, retries: Retries, limit: TimeLimit) -> str:
        tried = f"{retries.failures} times in {limit.elapsed_seconds:.0f} seconds"
        if isinstance(failure, IntegrityError):
            return (
                f"{self._subject} lost the race for their users' streams {tried} and were "
                "not recorded: try again when fewer writers grant to the same users"
            )
        return self._unknown(f"failed {tried}", failure)

    def _unknown(self, what: str, failure: Exception) -> str:
        return (
            f"the event store {what} ({failure}), so it is unknown whether {self._subject} are "
            f"recorded: {self._cure}"
        )

    def _search_positions(self, wanted: Collection[Place]) -> dict[Place, int]:
        # What is wanted was committed moments ago, so its positions are among the newest.
        found: dict[Place, int] = {}
        stop = self._write_side.recorder.max_notification_id() or 0
        while len(found) < len(wanted) and stop > 0:
            start = max(1, stop - _SEARCH_WINDOW + 1)
            for notification in self._write_side.recorder.select_notifications(
                start=start,
                limit=_SEARCH_WINDOW,
                stop=stop,
                topics=[get_topic(event_class) for event_class in ANSWERED_FOR],
            ):
                place = place_of(notification)
                if place in wanted:
                    found[place] = notification.id
            stop = start - 1
        if len(found) < len(wanted):
            raise StoreWentBack  # between the claims, which were there, and this
        return found


def collected(scores: Iterable[UserScore]) -> ProcessingEvent[UUID]:
    """Collect the pending events of aggregates, to be committed together."""
    processing_event: ProcessingEvent[UUID] = ProcessingEvent()
    # What ProcessingEvent.collect_events() does, without its protocol checks: they cost more
    # than everything else here together.
    for score in scores:
        processing_event.events.extend(score.collect_events())
        processing_event.aggregates[score.id] = score
    return processing_event


def place_of(event: Any) -> Place:
    """Return where an event is stored."""
    return event.originator_id, event.originator_version
