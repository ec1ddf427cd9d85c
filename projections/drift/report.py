"""What a drift report says, as plain data whose size does not depend on the number of users."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from projections.drift.distributions import Cells, SignedBins, Spread

if TYPE_CHECKING:
    from datetime import datetime

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
    LEDGER_ONLY = "granted without a bucket"
    """Points that the old way never knew."""
    UNEXPLAINED = "not the sum of its parts"
    """A total that is not what the user's buckets or grants add up to: it moved while it was read,
    or ``score-ledger verify`` has more to say."""


@dataclass(slots=True)
class Cause:
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

    @property
    def difference(self) -> int:
        """Points by which the ledger is above the recomputed total."""
        return self.new - self.old


@dataclass(slots=True)
class UserDrift:
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

    @property
    def difference(self) -> int:
        """Points by which the ledger is above the recomputed total."""
        return self.new - self.old

    def by_reason(self) -> dict[Reason, int]:
        """Return the points that each reason adds to the difference."""
        points = dict.fromkeys(Reason, 0)
        for cause in self.causes.values():
            points[cause.reason] += cause.difference
        return points


@dataclass(frozen=True, slots=True)
class LargestDifference:
    """A user in the list of the largest differences.

    Attributes:
        user_id: The user.
        old: The recomputed total, in points.
        new: The ledger's balance, in points.
        main_cause: What contributes most, in words; empty if nothing does.
    """

    user_id: str
    old: int
    new: int
    main_cause: str

    @property
    def difference(self) -> int:
        """Points by which the ledger is above the recomputed total."""
        return self.new - self.old


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """The ledger's total at one time.

    Attributes:
        at: Beginning of the day, month or year.
        total: All points granted up to its end.
    """

    at: datetime
    total: int


@dataclass(slots=True)
class Drift:
    """Old against new, overall.

    Attributes:
        measured_at: When the measuring began, UTC.
        lag_events: Events that the read model was behind then.
        users: Users compared.
        same: Users whose totals are equal.
        lower: Users whom the ledger gives less than the old way.
        higher: Users whom it gives more.
        old: Sum of all recomputed totals, in points.
        new: Sum of all balances, in points.
        spread: Quantiles of the difference, new less old, over users.
        histogram: The same difference, counted in ranges.
        scatter: Users by old and new total, counted in cells.
        causes: What explains the difference, most points first.
        categories: By category, points in old and new, most different first.
        largest: The users with the largest differences, largest first.
        timeline: The ledger's total over time, by when points were earned.
        timeline_unit: ``day``, ``month`` or ``year``.
    """

    measured_at: datetime
    lag_events: int = 0
    users: int = 0
    same: int = 0
    lower: int = 0
    higher: int = 0
    old: int = 0
    new: int = 0
    spread: Spread = field(default_factory=Spread)
    histogram: SignedBins = field(default_factory=SignedBins)
    scatter: Cells = field(default_factory=Cells)
    causes: list[Cause] = field(default_factory=list)
    categories: dict[str, list[int]] = field(default_factory=dict)
    largest: list[LargestDifference] = field(default_factory=list)
    timeline: list[TimelinePoint] = field(default_factory=list)
    timeline_unit: str = "day"

    @property
    def difference(self) -> int:
        """Points by which the ledger is above the old way, over all users."""
        return self.new - self.old

    @property
    def different(self) -> int:
        """Users whose totals differ."""
        return self.users - self.same

    @property
    def unexplained(self) -> int:
        """Users with a total that is not the sum of its parts."""
        return sum(cause.users for cause in self.causes if cause.reason is Reason.UNEXPLAINED)

    @property
    def safe_to_flip(self) -> bool:
        """Whether nobody would see another score if reads were switched to the ledger now."""
        return bool(self.users) and not (self.different or self.unexplained or self.lag_events)

    @property
    def verdict(self) -> str:
        """The sentence that says whether a flip is safe, and if not, why."""
        if self.lag_events:
            return (
                f"A flip is not safe: the read model is {self.lag_events:,} events behind, so "
                "project first and measure again."
            )
        if not self.users:
            return "A flip is not safe: there is no user yet whose totals could be compared."
        if self.different:
            main = f"; most of it is {described(self.causes[0])}" if self.causes else ""
            return (
                f"A flip is not safe: {self.different:,} of {_users(self.users)} would see another "
                f"score, {self.lower:,} of them a lower one{main}."
            )
        if self.unexplained:
            return (
                f"A flip is not safe: {self.unexplained:,} of {_users(self.users)} have a total "
                "that is not the sum of its parts, so run score-ledger verify and measure again."
            )
        return f"A flip is safe: of {_users(self.users)}, nobody would see another score."

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-compatible values; sizes do not grow with users."""
        return {
            "verdict": self.verdict,
            "safe_to_flip": self.safe_to_flip,
            "measured_at": self.measured_at.isoformat(timespec="milliseconds"),
            "lag_events": self.lag_events,
            "users": {
                "compared": self.users,
                "same": self.same,
                "lower": self.lower,
                "higher": self.higher,
                "unexplained": self.unexplained,
            },
            "points": {"old": self.old, "new": self.new, "difference": self.difference},
            "difference": {
                "quantiles": self.spread.quantiles(),
                "histogram": [
                    {"from": low, "to": high, "users": count}
                    for low, high, count in self.histogram.bars()
                ],
            },
            "causes": [
                {
                    "reason": str(cause.reason),
                    "keys": cause.keys,
                    "category": cause.category,
                    "users": cause.users,
                    "old": cause.old,
                    "new": cause.new,
                    "difference": cause.difference,
                }
                for cause in self.causes
            ],
            "categories": [
                {"category": name, "old": old, "new": new, "difference": new - old}
                for name, (old, new) in self.categories.items()
            ],
            "largest": [
                {
                    "user_id": row.user_id,
                    "old": row.old,
                    "new": row.new,
                    "difference": row.difference,
                    "main_cause": row.main_cause,
                }
                for row in self.largest
            ],
            "timeline": {
                "unit": self.timeline_unit,
                "totals": [
                    {"at": point.at.date().isoformat(), "total": point.total}
                    for point in self.timeline
                ],
            },
        }


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count:,} users"


def described(cause: Cause) -> str:
    """Return a cause in words, e.g. ``telemetry:activity, not granted yet``."""
    if cause.reason is Reason.UNEXPLAINED:
        return str(cause.reason)
    return f"{cause.keys}, {cause.reason}"
