"""Holds receipts against the events that are stored: is every caller told the truth?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from scoring import Grant, GrantReceipt, GrantStatus, Scoring, UserScore
from scoring.testing.store_reader import StoreReader


@dataclass
class StoredLedger:
    """Everything that an event store holds, read back from its events."""

    events: dict[str, UserScore.GrantRecorded] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    balances: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0]))
    """By user: the running balance after each of their grants, 0 first."""
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By grant id: the user's total before and after."""

    def payload(self, grant_id: str) -> Grant:
        event = self.events[grant_id]
        return Grant(**{name: getattr(event, name) for name in Grant.model_fields})


def read_ledger(scoring: Scoring) -> StoredLedger:
    """Read the store; fails if an id is stored twice or a grant and its claim are apart.

    A server goes on for a moment with what a client had asked for that was killed: if something was
    committed meanwhile, all is read again.
    """
    newest = scoring.recorder.max_notification_id()
    ledger = StoredLedger(positions=StoreReader().read(scoring))
    for notification in scoring.recorder.select_notifications(start=1, limit=2**31):
        event = scoring.mapper.to_domain_event(notification)
        if isinstance(event, UserScore.GrantRecorded):
            before = ledger.balances[event.user_id][-1]
            ledger.events[event.grant_id] = event
            ledger.totals[event.grant_id] = before, before + event.amount
            ledger.balances[event.user_id].append(before + event.amount)
    scores = {user_id: scoring.score_of(user_id) for user_id in ledger.balances}
    if scoring.recorder.max_notification_id() != newest:
        return read_ledger(scoring)
    assert ledger.events.keys() == ledger.positions.keys()
    for user_id, balances in ledger.balances.items():
        assert scores[user_id].total_score == balances[-1]
    return ledger


def check_receipts(
    ledger: StoredLedger, answers: Iterable[tuple[Grant, GrantReceipt]]
) -> dict[str, int]:
    """Check every answer; return how often each grant id was answered by RECORDED."""
    times_recorded: dict[str, int] = defaultdict(int)
    for grant, receipt in answers:
        grant_id = grant.grant_id
        stored = ledger.payload(grant_id)
        if receipt.status is GrantStatus.RECORDED:
            times_recorded[grant_id] += 1
            assert stored == grant
            assert receipt.position == ledger.positions[grant_id]
            assert (receipt.total_before, receipt.total_after) == ledger.totals[grant_id]
            continue
        assert receipt.status is (
            GrantStatus.DUPLICATE if stored == grant else GrantStatus.CONFLICT
        )
        assert receipt.position >= ledger.positions[grant_id]
        assert receipt.total_before == receipt.total_after
        assert receipt.total_before in ledger.balances[grant.user_id]
        if stored.user_id == grant.user_id:
            assert receipt.total_before >= ledger.totals[grant_id][1]
    return times_recorded
