"""What one user has: their document and their grants, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from scoring.rules import normalised_user_id

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel


@dataclass(frozen=True, slots=True)
class GrantRow:
    """One projected grant.

    Attributes:
        position: Its position in the event store; unique, and growing with time of recording.
        grant_id: The caller's id.
        key: What was rewarded.
        category: Its label.
        source: Its label.
        amount: Points.
        granted_at: When it was earned, UTC.
        recorded_at: When it was recorded, UTC.
    """

    position: int
    grant_id: str
    key: str
    category: str
    source: str
    amount: int
    granted_at: datetime
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class UserTotals:
    """One projected user.

    Attributes:
        user_id: The user.
        recomputed_total: The old total in points, which is what users see.
        total_score: Running balance of the ledger in points.
        category_totals: Running balance by category.
        source_totals: Running balance by source.
        grant_count: How many grants.
        last_grant_at: The latest ``granted_at``, UTC; ``None`` without grants.
        version: Last applied version of the user's stream; 0 for a user who has nothing yet.
    """

    user_id: str
    recomputed_total: int
    total_score: int
    category_totals: dict[str, int]
    source_totals: dict[str, int]
    grant_count: int
    last_grant_at: datetime | None
    version: int


class UserHistory:
    """Reads single users from the read model."""

    def __init__(self, read_model: ReadModel) -> None:
        self._grants = read_model.grants
        self._users = read_model.users
        self._generations = read_model.generations

    def totals(self, user_id: str) -> UserTotals:
        """Return a user's totals; zeros, at version 0, for a user who has nothing yet.

        Raises:
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        user_id = normalised_user_id(user_id)
        document = self._generations.consistently(
            lambda session: self._users.find_one({"_id": user_id}, session=session)
        )
        if document is None:
            return UserTotals(user_id, 0, 0, {}, {}, 0, None, 0)
        return UserTotals(
            user_id=user_id,
            recomputed_total=int(document["recomputedTotal"]),
            total_score=int(document["totalScore"]),
            category_totals={k: int(v) for k, v in document.get("categoryTotals", {}).items()},
            source_totals={k: int(v) for k, v in document.get("sourceTotals", {}).items()},
            grant_count=int(document["grantCount"]),
            last_grant_at=document.get("lastGrantAt"),
            version=int(document["version"]),
        )

    def history(
        self, user_id: str, *, before: int | None = None, limit: int = 100
    ) -> list[GrantRow]:
        """Return a page of a user's grants, newest position first.

        Args:
            user_id: Whose.
            before: Only grants at lower positions: the last position of a page, for the one that
                follows; ``None`` for the first page.
            limit: Grants on a page, at least 1.

        Raises:
            ValueError: if ``limit`` is less than 1, or ``before`` is not a position.
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        if not _is_whole(limit) or limit < 1:
            raise ValueError(f"limit must be an integer of 1 or more; got {limit!r}")
        query: Document = {"userId": normalised_user_id(user_id)}
        if before is not None:
            # MongoDB compares within a type: anything else would be an empty page, not an error.
            if not _is_whole(before):
                raise ValueError(
                    f"before must be the position of a page's last row, an integer; got {before!r}"
                )
            query["_id"] = {"$lt": before}

        def read(session: ClientSession) -> list[GrantRow]:
            found = self._grants.find(query, session=session).sort("_id", -1).limit(limit)
            return [_row(document) for document in found]

        return self._generations.consistently(read)


def _is_whole(number: object) -> bool:
    """Tell whether it is an integer that MongoDB can express."""
    return isinstance(number, int) and -(2**63) <= number < 2**63


def _row(document: Document) -> GrantRow:
    return GrantRow(
        position=int(document["position"]),
        grant_id=document["grantId"],
        key=document["key"],
        category=document["category"],
        source=document["source"],
        amount=int(document["amount"]),
        granted_at=document["grantedAt"],
        recorded_at=document["recordedAt"],
    )
