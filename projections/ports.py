"""What an application asks of the ledger, as protocols: depend on these, and stand-ins fit too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from projections.queries.history import GrantRow, UserTotals
    from projections.queries.leaderboard import By
    from projections.queries.ranked_users import LeaderboardRow
    from scoring import Contribution, ContributionReceipt, Grant, GrantReceipt, Score


class UserScoreRepository(Protocol):
    """Users' scores in the event store: commands, and reads that see everything recorded.

    ``Scoring`` and ``ScoreLedger`` are such repositories.
    """

    def grant(
        self,
        user_id: str,
        grant_id: str,
        key: str,
        category: str,
        source: str,
        amount: int,
        granted_at: datetime,
    ) -> GrantReceipt:
        """Award points once."""
        ...

    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        """Award many grants and return their receipts in input order."""
        ...

    def contribute(
        self,
        user_id: str,
        key: str,
        category: str,
        source: str,
        points: int,
        at: datetime | None = None,
    ) -> ContributionReceipt:
        """Set the bucket of a key, the old way."""
        ...

    def contribute_many(
        self, contributions: Iterable[Contribution], *, overwrite: bool = True
    ) -> list[ContributionReceipt]:
        """Set many buckets and return their receipts in input order."""
        ...

    def feed_post(
        self, user_id: str, post_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a feed post."""
        ...

    def award_badge(
        self, user_id: str, badge_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a badge."""
        ...

    def score_of(self, user_id: str) -> Score:
        """Return a user's state; zeros for a user who has nothing yet."""
        ...


class ScoreGrantRepository(Protocol):
    """Projected grants of single users, and the totals they add up to; ``ScoreLedger`` is one."""

    def history(
        self, user_id: str, *, before: int | None = None, limit: int = 100
    ) -> list[GrantRow]:
        """Return a page of a user's grants, newest position first."""
        ...

    def totals(self, user_id: str) -> UserTotals:
        """Return a user's totals; zeros for a user who has nothing yet."""
        ...


class LeaderboardRepository(Protocol):
    """Projected users by their totals; without ``by``, by the one that it was made for."""

    def top(self, n: int = 10, by: By | None = None) -> list[LeaderboardRow]:
        """Return the first ``n`` rows."""
        ...

    def rank_of(self, user_id: str, by: By | None = None) -> LeaderboardRow | None:
        """Return a user's row, or ``None`` for a user who has nothing yet."""
        ...

    def around(self, user_id: str, k: int = 5, by: By | None = None) -> list[LeaderboardRow]:
        """Return a user's row with those before and after it."""
        ...

    def page(
        self, *, after: LeaderboardRow | None = None, limit: int = 100, by: By | None = None
    ) -> list[LeaderboardRow]:
        """Return the rows after a row."""
        ...
