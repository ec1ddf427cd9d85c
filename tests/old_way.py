"""The old way of scoring, as a model: what the site did before there was a ledger.

Written from the words of the old code (``contribute`` overwrites the bucket of a key, the total is
the sum of the buckets), and from nothing of the new one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class OldBucket:
    points: int
    category: str
    source: str


class OldWay:
    """A dictionary of buckets for each user."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, OldBucket]] = defaultdict(dict)

    def contribute(self, user: str, key: str, category: str, source: str, points: int) -> None:
        self.buckets[user][key] = OldBucket(points, category, source)

    def feed_post(self, user: str, post: str, points: int) -> None:
        self.contribute(user, f"content:feed-post:{post}", "content", "feed", points)

    def award_badge(self, user: str, badge: str, points: int) -> None:
        self.contribute(user, f"award:badge:{badge}", "award", "badge", points)

    def total(self, user: str) -> int:
        return sum(bucket.points for bucket in self.buckets[user].values())

    def leaderboard(self, users: set[str]) -> list[tuple[int, str, int]]:
        """Rank, user and total; the rank is one more than the number of users who have more."""
        totals = sorted(((self.total(user), user) for user in users), key=lambda t: (-t[0], t[1]))
        return [(1 + sum(t > total for t, _ in totals), user, total) for total, user in totals]
