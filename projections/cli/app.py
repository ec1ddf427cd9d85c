"""The commands, and what becomes of an error: one sentence, no traceback, exit code 1."""

from __future__ import annotations

import logging
import sys

import typer

from projections.cli.console import err, shown
from projections.cli.demo import demo
from projections.cli.drifting import drift
from projections.cli.importing import import_
from projections.cli.projecting import project
from projections.cli.reading import leaderboard, status, user
from projections.cli.rebuilding import rebuild
from projections.cli.unparking import unpark
from projections.cli.verifying import verify
from projections.cli.writing import contribute, grant
from projections.errors import ProjectionError
from scoring import ScoringError

app = typer.Typer(
    name="score-ledger",
    help="An append-only points ledger: every award of points is a grant, recorded once for "
    "ever.\n\nWithout any configuration, events are kept in .score-ledger/events.sqlite and a "
    "MongoDB of its own runs in .score-ledger/mongo while a command needs it. MONGO_URI names "
    "another MongoDB, and PERSISTENCE_MODULE with the variables of the eventsourcing library "
    "another event store.\n\n"
    "Start with: score-ledger demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(grant)
app.command()(contribute)
app.command("import")(import_)
app.command()(project)
app.command()(leaderboard)
app.command()(user)
app.command()(status)
app.command()(verify)
app.command()(rebuild)
app.command()(drift)
app.command()(unpark)


def main() -> None:
    """Run the command line."""
    # What the library logs about a conflict is said by the commands themselves.
    logging.basicConfig(level=logging.CRITICAL)
    try:
        app()
    except (ScoringError, ProjectionError, ValueError) as error:
        err.print(f"[bold red]error:[/] {shown(str(error))}")
        sys.exit(1)
    except OSError as error:
        err.print(f"[bold red]error:[/] {shown(str(error))}")
        sys.exit(1)
