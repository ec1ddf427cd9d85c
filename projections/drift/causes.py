"""Why a user's two totals differ: reasons, told apart by kind of key and by category."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MAX_CAUSES: Final = 1000
"""So many kinds of keys are told apart; further ones are summed up as ``OTHER_KEYS``."""

OTHER_KEYS: Final = "(other keys)"
OTHER_CATEGORIES: Final = "(other categories)"


class Reason(StrEnum):
    """Why the two totals differ in a key."""

    NOT_GRANTED = "not granted yet"
    """A bucket with points and no grant: a recompute key that is still to be migrated."""
    SHRUNK = "bucket below its grants"
    """The old way took points back, which the ledger never does."""
    GROWN = "bucket above its grants"
    """The old way counts more than has been granted so far."""
    AWARDED_AGAIN = "awarded again with other points"
    """A post or badge whose bucket was overwritten: its grant stays as it was first given."""
    LEDGER_ONLY = "granted without a bucket"
    """Points that the old way never knew."""
    UNEXPLAINED = "not the sum of its parts"
    """A total that is not what the user's buckets or grants add up to: ``score-ledger verify`` has
    more to say."""

    @property
    def stays(self) -> bool:
        """Whether no opening balance can close it, since the ledger already has other points."""
        return self in {Reason.SHRUNK, Reason.AWARDED_AGAIN, Reason.LEDGER_ONLY}

    @property
    def can_be_granted(self) -> bool:
        """Whether an opening balance closes it."""
        return self in {Reason.NOT_GRANTED, Reason.GROWN}


class BothTotals:
    """Points the old way, and in the ledger."""

    __slots__ = ()

    old: int
    new: int

    @property
    def difference(self) -> int:
        """Points by which the ledger is above the old way."""
        return self.new - self.old


@dataclass(slots=True)
class Cause(BothTotals):
    """What one kind of key contributes to the difference.

    Attributes:
        reason: Why the totals differ in it.
        keys: The kind: a key with ``*`` for what looks like an id.
        category: The label of the bucket, or of the grant where there is none.
        users: Users whom it affects.
        old: Points in the recomputed total.
        new: Points in the ledger's balance.
    """

    reason: Reason
    keys: str
    category: str
    users: int = 0
    old: int = 0
    new: int = 0


@dataclass(slots=True)
class UserDrift(BothTotals):
    """One user's two totals, and how they come to differ.

    Attributes:
        user_id: The user.
        old: The recomputed total, in points.
        new: The ledger's balance, in points.
        causes: By reason, kind of key and category; only where something differs.
        categories: By category, points in old and new.
    """

    user_id: str
    old: int
    new: int
    causes: dict[tuple[Reason, str, str], Cause] = field(default_factory=dict)
    categories: dict[str, list[int]] = field(default_factory=dict)

    def by_reason(self) -> dict[Reason, int]:
        """Return the points that each reason adds to the difference."""
        points = dict.fromkeys(Reason, 0)
        for cause in self.causes.values():
            points[cause.reason] += cause.difference
        return points


def described(cause: Cause) -> str:
    """Return a cause in words, e.g. ``telemetry:activity, not granted yet``."""
    if cause.reason is Reason.UNEXPLAINED:
        return str(cause.reason)
    return f"{cause.keys}, {cause.reason}"
