"""What a drift report says, as plain data whose size does not depend on the number of users."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from projections.drift.causes import BothTotals, Cause, Reason, described
from projections.drift.distributions import Cells, SignedBins, Spread
from projections.drift.tolerance import Tolerance
from projections.words import counted

if TYPE_CHECKING:
    from datetime import datetime

    from projections.drift.places import Board, Move


@dataclass(frozen=True, slots=True)
class LargestDifference(BothTotals):
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
class Drift(BothTotals):
    """Old against new, overall.

    Attributes:
        measured_at: When the measuring began, UTC.
        tolerance: What a user is taken not to notice.
        position: Every user was read when the read model was here, or further on.
        lag_events: Events, of those recorded when the measuring was asked for, that the read model
            was still behind when it began.
        waited_seconds: How long it had waited for them.
        parked_streams: Users whose events are not projected from some event on.
        users: Users compared.
        same: Users whose totals are equal.
        lower: Users whom the ledger gives less than the old way.
        higher: Users whom it gives more.
        beyond: Users whose totals differ by more than the tolerance.
        new_to_points: Users who have nothing the old way, so no percentage either.
        staying: Users with a difference that no opening balance can close; see ``Reason.stays``.
        old: Sum of all recomputed totals, in points.
        new: Sum of all balances, in points.
        spread: Quantiles of the difference, new less old, over users.
        noticed_points: Quantiles of the difference in points, either way, over those who have one.
        noticed_percent: The same in hundredths of a percent of the recomputed total.
        histogram: The same difference, counted in ranges.
        scatter: Users by old and new total, counted in cells.
        causes: What explains the difference, most points first.
        categories: By category, points in old and new, most different first.
        largest: The users with the largest differences, largest first.
        boards: Who would change places in the first 10, 100 and 1,000 rows of the leaderboard.
        climbs: Who would gain most places, of those in the first 1,000 rows either way.
        falls: Who would lose most places, of the same.
        timeline: The ledger's total over time, by when points were earned.
        timeline_unit: ``day``, ``month`` or ``year``.
    """

    measured_at: datetime
    tolerance: Tolerance = field(default_factory=Tolerance)
    position: int = 0
    lag_events: int = 0
    waited_seconds: float = 0.0
    parked_streams: int = 0
    users: int = 0
    same: int = 0
    lower: int = 0
    higher: int = 0
    beyond: int = 0
    new_to_points: int = 0
    staying: int = 0
    old: int = 0
    new: int = 0
    spread: Spread = field(default_factory=Spread)
    noticed_points: Spread = field(default_factory=Spread)
    noticed_percent: Spread = field(default_factory=Spread)
    histogram: SignedBins = field(default_factory=SignedBins)
    scatter: Cells = field(default_factory=Cells)
    causes: list[Cause] = field(default_factory=list)
    categories: dict[str, list[int]] = field(default_factory=dict)
    largest: list[LargestDifference] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)
    climbs: list[Move] = field(default_factory=list)
    falls: list[Move] = field(default_factory=list)
    timeline: list[TimelinePoint] = field(default_factory=list)
    timeline_unit: str = "day"

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
        """Whether nobody would see another score, or none that differs by more than tolerated.

        And whether that can be known: everything is projected, and adds up.
        """
        return bool(self.users) and not (
            self.beyond or self.unexplained or self.lag_events or self.parked_streams
        )

    @property
    def verdict(self) -> str:
        """The sentence that says whether a flip is safe, and if not, why."""
        users = counted(self.users, "user")
        if self.safe_to_flip and self.different:
            return (
                f"A flip is safe within {self.tolerance}: {self.different:,} of "
                f"{users} would see another score, none of them by more."
            )
        if self.safe_to_flip:
            return f"A flip is safe: of {users}, nobody would see another score."
        return f"A flip is not safe: {self._objection}."

    @property
    def _objection(self) -> str:
        users = counted(self.users, "user")
        if self.lag_events:
            return (
                f"the read model was still {counted(self.lag_events, 'event')} behind after "
                f"waiting {self.waited_seconds:.1f} s, so these scores are old ones: see that a "
                "worker runs (score-ledger project --follow) and keeps up (score-ledger status)"
            )
        if self.parked_streams:
            return (
                f"the events of {counted(self.parked_streams, 'user')} are parked, so what they "
                "have now is not known here; score-ledger status lists them"
            )
        if not self.users:
            return "there is no user yet whose totals could be compared"
        if not self.beyond:
            return (
                f"{self.unexplained:,} of {users} have a total that is not the sum of "
                "its parts, so run score-ledger verify and measure again"
            )
        main = f"; most of it is {described(self.causes[0])}" if self.causes else ""
        if self.beyond < self.different:
            return (
                f"{self.beyond:,} of {users} would see a score that differs by more "
                f"than {self.tolerance}, of {self.different:,} who would see another one{main}"
            )
        return (
            f"{self.different:,} of {users} would see another score, {self.lower:,} "
            f"of them a lower one{main}"
        )

    @property
    def impact(self) -> str:
        """How much those who would notice would notice; empty if nobody would."""
        points, percent = self.noticed_points.quantiles(), self.noticed_percent.quantiles()
        if not points:
            return ""
        share = _percent(10_000 * self.different / self.users)
        half, most, all_ = (f"{points[quantile]:,}" for quantile in ("50", "95", "100"))
        sentences = [
            f"{self.different:,} of {counted(self.users, 'user')} ({share}) would notice.",
            f"In points: half up to {half}, 95 in 100 up to {most}, nobody more than {all_}.",
        ]
        if percent:
            half, most, all_ = (_percent(percent[quantile]) for quantile in ("50", "95", "100"))
            sentences.append(
                f"In percent of the old score: half up to {half}, 95 in 100 up to {most}, "
                f"nobody more than {all_}."
            )
        if self.new_to_points:
            sentences.append(f"{counted(self.new_to_points, 'user')} had nothing before.")
        return " ".join(sentences)

    @property
    def residue(self) -> list[Cause]:
        """The causes that no opening balance can close, most points first."""
        return [cause for cause in self.causes if cause.reason.stays]

    @property
    def remedy(self) -> str:
        """What opening balances can close of the difference, and what not; empty if neither."""
        to_grant = -sum(cause.difference for cause in self.causes if cause.reason.can_be_granted)
        parts = []
        if to_grant:
            parts.append(f"score-ledger open-balances grants {counted(to_grant, 'point')} of it.")
        if self.residue:
            points = sum(abs(cause.difference) for cause in self.residue)
            reasons = dict.fromkeys(str(cause.reason) for cause in self.residue)
            parts.append(
                f"{counted(points, 'point')} of {counted(self.staying, 'user')} cannot heal, since "
                f"grants are for ever: {', '.join(reasons)}."
            )
        return " ".join(parts)

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-compatible values; sizes do not grow with users."""
        return {
            "verdict": self.verdict,
            "safe_to_flip": self.safe_to_flip,
            "impact": self.impact,
            "remedy": self.remedy,
            "tolerance": {
                "points": self.tolerance.points,
                "percent": float(self.tolerance.percent),
            },
            "measured_at": self.measured_at.isoformat(timespec="milliseconds"),
            "position": self.position,
            "lag_events": self.lag_events,
            "parked_streams": self.parked_streams,
            "users": {
                "compared": self.users,
                "same": self.same,
                "lower": self.lower,
                "higher": self.higher,
                "beyond_tolerance": self.beyond,
                "new_to_points": self.new_to_points,
                "with_residue": self.staying,
                "unexplained": self.unexplained,
            },
            "points": {"old": self.old, "new": self.new, "difference": self.difference},
            "difference": {
                "quantiles": self.spread.quantiles(),
                "noticed_points": self.noticed_points.quantiles(),
                "noticed_percent": {
                    quantile: hundredths / 100
                    for quantile, hundredths in self.noticed_percent.quantiles().items()
                },
                "histogram": [
                    {"from": low, "to": high, "users": count}
                    for low, high, count in self.histogram.bars()
                ],
            },
            "causes": [
                {**asdict(cause), "stays": cause.reason.stays, "difference": cause.difference}
                for cause in self.causes
            ],
            "categories": [
                {"category": name, "old": old, "new": new, "difference": new - old}
                for name, (old, new) in self.categories.items()
            ],
            "largest": [{**asdict(row), "difference": row.difference} for row in self.largest],
            "leaderboard": {
                "first_rows": [asdict(board) for board in self.boards],
                "climbs": [asdict(move) for move in self.climbs],
                "falls": [asdict(move) for move in self.falls],
            },
            "timeline": {
                "unit": self.timeline_unit,
                "totals": [
                    {"at": point.at.date().isoformat(), "total": point.total}
                    for point in self.timeline
                ],
            },
        }


def _percent(hundredths: float) -> str:
    """Return a share for people: a tenth of a percent is as fine as anybody looks."""
    if 0 < hundredths < 10:  # noqa: PLR2004 - hundredths of a percent
        return "less than 0.1 %"
    return f"{hundredths / 100:,.1f} %".replace(".0 %", " %")
