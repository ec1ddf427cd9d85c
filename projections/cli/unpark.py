"""``score-ledger unpark``: project what was left behind, after the cause was mended."""

from __future__ import annotations

from typing import Annotated

import typer

from projections.cli.console import FolderOption, JsonOption, out, print_json, progress_bar, shown
from projections.cli.interrupts import Interrupted, stop_on_signals
from projections.cli.ledgers import open_ledger
from projections.words import counted


def unpark(
    streams: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STREAM",
            help="Ids of parked streams, as score-ledger status lists them; or all.",
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Project what was left behind of parked streams.

    After the cause was mended. Each grant counts once, whoever else is projecting. A stream whose
    event still cannot be projected stays parked, and the exit code is 1 then. Ctrl-C stops it
    between two transactions.
    """
    with open_ledger(folder) as ledger, stop_on_signals() as stop, progress_bar("grants") as bar:
        task = bar.add_task("unparking", total=None)
        outcome = ledger.unpark(
            streams or None, stop=stop, on_grants=lambda grants: bar.advance(task, grants)
        )
    if json:
        print_json(outcome)
    else:
        streams_, grants = counted(outcome.streams, "stream"), counted(outcome.grants, "grant")
        out.print(f"unparked {streams_} with {grants}")
        for parked in outcome.still_parked:
            out.print(
                f"[red]still parked[/] {parked.stream} at position {parked.position:,}: "
                f"{shown(parked.reason)}"
            )
    if stop.is_set():
        raise Interrupted("interrupted: run it again to finish", stop)
    if outcome.still_parked:
        raise typer.Exit(1)
