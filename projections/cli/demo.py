"""``score-ledger demo``: the whole ledger in half a minute, in a temporary folder."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.rule import Rule

from projections.cli.console import SPINNER, err, out, shown
from projections.cli.jsonl import parse_grant, read_lines
from projections.cli.queries import print_leaderboard, print_user
from projections.cli.verify import print_verification
from projections.events.stores import KINDS
from projections.ledger import ScoreLedger
from projections.settings import Settings
from projections.words import counted
from scoring import GrantStatus

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from projections.queries.ranked_users import LeaderboardRow

_MOST_COMMITS = 2000
_RULE_COLUMNS = 80


def demo(
    events: Annotated[
        Literal["sqlite", "mongo"],
        typer.Option(help="Where events are kept: beside MongoDB, or in it."),
    ] = "sqlite",
) -> None:
    """See it work: import, project, rank, import again, verify.

    Uses the embedded server in a temporary folder, whatever the environment says, and removes it
    at the end. Takes a shipped set of grants, and the git history of the current folder if there
    is one.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="score-ledger-demo-") as folder:
        settings = Settings(folder=Path(folder), linger_seconds=0)
        # With the application's prefix, so that nothing in the environment can beat it.
        event_store = {
            "SCORING_PERSISTENCE_MODULE": KINDS[events].module,
            "SCORING_SQLITE_DBNAME": str(settings.events_file),
            "SCORING_MONGO_URI": "",
            "SCORING_MONGO_DATABASE": settings.mongo_database,
        }
        shipped = files("projections") / "demo" / "grants.jsonl"
        inputs = [("a shipped set of grants", shipped.read_bytes())]
        history, repository = _git_history()
        if history:
            inputs.append((f"the git history of {repository}, a grant for each commit", history))
        with err.status("starting a mongod in the temporary folder", spinner=SPINNER):
            opened = time.monotonic()
            ledger = ScoreLedger.open(settings=settings, event_store=event_store, worker=False)
        with ledger:
            out.print(
                f"mongod started as a one-node replica set in {time.monotonic() - opened:.1f} s"
            )
            place = "MongoDB" if events == "mongo" else "a SQLite file"
            _step(f"Recording: grants become events in {place}")
            _record(ledger, inputs)
            if not history:
                out.print(
                    "[dim]no git history at hand: run the demo inside a repository to add it[/]"
                )
            _step("Projecting: events become documents in MongoDB")
            _project(ledger)
            _step("Reading: the old total leads, the ledger runs beside it in shadow")
            leaders = _read(ledger)
            _step("Importing everything again: nothing may change")
            _record(ledger, inputs)
            ledger.catch_up()
            same = ledger.leaderboard.top(5, by="ledger") == leaders
            out.print("the leaderboard is the same" if same else "[red]the leaderboard changed[/]")
            _step("Verifying: every document against the events")
            outcome = ledger.verify()
            print_verification(outcome)
    _step("What next")
    out.print(
        "score-ledger import FILE.jsonl        your own grants, kept in .score-ledger\n"
        "score-ledger project                  bring the read model up to date\n"
        "score-ledger leaderboard --by ledger  and: user, status, verify, --help\n"
        "README.md                             embedding it in your application"
    )
    out.print(f"[dim]{time.monotonic() - started:.0f} s; the temporary folder is gone[/]")
    if not (same and outcome.ok):
        raise typer.Exit(1)


def _step(title: str) -> None:
    out.print()
    out.print(Rule(title, align="left"), width=min(out.width, _RULE_COLUMNS))


def _record(ledger: ScoreLedger, inputs: list[tuple[str, bytes]]) -> None:
    for title, text in inputs:
        lines = read_lines(io.BufferedReader(io.BytesIO(text)))
        receipts = ledger.grant_many(parse_grant(line.raw) for line in lines)
        found = Counter(receipt.status for receipt in receipts)
        out.print(
            f"{shown(title)}: [bold]{found[GrantStatus.RECORDED]:,}[/] recorded, "
            f"[bold]{found[GrantStatus.DUPLICATE]:,}[/] duplicates"
        )


def _project(ledger: ScoreLedger) -> None:
    began = time.monotonic()
    ledger.catch_up()
    status = ledger.status()
    grants, users = counted(status.grants, "grant"), counted(status.users, "user")
    out.print(f"projected {grants} of {users} in {time.monotonic() - began:.1f} s")


def _read(ledger: ScoreLedger) -> list[LeaderboardRow]:
    """Print both leaderboards and the page of the ledger's leader, and return the ledger's."""
    print_leaderboard(ledger.leaderboard.top(5), "recomputed")
    leaders = ledger.leaderboard.top(5, by="ledger")
    out.print()
    print_leaderboard(leaders, "ledger")
    out.print()
    leader = leaders[0].user_id
    print_user(ledger.totals(leader), leaders[0], ledger.history(leader, limit=5), "ledger")
    return leaders


def _contributors_script() -> Traversable:
    """Return ``examples/git_contributors.py``, which wheels carry beside the shipped grants."""
    shipped = files("projections") / "demo" / "git_contributors.py"
    if shipped.is_file():
        return shipped
    return Path(__file__).parents[2] / "examples" / "git_contributors.py"


def _git_history() -> tuple[bytes, str]:
    """Return grants for the first commits of the repository at hand, and its name."""
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"],  # noqa: S607 - the user's own git
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return b"", ""
    repository = Path(top.stdout.rstrip(b"\n").decode(errors="replace"))
    with (
        as_file(_contributors_script()) as script,
        subprocess.Popen(  # noqa: S603 - our own script, no shell
            [sys.executable, str(script), "."], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - for the type checker
        lines = b"".join(islice(process.stdout, _MOST_COMMITS))
        process.terminate()
    return lines, repository.name
