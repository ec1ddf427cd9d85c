"""Users of the databases who may do little, and what a URI says of user and database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from command_line import CommandLine
from postgres_server import PostgresServer
from projections import ProjectionError, ScoreLedger
from projections.errors import NameTaken, ReadModelGone
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from scoring import InvalidSetting, Scoring, ScoringError
from support import make_grant, mongo_env, sqlite_env


@pytest.fixture
def new_uri(mongo_uri: str) -> Iterator[Callable[..., str]]:
    """Makes a user with a role in a database and returns the URI for it; dropped again."""
    made = []
    with connect(mongo_uri) as admin:

        def make(role: str, database: str, *, path: str = "") -> str:
            name = f"u{uuid4().hex}"
            roles = [{"role": role, "db": database}]
            admin.admin.command("createUser", name, pwd="p", roles=roles)
            made.append(name)
            place = mongo_uri.rpartition("@")[2].partition("/")[0]
            return f"mongodb://{name}:p@{place}/{path}?directConnection=true&authSource=admin"

        yield make
        for name in made:
            admin.admin.command("dropUser", name)


@pytest.mark.parametrize("events", ["sqlite", "mongo"])
def test_a_user_who_may_only_read_can_read(
    new_uri: Callable[..., str], mongo_uri: str, read_model: ReadModel, tmp_path: Path, events: str
) -> None:
    """By the library and by the commands; and whatever would write says why it does not."""
    name = read_model.database.name
    env = {"PERSISTENCE_MODULE": "projections.mongo"}
    if events == "sqlite":
        env = sqlite_env(tmp_path / "events.sqlite")
    with ScoreLedger.open(
        event_store=env, mongo=mongo_uri, mongo_database=name, worker=False
    ) as ledger:
        ledger.grant(**make_grant(1, user_id="jane").model_dump())
        ledger.catch_up()
    reader = new_uri("read", name)
    with ScoreLedger.open(
        event_store=env, mongo=reader, mongo_database=name, worker=False, read_only=True
    ) as ledger:
        assert [row.user_id for row in ledger.leaderboard.top(3)] == ["jane"]
        assert [row.position for row in ledger.history("jane")] == [2]
        assert ledger.totals("jane").total_score
        assert ledger.status().lag_events == 0
        assert ledger.verify().ok
        writes: list[Callable[[], object]] = [
            lambda: ledger.grant(**make_grant(2).model_dump()),
            lambda: ledger.grant_many([make_grant(2)]),
            lambda: ledger.contribute("jane", "telemetry:x", "telemetry", "app", 1),
            lambda: ledger.contribute_many([]),
            lambda: ledger.feed_post("jane", "1", 1),
            lambda: ledger.award_badge("jane", "1", 1),
            ledger.catch_up,
            ledger.rebuild,
            ledger.unpark,
            ledger.drop_kept_generations,
        ]
        for write in writes:
            with pytest.raises(ProjectionError, match="opened with read_only=True"):
                write()
    cli = CommandLine(tmp_path, {**env, "MONGO_URI": reader, "MONGO_DATABASE": name})
    for command in (["leaderboard", "--by", "ledger"], ["user", "jane"], ["status"]):
        done = cli(*command)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_write_that_is_refused_is_named_without_what_was_to_be_written(
    new_uri: Callable[..., str], database: Any
) -> None:
    """The server quotes all of a command that it does not allow, with the events in it."""
    env = {"CREATE_TABLE": "no", **mongo_env(new_uri("read", database.name), database.name)}
    with Scoring(env) as scoring, pytest.raises(ScoringError) as refused:
        scoring.grant(**make_grant(1).model_dump())
    assert "to execute command insert scoring_events): check the user" in str(refused.value)
    assert "user-1" not in str(refused.value)


def test_who_is_refused_is_told_which_server_it_was(
    new_uri: Callable[..., str], mongo_uri: str, database: Any, tmp_path: Path
) -> None:
    """Where events have one of their own: a server says of a password only that it is wrong."""
    place = f"127.0.0.1:{mongo_uri.rpartition(':')[2].partition('/')[0]}"
    wrong = {"SCORING_MONGO_URI": new_uri("read", database.name).replace(":p@", ":q@")}
    stranger = {"SCORING_MONGO_URI": new_uri("read", "elsewhere")}
    env = {"SCORE_LEDGER_EVENTS": "mongo", "MONGO_URI": mongo_uri, "MONGO_DATABASE": database.name}
    cli = CommandLine(tmp_path, env)
    copying = ("copy-events", "--from", "sqlite:old.sqlite", "--to", "mongo")
    with Scoring(sqlite_env(tmp_path / "old.sqlite")) as scoring:
        scoring.grant(**make_grant().model_dump())
    for command, variables in (
        (("status",), wrong),
        (("status",), stranger),
        (copying, wrong),
        (copying, stranger),
    ):
        done = cli(*command, stdin=None, **variables)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), (command, variables)
        assert place in done.stderr
        assert database.name in done.stderr


def test_a_reader_creates_nothing(database: Any, tmp_path: Path) -> None:
    """Neither a store nor a read model, nor does it read what is somebody else's."""
    env = sqlite_env(tmp_path / "events.sqlite")

    def opened() -> ScoreLedger:
        return ScoreLedger.open(event_store=env, mongo=database, worker=False, read_only=True)

    with pytest.raises(ProjectionError, match="there is no ledger yet"):
        opened()
    assert list(tmp_path.iterdir()) == []
    with Scoring(env):
        pass
    with pytest.raises(ReadModelGone, match="run score-ledger project"):
        opened()
    assert database.name not in database.client.list_database_names()
    database["user_scores"].insert_one({"_id": "ada", "totalScore": 900})
    with pytest.raises(NameTaken):
        opened()


