"""The commands end to end: event store, projection, MongoDB, and what is printed."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine, on_both_stores
from concurrency import lasting_at_most, until
from fail_points import failing
from processes import await_end_of_those_naming

GRANT = (
    "grant", "--user-id", "Zoë", "--grant-id", "quiz-7", "--key", "quiz:history:7",
    "--category", "content", "--source", "quiz", "--amount", "25",
    "--granted-at", "2026-11-22T09:30:00+01:00",
)  # fmt: skip


@on_both_stores
def test_from_a_grant_to_the_leaderboard(cli: CommandLine) -> None:
    """The first day with the ledger."""
    granted = json.loads(cli(*GRANT, "--json").stdout)
    assert granted == {
        "status": "RECORDED",
        "position": 2,
        "total_before": 0,
        "total_after": 25,
        "user_id": "Zoë",
    }
    again = cli(*GRANT)
    assert (again.returncode, again.stdout.split()[0]) == (0, "DUPLICATE")
    behind = cli("leaderboard", "--by", "ledger")
    assert "3 events behind: run score-ledger project" in behind.stderr
    assert cli("project").stdout.startswith("projected 1 grant up to position 3")
    rows = json.loads(cli("leaderboard", "--by", "ledger", "--json").stdout)
    assert rows == [{"rank": 1, "user_id": "Zoë", "score": 25}]
    page = json.loads(cli("user", "Zoe\u0308", "--json").stdout)
    assert page["totals"]["category_totals"] == {"content": 25}
    assert page["grants"][0]["granted_at"] == "2026-11-22T08:30:00.000+00:00"
    status = json.loads(cli("status", "--json").stdout)
    assert (status["lag_events"], status["grants"], status["users"]) == (0, 1, 1)
    assert cli("verify").stdout.startswith("ok")


def test_the_leaderboard_shows_the_old_total_unless_asked(cli: CommandLine) -> None:
    """Nothing user-facing is flipped."""
    cli(*GRANT)
    cli("project")
    done = cli("leaderboard", "--json")
    assert json.loads(done.stdout) == [{"rank": 1, "user_id": "Zoë", "score": 0}]
    assert "--by ledger ranks by grants" in done.stderr
    assert cli("leaderboard", "--by", "ledger").stderr == ""
    assert cli("user", "Zoë").stdout.startswith("Zoë  recomputed total 0 (rank 1), ledger balance")


def test_the_leaderboard_shows_the_total_that_was_set(cli: CommandLine) -> None:
    """For those who never had an old way; ``--by`` asks for the other one."""
    cli(*GRANT)
    cli("project")
    flipped = CommandLine(cli.cwd, {**cli.env, "SCORE_LEDGER_RANK_BY": "ledger"})
    assert "Leaderboard by ledger balance" in flipped("leaderboard").stdout
    assert json.loads(flipped("leaderboard", "--json").stdout)[0]["score"] == 25
    assert (
        json.loads(flipped("leaderboard", "--by", "recomputed", "--json").stdout)[0]["score"] == 0
    )
    assert "ledger balance 25 (rank 1) from 1 grant" in flipped("user", "Zoë").stdout


def test_a_conflict_exits_with_1(cli: CommandLine) -> None:
    """Somebody must look at it."""
    cli(*GRANT)
    done = cli(*[("26" if word == "25" else word) for word in GRANT])
    assert done.returncode == 1
    assert "recorded before with another user, key, label, amount or time" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--amount", "5.0", "amount must be an integer"),
        ("--amount", "1_000", "amount must be an integer"),
        ("--amount", "0", "amount must be an integer"),
        ("--user-id", " ada", "user_id must be"),
        ("--granted-at", "2026-11-22", "granted_at must be a timezone-aware"),
        ("--category", "Content", "category must be"),
    ],
)
def test_a_bad_value_is_one_sentence(
    cli: CommandLine, option: str, value: str, message: str
) -> None:
    """Field, value and rule; no traceback."""
    words = list(GRANT)
    words[words.index(option) + 1] = value
    done = cli(*words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr


def test_verify_finds_a_wrong_total_and_exits_with_1(cli: CommandLine, database: Any) -> None:
    """It names user and field, what was expected and what was found."""
    cli(*GRANT)
    cli("project")
    wrong = {"$inc": {"categoryTotals.content": 1, "grantCount": 1}}
    database["user_scores"].update_one({"_id": "Zoë"}, wrong)
    done = cli("verify")
    assert done.returncode == 1
    assert "Zoë categoryTotals.content: expected 25, found 26" in done.stdout
    assert "Zoë grantCount: expected 1, found 2" in done.stdout
    assert "2 differences in 1 user" in done.stderr


@on_both_stores
def test_following_stops_on_sigterm_and_leaves_nothing_behind(cli: CommandLine) -> None:
    """What was granted while it ran is projected; it stops between two batches."""
    process = cli.start("project", "--follow", "--json")
    cli(*GRANT)
    until(lambda: json.loads(cli("status", "--json").stdout)["grants"])
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert json.loads(stdout)["grants"] == 1


def test_without_configuration_everything_is_kept_in_one_folder(embedded_cli: CommandLine) -> None:
    """Events in SQLite, documents in a mongod that is gone when the command is."""
    cli = embedded_cli
    assert cli(*GRANT).returncode == 0
    assert cli("project").returncode == 0
    rows = json.loads(cli("leaderboard", "--by", "ledger", "--json").stdout)
    assert rows == [{"rank": 1, "user_id": "Zoë", "score": 25}]
    assert (cli.cwd / ".score-ledger" / "events.sqlite").exists()
    assert (cli.cwd / ".score-ledger" / "mongo").is_dir()
    await_end_of_those_naming(cli.cwd)


def test_the_next_command_finds_the_server_of_the_last(embedded_cli: CommandLine) -> None:
    """Until its time is over, or a command says that it is."""
    cli = CommandLine(embedded_cli.cwd, {"SCORE_LEDGER_LINGER_SECONDS": "60"})
    note = cli.cwd / ".score-ledger" / "mongo" / "server.json"
    assert cli(*GRANT).returncode == 0
    assert cli("project").returncode == 0
    started = json.loads(note.read_text())
    assert cli("verify").returncode == 0
    done = cli("status", "--json", SCORE_LEDGER_LINGER_SECONDS="0")
    assert json.loads(done.stdout)["grants"] == 1
    assert json.loads(note.read_text()) == started
    await_end_of_those_naming(cli.cwd)


def test_two_commands_at_once_share_the_server_of_a_folder(embedded_cli: CommandLine) -> None:
    """The second attaches instead of failing; a worker's end is the end of its server."""
    cli = CommandLine(embedded_cli.cwd, {"SCORE_LEDGER_LINGER_SECONDS": "60"})
    follower = cli.start("project", "--follow")
    try:
        cli(*GRANT)
        until(lambda: json.loads(cli("leaderboard", "--by", "ledger", "--json").stdout))
        assert follower.poll() is None
    finally:
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=90)
    assert follower.returncode == 0
    await_end_of_those_naming(cli.cwd)


