"""``score-ledger rebuild``: build the read model again beside the live one, and switch to it."""

from __future__ import annotations

import time
from functools import partial
from threading import Event
from typing import Annotated

import typer

from projections.cli.console import FolderOption, JsonOption, err, out, print_json, progress_bar
from projections.cli.interrupts import Interrupted, stop_on_signals
from projections.cli.ledgers import open_ledger
from projections.ledger import ScoreLedger
from projections.worker.rebuild import RebuildOutcome
from projections.worker.worker import Progress

AdoptOption = Annotated[
    bool,
    typer.Option(
        "--adopt",
        help="Rebuild although the event store was replaced or went back: what it does not have is "
        "gone from the read model then.",
    ),
]


def rebuild(
    drop_old: Annotated[
        bool,
        typer.Option(
            "--drop-old", help="Rebuild nothing: drop the generations that were replaced before."
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Give up what an interrupted rebuild left; start over.")
    ] = False,
    adopt: AdoptOption = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Build the read model again beside the live one, and switch.

    Readers and workers may go on: they see the old generation until the new one has caught up, and
    from then on the new one, never a mixture. Killed or interrupted, run it again: it carries on.
    Several may run at once and share the work.

    It needs disk space for a second read model (score-ledger status shows which generations there
    are). The one that was replaced is kept, so that it can be looked into, until you run
    score-ledger rebuild --drop-old.
    """
    with open_ledger(folder, any_shape=True) as ledger:
        if drop_old:
            dropped = ledger.drop_kept_generations()
        else:
            started = time.monotonic()
            with stop_on_signals() as stop:
                outcome = run_rebuild(ledger, stop, fresh=fresh, adopt=adopt)
                kept = ledger.status().kept_generations if outcome.live else []
    if drop_old:
        if json:
            print_json({"dropped": dropped})
        else:
            out.print(f"dropped {named(dropped)}" if dropped else "there was nothing to drop")
        return
    if json:
        print_json(outcome)
    elif outcome.live:
        out.print(
            f"generation [bold]{outcome.generation}[/] is live, at position "
            f"{outcome.position:,} [dim]({time.monotonic() - started:.1f} s)[/]"
        )
        err.print(f"{named(kept)} kept on disk: score-ledger rebuild --drop-old frees the space")
    if not outcome.live:
        raise Interrupted("interrupted: run it again to carry on", stop)


def run_rebuild(
    ledger: ScoreLedger, stop: Event, *, fresh: bool = False, adopt: bool = False
) -> RebuildOutcome:
    """Rebuild with a progress bar, until it is done or told to stop between two batches."""
    with progress_bar("grants") as bar:
        task = bar.add_task("rebuilding", total=None, done=0)
        begun = False

        def on_progress(progress: Progress) -> None:
            nonlocal begun
            # What an interrupted rebuild did is no part of this one's pace.
            change = bar.update if begun else partial(bar.reset, begun=progress.grants)
            begun = True
            change(
                task,
                # All that is left then, and of a long history it takes a while.
                description="rebuilding" if progress.position < progress.newest else "indexing",
                completed=progress.position,
                total=progress.newest,
                done=progress.grants,
            )

        return ledger.rebuild(fresh=fresh, adopt=adopt, stop=stop, on_progress=on_progress)


def named(generations: list[int]) -> str:
    """Return generations as words."""
    numbers = ", ".join(str(number) for number in generations)
    return f"generation {numbers}" if len(generations) == 1 else f"generations {numbers}"
