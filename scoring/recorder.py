"""Recording a chunk of grants in one transaction, each id once, with a truthful receipt for all.

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

from scoring.errors import InvalidGrant, ScoringError, StreamHasGap
from scoring.event_store import StoreWentBack
from scoring.grants import Grant
from scoring.receipts import GrantReceipt, GrantStatus
from scoring.retrying import STORE_ERRORS, Deadline, is_hopeless, reading
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from uuid import UUID

    from eventsourcing.persistence import ApplicationRecorder, Recording

    from scoring.checkout import StripedLocks
    from scoring.conflicts import ConflictLog
    from scoring.user_scores import UserScores

AnswerT = TypeVar("AnswerT")

_SEARCH_WINDOW: Final = 1000


class RefusedAt(Exception):  # noqa: N818 - internal, never reaches a caller
    """A grant of the chunk cannot be recorded or answered for; nothing was committed."""

    def __init__(self, index: int, error: ScoringError) -> None:
        """Keep which grant it was, by its index in the chunk."""
        super().__init__(str(error))
        self.index = index
        self.error = error


@dataclass
class _Attempt:
    """What one attempt wants to commit."""

    scores: dict[str, UserScore] = field(default_factory=dict)
    balances: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By grant id: the user's total before and after."""
    events: Sequence[object] = ()
    """What was sent to the store."""
    totals: dict[str, int] = field(default_factory=dict)
    """By user id: the running balance as it is with this attempt committed."""


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


class CommandRecorder(ABC, Generic[AnswerT]):
    """Commits what a command wants until there is a truthful answer; used once."""

    _subject: ClassVar[str] = "the grants"
    _cure: ClassVar[str] = "grant them again with the same ids, which is safe"

    def __init__(self, write_side: WriteSide, users: Collection[str]) -> None:
        """Prepare to change these users."""
        self._write_side = write_side
        self._scores = write_side.scores
        self._users = set(users)

    @abstractmethod
    def _try_to_commit(self) -> AnswerT:
        """Make one attempt, holding the users' locks."""

    @abstractmethod
    def _learn_from_claims(self) -> AnswerT | None:
        """Find out which ids are taken; return the answer if an attempt of ours was committed."""

    @abstractmethod
    def _taken_count(self) -> int:
        """Return how many ids are known to be taken."""

    def answer(self) -> AnswerT:
        """Commit, and answer for it.

        Raises:
            RefusedAt: if an aggregate refused.
            ScoringError: if the store failed and stayed so.
        """
        with Deadline() as deadline:
            return self._answer_by(deadline)

    def _answer_by(self, deadline: Deadline) -> AnswerT:
        while True:
            taken_before = self._taken_count()
            failure: Exception
            try:
                with self._write_side.locks.hold(self._users):
                    return self._try_to_commit()
            except RefusedAt as refused:
                # A taken id is answered even where a new one would be refused.
                failure = refused
            except ConnectionPoolClosedError as error:
                # Perhaps between the commit and giving back the connection.
                raise ScoringError(
                    f"the event store was closed, so it is unknown whether {self._subject} are "
                    f"recorded: {self._cure}, on one that is open"
                ) from error
            except STORE_ERRORS as error:
                if is_hopeless(error):
                    raise ScoringError(
                        f"the event store refused {self._subject}: {error}"
                    ) from error
                failure = error
            try:
                # Asked after any failure: the commit may have been done and its answer lost.
                answer = self._learn_from_claims()
                if answer is not None:
                    return answer
            except STORE_ERRORS as error:
                failure = error
                if is_hopeless(error) and not isinstance(error, ConnectionPoolClosedError):
                    raise ScoringError(self._unknown("cannot be read", error)) from error
            if self._taken_count() > taken_before:
                continue  # something was learnt, and there are only so many ids to learn about
            if isinstance(failure, RefusedAt):
                raise failure
            if deadline.is_over(failure):
                raise ScoringError(self._exhausted(failure, deadline)) from failure
            deadline.pause(failure)

    def _exhausted(self, failure: Exception, deadline: Deadline) -> str:
        tried = f"{deadline.attempts} times in {deadline.seconds:.0f} seconds"
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

    def _search_positions(
        self, wanted: Collection[tuple[UUID, int]]
    ) -> dict[tuple[UUID, int], int]:
        # What is wanted was committed moments ago, so its positions are among the newest.
        found: dict[tuple[UUID, int], int] = {}
        stop = self._write_side.recorder.max_notification_id() or 0
        while len(found) < len(wanted) and stop > 0:
            start = max(1, stop - _SEARCH_WINDOW + 1)
            for notification in self._write_side.recorder.select_notifications(
                start=start,
                limit=_SEARCH_WINDOW,
                stop=stop,
                topics=[get_topic(UserScore.GrantRecorded), get_topic(UserScore.BucketSet)],
            ):
                place: Any = (notification.originator_id, notification.originator_version)
                if place in wanted:
                    found[place] = notification.id
            stop = start - 1
        if len(found) < len(wanted):
            raise StoreWentBack  # between the claims, which were there, and this
        return found


