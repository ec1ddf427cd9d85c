"""The application, and what becomes of an error: one sentence, no traceback, exit code 1."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import projections
from projections.cli.commands import COMMANDS
from projections.cli.console import err, out, shown, speak_plainly
from projections.cli.interrupts import EXIT_CODE, Interrupted, was_interrupted


class LazyGroup(TyperGroup):
    """Lists commands by their summaries, and imports only the one that is to be run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command and its arguments, as the framework asks for them."""
        name, _listed, rest = super().resolve_command(ctx, args)
        return name, None if name is None else COMMANDS[name].load(), rest


app = typer.Typer(
    cls=LazyGroup,
    name="score-ledger",
    help="An append-only points ledger: every award of points is a grant, recorded once for "
    "ever.\n\nWithout any configuration, events are kept in .score-ledger/events.sqlite and a "
    "MongoDB of its own runs in .score-ledger/mongo while a command needs it; it is kept for the "
    "next one for SCORE_LEDGER_LINGER_SECONDS, 30 by default. MONGO_URI names another MongoDB, "
    "SCORE_LEDGER_EVENTS=mongo keeps the events in it, too, and PERSISTENCE_MODULE with the "
    "variables of the eventsourcing library names any other event store.\n\n"
    "Start with: score-ledger demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"score-ledger {version('score-ledger')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def _listed() -> None:
    """Stand for a command in the overview."""


for _command in COMMANDS.values():
    app.command(_command.name, help=_command.summary)(_listed)


def run() -> int:
    """Run the command that was asked for, and return the exit code.

    Raises:
        KeyboardInterrupt: if Ctrl-C ended it.
    """
    # What the library logs about a conflict is said by the commands themselves.
    logging.basicConfig(level=logging.CRITICAL)
    speak_plainly()
    try:
        app()
    except SystemExit as end:
        # This one is what the framework makes of Ctrl-C, and nothing else.
        if end.code == EXIT_CODE:
            raise KeyboardInterrupt from end
        return end.code if isinstance(end.code, int) else 0
    except Interrupted as stopped:
        err.print(shown(str(stopped)))
        return stopped.exit_code
    # Looked up when there is an error: what it comes from is imported by then.
    except (projections.LedgerError, ValueError, OSError) as error:
        if was_interrupted():
            raise
        err.print(f"[bold red]error:[/] {shown(_said(error))}")
        return 1
    return 0


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename} cannot be used ({error.strerror}): name another, or see who may "
            "read and write it"
        )
    return str(error)
