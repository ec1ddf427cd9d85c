"""The ledger in a few lines, beside the old way, to compare the real ones with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scoring.contributions import Bucket
from scoring.grants import Grant
from scoring.identity import derived_grant_id, is_grant_shaped
from scoring.receipts import GrantStatus

if TYPE_CHECKING:
    from scoring.contributions import Contribution


class LedgerModel:
    """A dictionary of grants by id, and one of buckets by user and key; every sum is taken anew.

    Attributes:
        grants: What counts, by grant id, in the order it was recorded.
        buckets: What the old way shows, by user id and key.
    """

    def __init__(self) -> None:
        self.grants: dict[str, Grant] = {}
        self.buckets: dict[tuple[str, str], Bucket] = {}

    def grant(self, grant: Grant) -> GrantStatus:
        """Award once and return the status that the receipt must have."""
        original = self.grants.get(grant.grant_id)
        if original is None:
            self.grants[grant.grant_id] = grant
            if is_grant_shaped(grant.key):
                self.buckets[grant.user_id, grant.key] = _bucket_of(grant)
            return GrantStatus.RECORDED
        return GrantStatus.DUPLICATE if original == grant else GrantStatus.CONFLICT

    def contribute(self, contribution: Contribution) -> GrantStatus:
        """Overwrite a bucket, award a grant-shaped key once, and return the status to expect.

        A grant is made at the time of the contribution, which must have one then.
        """
        place = contribution.user_id, contribution.key
        replaced = self.buckets.get(place)
        self.buckets[place] = contribution.bucket
        if is_grant_shaped(contribution.key):
            grant_id = derived_grant_id(*place)
            original = self.grants.get(grant_id)
            if original is not None:
                same = _bucket_of(original) == contribution.bucket
                return GrantStatus.DUPLICATE if same else GrantStatus.CONFLICT
            if contribution.points:
                if contribution.at is None:
                    raise ValueError("the model has no clock: give the contribution a time")
                return self.grant(
                    Grant(
                        user_id=contribution.user_id,
                        grant_id=grant_id,
                        key=contribution.key,
                        category=contribution.category,
                        source=contribution.source,
                        amount=contribution.points,
                        granted_at=contribution.at,
                    )
                )
        same = replaced == contribution.bucket
        return GrantStatus.DUPLICATE if same else GrantStatus.RECORDED

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
        """Return a user's old total in points: the sum of the user's buckets."""
        return sum(bucket.points for (user, _), bucket in self.buckets.items() if user == user_id)


def _bucket_of(grant: Grant) -> Bucket:
    return Bucket(grant.amount, grant.category, grant.source)
