"""The commands on an event store that is not the one that was projected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from command_line import CommandLine
from scoring import Scoring
from support import grant_lines, sqlite_env


@pytest.fixture
def mistyped(cli: CommandLine, database: Any) -> Iterator[CommandLine]:
    """Twenty grants are projected, and then another store is named, which is empty."""
    cli("import", "-", stdin=grant_lines(*range(20)))
    assert cli("project").returncode == 0
    if cli.env["SCORE_LEDGER_EVENTS"] == "sqlite":
        Scoring(sqlite_env(cli.cwd / "mistyped.sqlite")).close()
        yield CommandLine(cli.cwd, {**cli.env, "SQLITE_DBNAME": "mistyped.sqlite"})
        return
    other = database.client[f"{database.name}_mistyped"]
    other.create_collection("scoring_events")
    yield CommandLine(cli.cwd, {**cli.env, "SCORING_MONGO_DATABASE": other.name})
    other.client.drop_database(other)


@pytest.mark.parametrize(
    ("cli", "named"),
    [("sqlite", "eventsourcing.sqlite mistyped.sqlite"), ("mongo", "projections.mongo 127.0.0.1:")],
    indirect=["cli"],
)
def test_no_command_takes_a_mistyped_store_for_the_right_one(
    cli: CommandLine, mistyped: CommandLine, named: str
) -> None:
    """Each says so, and a good board is not repaired away."""
    board = cli("leaderboard", "--json").stdout
    for command in (["project"], ["rebuild", "--fresh"], ["verify", "--repair"]):
        done = mistyped(*command)
        assert done.returncode == 1, command
        assert done.stderr.startswith(f"error: the event store {named}")
        assert "run score-ledger rebuild --adopt" in done.stderr
        assert done.stderr.count("\n") == 1
    shown = mistyped("status")
    assert shown.returncode == 0
    assert "event store replaced" in shown.stdout
    assert "worker error" in shown.stdout
    status = json.loads(mistyped("status", "--json").stdout)
    assert (status["lag_events"], status["grants"], status["newest_position"]) == (None, 20, 0)
    seen = mistyped("leaderboard", "--json")
    assert (seen.stdout, seen.returncode) == (board, 0)
    assert seen.stderr.startswith("warning: the event store")


def test_another_store_is_adopted_by_name(mistyped: CommandLine) -> None:
    """By a rebuild, or by a repair that may be one."""
    assert mistyped("verify", "--adopt").returncode == 2
    mistyped("import", "-", stdin=grant_lines(100, 101))
    done = mistyped("rebuild", "--adopt")
    assert (done.returncode, done.stdout[:20]) == (0, "generation 2 is live")
    assert json.loads(mistyped("verify", "--json").stdout)["ok"] is True
    third = CommandLine(mistyped.cwd, {**mistyped.env, "SQLITE_DBNAME": "third.sqlite"})
    third("import", "-", stdin=grant_lines(*range(200, 230)))
    repaired = third("verify", "--repair", "--adopt", "--json")
    assert repaired.returncode == 0
    assert repaired.stderr.startswith("warning: the event store")
    outcome = json.loads(repaired.stdout)
    assert (outcome["ok"], outcome["repaired"], outcome["grants"]) == (True, True, 30)


@pytest.mark.parametrize("cli", ["mongo"], indirect=True)
def test_with_a_server_each_what_needs_one_of_them_needs_that_one(
    cli: CommandLine, mongo_uri: str
) -> None:
    """Whether events or read model are down, the sentence names the variable that is meant."""
    nobody = "mongodb://127.0.0.1:1/"
    grant = ("import", "-")
    reading = {"MONGO_URI": nobody, "SCORING_MONGO_URI": mongo_uri}
    recorded = cli(*grant, stdin=grant_lines(1), **reading)
    assert (recorded.returncode, recorded.stdout[:10]) == (0, "1 recorded")
    copied = cli("copy-events", "--from", "mongo", "--to", "sqlite:x.sqlite", stdin=None, **reading)
    assert (copied.returncode, copied.stderr) == (0, "")
    (cli.cwd / "other.env").write_text(f"SCORE_LEDGER_EVENTS=mongo\nMONGO_URI={nobody}\n")
    for command, variables, named in (
        (("status",), reading, "MONGO_URI"),
        (("status",), {"SCORING_MONGO_URI": nobody}, "SCORING_MONGO_URI"),
        (grant, {"SCORING_MONGO_URI": nobody}, "SCORING_MONGO_URI"),
        (("copy-events", "--from", "mongo", "--to", "env:other.env"), {}, "--to"),
    ):
        done = cli(*command, stdin=None, **variables)
        assert done.returncode == 1
        refused = "error: MongoDB cannot be reached (connection refused by 127.0.0.1:1): check "
        assert done.stderr == f"{refused}that it runs and that {named} names it\n"
    none = cli("status", MONGO_DATABASE="none").stderr
    assert "MONGO_URI, MONGO_DATABASE, or both with SCORING_ in front" in none