def test_a_mongod_that_is_not_where_it_was_said_is_one_sentence(
    cli: CommandLine, tmp_path: Path
) -> None:
    """The path that is wrong is named, without a traceback."""
    cli(*GRANT)
    done = cli("status", MONGO_URI="", SCORE_LEDGER_MONGOD=str(tmp_path / "nothing-here"))
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
    assert "nothing-here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_lacks_a_library_says_so_with_the_cure(
    cli: CommandLine, tmp_path: Path
) -> None:
    """Its own last words, and the package to install, at once."""
    broken = tmp_path / "mongod"
    broken.write_text(
        "#!/bin/sh\n"
        "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open shared "
        "object file: No such file or directory' >&2\nexit 127\n"
    )
    broken.chmod(0o755)
    cli(*GRANT)
    with lasting_at_most(60):  # and not twice as long
        done = cli("status", MONGO_URI="", SCORE_LEDGER_MONGOD=str(broken))
    assert done.returncode == 1
    assert "libcurl.so.4" in done.stderr
    assert "apt-get install libcurl4" in done.stderr


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MONGO_URI": "mongodb://localhost:99999"}, "MONGO_URI is not usable"),
        ({"SCORE_LEDGER_BATCH_SIZE": "many"}, "SCORE_LEDGER_BATCH_SIZE is not usable"),
        ({"MONGO_DATABASE": "no.such", "SCORE_LEDGER_EVENTS": "mongo"}, "MONGO_DATABASE, or the"),
        ({"PERSISTENCE_MODULE": "no.such.module"}, "the event store no.such.module is not usable"),
        ({"PERSISTENCE_MODULE": "eventsourcing.postgres"}, "Postgres database name not found"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    cli: CommandLine, env: dict[str, Any], message: str
) -> None:
    """It names the variable."""
    cli(*GRANT)
    done = cli("status", **{"SCORE_LEDGER_EVENTS": "", **env})
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_teaches(cli: CommandLine) -> None:
    """Every command explains itself with an example or a consequence."""
    overview = cli("--help", COLUMNS="80").stdout
    commands = re.findall(r"^  ([a-z-]+)  ", overview.partition("Commands:")[2], re.MULTILINE)
    assert len(commands) >= 12
    assert "..." not in overview.partition("Commands:")[2]
    for command in commands:
        done = cli(command, "--help", COLUMNS="80")
        assert done.returncode == 0
        assert "Examples:\n    score-ledger " in done.stdout, command
        assert "<bool>" not in done.stdout


@pytest.mark.parametrize("events", ["sqlite", "mongo"])
def test_the_demo_runs_in_any_folder(embedded_cli: CommandLine, events: str) -> None:
    """It verifies, changes nothing the second time, and leaves nothing behind."""
    done = embedded_cli(
        *("demo", "--events", events),
        TMPDIR=str(embedded_cli.cwd),
        SCORE_LEDGER_LINGER_SECONDS="60",
        MONGO_URI="mongodb://nowhere.invalid",
        SCORING_MONGO_URI="mongodb://nowhere.invalid",
        PERSISTENCE_MODULE="no.such",
        SCORE_LEDGER_EVENTS="postgres",
    )
    assert done.returncode == 0, done.stderr
    assert "75 recorded, 0 duplicates" in done.stdout
    assert "0 recorded, 75 duplicates" in done.stdout
    assert "no git history at hand" in done.stdout
    assert list(embedded_cli.cwd.iterdir()) == []
    await_end_of_those_naming(embedded_cli.cwd)


def test_a_worker_that_is_started_while_mongodb_fails_sits_it_out(
    cli: CommandLine, mongo_uri: str
) -> None:
    """As one does that is at work, and says what it waits for."""
    # Not as in an election: then it is the driver that tries again, for the first ten seconds.
    with failing(mongo_uri, "find", "aggregate", errorCode=11601):
        worker = cli.start("project", "--follow")
        assert worker.stderr is not None
        said = iter(worker.stderr.readline, b"")
        assert b"trying again" in next(said)
    assert any(b"following" in line for line in said)
    worker.terminate()
    worker.communicate(timeout=90)
    assert worker.returncode == 0
