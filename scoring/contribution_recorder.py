"""Recording contributions, with a grant where a key is grant-shaped, and truthful receipts.

As with grants, the event store decides. A grant is committed hopefully; if its claim is refused,
the one who holds it is looked up, and only then is the bucket overwritten beside the grant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from eventsourcing.persistence import IntegrityError

from scoring.contributions import Bucket, Contribution
from scoring.errors import InvalidGrant
from scoring.grants import Grant
from scoring.identity import derived_grant_id, is_grant_shaped
from scoring.receipts import ContributionReceipt, GrantStatus
from scoring.recorder import Attempt, ChunkRecorder, RefusedAt, place_of
from scoring.user_score import UserScore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from scoring.event_store import Place
    from scoring.recorder import WriteSide


class _Step(NamedTuple):
    """What a contribution comes to in an attempt, as it is answered for."""

    status: GrantStatus
    event: UserScore.GrantRecorded | UserScore.BucketSet | None
    before: int
    after: int
    original: UserScore.GrantRecorded | None
    """The grant of its key from before it."""


@dataclass
class _Attempt(Attempt):
    steps: list[_Step] = field(default_factory=list)
    granted: dict[str, UserScore.GrantRecorded] = field(default_factory=dict)
    """By grant id: the grants that it wants to record."""


class ContributionRecorder(ChunkRecorder[Contribution, ContributionReceipt, _Attempt]):
    """Answers every contribution of one chunk as if it had been made alone; used once."""

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
        self._clock = clock
        self._overwrite = overwrite
        # By index, once needed: another attempt does not ask the clock again.
        self._grants: dict[int, Grant] = {}

    def _grant_id_of(self, command: Contribution) -> str | None:
        if is_grant_shaped(command.key):
            return derived_grant_id(command.user_id, command.key)
        return None

    def _decide(self) -> _Attempt:
        # With everything recorded so far: whether there is anything to record depends on it, and
        # a commit of nothing would not find out that it was decided on old state.
        attempt = _Attempt(scores=self._loaded(self._scores.all_current, self._users))
        # No points make no grant, whose claim would be refused if there is one.
        self._learn_originals([wanted for wanted in self._commands if not wanted.points])
        for index, wanted in enumerate(self._commands):
            score = attempt.scores.get(wanted.user_id)
            if score is None:
                score = attempt.scores[wanted.user_id] = UserScore(user_id=wanted.user_id)
            try:
                attempt.steps.append(self._step(attempt, score, index))
            except InvalidGrant as error:
                raise RefusedAt(index, _in_points(error)) from None
        return attempt

    def _step(self, attempt: _Attempt, score: UserScore, index: int) -> _Step:
        """Trigger what is to be recorded for one contribution, if anything."""
        wanted, before = self._commands[index], score.recomputed_total
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
            score.record(self._grant(index, grant_id))
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

    def _grant(self, index: int, grant_id: str) -> Grant:
        grant = self._grants.get(index)
        if grant is None:
            wanted = self._commands[index]
            grant = self._grants[index] = Grant(
                user_id=wanted.user_id,
                grant_id=grant_id,
                key=wanted.key,
                category=wanted.category,
                source=wanted.source,
                amount=wanted.points,
                granted_at=self._clock() if wanted.at is None else wanted.at,
            )
        return grant

    def _answers(
        self, attempt: _Attempt, positions: dict[Place, int], newest: int
    ) -> list[ContributionReceipt]:
        receipts = []
        for wanted, step in zip(self._commands, attempt.steps, strict=True):
            if step.status is GrantStatus.CONFLICT and step.original is not None:
                self._log_conflict(step.original, wanted)
            position = newest if step.event is None else positions[place_of(step.event)]
            receipts.append(
                ContributionReceipt(step.status, position, step.before, step.after, wanted.user_id)
            )
        return receipts

    def _log_conflict(self, original: UserScore.GrantRecorded, given: Contribution) -> None:
        self._write_side.conflicts.add(
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
