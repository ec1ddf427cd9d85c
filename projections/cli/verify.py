"""``score-ledger verify``: compare the read model with the events."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from projections.cli.console import (
    FolderOption,
    JsonOption,
    err,
    note_lag,
    out,
    print_json,
    shown,
    stage_bar,
)
from projections.cli.interrupts import Interrupted, stop_on_signals
from projections.cli.ledgers import open_ledger
from projections.cli.rebuild import AdoptOption, run_rebuild
from projections.errors import EventStoreReplaced
from projections.ledger import ScoreLedger
from projections.verification.report import DOCUMENT, Difference, Verification
from projections.words import counted


def verify(
    events: Annotated[
        bool,
        typer.Option(
            "--events/--no-events",
            help="Compare with the event store, or only totals with grants and buckets in the "
            "database.",
        ),
    ] = True,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="If anything differs, rebuild the read model and verify again."
        ),
    ] = False,
    adopt: AdoptOption = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the read model with the event store.

    Every grant up to the tracked position has to be there once, with the same payload, and nothing
    extra; totals, categories, sources, counts, buckets, recomputed totals and the position have to
    be what the events add up to. Workers may go on meanwhile.

    Prints the first differences in full, counts the rest, and exits with 1 if there is any. Nothing
    is ever patched: --repair rebuilds the whole read model, as score-ledger rebuild does.
    """
    if adopt and not repair:
        raise typer.BadParameter("it says what --repair may do: give both", param_hint="--adopt")
    with open_ledger(folder) as ledger:
        outcome: Verification | None = None
        try:
            outcome = _verified(ledger, events=events)
        except EventStoreReplaced as replaced:
            if not adopt:
                raise
            err.print(f"[bold red]warning:[/] {shown(str(replaced))}")
        repaired = False
        if outcome is None or (repair and not outcome.ok):
            if outcome is not None and not json:
                print_verification(outcome)
            with stop_on_signals() as stop:
                repaired = run_rebuild(ledger, stop, fresh=True, adopt=adopt).live
            if not repaired:
                raise Interrupted("interrupted: run it again to repair", stop)
            outcome = _verified(ledger, events=events)
        note_lag(ledger)
    if json:
        print_json({"ok": outcome.ok, "repaired": repaired, **dataclasses.asdict(outcome)})
    else:
        print_verification(outcome)
    if not outcome.ok:
        raise typer.Exit(1)


def _verified(ledger: ScoreLedger, *, events: bool) -> Verification:
    with stage_bar("", "verifying", "verifying ") as on_progress:
        return ledger.verify(events=events, on_progress=on_progress)


def print_verification(outcome: Verification) -> None:
    """Print the outcome of verifying."""
    if outcome.parked_streams:
        err.print(
            f"[bold red]error:[/] {counted(outcome.parked_streams, 'parked stream')}: see "
            "score-ledger status, mend the cause, run score-ledger unpark"
        )
    if not outcome.difference_count:
        out.print(
            f"[bold green]ok[/]  {counted(outcome.grants, 'grant')} of "
            f"{counted(outcome.users, 'user')}, and nothing that should not be there"
        )
        return
    for difference in outcome.differences:
        out.print(f"[red]{shown(_place(difference))}[/] {shown(_finding(difference))}")
    more = outcome.difference_count - len(outcome.differences)
    if more:
        out.print(f"… and {more:,} more")
    err.print(
        f"[bold red]error:[/] {counted(outcome.difference_count, 'difference')} in "
        f"{counted(outcome.users, 'user')} and {counted(outcome.grants, 'grant')}: score-ledger "
        "verify --repair rebuilds the read model"
    )


def _place(difference: Difference) -> str:
    parts = [difference.user_id or ""]
    if difference.position is not None:
        parts.append(f"position {difference.position}")
    if difference.grant_id is not None:
        parts.append(f"grant {difference.grant_id}")
    if difference.key is not None:
        parts.append(f"bucket {difference.key}")
    return " ".join(filter(None, parts)) or "read model"


def _finding(difference: Difference) -> str:
    expected, found = difference.expected, difference.found
    if difference.what != DOCUMENT:
        return f"{difference.what}: expected {_said(expected)}, found {_said(found)}"
    if found is None:
        return f"is missing: {_said(expected)}"
    if expected is None:
        return f"is foreign, there is no event for it: {_said(found)}"
    return f"is missing: {_said(expected)}, and a foreign document keeps it out: {_said(found)}"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_said(item)}" for name, item in value.items()) + "}"
    return str(value)
