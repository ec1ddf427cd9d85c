"""The ledger in ten lines, to compare the real one with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scoring.identity import is_grant_shaped
from scoring.receipts import GrantStatus

if TYPE_CHECKING:
    from scoring.grants import Grant


class LedgerModel:
    """A dictionary of grants by id; every sum is taken again each time.

    Attributes:
        grants: What counts, by grant id, in the order it was recorded.
    """

    def __init__(self) -> None:
        """Start with an empty ledger."""
        self.grants: dict[str, Grant] = {}

    def grant(self, grant: Grant) -> GrantStatus:
        """Award once and return the status that the receipt must have."""
        original = self.grants.get(grant.grant_id)
        if original is None:
            self.grants[grant.grant_id] = grant
            return GrantStatus.RECORDED
        return GrantStatus.DUPLICATE if original == grant else GrantStatus.CONFLICT

    def of(self, user_id: str) -> list[Grant]:
        """Return a user's grants in the order they were recorded."""
        return [grant for grant in self.grants.values() if grant.user_id == user_id]

    def total(self, user_id: str) -> int:
        """Return a user's running balance in points."""
        return sum(grant.amount for grant in self.of(user_id))

    def totals_by(self, label: str, user_id: str) -> dict[str, int]:
        """Return a user's running balance by ``"category"`` or ``"source"``."""
        totals: Counter[str] = Counter()
        for grant in self.of(user_id):
            totals[getattr(grant, label)] += grant.amount
        return dict(totals)

    def recomputed_total(self, user_id: str) -> int:
        """Return a user's old total in points: the grants whose keys are grant-shaped."""
        return sum(grant.amount for grant in self.of(user_id) if is_grant_shaped(grant.key))
