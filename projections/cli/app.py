"""The commands, and what becomes of an error: one sentence, no traceback, exit code 1."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from projections.cli.compare import compare
from projections.cli.console import err, out, shown, speak_plainly
from projections.cli.copy_events import copy_events_
from projections.cli.demo import demo
from projections.cli.drift import drift
from projections.cli.grants import contribute, grant
from projections.cli.imports import import_
from projections.cli.interrupts import EXIT_CODE, Interrupted, was_interrupted
from projections.cli.open_balances import open_balances
from projections.cli.project import project
from projections.cli.queries import leaderboard, status, user
from projections.cli.rebuild import rebuild
from projections.cli.unpark import unpark
from projections.cli.verify import verify
from scoring import LedgerError

app = typer.Typer(
    name="score-ledger",
    help="An append-only points ledger: every award of points is a grant, recorded once for "
    "ever.\n\nWithout any configuration, events are kept in .score-ledger/events.sqlite and a "
    "MongoDB of its own runs in .score-ledger/mongo while a command needs it. MONGO_URI names "
    "another MongoDB, SCORE_LEDGER_EVENTS=mongo keeps the events in it, too, and "
    "PERSISTENCE_MODULE with the variables of the eventsourcing library names any other event "
    "store.\n\n"
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
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def _add(command: Callable[..., None], *examples: str, name: str | None = None) -> None:
    """Make a function a command whose help ends with examples."""
    lines = "\n".join(f"  {example}" for example in examples)
    app.command(name, epilog=f"\b\nExamples:\n{lines}")(command)


_add(demo, "score-ledger demo", "score-ledger demo --events mongo")
_add(
    grant,
    "score-ledger grant --user-id ada --grant-id quiz-7-ada \\",
    "  --key quiz:history:7 --category learning --source quiz --amount 25 \\",
    "  --granted-at 2026-11-22T09:30:00Z",
)
_add(
    contribute,
    "score-ledger contribute --user-id ada --key telemetry:activity \\",
    "  --category telemetry --source app --points 12",
)
_add(
    import_,
    "score-ledger import grants.jsonl --reject rejected.jsonl",
    "score-ledger import grants.jsonl.gz",
    "python examples/git_contributors.py . | score-ledger import -",
    "",
    "A line:",
    '{"user_id":"ada","grant_id":"quiz-7-ada","key":"quiz:history:7",'
    '"category":"learning","source":"quiz","amount":25,"granted_at":"2026-11-22T09:30:00Z"}',
    "",
    "score-ledger import --contributions buckets.jsonl",
    "score-ledger import --from-mongo old.toml --dry-run",
    "score-ledger import --from-mongo site.scores --field buckets=buckets --round whole",
    name="import",
)
_add(
    project,
    "score-ledger project             up to now",
    "score-ledger project --follow    a worker: as grants are recorded",
)
_add(
    leaderboard,
    "score-ledger leaderboard --top 20",
    "score-ledger leaderboard --by ledger --json",
)
_add(user, "score-ledger user ada", "score-ledger user ada --limit 100 --json")
_add(status, "score-ledger status", "score-ledger status --json | jq .lag_events")
_add(
    verify,
    "score-ledger verify              every document against the events",
    "score-ledger verify --repair     and rebuild the read model if it differs",
)
_add(
    rebuild,
    "score-ledger rebuild",
    "score-ledger rebuild --drop-old  free the space of those that were replaced",
)
_add(
    drift,
    "score-ledger drift",
    "score-ledger drift --html drift.html --csv drift.csv",
    "score-ledger drift --check --tolerance 0.5%    in a pipeline",
)
_add(
    open_balances,
    "score-ledger open-balances --dry-run",
    "score-ledger open-balances --keys telemetry:activity --keys 'quiz:history:*'",
    name="open-balances",
)
_add(
    compare,
    "score-ledger compare --from-mongo old.toml",
    "score-ledger compare --from-mongo old.toml --repair     every night",
    "score-ledger compare --from-mongo site.scores --field buckets=buckets --html compare.html",
)
_add(
    copy_events_,
    "score-ledger copy-events --from sqlite --to env:/etc/score-ledger.env",
    "score-ledger copy-events --from sqlite:events.sqlite --to mongodb://m1.internal/scores",
    "score-ledger copy-events --from postgres --to sqlite:events.sqlite",
    name="copy-events",
)
_add(
    unpark,
    "score-ledger unpark              all parked streams",
    "score-ledger unpark 7f9c24e8-3b12-5c41-9d2e-1a2b3c4d5e6f",
)


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
    except (LedgerError, ValueError, OSError) as error:
        if was_interrupted():
            raise KeyboardInterrupt from error
        err.print(f"[bold red]error:[/] {shown(str(error))}")
        return 1
    return 0
