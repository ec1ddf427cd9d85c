"""``score-ledger drift``: old against new, for those who decide about a flip."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from projections.cli.console import (
    FolderOption,
    JsonOption,
    WaitOption,
    err,
    fits,
    new_table,
    out,
    print_json,
    print_table,
    progress_bar,
    shown,
)
from projections.cli.files import written_text
from projections.cli.ledgers import open_ledger, store_files
from projections.drift import CsvTable, Drift, Tolerance, write_page
from projections.drift.plots import range_label, signed
from projections.drift.summary import SummaryTable, summary_tables
from projections.ledger import DEFAULT_WAIT_SECONDS
from projections.settings import Settings

_ROWS_SHOWN: Final = 10
_BAR_WIDTH: Final = 30


def drift(
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write a line for every user to this file."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write one page with plots to this file; it needs no network.",
        ),
    ] = None,
    wait: WaitOption = DEFAULT_WAIT_SECONDS,
    tolerance: Annotated[
        str,
        typer.Option(
            metavar="POINTS or PERCENT%",
            help="What a user is taken not to notice: points, as 5, or percent of the old score, "
            "as 0.5%.",
        ),
    ] = "0",
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless a flip is safe, for pipelines.")
    ] = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Compare every user's old total with the ledger.

    Says who would notice and by how much, who would change places, what explains the difference and
    what can be done about it, and ends with the sentence that says whether reads could be switched
    to the ledger without anybody noticing. Whether they are is somebody's decision: nothing is
    switched here, and the exit code is 0 either way, unless --check asks for 1.

    Traffic may go on: what was recorded before is waited for, and each user is compared as they are
    at one instant. A file is written at the end and as a whole, or stays as it was.
    """
    tolerated = Tolerance.parse(tolerance)
    settings = Settings.from_environment(folder=folder)
    others = store_files(settings)
    with ExitStack() as stack:
        table = page = None
        if csv is not None:
            table = CsvTable(stack.enter_context(written_text(csv, "--csv", others=others)))
            others.append(csv)
        if html is not None:
            page = stack.enter_context(written_text(html, "--html", others=others))
        ledger = stack.enter_context(open_ledger(folder))
        bar = stack.enter_context(progress_bar("users"))
        task = bar.add_task("comparing", total=ledger.status().users)
        report = ledger.drift(
            wait=wait,
            tolerance=tolerated,
            on_user=None if table is None else table.add,
            on_progress=lambda seen: bar.update(task, completed=seen.users),
        )
        if page is not None:
            write_page(report, page)
    if json:
        print_json(report.to_json())
    else:
        print_drift(report)
    for file in filter(None, (csv, html)):
        err.print(f"written: {shown(str(file))}")
    if check and not report.safe_to_flip:
        raise typer.Exit(1)


def print_drift(report: Drift) -> None:
    """Print a report as tables, the verdict last."""
    out.print(
        f"[bold]{report.users:,}[/] users: [bold]{report.same:,}[/] the same, "
        f"[bold]{report.lower:,}[/] lower and [bold]{report.higher:,}[/] higher in the ledger"
    )
    out.print(
        f"recomputed total {report.old:,}, ledger balance {report.new:,}, "
        f"difference [bold]{signed(report.difference)}[/]"
    )
    if report.different:
        out.print(shown(report.impact))
        out.print()
        print_table(_histogram(report))
    for summary in summary_tables(report, limit=_ROWS_SHOWN):
        _print_summary(summary)
    out.print()
    if report.remedy:
        out.print(shown(report.remedy))
    out.print(f"[bold {'green' if report.safe_to_flip else 'yellow'}]{shown(report.verdict)}[/]")


def _histogram(report: Drift) -> Table:
    table = new_table("How many users differ by how much", "#ledger less old", "#users", "")
    bars = report.histogram.bars()
    most = max(count for *_, count in bars)
    for low, high, count in bars:
        width = 0 if not count else max(1, round(count / most * _BAR_WIDTH))
        table.add_row(range_label(low, high), f"{count:,}", "█" * width)
    return table


def _print_summary(summary: SummaryTable) -> None:
    prose = [name[1:] for name in summary.columns if name.startswith("~")]
    table = _as_table(summary, without=None)
    if not fits(table, prose=prose):
        table = _as_table(summary, without=summary.spare)
    out.print()
    print_table(table, prose=prose)


def _as_table(summary: SummaryTable, *, without: str | None) -> Table:
    kept = [index for index, name in enumerate(summary.columns) if name != without]
    table = new_table(summary.title, *(summary.columns[index] for index in kept))
    for row in summary.rows:
        table.add_row(*(shown(row[index]) for index in kept))
    notes = [f"--json and --html have the {without}"] if without is not None else []
    if len(summary.rows) < summary.total:
        notes.insert(0, f"{len(summary.rows):,} of {summary.total:,}")
        notes[1:] = ["--json and --html have more"]
    table.caption = "; ".join(notes) or None
    return table
