"""Recording a chunk of grants in one transaction, each id once, with a truthful receipt for all.

The event store decides: a chunk is committed hopefully, without asking first which ids are free.
If the store refuses it, the claims tell why: an id that was taken is answered from the original, a
claim with one of our own tokens means that an attempt had been committed although its answer was
lost, and no claim at all means that somebody else advanced a user's stream first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from eventsourcing.application import ProcessingEvent
from eventsourcing.persistence import IntegrityError
from eventsourcing.utils import get_topic

from scoring.errors import InvalidGrant, ScoringError
from scoring.grants import Grant
from scoring.receipts import GrantReceipt, GrantStatus
from scoring.retrying import STORE_ERRORS, Deadline, is_hopeless, reading
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from eventsourcing.persistence import Recording

    from scoring.application import Scoring
    from scoring.checkout import StripedLocks
    from scoring.user_scores import UserScores

logger = logging.getLogger(__name__)

_SEARCH_WINDOW: Final = 1000


class RefusedAt(Exception):  # noqa: N818 - internal, never reaches a caller
    """A grant of the chunk was refused by its user's aggregate; nothing was committed."""

    def __init__(self, index: int, error: InvalidGrant) -> None:
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
    versions: dict[str, tuple[UUID, int]] = field(default_factory=dict)
    """By grant id: the stream and version of its event."""
    totals: dict[str, int] = field(default_factory=dict)
    """By user id: the running balance as it is with this attempt committed."""


class ChunkRecorder:
    """Answers every grant of one chunk; used once."""

    def __init__(
        self, app: Scoring, scores: UserScores, locks: StripedLocks, grants: Sequence[Grant]
    ) -> None:
        """Prepare to record ``grants`` through ``app``."""
        self._app = app
        self._scores = scores
        self._locks = locks
        self._grants = grants
        self._users = {grant.user_id for grant in grants}
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
        deadline = Deadline()
        while True:
            taken_before = len(self._originals)
            failure: Exception
            try:
                with self._locks.hold(self._users):
                    return self._try_to_commit()
            except RefusedAt as refused:
                # A taken id is answered even where a new one would be refused.
                failure = refused
            except STORE_ERRORS as error:
                if is_hopeless(error):
                    raise ScoringError(f"the event store refused the grants: {error}") from error
                failure = error
            try:
                # Asked after any failure: the commit may have been done and its answer lost.
                receipts = self._learn_from_claims()
                if receipts is not None:
                    return receipts
            except STORE_ERRORS as error:
                failure = error
            if len(self._originals) > taken_before:
                continue  # something was learnt, and there are only so many ids to learn about
            if isinstance(failure, RefusedAt):
                raise failure
            if deadline.is_over:
                raise ScoringError(_exhausted(failure, deadline)) from failure
            deadline.pause()

    def _try_to_commit(self) -> list[GrantReceipt]:
        plan = _Attempt()
        for index, grant in enumerate(self._grants):
            if grant.grant_id in self._originals or grant.grant_id in plan.balances:
                continue
            score = plan.scores.get(grant.user_id)
            if score is None:
                score = plan.scores[grant.user_id] = self._scores.take(grant.user_id)
            before = score.total_score
            try:
                score.record(grant)
            except InvalidGrant as error:
                raise RefusedAt(index, error) from None
            plan.balances[grant.grant_id] = before, score.total_score
            plan.versions[grant.grant_id] = score.id, score.version
        # All that the receipts need is read before the commit: after it, nothing may fail.
        for user_id in self._users - plan.scores.keys():
            bystander = self._scores.current(user_id)
            if bystander is not None:
                plan.totals[user_id] = bystander.total_score
                self._scores.give_back(bystander)
        positions = self._commit(plan) if plan.balances else {}
        last = max(positions.values(), default=0) or self._app.recorder.max_notification_id() or 0
        for user_id, score in plan.scores.items():
            plan.totals[user_id] = score.total_score
            self._scores.give_back(score)
        return self._answers(plan, positions, last)

    def _commit(self, plan: _Attempt) -> dict[str, int]:
        processing_event: ProcessingEvent[UUID] = ProcessingEvent()
        # What ProcessingEvent.collect_events() does, without its protocol checks: they cost more
        # than everything else here together.
        for score in plan.scores.values():
            processing_event.events.extend(score.collect_events())
            processing_event.aggregates[score.id] = score
        for event in processing_event.events:
            if isinstance(event, GrantClaimed):
                self._sent[event.token] = plan
        return _positions(self._app.commit(processing_event))

    def _learn_from_claims(self) -> list[GrantReceipt] | None:
        """Find out which ids are taken; return receipts if it was ourselves who took them."""
        for grant in self._grants:
            if grant.grant_id in self._originals:
                continue
            claim = self._scores.claim_on(grant.grant_id)
            if claim is None:
                continue
            if claim.token in self._sent:
                return self._answer_for_lost_commit(self._sent[claim.token])
            event = self._scores.claimed_grant(claim)
            self._originals[grant.grant_id] = _payload(event)
        return None

    def _answer_for_lost_commit(self, plan: _Attempt) -> list[GrantReceipt]:
        plan.totals |= {user_id: score.total_score for user_id, score in plan.scores.items()}
        positions = self._search_positions(plan)
        return self._answers(plan, positions, max(positions.values()))

    def _search_positions(self, plan: _Attempt) -> dict[str, int]:
        # The attempt was committed moments ago, so its positions are among the newest.
        wanted = {place: grant_id for grant_id, place in plan.versions.items()}
        found: dict[str, int] = {}
        stop = self._app.recorder.max_notification_id() or 0
        while len(found) < len(wanted) and stop > 0:
            start = max(1, stop - _SEARCH_WINDOW + 1)
            for notification in self._app.recorder.select_notifications(
                start=start,
                limit=_SEARCH_WINDOW,
                stop=stop,
                topics=[get_topic(UserScore.GrantRecorded)],
            ):
                place = (notification.originator_id, notification.originator_version)
                if place in wanted:
                    found[wanted[place]] = notification.id
            stop = start - 1
        return found

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
                _log_conflict(grant, original)
            # The original's position is not kept anywhere, but it is before ours or the newest.
            position = positions.get(grant.grant_id, last)
            receipts.append(GrantReceipt(status, position, total, total, grant.user_id))
        return receipts


def _exhausted(failure: Exception, deadline: Deadline) -> str:
    tried = f"{deadline.attempts} times in {deadline.seconds:.0f} seconds"
    if isinstance(failure, IntegrityError):
        return (
            f"the grants lost the race for their users' streams {tried} and were "
            "not recorded: try again when fewer writers grant to the same users"
        )
    return (
        f"the event store failed {tried} ({failure}), so it is unknown whether "
        "the grants are recorded: grant them again with the same ids, which is safe"
    )


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


def _log_conflict(grant: Grant, original: Grant) -> None:
    try:
        logger.warning(
            "grant id %r was recorded before with another payload; ignored %r, kept %r",
            grant.grant_id,
            grant,
            original,
        )
    except Exception:  # noqa: BLE001 - a broken log handler must not fail a recorded chunk
        return
