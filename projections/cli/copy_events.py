"""``score-ledger copy-events``: copy an event store into another one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Annotated

import typer

from projections.cli.console import JsonOption, out, print_json, shown, stage_bar
from projections.cli.event_stores import NAMES, open_named
from projections.cli.interrupts import Interrupted, stop_on_signals
from projections.relocation import check_source, copy_events


def copy_events_(
    source: Annotated[
        str, typer.Option("--from", metavar="STORE", help=f"The event store to copy: {NAMES}.")
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="STORE",
            help="Where to, named in the same way: an empty store, which is made if it is not "
            "there, or what an interrupted copy of the same source has left.",
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Copy an event store into another one, and compare both.

    Any of SQLite, PostgreSQL and MongoDB into any other. Events keep their positions and are copied
    as they are stored, so receipts stay true, and a read model goes on where it was.

    Stop every process that writes to either one first. If something was written to the source all
    the same, that is noticed, and the exit code is 1. Killed or interrupted, run it again: it
    carries on. Nothing that is in the target is ever changed.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        ours = stack.enter_context(open_named(source, option="--from", create=False))
        check_source(ours)
        theirs = stack.enter_context(open_named(target, option="--to", create=True))
        stop = stack.enter_context(stop_on_signals())
        on_progress = stack.enter_context(stage_bar("events", "copying"))
        copy = copy_events(ours, theirs, stop=stop, on_progress=on_progress)
    if json:
        print_json(copy)
    elif copy.is_complete:
        out.print(
            f"[bold green]ok[/]  {copy.events:,} events up to position {copy.newest_position:,} "
            f"and {copy.snapshots:,} snapshots are the same in {shown(copy.source)} and "
            f"{shown(copy.target)}, {copy.events_copied:,} of the events copied now "
            f"[dim]({time.monotonic() - started:.1f} s)[/]"
        )
    if not copy.is_complete:
        raise Interrupted("interrupted: run it again to carry on", stop)
