"""What the caller of a command gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar


class GrantStatus(StrEnum):
    """What became of a grant; ``ContributionReceipt`` says what it means for a contribution."""

    RECORDED = "RECORDED"
    """This call appended it."""
    DUPLICATE = "DUPLICATE"
    """The same grant was recorded before; nothing changed."""
    CONFLICT = "CONFLICT"
    """The id was recorded before with another payload; nothing changed, and it was logged."""


@dataclass(frozen=True, slots=True)
class GrantReceipt:
    """The answer to one grant.

    Attributes:
        status: What became of it.
        position: A notification id of the event store that, once projected, makes the answer
            visible: the grant's own for ``RECORDED``, else one at or after the original's.
        total_before: The user's running balance in points before the grant; for ``DUPLICATE``
            and ``CONFLICT`` the current one.
        total_after: The user's running balance in points after it; likewise.
        user_id: Who was named, normalised: whose events make the answer visible.
    """

    status: GrantStatus
    position: int
    total_before: int
    total_after: int
    user_id: str


@dataclass(frozen=True, slots=True)
class ContributionReceipt:
    """The answer to one contribution.

    ``status`` speaks of the contribution, the totals of the old recomputed total. A routed one may
    be a ``DUPLICATE`` or a ``CONFLICT`` for the ledger and still overwrite its bucket, as it always
    did; the table at ``Scoring.contribute`` has all cases.

    Attributes:
        status: ``RECORDED`` if it made a grant or, without one, changed the bucket; ``DUPLICATE``
            if it says what its grant, or without one its bucket, says already; ``CONFLICT`` if it
            says otherwise than its grant.
        position: A notification id of the event store that, once projected, makes the answer
            visible: that of the event if one was recorded, else the newest there is.
        recomputed_before: The user's recomputed total in points before the contribution.
        recomputed_after: The user's recomputed total in points after it; may be less.
        user_id: Who was named, normalised: whose events make the answer visible.
    """

    status: GrantStatus
    position: int
    recomputed_before: int
    recomputed_after: int
    user_id: str


ReceiptT = TypeVar("ReceiptT", GrantReceipt, ContributionReceipt)


@dataclass(frozen=True, slots=True)
class Score:
    """A user's state at one version of their stream, straight from the event store.

    Attributes:
        user_id: The user, normalised.
        total_score: Running balance in points: the sum of all grants.
        category_totals: Running balance by category; sums to ``total_score``.
        source_totals: Running balance by source; sums to ``total_score``.
        recomputed_total: The old total: the sum of the user's buckets.
        grant_count: How many grants the balance is made of.
        version: Version of the stream; 0 for a user who has nothing yet.
    """

    user_id: str
    total_score: int
    category_totals: Mapping[str, int]
    source_totals: Mapping[str, int]
    recomputed_total: int
    grant_count: int
    version: int
