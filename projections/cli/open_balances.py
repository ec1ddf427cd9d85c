"""``score-ledger open-balances``: grant what buckets have beyond the grants of their keys."""

from __future__ import annotations

from typing import Annotated

import typer

from projections.cli.console import (
    FolderOption,
    JsonOption,
    WaitOption,
    err,
    new_table,
    out,
    print_json,
    print_table,
    progress_bar,
    shown,
)
from projections.cli.interrupts import Interrupted, stop_on_signals
from projections.cli.jsonl import parse_time
from projections.cli.ledgers import open_ledger
from projections.drift import OpenedBalances
from projections.ledger import DEFAULT_WAIT_SECONDS
from projections.words import counted


def open_balances(
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--keys",
            metavar="KIND",
            help="Only keys of this kind, as score-ledger drift names it, e.g. quiz:history:*; "
            "may be repeated. Default: all.",
        ),
    ] = None,
    granted_at: Annotated[
        str | None,
        typer.Option(
            "--granted-at",
            metavar="TIME",
            help="Time of the grants, in ISO 8601 with an offset. Default: now.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be granted, and record nothing.")
    ] = False,
    wait: WaitOption = DEFAULT_WAIT_SECONDS,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Grant what buckets have beyond the grants of their keys.

    That brings both totals together. One grant for each user and key: the points that the old way
    counts and the ledger does not have yet. Posts and badges are left alone, as their grants come
    with score-ledger contribute, and so is a bucket that is below its grants. The recomputed total,
    which users see, stays as it is.

    It may be repeated and interrupted, traffic may go on: nothing is granted twice, and what a
    bucket gains later is granted by the next run. An application that also grants single events of
    a key must grant first and contribute afterwards, or an opening balance in between counts an
    event twice. The exit code is 1 if the ledger does not take one of the grants.
    """
    at = None if granted_at is None else parse_time(granted_at)
    with open_ledger(folder) as ledger, stop_on_signals() as stop, progress_bar("users") as bar:
        task = bar.add_task("opening balances", total=ledger.status().users)
        opened = ledger.open_balances(
            keys=keys,
            granted_at=at,
            dry_run=dry_run,
            wait=wait,
            stop=stop,
            on_progress=lambda seen: bar.update(task, completed=seen.users),
        )
    if json:
        print_json(opened)
    else:
        print_opened(opened)
    for user_id, key, reason in opened.refused:
        err.print(f"[yellow]{shown(user_id)} {shown(key)}:[/] {shown(reason)}")
    if opened.interrupted:
        raise Interrupted("interrupted: run it again to carry on; nothing is granted twice", stop)
    if opened.refused_count:
        err.print(f"[bold red]error:[/] {opened.refused_count:,} balances could not be opened")
        raise typer.Exit(1)


def print_opened(opened: OpenedBalances) -> None:
    """Print what was granted by kind of key, and the sum last."""
    if opened.kinds:
        table = new_table("Opening balances", "keys", "#grants", "#points")
        for kind, (grants, points) in sorted(opened.kinds.items(), key=lambda item: -item[1][1]):
            table.add_row(shown(kind), f"{grants:,}", f"{points:,}")
        print_table(table)
    done = "would be granted" if opened.dry_run else "granted"
    out.print(
        f"[bold]{counted(opened.points, 'point')}[/] {done} in "
        f"[bold]{counted(opened.grants, 'opening balance')}[/] of {counted(opened.users, 'user')}"
    )
    if opened.opened_before:
        out.print(f"{opened.opened_before:,} had been opened before")
    if opened.grant_shaped:
        out.print(
            f"{opened.grant_shaped:,} posts and badges differ from their grants and stay so: see "
            "score-ledger drift"
        )
