"""The drift report as one page of HTML that needs no network and runs no script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from projections.drift.plots import histogram, scatter, signed, timeline
from projections.drift.summary import summary_tables
from projections.html import document, table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from projections.drift.report import Drift

_ROWS_SHOWN: Final = 30


def write_page(drift: Drift, file: TextIO) -> None:
    """Write the page; the file is opened with ``encoding="utf-8"`` and closed by the caller."""
    body = (*_head(drift), *_plots(drift), *_tables(drift))
    file.writelines(document("Score ledger: drift", body))


def _head(drift: Drift) -> Iterable[str]:
    safe = " safe" if drift.safe_to_flip else ""
    yield "<h1>Drift: the old total against the ledger</h1>\n"
    yield (
        f'<p class="soft">Measured at {drift.measured_at:%Y-%m-%d %H:%M} UTC, at position '
        f"{drift.position:,}, with the read model {drift.lag_events:,} events behind.</p>\n"
    )
    yield f'<p class="verdict{safe}"><strong>{escape(drift.verdict)}</strong></p>\n'
    for sentences in filter(None, (drift.impact, drift.remedy)):
        yield f"<p>{escape(sentences)}</p>\n"
    tiles = {
        "users": f"{drift.users:,}",
        "same score": f"{drift.same:,}",
        "lower in the ledger": f"{drift.lower:,}",
        "higher in the ledger": f"{drift.higher:,}",
        "recomputed, all users": f"{drift.old:,}",
        "ledger, all users": f"{drift.new:,}",
        "difference": signed(drift.difference),
    }
    quantiles = drift.spread.quantiles()
    if quantiles:
        tiles["half of the users within"] = (
            f"{signed(quantiles['25'])} to {signed(quantiles['75'])}"
        )
    yield "<dl>\n"
    for name, value in tiles.items():
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>\n"
    yield "</dl>\n"


def _plots(drift: Drift) -> Iterable[str]:
    if not drift.users:
        return
    yield (
        '<div class="side-by-side">\n<section>\n<h2>Old against new</h2>\n'
        '<p class="key soft"><span class="same"></span>same'
        '<span class="lower"></span>lower in the ledger'
        '<span class="higher"></span>higher in the ledger. On the dashed diagonal nothing would '
        "change for a user; a larger dot is more users. Both axes are logarithmic.</p>\n"
    )
    yield scatter(drift)
    yield (
        "\n</section>\n<section>\n<h2>How many users differ by how much</h2>\n"
        '<p class="soft">Points in the ledger less '
        "points the old way, in ranges; the number of users is beside the bar.</p>\n"
    )
    yield histogram(drift)
    yield "\n</section>\n</div>\n"
    if drift.timeline:
        yield (
            '\n<h2>The ledger over time</h2>\n<p class="soft">The sum of all grants by the '
            f"{drift.timeline_unit} in which they were earned. The old way keeps no history, so it "
            "is a line at what it says today.</p>\n"
        )
        yield timeline(drift)


def _tables(drift: Drift) -> Iterable[str]:
    if not drift.causes:
        yield "\n<p>Every key has the same points both ways.</p>\n"
    for listed in summary_tables(drift, limit=_ROWS_SHOWN):
        yield f"\n<h2>{escape(listed.title)}</h2>\n"
        yield from table(listed.caption, listed.columns, listed.rows, listed.total)
