"""Recording one contribution, with a grant if its key is grant-shaped, and a truthful receipt.

As with grants, the event store decides. A grant is committed hopefully; if its claim is refused,
the one who holds it is looked up, and only then is the bucket overwritten beside the grant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scoring.contributions import Bucket, Contribution
from scoring.errors import InvalidGrant
from scoring.grants import Grant
from scoring.identity import derived_grant_id, is_grant_shaped, user_stream_id
from scoring.receipts import ContributionReceipt, GrantStatus
from scoring.recorder import CommandRecorder, RefusedAt, collected
from scoring.user_score import UserScore

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from scoring.recorder import WriteSide


@dataclass(frozen=True)
class _Attempt:
    """The event that one attempt wants to commit, and how it is answered for."""

    event: UserScore.GrantRecorded | UserScore.BucketSet
    status: GrantStatus
    before: int
    after: int

    def receipt(self, position: int) -> ContributionReceipt:
        return ContributionReceipt(
            self.status, position, self.before, self.after, self.event.user_id
        )


class ContributionRecorder(CommandRecorder[ContributionReceipt]):
    """Answers one contribution; used once."""

    _subject: ClassVar[str] = "the contribution and its grant"
    _cure: ClassVar[str] = "contribute the same again, which is safe"

    def __init__(
        self,
        write_side: WriteSide,
        contribution: Contribution,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        """Prepare to record this contribution."""
        super().__init__(write_side, {contribution.user_id})
        self._contribution = contribution
        self._grant: Grant | None = None
        self._grant_id: str | None = None
        if is_grant_shaped(contribution.key):
            self._grant_id = derived_grant_id(contribution.user_id, contribution.key)
            if contribution.points:
                self._grant = _as_grant(contribution, self._grant_id, clock)
        # The grant that was found to hold the id already.
        self._original: UserScore.GrantRecorded | None = None
        self._sent: list[_Attempt] = []

    def _taken_count(self) -> int:
        return 0 if self._original is None else 1

    def _try_to_commit(self) -> ContributionReceipt:
        # With everything recorded so far: whether there is anything to record depends on it, and
        # a commit of nothing would not find out that it was decided on old state.
        user_id = self._contribution.user_id
        score = self._scores.current(user_id) or UserScore(user_id=user_id)
        version, before = score.version, score.recomputed_total
        try:
            status = self._decide(score)
        except InvalidGrant as error:
            raise RefusedAt(0, _in_points(error)) from None
        if score.version == version:
            self._scores.give_back(score)
            position = self._write_side.recorder.max_notification_id() or 0
            self._log_conflict(status)
            return ContributionReceipt(status, position, before, before, user_id)
        event = score.pending_events[-1]
        assert isinstance(event, UserScore.GrantRecorded | UserScore.BucketSet)  # noqa: S101
        attempt = _Attempt(event, status, before, score.recomputed_total)
        self._sent.append(attempt)
        recordings = self._write_side.commit(collected([score]))
        self._scores.give_back(score)
        self._log_conflict(status)
        return attempt.receipt(
            next(r.notification.id for r in recordings if r.domain_event is event)
        )

    def _decide(self, score: UserScore) -> GrantStatus:
        """Trigger what is to be recorded, if anything, and return the status of the receipt."""
        version = score.version
        if self._grant is not None and self._original is None:
            score.record(self._grant)
            return GrantStatus.RECORDED
        if self._grant_id is not None and self._original is None:
            self._learn_original()
        score.set_bucket(self._contribution, granted=self._granted_bucket())
        if self._original is not None:
            return self._status_beside(self._original)
        return GrantStatus.DUPLICATE if score.version == version else GrantStatus.RECORDED

    def _granted_bucket(self) -> Bucket | None:
        original = self._original
        if original is None or original.replaced_points is None:
            return None
        return Bucket(original.amount, original.category, original.source)

    def _status_beside(self, original: UserScore.GrantRecorded) -> GrantStatus:
        wanted = self._contribution
        same = (wanted.user_id, wanted.key, *wanted.bucket) == (
            *(original.user_id, original.key, original.amount),
            *(original.category, original.source),
        )
        return GrantStatus.DUPLICATE if same else GrantStatus.CONFLICT

    def _learn_from_claims(self) -> ContributionReceipt | None:
        for attempt in self._sent:
            if self._scores.is_recorded(attempt.event):
                self._log_conflict(attempt.status)
                return attempt.receipt(self._search_position(attempt.event))
        if self._grant_id is not None and self._original is None:
            self._learn_original()
        return None

    def _search_position(self, event: UserScore.GrantRecorded | UserScore.BucketSet) -> int:
        place = user_stream_id(event.user_id), event.originator_version
        return self._search_positions({place})[place]

    def _learn_original(self) -> None:
        assert self._grant_id is not None  # noqa: S101 - for the type checker
        claim = self._scores.claim_on(self._grant_id)
        if claim is not None:
            self._original = self._scores.claimed_grant(claim)

    def _log_conflict(self, status: GrantStatus) -> None:
        original, given = self._original, self._contribution
        if status is not GrantStatus.CONFLICT or original is None:
            return
        self._write_side.conflicts.add(
            f"key {given.key!r} of {given.user_id!r} has a grant, so only its bucket was set",
            kept={**_labels(original), "points": original.amount},
            given={**_labels(given), "points": given.points},
        )


def _labels(of: Contribution | UserScore.GrantRecorded) -> dict[str, object]:
    return {name: getattr(of, name) for name in ("user_id", "key", "category", "source")}


def _as_grant(contribution: Contribution, grant_id: str, clock: Callable[[], datetime]) -> Grant:
    return Grant(
        user_id=contribution.user_id,
        grant_id=grant_id,
        key=contribution.key,
        category=contribution.category,
        source=contribution.source,
        amount=contribution.points,
        granted_at=clock() if contribution.at is None else contribution.at,
    )


def _in_points(error: InvalidGrant) -> InvalidGrant:
    # The caller gave points, not an amount.
    field = "points" if error.field == "amount" else error.field
    return InvalidGrant(field=field, value=error.value, rule=error.rule)
