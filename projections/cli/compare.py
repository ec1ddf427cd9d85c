"""``score-ledger compare``: what the site itself keeps against the ledger."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from projections.cli.console import FolderOption, JsonOption, err, out, print_json, shown, stage_bar
from projections.cli.files import written_text
from projections.cli.ledgers import open_ledger, store_files
from projections.cli.old_collection import (
    FieldOption,
    GrantedAtOption,
    LabelMapOption,
    LabelsOption,
    OldUriOption,
    RoundOption,
    UsersAsTextOption,
    described,
    old_client,
)
from projections.migration import Comparison, ScoreDifference
from projections.migration.comparison import SETTLE_SECONDS
from projections.migration.comparison_page import write_page
from projections.migration.comparison_report import said
from projections.settings import Settings


def compare(
    from_mongo: Annotated[
        str,
        typer.Option(
            "--from-mongo",
            metavar="FILE.toml|[DATABASE.]COLLECTION",
            help="The old collection: a file that describes it, or its name. It is only read.",
        ),
    ],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Contribute what the old collection holds for each bucket that differs and stood "
            "still, and compare these again.",
        ),
    ] = False,
    settle: Annotated[
        float,
        typer.Option(
            "--settle",
            min=0,
            metavar="SECONDS",
            help="How long a bucket has to stand still to be called different: longer than the "
            "site takes between its two writes.",
        ),
    ] = SETTLE_SECONDS,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write one page to this file; it needs no network."
        ),
    ] = None,
    granted_at: GrantedAtOption = None,
    old_uri: OldUriOption = None,
    field: FieldOption = None,
    labels: LabelsOption = None,
    label_map: LabelMapOption = None,
    round_: RoundOption = None,
    users_as_text: UsersAsTextOption = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Compare a site's own old collection with the ledger.

    Every bucket and total of every user is compared with the ledger's recomputed side, while both
    are being written. What differs is looked at again until it is the same or has stood still, so
    what is in flight is not called a difference. Everything recorded is projected first.

    Prints the first differences with both sides, and counts the rest by kind: missing in the
    ledger, missing in the old collection, other points, order of two writes (the ledger was told
    what the old side holds, too, at most a minute before), other label; a total that is not the sum
    of its buckets, and what the ledger does not accept, cannot be repaired.

    This is the nightly command of a migration, with --repair: the old collection is right, and the
    ledger is given what it holds. Grants stay as they are: a post or badge with other points has
    its bucket set only.

    Exit codes: 0 if nothing differs, or all of it was repaired; 1 if anything differs, or it could
    not be compared; 2 if an option is wrong; 130 after Ctrl-C. The file of --html is written at the
    end and as a whole, or stays as it was.
    """
    old = described(
        from_mongo,
        field=field,
        labels=labels,
        label_map=label_map,
        round_=round_,
        users_as_text=users_as_text,
        granted_at=granted_at,
    )
    settings = Settings.from_environment(folder=folder)
    with ExitStack() as stack:
        page = None
        if html is not None:
            others = store_files(settings)
            page = stack.enter_context(written_text(html, "--html", others=others))
        ledger = stack.enter_context(open_ledger(folder))
        client = stack.enter_context(old_client(old_uri, settings))
        with stage_bar("", "comparing") as on_progress:
            comparison = ledger.compare(
                old, client, repair=repair, settle_seconds=settle, on_progress=on_progress
            )
        if page is not None:
            write_page(comparison, page)
    if json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison, may_repair=not repair)
    if html is not None:
        err.print(f"written: {shown(str(html))}")
    if not comparison.ok:
        raise typer.Exit(1)


def print_comparison(comparison: Comparison, *, may_repair: bool) -> None:
    """Print a comparison, the verdict last."""
    for difference in comparison.differences:
        _print_difference(difference)
    more = comparison.difference_count + comparison.repaired_count - len(comparison.differences)
    if more > 0:
        out.print(f"… and {more:,} more")
    for name, counts in (("different", comparison.counts), ("repaired", comparison.repaired)):
        for kind, count in counts.items():
            out.print(f"{count:>9,} {name}: {kind}")
    if comparison.conflicts:
        err.print(
            f"[yellow]note:[/] {comparison.conflicts:,} of those that were repaired have a grant, "
            "which keeps its own points: their buckets were set, the balance was not"
        )
    if comparison.passed or comparison.in_flight:
        err.print(
            f"[yellow]note:[/] {comparison.passed:,} buckets were in flight and then the same, "
            f"{comparison.in_flight:,} never stood still"
        )
    out.print(f"[bold {'green' if comparison.ok else 'red'}]{shown(comparison.verdict)}[/]")
    if may_repair and comparison.difference_count:
        err.print(
            "[yellow]note:[/] --repair gives the ledger what the old collection holds, as far as "
            "it can be"
        )


def _print_difference(difference: ScoreDifference) -> None:
    # In lines, not in columns, and not broken: a key of any length stays whole.
    place = " ".join(shown(part) for part in (difference.user_id, difference.key) if part)
    out.print(f"[bold]{place or '(no user)'}[/]: {difference.kind}", soft_wrap=True)
    if difference.old is not None or difference.ledger is not None:
        out.print(f"    old     {shown(said(difference.old))}")
        out.print(f"    ledger  {shown(said(difference.ledger))}")
    if difference.repaired:
        out.print("    [green]repaired[/]")
    elif difference.reason:
        out.print(f"    {shown(difference.reason)}")
