"""Recording contributions, with a grant where a key is grant-shaped, and truthful receipts.

As with grants, the event store decides. A grant is committed hopefully; if its claim is refused,
the one who holds it is looked up, and only then is the bucket overwritten beside the grant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from eventsourcing.persistence import IntegrityError

from scoring.command_handler import CommandHandler, RefusedAt
from scoring.conflicts import Conflict
from scoring.contributions import Bucket, Contribution
from scoring.errors import InvalidGrant
from scoring.grants import Grant
from scoring.identity import derived_grant_id, is_grant_shaped
from scoring.receipts import ContributionReceipt, GrantStatus
from scoring.user_score import UserScore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from scoring.command_handler import Attempt, WriteSide


class _Step(NamedTuple):
    """What a contribution comes to in an attempt, as it is answered for."""

    status: GrantStatus
    event: UserScore.GrantRecorded | UserScore.BucketSet | None
    before: int
    after: int
    original: UserScore.GrantRecorded | None
    """The grant of its key from before it."""


class ContributionHandler(CommandHandler[Contribution, ContributionReceipt, _Step]):
    """Answers every contribution of one caller as if it had been made alone; used once."""

    # Whether there is anything to record depends on them, and a commit of nothing would not find
    # out that it was decided on old state.
    needs_current_scores = True
    _subject: ClassVar[str] = "the contributions and their grants"
    _cure: ClassVar[str] = "contribute the same again, which is safe"

    def __init__(
        self,
        write_side: WriteSide,
        contributions: Sequence[Contribution],
        *,
        clock: Callable[[], datetime],
        overwrite: bool,
    ) -> None:
        """Prepare to record these contributions, or of these what sets a bucket that is not there.

        The latter is decided on the state that the commit is made on, so nobody comes in between.
        """
        super().__init__(write_side, contributions)
        self._overwrite = overwrite
        # Asked once, in the caller's own thread.
        self._now = (
            clock()
            if any(each.at is None and is_grant_shaped(each.key) for each in contributions)
            else None
        )

    def _grant_id_of(self, command: Contribution) -> str | None:
        if is_grant_shaped(command.key):
            return derived_grant_id(command.user_id, command.key)
        return None

    def receiving_users(self) -> Collection[str]:
        """Return nobody: those who have nothing yet are made when it is decided."""
        return ()

    def decide(self, attempt: Attempt) -> list[_Step]:
        """Record grants for grant-shaped keys, and set the buckets of all others."""
        # No points make no grant, whose claim would be refused if there is one.
        self._learn_originals([wanted for wanted in self._commands if not wanted.points])
        steps = []
        for index, wanted in enumerate(self._commands):
            score = attempt.scores.get(wanted.user_id)
            if score is None:
                score = attempt.scores[wanted.user_id] = UserScore(user_id=wanted.user_id)
            try:
                steps.append(self._step(attempt, score, wanted))
            except InvalidGrant as error:
                raise RefusedAt(index, _in_points(error)) from None
        return steps

    def _step(self, attempt: Attempt, score: UserScore, wanted: Contribution) -> _Step:
        """Trigger what is to be recorded for one contribution, if anything."""
        before = score.recomputed_total
        grant_id = self._grant_id_of(wanted)
        original = None
        if grant_id is not None:
            original = attempt.granted.get(grant_id) or self._originals.get(grant_id)
        if not self._overwrite:
            standing = score.buckets.get(wanted.key, _bucket_of(original, score))
            if standing is not None:
                same = standing == wanted.bucket
                status = GrantStatus.DUPLICATE if same else GrantStatus.CONFLICT
                return _Step(status, None, before, before, None)
        if grant_id is not None and original is None and wanted.points:
            score.record(self._grant(wanted, grant_id), traceparent=self._traceparent)
            recorded: Any = score.pending_events[-1]
            attempt.granted[grant_id] = recorded
            return _Step(GrantStatus.RECORDED, recorded, before, score.recomputed_total, None)
        version = score.version
        score.set_bucket(wanted, granted=_bucket_of(original, score))
        changed: Any = None if score.version == version else score.pending_events[-1]
        if original is not None:
            status = _status_beside(original, wanted)
        else:
            status = GrantStatus.DUPLICATE if changed is None else GrantStatus.RECORDED
        return _Step(status, changed, before, score.recomputed_total, original)

    def _grant(self, wanted: Contribution, grant_id: str) -> Grant:
        granted_at = wanted.at or self._now
        assert granted_at is not None  # noqa: S101 - the key is grant-shaped
        return Grant(
            user_id=wanted.user_id,
            grant_id=grant_id,
            key=wanted.key,
            category=wanted.category,
            source=wanted.source,
            amount=wanted.points,
            granted_at=granted_at,
        )

    def _answers(
        self, attempt: Attempt, positions: Mapping[int, int], newest: int
    ) -> list[ContributionReceipt]:
        receipts = []
        for wanted, step in zip(self._commands, attempt.steps[self], strict=True):
            if step.status is GrantStatus.CONFLICT and step.original is not None:
                self._conflicts.append(_conflict(step.original, wanted))
            position = newest if step.event is None else positions[id(step.event)]
            receipts.append(
                ContributionReceipt(step.status, position, step.before, step.after, wanted.user_id)
            )
        return receipts


def _conflict(original: UserScore.GrantRecorded, given: Contribution) -> Conflict:
    return Conflict(
        f"key {given.key!r} of {given.user_id!r} has a grant, so only its bucket was set",
        kept={**_labels(original), "points": original.amount},
        given={**_labels(given), "points": given.points},
    )


def _bucket_of(original: UserScore.GrantRecorded | None, score: UserScore) -> Bucket | None:
    """Return the bucket that the grant of a key made, if it has one that made one."""
    if original is None or original.replaced_points is None:
        return None
    if original.originator_id == score.id and original.originator_version > score.version:
        # Recorded since the aggregate was loaded; where nothing is committed, nothing else tells.
        raise IntegrityError(f"the stream of user {score.user_id!r} has a later version")
    return Bucket(original.amount, original.category, original.source)


def _status_beside(original: UserScore.GrantRecorded, wanted: Contribution) -> GrantStatus:
    same = (wanted.user_id, wanted.key, *wanted.bucket) == (
        *(original.user_id, original.key, original.amount),
        *(original.category, original.source),
    )
    return GrantStatus.DUPLICATE if same else GrantStatus.CONFLICT


def _labels(of: Contribution | UserScore.GrantRecorded) -> dict[str, object]:
    return {name: getattr(of, name) for name in ("user_id", "key", "category", "source")}


def _in_points(error: InvalidGrant) -> InvalidGrant:
    # The caller gave points, not an amount.
    field = "points" if error.field == "amount" else error.field
    return InvalidGrant(field=field, value=error.value, rule=error.rule)
