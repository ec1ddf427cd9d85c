"""The commands: what the overview says of each, and where the rest of it is."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Final

import typer
from typer.core import TyperCommand


class Command:
    """A command that is imported when it is asked for, since that takes longer than it may run.

    Attributes:
        name: What it is called by.
        summary: The first line of its help.
    """

    def __init__(self, name: str, place: str, summary: str, *examples: str) -> None:
        """Name its function, as ``module:function`` within this package, and end its help."""
        self.name = name
        self.summary = summary
        self._place = place
        self._examples = examples

    def load(self) -> TyperCommand:
        """Import the command with its options and its whole help."""
        module, _, function = self._place.partition(":")
        gc.disable()  # what is imported stays, so looking through it for garbage is in vain
        try:
            callback = getattr(import_module(f"projections.cli.{module}"), function)
        finally:
            gc.enable()
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        examples = "\n".join(f"  {example}" for example in self._examples)
        alone.command(self.name, epilog=f"\b\nExamples:\n{examples}")(callback)
        command = typer.main.get_command(alone)
        assert isinstance(command, TyperCommand)  # noqa: S101 - for the type checker
        return command


_COMMANDS: Final = (
    Command(
        "demo",
        "demo:demo",
        "See it work: import, project, rank, import again, verify.",
        "score-ledger demo",
        "score-ledger demo --events mongo",
    ),
    Command(
        "grant",
        "grants:grant",
        "Award points once.",
        "score-ledger grant --user-id ada --grant-id quiz-7-ada \\",
        "  --key quiz:history:7 --category learning --source quiz --amount 25 \\",
        "  --granted-at 2026-11-22T09:30:00Z",
    ),
    Command(
        "contribute",
        "grants:contribute",
        "Set the bucket of a key, the old way.",
        "score-ledger contribute --user-id ada --key telemetry:activity \\",
        "  --category telemetry --source app --points 12",
    ),
    Command(
        "import",
        "imports:import_",
        "Import grants, contributions, or an old collection.",
        "score-ledger import grants.jsonl --reject rejected.jsonl",
        "score-ledger import grants.jsonl.gz",
        "python examples/git_contributors.py . | score-ledger import -",
        "score-ledger import --contributions buckets.jsonl",
        "score-ledger import --from-mongo old.toml --dry-run",
        "score-ledger import --from-mongo site.scores --field buckets=buckets --round whole",
        "",
        "A line:",
        '{"user_id":"ada","grant_id":"quiz-7-ada","key":"quiz:history:7",'
        '"category":"learning","source":"quiz","amount":25,"granted_at":"2026-11-22T09:30:00Z"}',
    ),
    Command(
        "project",
        "project:project",
        "Project recorded grants into MongoDB.",
        "score-ledger project             up to now",
        "score-ledger project --follow    a worker: as grants are recorded",
    ),
    Command(
        "leaderboard",
        "queries:leaderboard",
        "Show who leads.",
        "score-ledger leaderboard --top 20",
        "score-ledger leaderboard --by ledger --json",
    ),
    Command(
        "user",
        "queries:user",
        "Show one user's totals and newest grants.",
        "score-ledger user ada",
        "score-ledger user ada --limit 100 --json",
    ),
    Command(
        "status",
        "queries:status",
        "Show where events and read model are, and how far apart.",
        "score-ledger status",
        "score-ledger status --json | jq .lag_events",
    ),
    Command(
        "verify",
        "verify:verify",
        "Compare the read model with the event store.",
        "score-ledger verify              every document against the events",
        "score-ledger verify --repair     and rebuild the read model if it differs",
    ),
    Command(
        "rebuild",
        "rebuild:rebuild",
        "Build the read model again beside the live one, and switch.",
        "score-ledger rebuild",
        "score-ledger rebuild --drop-old  free the space of those that were replaced",
    ),
    Command(
        "drift",
        "drift:drift",
        "Compare every user's old total with the ledger.",
        "score-ledger drift",
        "score-ledger drift --html drift.html --csv drift.csv",
        "score-ledger drift --check --tolerance 0.5%    in a pipeline",
    ),
    Command(
        "open-balances",
        "open_balances:open_balances",
        "Grant what buckets have beyond the grants of their keys.",
        "score-ledger open-balances --dry-run",
        "score-ledger open-balances --keys telemetry:activity --keys 'quiz:history:*'",
    ),
    Command(
        "compare",
        "compare:compare",
        "Compare a site's own old collection with the ledger.",
        "score-ledger compare --from-mongo old.toml",
        "score-ledger compare --from-mongo old.toml --repair     every night",
        "score-ledger compare --from-mongo site.scores --field buckets=buckets --html compare.html",
    ),
    Command(
        "copy-events",
        "copy_events:copy_events_",
        "Copy an event store into another one, and compare both.",
        "score-ledger copy-events --from sqlite --to env:/etc/score-ledger.env",
        "score-ledger copy-events --from sqlite:events.sqlite --to mongodb://m1.internal/scores",
        "score-ledger copy-events --from postgres --to sqlite:events.sqlite",
    ),
    Command(
        "unpark",
        "unpark:unpark",
        "Project what was left behind of parked streams.",
        "score-ledger unpark              all parked streams",
        "score-ledger unpark 7f9c24e8-3b12-5c41-9d2e-1a2b3c4d5e6f",
    ),
)

COMMANDS: Final = {command.name: command for command in _COMMANDS}
"""By name, in the order of the overview."""
