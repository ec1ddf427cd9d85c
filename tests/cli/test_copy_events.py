"""``score-ledger copy-events``: how stores are named, and being killed at any moment."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import PersistenceError
from psycopg import sql

from command_line import CommandLine
from concurrency import until
from postgres_server import PostgresServer
from scoring import Scoring
from support import make_grant, mongo_env, sqlite_env

GRANTS = 5000
PAGE = 2000

# The command, which waits before every page, so that it is not done before it is ended.
PAGE_BY_PAGE = """
import sys
from projections.cli import main
from projections.relocation.event_copy import _Copy

def missing(copy, part, last, page, missing=_Copy._missing):
    {wait}
    return missing(copy, part, last, page)

_Copy._missing = missing
main()
"""


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A file with a few grants."""
    file = tmp_path / "old.sqlite"
    with Scoring(sqlite_env(file)) as scoring:
        scoring.grant_many([make_grant(number) for number in range(30)])
    return file


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with grants for some pages of events."""
    file = tmp_path_factory.mktemp("large") / "large.sqlite"
    with Scoring(sqlite_env(file)) as scoring:
        scoring.grant_many([make_grant(number) for number in range(GRANTS)])
    return file


def variables(env: dict[str, str], file: Path) -> str:
    """Write a file of variables, and return how it is named."""
    lines = [f'{name}="{value}"' for name, value in env.items()]
    file.write_text("\n".join(["# of the service", "", *lines, ""]))
    return f"env:{file}"


def test_stores_are_named_by_kind_by_place_and_by_a_file(
    cli: CommandLine, filled: Path, postgres: PostgresServer
) -> None:
    """From SQLite by way of both others and back: what is named beats what the environment says."""
    grown_up = variables(postgres.new_env(), cli.cwd / "postgres.env")
    mongo = variables({**cli.env, "SCORE_LEDGER_EVENTS": "mongo"}, cli.cwd / "mongo.env")
    misleading = {"SCORING_SQLITE_DBNAME": "wrong.sqlite", "SCORING_MONGO_DATABASE": "wrong"}
    misled = CommandLine(cli.cwd, {**cli.env, **misleading})
    steps = [("sqlite:old.sqlite", grown_up), (grown_up, mongo), (mongo, "sqlite:new.sqlite")]
    for source, target in steps:
        done = misled("copy-events", "--from", source, "--to", target, "--json")
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert (outcome["is_complete"], outcome["events_copied"]) == (True, outcome["events"])
    assert not (cli.cwd / "wrong.sqlite").exists()
    # By kind, where the environment has the rest; a copy that is complete is compared again.
    done = cli("copy-events", "--from", "sqlite", "--to", "mongo", SQLITE_DBNAME="old.sqlite")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok  67 events up to position 67 and 0 snapshots are the same in")
    assert done.stdout.count("\n") == 1
    with Scoring(sqlite_env(cli.cwd / "new.sqlite")) as copied, Scoring(sqlite_env(filled)) as old:
        copied_events = copied.recorder.select_notifications(1, 1000)
        assert copied_events == old.recorder.select_notifications(1, 1000)


def test_a_file_of_variables_means_what_it_means_to_a_service(
    cli: CommandLine, filled: Path, database: Any
) -> None:
    """Which has nothing else that says where: not what the shell of the copy happens to have."""
    prefixed = {"SCORING_MONGO_DATABASE": "wrong", "SCORING_SQLITE_DBNAME": "wrong.sqlite"}
    shell = {"MONGO_DATABASE": "wrong", "SQLITE_DBNAME": "wrong.sqlite", **prefixed}
    misled = CommandLine(cli.cwd, {**cli.env, **shell})
    uri = cli.env["MONGO_URI"].replace("/?", f"/{database.name}?")
    mongo = variables({"SCORE_LEDGER_EVENTS": "mongo", "MONGO_URI": uri}, cli.cwd / "mongo.env")
    sqlite = {"SCORE_LEDGER_EVENTS": "sqlite", "SCORE_LEDGER_FOLDER": "grown"}
    file = variables(sqlite, cli.cwd / "sqlite.env")
    for source, target in (("sqlite:old.sqlite", mongo), (mongo, file)):
        done = misled("copy-events", "--from", source, "--to", target)
        assert done.returncode == 0, done.stderr
    with Scoring(sqlite_env(cli.cwd / "grown" / "events.sqlite")) as copied:
        assert copied.recorder.max_notification_id() == 67
    assert database["scoring_events"].find_one()
    assert {path.name for path in cli.cwd.glob("*.sqlite")} == {filled.name}


def test_what_does_not_name_a_store_is_refused(cli: CommandLine, filled: Path) -> None:
    """In a sentence that quotes no password; and nothing is made."""
    (cli.cwd / "broken.env").write_text("PERSISTENCE_MODULE=x\nsecret password\n")
    (cli.cwd / "silent.env").write_text("MONGO_URI=mongodb://127.0.0.1\n")
    said = {
        "old.sqlite": "an event store is named as",
        "sqlite:": "an event store is named as",
        "mongodb://ada:secret@127.0.0.1/scores": "everybody on this machine can read",
        "mongodb://127.0.0.1": "has to name the database",
        "env:broken.env": "line 2 of broken.env is not NAME=VALUE",
        "env:silent.env": "sets neither SCORE_LEDGER_EVENTS nor PERSISTENCE_MODULE",
    }
    for name, expected in said.items():
        done = cli("copy-events", "--from", "sqlite:old.sqlite", "--to", name, COLUMNS="1000")
        assert done.returncode == 2, name
        assert expected in done.stderr
        assert "secret" not in done.stderr
    for source, target, expected in (
        ("sqlite:none.sqlite", "sqlite:new.sqlite", "there is no ledger yet"),
        ("sqlite:old.sqlite", "sqlite::memory:", "name a file"),
        ("sqlite:old.sqlite", "sqlite:no/folder/new.sqlite", "cannot be opened"),
        ("sqlite:old.sqlite", "env:none.env", "none.env cannot be read: No such file"),
        ("sqlite:old.sqlite", "mongodb://127.0.0.1:1/scores", "refused by 127.0.0.1:1"),
        ("sqlite:old.sqlite", "sqlite:./old.sqlite", "into itself"),
    ):
        done = cli("copy-events", "--from", source, "--to", target)
        assert (done.returncode, done.stdout) == (1, ""), (source, target)
        assert done.stderr.startswith("error: ")
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    made = {file.name for file in cli.cwd.iterdir()}
    assert made == {"broken.env", "silent.env", "old.sqlite"}


def test_nothing_is_made_for_a_source_that_cannot_be_copied(
    cli: CommandLine,
    postgres: PostgresServer,
    database: Any,
    new_env: Callable[[], dict[str, str]],
) -> None:
    """Whatever is wrong with it; and what somebody else keeps there stays as it is."""
    lacking = postgres.new_env()
    with Scoring(lacking) as scoring:
        scoring.grant(**make_grant().model_dump())
    schema = sql.Identifier(lacking["POSTGRES_SCHEMA"])
    postgres.execute(sql.SQL("DROP TABLE {}.scoring_snapshots").format(schema))
    (cli.cwd / "nothing.sqlite").touch()
    (cli.cwd / "text.sqlite").write_text("no database\n" * 100)
    with closing(sqlite3.connect(cli.cwd / "other.sqlite")) as other:
        other.execute("CREATE TABLE users (name)")
    Scoring(sqlite_env(cli.cwd / "no-events.sqlite")).close()
    elsewhere = mongo_env(cli.env["MONGO_URI"], f"{database.name}_none")
    sources = {
        "sqlite:none.sqlite": "there is no ledger yet",
        "sqlite:nothing.sqlite": "there is no ledger yet",
        "sqlite:other.sqlite": "there is no ledger yet",
        "sqlite:text.sqlite": "file is not a database",
        "sqlite:no-events.sqlite": "there are no events in",
        variables(lacking, cli.cwd / "lacking.env"): 'scoring_snapshots" does not exist',
        variables(postgres.new_env(), cli.cwd / "empty.env"): 'scoring_events" does not exist',
        variables(elsewhere, cli.cwd / "elsewhere.env"): "there is no ledger yet",
    }
    env = new_env()
    if "POSTGRES_SCHEMA" in env:  # once, since it is asked for again and again for half a minute
        gone = variables({**env, "POSTGRES_DBNAME": "gone"}, cli.cwd / "gone.env")
        sources[gone] = 'database "gone" does not exist'
    target = variables(env, cli.cwd / "target.env")
    before = {file: file.read_bytes() for file in cli.cwd.glob("*.sqlite")}
    for source, expected in sources.items():
        done = cli("copy-events", "--from", source, "--to", target)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), source
        assert expected in done.stderr
    assert {file: file.read_bytes() for file in cli.cwd.glob("*.sqlite")} == before
    if "POSTGRES_SCHEMA" in env:
        tables = sql.SQL("SELECT tablename FROM pg_tables WHERE schemaname = {}")
        assert not postgres.execute(tables.format(sql.Literal(env["POSTGRES_SCHEMA"])))
    if "MONGO_DATABASE" in env:
        assert not database.client[env["MONGO_DATABASE"]].list_collection_names()


def page_by_page(wait: str) -> tuple[str, ...]:
    return sys.executable, "-c", PAGE_BY_PAGE.format(wait=wait)


def test_a_copy_that_is_killed_again_and_again_is_carried_on(
    cli: CommandLine, large: Path, new_env: Callable[[], dict[str, str]]
) -> None:
    """Wherever it is hit, the target is a beginning of the source; one more run completes it."""
    env, rng = new_env(), random.Random(2026)
    shutil.copy(large, cli.cwd / "old.sqlite")
    target = variables(env, cli.cwd / "new.env")
    asked = ("copy-events", "--from", "sqlite:old.sqlite", "--to", target)
    with Scoring(sqlite_env(large)) as source:
        events = source.recorder.select_notifications(1, 10 * GRANTS)
        with Scoring(env) as copied:
            for pages in (1, 2):
                wanted = newest_of(copied) + pages * PAGE
                process = cli.start(*asked, program=page_by_page("sys.stdin.readline()"))
                assert process.stdin is not None
                process.stdin.write(b"\n" * (pages + 1))  # it is hit in the last of these
                process.stdin.flush()
                while process.poll() is None and newest_of(copied) < wanted:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.02))
                process.kill()
                assert process.wait() == -signal.SIGKILL
                process.communicate()
                found = copied.recorder.select_notifications(1, 10 * GRANTS)
                assert found == events[: len(found)]
            done = cli(*asked, "--json")
            assert done.returncode == 0, done.stderr
            outcome = json.loads(done.stdout)
            assert outcome["events"] == len(events)
            assert outcome["events_copied"] < len(events)
            assert copied.recorder.select_notifications(1, 10 * GRANTS) == events


def newest_of(scoring: Scoring) -> int:
    with suppress(PersistenceError):
        return scoring.recorder.max_notification_id() or 0
    return 0


def test_sigterm_stops_it_between_two_pages(cli: CommandLine, database: Any, large: Path) -> None:
    """It says how to go on."""
    shutil.copy(large, cli.cwd / "old.sqlite")
    asked = ("copy-events", "--from", "sqlite:old.sqlite", "--to", "mongo")
    process = cli.start(*asked, program=page_by_page("last and copy._stop.wait()"))
    until(lambda: process.poll() is not None or database.scoring_events.find_one())
    process.terminate()
    _, said = process.communicate()
    assert (process.returncode, said) == (128 + 15, b"interrupted: run it again to carry on\n")
    assert cli(*asked).returncode == 0
