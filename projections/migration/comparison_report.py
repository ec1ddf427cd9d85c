"""What comparing with an old collection reports, as plain data of bounded size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from projections.words import counted

if TYPE_CHECKING:
    from datetime import datetime

MAX_DIFFERENCES: Final = 20
"""So many differences are reported in full; the rest are counted."""


class DifferenceKind(StrEnum):
    """How a bucket in the old collection and the ledger's differ."""

    MISSING_IN_LEDGER = "missing in the ledger"
    """The old collection has points under a key where the ledger has none."""
    MISSING_IN_OLD = "missing in the old collection"
    """The ledger has points under a key where the old collection has none."""
    OTHER_POINTS = "other points"
    """Both have points, and others: the ledger was not told what the old side holds."""
    WRITE_ORDER = "order of two writes"
    """Both have points, and others; the ledger was told what the old side holds, too, at most a
    minute before it was told what it holds: two writes arrived in different orders."""
    LABEL = "other label"
    """The same points under another category or source."""
    TOTAL = "total"
    """The totals differ by something else than the user's buckets do: one of them is not the sum
    of its buckets."""
    REJECTED = "not acceptable"
    """The old side holds something that the ledger does not accept."""


class ScoreSide(NamedTuple):
    """What one side holds under a key, or as a user's total.

    Attributes:
        points: Points of the bucket; or the total.
        category: Its category; ``None`` of a total.
        source: Its source; ``None`` of a total.
        at: When it was written, as far as that is known: in the ledger the time of the last event
            of the key, in the old collection that of the field that the description names.
    """

    points: int
    category: str | None = None
    source: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """One bucket, or total, that differed and stood still.

    Attributes:
        user_id: Whose it is; ``None`` if the old collection names nobody who could have one.
        key: Of which bucket; ``None`` if it is about the total, or the user.
        kind: How the two differ.
        old: What the old collection holds; ``None`` if nothing, or nothing acceptable.
        ledger: What the ledger's recomputed side holds; ``None`` if nothing.
        repaired: Whether the ledger was given the old side's value, and holds it now.
        reason: Why it cannot be repaired, or is not acceptable, in words; empty if neither.
    """

    user_id: str | None
    key: str | None
    kind: DifferenceKind
    old: ScoreSide | None
    ledger: ScoreSide | None
    repaired: bool = False
    reason: str = ""


@dataclass(slots=True)
class Comparison:
    """The old collection against the ledger's recomputed side.

    Attributes:
        compared_at: When it began, UTC.
        settle_seconds: How long a difference had to stand still to be called one.
        users: Users compared: all that one of the two sides has.
        buckets: Buckets compared, likewise.
        old_points: Points of all users in the old collection, as first read.
        ledger_points: Points of all users in the ledger's recomputed total, as first read.
        differences: The first of those that were found, in full, repaired ones included.
        counts: How many there are of each kind, repaired ones left out.
        repaired: How many of each kind were repaired.
        conflicts: How many repaired keys have a grant of other points, category or source: their
            bucket was set, the grant stays, and the balance with it.
        passed: Buckets that differed when they were first read and were the same later: in flight.
        in_flight: Buckets that never stood still for so long, and were the same at no look.
        parked_streams: Streams that are parked, whose users' buckets are therefore old.
    """

    compared_at: datetime
    settle_seconds: float
    users: int = 0
    buckets: int = 0
    old_points: int = 0
    ledger_points: int = 0
    differences: list[ScoreDifference] = field(default_factory=list)
    counts: dict[DifferenceKind, int] = field(default_factory=dict)
    repaired: dict[DifferenceKind, int] = field(default_factory=dict)
    conflicts: int = 0
    passed: int = 0
    in_flight: int = 0
    parked_streams: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing differs any more, and nothing is parked."""
        return not (self.counts or self.parked_streams)

    @property
    def difference_count(self) -> int:
        """All differences that are left."""
        return sum(self.counts.values())

    @property
    def repaired_count(self) -> int:
        """All differences that were repaired."""
        return sum(self.repaired.values())

    @property
    def verdict(self) -> str:
        """The sentence that says how the two stand to each other."""
        what = f"{counted(self.buckets, 'bucket')} of {counted(self.users, 'user')}"
        repaired = f", {self.repaired_count:,} of them repaired" if self.repaired_count else ""
        if self.difference_count:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
            more = f"; {self.repaired_count:,} more repaired" if repaired else ""
            return (
                f"The ledger differs from the old collection in {self.difference_count:,} of "
                f"{what} ({kinds}){more}."
            )
        if self.parked_streams:
            return (
                f"{counted(self.parked_streams, 'stream')} are parked, so the ledger's side is "
                "not complete: run score-ledger unpark and compare again."
            )
        return f"The ledger holds what the old collection holds: {what}{repaired}."

    def report(self, difference: ScoreDifference) -> None:
        """Count a difference and keep it if it is among the first."""
        counts = self.repaired if difference.repaired else self.counts
        counts[difference.kind] = counts.get(difference.kind, 0) + 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(difference)

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-compatible values; sizes do not grow with users."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "compared_at": self.compared_at.isoformat(timespec="milliseconds"),
            "settle_seconds": self.settle_seconds,
            "users": self.users,
            "buckets": self.buckets,
            "points": {"old": self.old_points, "ledger": self.ledger_points},
            "differences": {
                "count": self.difference_count,
                "by_kind": {str(kind): count for kind, count in self.counts.items()},
                "first": [_in_json(each) for each in self.differences],
            },
            "repaired": {
                "count": self.repaired_count,
                "by_kind": {str(kind): count for kind, count in self.repaired.items()},
                "conflicts": self.conflicts,
            },
            "passed": self.passed,
            "in_flight": self.in_flight,
            "parked_streams": self.parked_streams,
        }


@dataclass(frozen=True, slots=True)
class ComparisonProgress:
    """How far comparing has come.

    Attributes:
        stage: ``comparing`` at first, then ``looking again``.
        done: Documents of the old collection; then differing buckets that are decided.
        total: How many there are, about.
    """

    stage: str
    done: int
    total: int


def said(side: ScoreSide | None) -> str:
    """Return what one side holds in words, e.g. ``12 points, telemetry/app``."""
    if side is None:
        return "nothing"
    parts = [counted(side.points, "point")]
    if side.category is not None:
        parts.append(f"{side.category}/{side.source}")
    if side.at is not None:
        parts.append(f"{side.at:%Y-%m-%d %H:%M:%S} UTC")
    return ", ".join(parts)


def _in_json(difference: ScoreDifference) -> dict[str, object]:
    sides = {"old": difference.old, "ledger": difference.ledger}
    return {**asdict(difference), **{name: _side_in_json(side) for name, side in sides.items()}}


def _side_in_json(side: ScoreSide | None) -> dict[str, object] | None:
    if side is None:
        return None
    at = None if side.at is None else side.at.isoformat(timespec="milliseconds")
    return {**side._asdict(), "at": at}
