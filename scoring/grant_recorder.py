"""Recording grants, each id once in the whole ledger, with truthful receipts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from scoring.errors import InvalidGrant
from scoring.grants import Grant, payload_of
from scoring.receipts import GrantReceipt, GrantStatus
from scoring.recorder import Attempt, ChunkRecorder, RefusedAt, place_of

if TYPE_CHECKING:
    from scoring.event_store import Place
    from scoring.user_score import UserScore


class _Awarded(NamedTuple):
    """A grant that an attempt wants to record, and the user's balance around it."""

    event: UserScore.GrantRecorded
    before: int
    after: int


@dataclass
class _Attempt(Attempt):
    awarded: dict[str, _Awarded] = field(default_factory=dict)
    """By grant id."""


class GrantRecorder(ChunkRecorder[Grant, GrantReceipt, _Attempt]):
    """Answers every grant of one chunk, each id once; used once."""

    _subject: ClassVar[str] = "the grants"
    _cure: ClassVar[str] = "grant them again with the same ids, which is safe"

    def _grant_id_of(self, command: Grant) -> str:
        return command.grant_id

    def _decide(self) -> _Attempt:
        receiving = {
            grant.user_id: None for grant in self._commands if grant.grant_id not in self._originals
        }
        attempt = _Attempt(scores=self._loaded(self._scores.take, list(receiving)))
        for index, grant in enumerate(self._commands):
            if grant.grant_id in self._originals or grant.grant_id in attempt.awarded:
                continue
            score = attempt.scores[grant.user_id]
            before = score.total_score
            try:
                score.record(grant)
            except InvalidGrant as error:
                raise RefusedAt(index, error) from error.__cause__
            event: Any = score.pending_events[-1]
            attempt.awarded[grant.grant_id] = _Awarded(event, before, score.total_score)
        bystanders = [user_id for user_id in self._users if user_id not in attempt.scores]
        attempt.scores |= self._loaded(self._scores.all_current, bystanders)
        return attempt

    def _answers(
        self, attempt: _Attempt, positions: dict[Place, int], newest: int
    ) -> list[GrantReceipt]:
        receipts = []
        answered: dict[str, Grant | UserScore.GrantRecorded] = dict(self._originals)
        for grant in self._commands:
            user_id, grant_id = grant.user_id, grant.grant_id
            original = answered.get(grant_id)
            if original is None:
                answered[grant_id] = grant
                event, before, after = attempt.awarded[grant_id]
                position = positions[place_of(event)]
                receipts.append(
                    GrantReceipt(GrantStatus.RECORDED, position, before, after, user_id)
                )
                continue
            score = attempt.scores.get(user_id)
            total = 0 if score is None else score.total_score
            status = GrantStatus.DUPLICATE
            kept, given = payload_of(original), payload_of(grant)
            if kept != given:
                status = GrantStatus.CONFLICT
                self._write_side.conflicts.add(
                    f"grant id {grant_id!r} was recorded before with another payload",
                    kept=kept,
                    given=given,
                )
            # The original's position is not kept anywhere, but it is before ours or the newest.
            awarded = attempt.awarded.get(grant_id)
            position = newest if awarded is None else positions[place_of(awarded.event)]
            receipts.append(GrantReceipt(status, position, total, total, user_id))
        return receipts
