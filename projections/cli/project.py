"""``score-ledger project``: bring the read model up to what is recorded."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from threading import Event
from typing import Annotated

import typer

from projections.cli.console import (
    FolderOption,
    JsonOption,
    err,
    out,
    print_json,
    progress_bar,
    shown,
)
from projections.cli.interrupts import Interrupted, stop_on_signals
from projections.cli.ledgers import open_ledger
from projections.errors import ReadModelUnavailable
from projections.ledger import ScoreLedger
from projections.mongo.parking import OnError
from projections.retries import retries_until
from projections.settings import Settings
from projections.status import LedgerStatus
from projections.words import counted
from projections.worker.worker import Progress


def project(
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is recorded, until interrupted.")
    ] = False,
    on_error: Annotated[
        OnError | None,
        typer.Option(
            help="What an event that cannot be projected does: stop, or park its stream and go on "
            "with the others. Default: $SCORE_LEDGER_ON_ERROR or stop."
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Project recorded grants into MongoDB.

    Grants, totals and the position they stand for are committed together, so this may be killed at
    any moment and run again. Several may run at once: nothing is counted twice. SIGTERM and Ctrl-C
    stop it between two batches.
    """
    started = time.monotonic()
    last = Progress(0, 0, 0)
    settings = Settings.from_environment(folder=folder)
    if on_error is not None:
        settings = settings.model_copy(update={"on_error": on_error})
    if follow:
        # What a service leaves behind is killed by whoever stops the service.
        settings = settings.model_copy(update={"linger_seconds": 0})
    with ExitStack() as stack:
        ledger, status = _begin(settings, stack, follow=follow)
        stop = stack.enter_context(stop_on_signals())
        bar = stack.enter_context(progress_bar("grants"))
        first = status.tracked_position
        task = bar.add_task("projecting", total=status.lag_events, done=0)

        def on_progress(progress: Progress) -> None:
            nonlocal last
            last = progress
            bar.update(
                task,
                completed=progress.position - first,
                total=progress.newest - first,
                done=progress.grants,
            )

        if follow:
            err.print("following; Ctrl-C stops")
            with suppress(KeyboardInterrupt):  # a service has ended well that was told to end
                ledger.follow(stop=stop, on_progress=on_progress)
        else:
            ledger.catch_up(stop=stop, on_progress=on_progress)
        interrupted = stop.is_set() and not follow
        # Whoever has it stopped does not want to wait for a server that perhaps hangs.
        parked = None if stop.is_set() else ledger.status().parked_count
    seconds = time.monotonic() - started
    if json:
        done = {"position": last.position, "grants": last.grants, "seconds": round(seconds, 3)}
        print_json({**done, "interrupted": interrupted, "parked_streams": parked})
    else:
        out.print(
            f"projected [bold]{counted(last.grants, 'grant')}[/] up to position {last.position:,} "
            f"[dim]({seconds:.1f} s)[/]"
        )
    if parked:
        err.print(
            f"[yellow]note:[/] {counted(parked, 'parked stream')}: see score-ledger status, mend "
            "the cause, run score-ledger unpark"
        )
    if interrupted:
        raise Interrupted("interrupted: run it again to finish", stop)


def _begin(
    settings: Settings, stack: ExitStack, *, follow: bool
) -> tuple[ScoreLedger, LedgerStatus]:
    """Open the ledger; a worker that follows may be started in the middle of an election."""

    def begin() -> tuple[ScoreLedger, LedgerStatus]:
        with ExitStack() as opening:
            # A worker may be there before the first grant; otherwise there is nothing to project.
            ledger = opening.enter_context(
                open_ledger(settings=settings, create=follow, create_folder=True)
            )
            status = ledger.status()
            stack.push(opening.pop_all())
            return ledger, status

    def begin_following() -> tuple[ScoreLedger, LedgerStatus]:
        try:
            return begin()
        except ReadModelUnavailable as error:
            if error.transient:
                err.print(f"[yellow]note:[/] trying again: {shown(str(error))}")
            raise

    return retries_until(Event()).call(begin_following) if follow else begin()