class ChunkRecorder(CommandRecorder[list[GrantReceipt]]):
    """Answers every grant of one chunk; used once."""

    def __init__(self, write_side: WriteSide, grants: Sequence[Grant]) -> None:
        """Prepare to record these grants."""
        super().__init__(write_side, {grant.user_id for grant in grants})
        self._grants = grants
        # By grant id: the grant that was found to hold the id already.
        self._originals: dict[str, Grant] = {}
        # By claim token: the attempt that sent it, to recognise one whose answer was lost.
        self._sent: dict[str, _Attempt] = {}

    @property
    def found_taken_ids(self) -> bool:
        """Whether some of the ids had been recorded before."""
        return bool(self._originals)

    def receipts(self, *, ask_first: bool = False) -> list[GrantReceipt]:
        """Commit the chunk and return a receipt for each grant, in order.

        Args:
            ask_first: Look the ids up before the first attempt: cheaper when many are taken, as
                when a file is imported again, and dearer when none is.

        Raises:
            RefusedAt: if an aggregate refused a grant.
            ScoringError: if the store failed and stayed so.
        """
        if ask_first:
            reading(self._learn_from_claims)
        return self.answer()

    def _taken_count(self) -> int:
        return len(self._originals)

    def _try_to_commit(self) -> list[GrantReceipt]:
        plan = _Attempt()
        for index, grant in enumerate(self._grants):
            if grant.grant_id in self._originals or grant.grant_id in plan.balances:
                continue
            score = plan.scores.get(grant.user_id)
            try:
                if score is None:
                    score = plan.scores[grant.user_id] = self._scores.take(grant.user_id)
                before = score.total_score
                score.record(grant)
            except (InvalidGrant, StreamHasGap) as error:
                raise RefusedAt(index, error) from error.__cause__
            plan.balances[grant.grant_id] = before, score.total_score
        # All that the receipts need is read before the commit: after it, nothing may fail.
        for user_id in self._users - plan.scores.keys():
            try:
                bystander = self._scores.current(user_id)
            except StreamHasGap as error:
                raise RefusedAt(self._first_index_of(user_id), error) from error.__cause__
            if bystander is not None:
                plan.totals[user_id] = bystander.total_score
                self._scores.give_back(bystander)
        positions = self._commit(plan) if plan.balances else {}
        last = (
            max(positions.values(), default=0)
            or self._write_side.recorder.max_notification_id()
            or 0
        )
        for user_id, score in plan.scores.items():
            plan.totals[user_id] = score.total_score
            self._scores.give_back(score)
        return self._answers(plan, positions, last)

    def _first_index_of(self, user_id: str) -> int:
        return next(i for i, grant in enumerate(self._grants) if grant.user_id == user_id)

    def _commit(self, plan: _Attempt) -> dict[str, int]:
        processing_event = collected(plan.scores.values())
        plan.events = processing_event.events
        for event in processing_event.events:
            if isinstance(event, GrantClaimed):
                self._sent[event.token] = plan
        return _positions(self._write_side.commit(processing_event))

    def _learn_from_claims(self) -> list[GrantReceipt] | None:
        for index, grant in enumerate(self._grants):
            if grant.grant_id in self._originals:
                continue
            claim = self._scores.claim_on(grant.grant_id)
            if claim is None:
                continue
            if claim.token in self._sent:
                return self._answer_for_lost_commit(self._sent[claim.token])
            try:
                event = self._scores.claimed_grant(claim)
            except ScoringError as error:
                raise RefusedAt(index, error) from None
            self._originals[grant.grant_id] = _payload(event)
        return None

    def _answer_for_lost_commit(self, plan: _Attempt) -> list[GrantReceipt]:
        plan.totals |= {user_id: score.total_score for user_id, score in plan.scores.items()}
        places = {
            event.grant_id: (event.originator_id, event.originator_version)
            for event in plan.events
            if isinstance(event, UserScore.GrantRecorded)
        }
        found = self._search_positions(set(places.values()))
        positions = {grant_id: found[place] for grant_id, place in places.items()}
        return self._answers(plan, positions, max(positions.values()))

    def _answers(self, plan: _Attempt, positions: dict[str, int], last: int) -> list[GrantReceipt]:
        receipts = []
        answered: dict[str, Grant] = dict(self._originals)
        for grant in self._grants:
            original = answered.get(grant.grant_id)
            if original is None:
                answered[grant.grant_id] = grant
                before, after = plan.balances[grant.grant_id]
                receipts.append(
                    GrantReceipt(
                        GrantStatus.RECORDED,
                        positions[grant.grant_id],
                        before,
                        after,
                        grant.user_id,
                    )
                )
                continue
            total = plan.totals.get(grant.user_id, 0)
            status = GrantStatus.DUPLICATE
            if _fields(grant) != _fields(original):
                status = GrantStatus.CONFLICT
                self._write_side.conflicts.add(
                    f"grant id {grant.grant_id!r} was recorded before with another payload",
                    kept=dict(zip(Grant.model_fields, _fields(original), strict=True)),
                    given=dict(zip(Grant.model_fields, _fields(grant), strict=True)),
                )
            # The original's position is not kept anywhere, but it is before ours or the newest.
            position = positions.get(grant.grant_id, last)
            receipts.append(GrantReceipt(status, position, total, total, grant.user_id))
        return receipts


def collected(scores: Iterable[UserScore]) -> ProcessingEvent[UUID]:
    """Collect the pending events of aggregates, to be committed together."""
    processing_event: ProcessingEvent[UUID] = ProcessingEvent()
    # What ProcessingEvent.collect_events() does, without its protocol checks: they cost more
    # than everything else here together.
    for score in scores:
        processing_event.events.extend(score.collect_events())
        processing_event.aggregates[score.id] = score
    return processing_event


def _positions(recordings: Iterable[Recording[UUID]]) -> dict[str, int]:
    return {
        recording.domain_event.grant_id: recording.notification.id
        for recording in recordings
        if isinstance(recording.domain_event, UserScore.GrantRecorded)
    }


def _payload(event: UserScore.GrantRecorded) -> Grant:
    # Not through the checks of Grant: rules may have been tightened since it was recorded.
    values = {name: getattr(event, name) for name in Grant.model_fields}
    return super(Grant, Grant).model_construct(None, **values)


def _fields(grant: Grant) -> tuple[object, ...]:
    # Not the objects themselves: an embedder's subclass of Grant never equals a Grant.
    return tuple(getattr(grant, name) for name in Grant.model_fields)
