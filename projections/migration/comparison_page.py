"""A comparison as one page of HTML that needs no network and runs no script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from projections.html import document, table
from projections.migration.comparison_report import said

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from projections.migration.comparison_report import Comparison, ScoreDifference


def write_page(comparison: Comparison, file: TextIO) -> None:
    """Write the page; the file is opened with ``encoding="utf-8"`` and closed by the caller."""
    body = (*_head(comparison), *_tables(comparison))
    file.writelines(document("Score ledger: comparison with the old collection", body))


def _head(comparison: Comparison) -> Iterable[str]:
    safe = " safe" if comparison.ok else ""
    yield "<h1>The old collection against the ledger</h1>\n"
    yield (
        f'<p class="soft">Compared from {comparison.compared_at:%Y-%m-%d %H:%M} UTC on, while both '
        "may be written. A bucket differs if it did so and stood still for "
        f"{comparison.settle_seconds:g} s.</p>\n"
    )
    yield f'<p class="verdict{safe}"><strong>{escape(comparison.verdict)}</strong></p>\n'
    tiles = {
        "users": comparison.users,
        "buckets": comparison.buckets,
        "points, old collection": comparison.old_points,
        "points, ledger": comparison.ledger_points,
        "different": comparison.difference_count,
        "repaired": comparison.repaired_count,
        "grants of other points": comparison.conflicts,
        "were in flight": comparison.passed,
        "never stood still": comparison.in_flight,
    }
    yield "<dl>\n"
    for name, value in tiles.items():
        yield f"<div><dt>{name}</dt><dd>{value:,}</dd></div>\n"
    yield "</dl>\n"


def _tables(comparison: Comparison) -> Iterable[str]:
    kinds = sorted({*comparison.counts, *comparison.repaired})
    if not kinds:
        return
    yield "<h2>How they differ</h2>\n"
    yield from table(
        "Buckets and totals by kind.",
        ("~how", "#different", "#repaired"),
        [
            (
                str(kind),
                f"{comparison.counts.get(kind, 0):,}",
                f"{comparison.repaired.get(kind, 0):,}",
            )
            for kind in kinds
        ],
        len(kinds),
    )
    yield "<h2>The first differences</h2>\n"
    yield from table(
        "With the time of the old document and of the ledger's event, where it is known.",
        ("user", "key", "~how", "~old collection", "~ledger"),
        [
            (
                *(each.user_id or "", each.key or "", _how(each)),
                *(said(each.old), said(each.ledger)),
            )
            for each in comparison.differences
        ],
        comparison.difference_count + comparison.repaired_count,
    )


def _how(difference: ScoreDifference) -> str:
    more = "repaired" if difference.repaired else difference.reason
    return f"{difference.kind}: {more}" if more else str(difference.kind)
