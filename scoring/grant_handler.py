"""Recording grants, each id once in the whole ledger, with truthful receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from scoring.command_handler import CommandHandler, RefusedAt
from scoring.conflicts import Conflict
from scoring.errors import InvalidGrant
from scoring.grants import Grant, are_same_grant, payload_of
from scoring.receipts import GrantReceipt, GrantStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scoring.command_handler import Attempt
    from scoring.user_score import UserScore


_Step: TypeAlias = "tuple[UserScore.GrantRecorded, int | None, int]"
"""What is to become of one grant: what records it, or what holds its id already; the user's balance
before it, ``None`` if it is not recorded; the user's balance after it."""


class GrantHandler(CommandHandler[Grant, GrantReceipt, _Step]):
    """Answers every grant of one caller, each id once; used once."""

    needs_current_scores = False
    _subject: ClassVar[str] = "the grants"
    _cure: ClassVar[str] = "grant them again with the same ids, which is safe"

    def _grant_id_of(self, command: Grant) -> str:
        return command.grant_id

    def receiving_users(self) -> Collection[str]:
        """Return the users of grants whose ids are not known to be taken."""
        if not self._originals:
            return self.users
        return {
            grant.user_id: None for grant in self._commands if grant.grant_id not in self._originals
        }

    def decide(self, attempt: Attempt) -> list[_Step]:
        """Record the grants whose ids are free, as far as is known."""
        steps: list[_Step] = []
        for index, grant in enumerate(self._commands):
            grant_id = grant.grant_id
            holder = self._originals.get(grant_id) or attempt.granted.get(grant_id)
            if holder is not None:
                self._repeats_ids = True
                steps.append((holder, None, 0))
                continue
            score = attempt.scores[grant.user_id]
            before = score.total_score
            try:
                score.record(grant, traceparent=self._traceparent)
            except InvalidGrant as error:
                raise RefusedAt(index, error) from error.__cause__
            event: Any = score.pending_events[-1]
            attempt.granted[grant_id] = event
            steps.append((event, before, score.total_score))
        return steps

    def _answers(
        self, attempt: Attempt, positions: Mapping[int, int], newest: int
    ) -> list[GrantReceipt]:
        receipts = []
        for grant, step in zip(self._commands, attempt.steps[self], strict=True):
            user_id, (event, before, after) = grant.user_id, step
            # The original's position is not kept anywhere, but it is before ours or the newest.
            position = positions.get(id(event), newest)
            status = GrantStatus.RECORDED
            if before is None:
                score = attempt.scores.get(user_id)
                before = after = 0 if score is None else score.total_score
                status = self._status_beside(event, grant)
            receipts.append(GrantReceipt(status, position, before, after, user_id))
        return receipts

    def _status_beside(self, holder: UserScore.GrantRecorded, grant: Grant) -> GrantStatus:
        if are_same_grant(holder, grant):
            return GrantStatus.DUPLICATE
        what = f"grant id {grant.grant_id!r} was recorded before with another payload"
        self._conflicts.append(Conflict(what, payload_of(holder), payload_of(grant)))
        return GrantStatus.CONFLICT
