"""The commands that read: ``leaderboard``, ``user`` and ``status``."""

from __future__ import annotations

import dataclasses
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from projections.cli.console import (
    FolderOption,
    JsonOption,
    err,
    new_table,
    note_lag,
    out,
    print_json,
    print_table,
    shown,
)
from projections.cli.ledgers import note_default, open_ledger
from projections.queries.leaderboard import By
from projections.settings import Settings
from projections.words import counted

if TYPE_CHECKING:
    from projections.queries.history import GrantRow, UserTotals
    from projections.queries.ranked_users import LeaderboardRow


def leaderboard(
    top: Annotated[
        int, typer.Option("--top", "-n", min=1, metavar="N", help="How many rows.")
    ] = 10,
    by: Annotated[
        By | None,
        typer.Option(
            help="The old recomputed total or the ledger's balance. Default: $SCORE_LEDGER_RANK_BY "
            "or recomputed."
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Show who leads.

    By the old recomputed total, which users see, unless SCORE_LEDGER_RANK_BY or --by asks for the
    balance of the ledger. Users with the same score share a rank.
    """
    with open_ledger(folder, read_only=True) as ledger:
        ranked_by = ledger.leaderboard.rank_by if by is None else by
        rows = ledger.leaderboard.top(top, by=ranked_by)
        note_lag(ledger)
    if rows and rows[0].score == 0 and ranked_by == "recomputed":
        err.print(
            "[yellow]note:[/] nobody has a recomputed total, which counts contributions, posts and "
            "badges only: --by ledger ranks by grants"
        )
    if json:
        print_json(rows)
    else:
        print_leaderboard(rows, ranked_by)


def user(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Whose page.")],
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the newest grants.")
    ] = 10,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Show one user's totals and newest grants.

    They are as fresh as the read model: score-ledger project brings it up to date. Exit code 1 if
    there is no such user.
    """
    with open_ledger(folder, read_only=True) as ledger:
        totals = ledger.totals(user_id)
        grants = ledger.history(user_id, limit=limit)
        ranked_by = ledger.leaderboard.rank_by
        row = ledger.leaderboard.rank_of(user_id)
        note_lag(ledger)
    if json:
        print_json({"totals": totals, "rank": row.rank if row else None, "grants": grants})
    elif row is not None:
        print_user(totals, row, grants, ranked_by)
    if row is None:
        err.print(
            f"[bold red]error:[/] no user {shown(repr(user_id))} has got anything: score-ledger "
            "leaderboard lists those who have"
        )
        raise typer.Exit(1)


def status(folder: FolderOption = None, json: JsonOption = False) -> None:
    """Show where events and read model are, and how far apart.

    The lag in events and seconds, grants that met a foreign document in their place, parked
    streams, the generations that are kept, and why a worker last gave up.
    """
    with open_ledger(folder, read_only=True, any_shape=True) as ledger:
        state = ledger.status()
    note_default(Settings.from_environment(folder=folder))
    if json:
        print_json(state)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in dataclasses.asdict(state).items():
        if value is not None and value != [] and name != "parked_streams":
            table.add_row(f"[dim]{name.replace('_', ' ')}[/]", _said(value))
    print_table(table)
    for parked in state.parked_streams:
        out.print(
            f"[yellow]parked[/] {parked.stream} at position {parked.position:,} "
            f"({shown(parked.topic)}): {shown(parked.reason)}"
        )


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else shown(str(value))


def print_leaderboard(rows: list[LeaderboardRow], by: By) -> None:
    """Print a leaderboard as a table."""
    title = "recomputed total" if by == "recomputed" else "ledger balance"
    table = new_table(f"Leaderboard by {title}")
    table.add_column("rank", justify="right", style="dim")
    table.add_column("user")
    table.add_column("points", justify="right", style="bold")
    for row in rows:
        table.add_row(str(row.rank), shown(row.user_id), f"{row.score:,}")
    print_table(table)


def print_user(
    totals: UserTotals, row: LeaderboardRow, grants: list[GrantRow], ranked_by: By
) -> None:
    """Print one user's page, the rank beside the total that it is by."""
    rank = {ranked_by: f" (rank {row.rank})"}
    out.print(
        f"[bold]{shown(totals.user_id)}[/]  recomputed total [bold]{totals.recomputed_total:,}[/]"
        f"{rank.get('recomputed', '')}, ledger balance [bold]{totals.total_score:,}[/]"
        f"{rank.get('ledger', '')} from {counted(totals.grant_count, 'grant')}"
    )
    sums = Table(box=None, pad_edge=False)
    for title in ("category", "points", "source", "points"):
        sums.add_column(title, justify="right" if title == "points" else "left")
    sides = _highest_first(totals.category_totals), _highest_first(totals.source_totals)
    for left, right in zip_longest(*sides, fillvalue=("", "")):
        sums.add_row(*left, *right)
    print_table(sums)
    out.print()
    table = new_table("Newest grants", "granted at", "key", "category", "source")
    table.add_column("points", justify="right", style="bold")
    for grant in grants:
        table.add_row(
            f"{grant.granted_at:%Y-%m-%d %H:%M}",
            grant.key,
            grant.category,
            grant.source,
            f"{grant.amount:,}",
        )
    print_table(table)


def _highest_first(sums: dict[str, int]) -> list[tuple[str, str]]:
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return [(label, f"{points:,}") for label, points in ordered]