def test_a_worker_is_not_to_be_had_read_only(tmp_path: Path) -> None:
    """Instead of one that fails in the background."""
    with pytest.raises(ValueError, match="give worker=False too"):
        ScoreLedger.open(folder=tmp_path, read_only=True)


def test_the_database_in_the_path_of_the_uri_is_used_if_none_is_named(
    new_uri: Callable[..., str], mongo_uri: str, read_model: ReadModel, tmp_path: Path
) -> None:
    """A name beats it, and the server's own database there is no place for documents."""
    name = read_model.database.name
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env):
        pass

    def place(path: str, given: str | None) -> str:
        uri = new_uri("readWriteAnyDatabase", "admin", path=path)
        with ScoreLedger.open(
            event_store=env, mongo=uri, mongo_database=given, worker=False
        ) as ledger:
            return ledger.status().read_model.partition("/")[2]

    try:
        assert place(name, None) == name
        assert place("another", name) == name
        assert place("admin", None) == "score_ledger"
        assert place("", None) == "score_ledger"
    finally:
        with connect(mongo_uri) as client:
            client.drop_database("score_ledger")


@pytest.mark.parametrize("password", ["p@ss", "p/ss", "p:ss", "p%ss", "p?ss"])
def test_a_password_that_is_not_escaped_gets_a_sentence_of_its_own(
    password: str, tmp_path: Path
) -> None:
    """With the cure, and without any part of it."""
    with pytest.raises(InvalidSetting, match=r"percent-encode both .*quote_plus") as refused:
        ScoreLedger.open(folder=tmp_path, mongo=f"mongodb://jane:{password}@localhost/")
    assert "ss" not in str(refused.value).replace("password", "")


def test_another_fault_of_a_uri_is_not_blamed_on_its_password(tmp_path: Path) -> None:
    """One that is escaped as it should be."""
    with pytest.raises(InvalidSetting, match=r"[Pp]ort.*65535"):
        ScoreLedger.open(folder=tmp_path, mongo="mongodb://jane:p%40ss@localhost:99999/")


def test_the_commands_that_read_say_of_a_new_ledger_that_nobody_has_anything(
    mongo_uri: str, database: Any, tmp_path: Path
) -> None:
    """Grants are recorded, and nothing was projected yet."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as app:
        app.grant(**make_grant(1).model_dump())
    cli = CommandLine(tmp_path, {**env, "MONGO_URI": mongo_uri, "MONGO_DATABASE": database.name})
    done = cli("status", "--json")
    assert (done.returncode, json.loads(done.stdout)["lag_events"]) == (0, 3)
    assert cli("leaderboard").returncode == 0


@pytest.mark.parametrize("lock", ["MAINTAIN", "UPDATE"])
def test_the_role_that_the_documentation_names_is_enough_for_postgresql(
    postgres: PostgresServer, mongo_uri: str, read_model: ReadModel, lock: str
) -> None:
    """To record and to project; it cannot delete, and with ``MAINTAIN`` not change anything."""
    env = postgres.new_env()
    name = read_model.database.name
    with Scoring(env):
        pass  # makes the tables, as their owner
    root = Path(__file__).parents[2]
    text = (root / "docs" / "operating.md").read_text(encoding="utf-8")
    statements = text.partition("```text\nCREATE ROLE")[2].partition("```")[0]
    role = f"r{uuid4().hex}"
    script = f"SET search_path TO {env['POSTGRES_SCHEMA']}; CREATE ROLE{statements}"
    for old, new in (
        ("scores_app", role),
        ("SCHEMA public", f"SCHEMA {env['POSTGRES_SCHEMA']}"),
        ("MAINTAIN", lock),
    ):
        script = script.replace(old, new)
    postgres.execute(sql.SQL(script))
    limited = {**env, "POSTGRES_USER": role, "POSTGRES_PASSWORD": "...", "CREATE_TABLE": "no"}
    with ScoreLedger.open(event_store=limited, mongo=mongo_uri, mongo_database=name) as ledger:
        receipts = ledger.grant_many([make_grant(n, user_id="jane") for n in range(120)])
        ledger.wait(receipts[-1], timeout=60)
        assert ledger.score_of("jane").grant_count == 120
        assert ledger.status().lag_events == 0
    refused = ["DELETE FROM {}", *(["UPDATE {} SET topic = ''"] if lock == "MAINTAIN" else [])]
    for statement in refused:
        with pytest.raises(InsufficientPrivilege):
            postgres.execute(
                sql.SQL(f"SET ROLE {role}; {statement}").format(
                    sql.Identifier(env["POSTGRES_SCHEMA"], "scoring_events")
                )
            )
