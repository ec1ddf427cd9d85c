"""The tables of a drift report as text, for the terminal and the page alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from projections.drift.plots import signed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from projections.drift.report import Drift


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """A table of a report, to be escaped by whoever shows it.

    Attributes:
        title: What it lists.
        caption: What has to be known to read it.
        columns: The headings; those that begin with ``#`` are of numbers, those that begin with
            ``~`` of words that may go on in the next line.
        rows: The first rows, as many as are to be shown.
        total: How many rows there are.
        spare: A column that may be left out where there is no room.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    total: int
    spare: str | None = None


def summary_tables(drift: Drift, *, limit: int) -> Iterator[SummaryTable]:
    """Yield those tables that have rows, each of at most ``limit``."""
    if drift.causes:
        yield SummaryTable(
            "What explains the difference",
            "Kinds of keys whose points differ, most points first. A * stands for what looks like "
            "an id.",
            ("~why", "keys", "category", "#users", "#old", "#new", "#difference"),
            [
                (
                    *(str(cause.reason), cause.keys, cause.category, f"{cause.users:,}"),
                    *_points(cause.old, cause.new),
                )
                for cause in drift.causes[:limit]
            ],
            len(drift.causes),
            spare="category",
        )
    if drift.categories:
        yield SummaryTable(
            "By category",
            "All points, by category of the bucket and of the grant.",
            ("category", "#old", "#new", "#difference"),
            [
                (name, *_points(old, new))
                for name, (old, new) in list(drift.categories.items())[:limit]
            ],
            len(drift.categories),
        )
    if drift.largest:
        yield SummaryTable(
            "The largest differences",
            "The CSV file of score-ledger drift lists every user.",
            ("user", "#old", "#new", "#difference", "~mostly"),
            [
                (row.user_id, *_points(row.old, row.new), row.main_cause)
                for row in drift.largest[:limit]
            ],
            drift.different,
        )
    moves = [*drift.climbs, *drift.falls]
    if moves:
        yield SummaryTable(
            "Who would change places",
            "On the leaderboard by the ledger, against the one by the old total.",
            ("rows", "#other rank within them", "#replaced by others"),
            [
                (f"first {board.rows:,}", f"{board.moved:,}", f"{board.replaced:,}")
                for board in drift.boards
            ],
            len(drift.boards),
        )
        yield SummaryTable(
            "The largest climbs and falls",
            "Of those in the first 1,000 rows of either leaderboard.",
            ("user", "#places", "#old rank", "#new rank", "#old", "#new"),
            [
                (
                    *(move.user_id, signed(move.places), f"{move.old_rank:,}"),
                    *(f"{move.new_rank:,}", f"{move.old:,}", f"{move.new:,}"),
                )
                for move in moves
            ],
            len(moves),
        )


def _points(old: int, new: int) -> tuple[str, str, str]:
    return f"{old:,}", f"{new:,}", signed(new - old)
