"""What was given by mistake: one sentence that says what is wrong, and nothing is guessed."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.application import Application
from eventsourcing.persistence import PersistenceError
from pymongo import MongoClient

from projections import LedgerError, ProjectionError, ReadModelUnavailable, ScoreLedger, Settings
from projections.embedded import find_mongod
from projections.embedded.launch import free_port
from scoring import InvalidSetting, Scoring, ScoringError
from support import make_grant, mongo_env, sqlite_env


@pytest.fixture
def event_store(tmp_path: Path) -> dict[str, str]:
    return sqlite_env(tmp_path / "events.sqlite")


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (ValueError, {"folder": ""}, "folder must be a path"),
        (TypeError, {"folder": 3}, "folder must be a path"),
        (ValueError, {"folder": "here", "settings": Settings()}, "give one"),
        (TypeError, {"settings": {"folder": "here"}}, "must be a Settings object"),
        (TypeError, {"scoring": "here"}, "must be a Scoring object"),
        (TypeError, {"scoring": Scoring}, "must be a Scoring object"),
        (ValueError, {"scoring": Scoring(), "event_store": {}}, "give one"),
        (ValueError, {"read_only": True, "worker": True}, "give worker=False"),
        (ValueError, {"rank_by": "points"}, "rank_by must be 'recomputed' or 'ledger'"),
        (ValueError, {"rank_by": ["ledger"]}, "rank_by must be 'recomputed' or 'ledger'"),
        (TypeError, {"mongo": 3}, "mongo must be a MongoClient"),
        (ValueError, {"mongo": ""}, "mongo is an empty text"),
        (ValueError, {"mongo_database": "another"}, "two databases were given"),
        (InvalidSetting, {"mongo": "http://127.0.0.1"}, "MONGO_URI is not usable"),
        (InvalidSetting, {"mongo": "mongodb://127.0.0.1:99999"}, "MONGO_URI is not usable"),
        (InvalidSetting, {"mongo": "mongodb://ada:p@ss@127.0.0.1"}, "percent-encode"),
        (TypeError, {"event_store": ["SQLITE_DBNAME"]}, "must map names"),
        (TypeError, {"event_store": {"SQLITE_LOCK_TIMEOUT": 5}}, "must map names"),
        (InvalidSetting, {"event_store": {"SQLITE_DBNAME": ":memory:"}}, "name a file"),
        (InvalidSetting, {"event_store": {"PERSISTENCE_MODULE": "no.such"}}, r"no\.such"),
        (InvalidSetting, {"event_store": {"MAPPER_TOPIC": "no.such:Mapper"}}, r"no\.such"),
        (InvalidSetting, {"event_store": {"SQLITE_LOCK_TIMEOUT": "x"}}, "SQLITE_LOCK_TIMEOUT"),
        (InvalidSetting, {"event_store": {"AGGREGATE_CACHE_MAXSIZE": "x"}}, "an integer"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    kind: type[Exception],
    arguments: dict[str, Any],
    sentence: str,
    database: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is granted, in one line, as Python says it: a wrong type or a wrong value."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=sentence) as refused:
        ScoreLedger.open(**{"mongo": database, "worker": False, **arguments})
    assert "\n" not in str(refused.value)
    assert not isinstance(refused.value, ProjectionError | ScoringError)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SCORE_LEDGER_BATCH_SIZE", "many"),
        ("SCORE_LEDGER_LINGER_SECONDS", "-1"),
        ("SCORE_LEDGER_LINGER_SECONDS", "inf"),
        ("SCORE_LEDGER_ON_ERROR", "ignore"),
        ("SCORE_LEDGER_RANK_BY", "points"),
        ("MONGO_URI", "http://127.0.0.1"),
        ("POSTGRES_ENABLE_DB_FUNCTIONS", "yes"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named(
    variable: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the ledger, since no argument is to blame, and a ``ValueError`` all the same."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidSetting, match=f"{variable} is not usable") as refused:
        ScoreLedger.open(folder=tmp_path, worker=False)
    assert refused.value.name == variable
    assert isinstance(refused.value, LedgerError)
    assert isinstance(refused.value, ValueError)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_settings_made_by_hand_do_not_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that has its own configuration gives what that says, and the defaults."""
    monkeypatch.setenv("MONGO_URI", "mongodb://elsewhere")
    monkeypatch.setenv("SCORE_LEDGER_BATCH_SIZE", "7")
    monkeypatch.setenv("SCORE_LEDGER_LINGER_SECONDS", "1.5")
    monkeypatch.setenv("SCORE_LEDGER_RANK_BY", "")
    made, read = Settings(folder=tmp_path), Settings.from_environment(folder=tmp_path)
    assert (made.folder, made.mongo_uri, made.batch_size) == (tmp_path, None, 40_000)
    assert (read.folder, read.mongo_uri, read.batch_size) == (tmp_path, "mongodb://elsewhere", 7)
    assert (made.linger_seconds, read.linger_seconds) == (30, 1.5)
    assert read.rank_by == "recomputed"
    with pytest.raises(ValueError, match="batch_sise"):
        Settings(batch_sise=7)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["", "a b", "a.b"])
def test_a_name_that_no_database_has_is_refused(
    name: str, database: Any, event_store: dict[str, str]
) -> None:
    """An empty one too: it is not the default's."""
    with pytest.raises(InvalidSetting, match="mongo_database"):
        ScoreLedger.open(mongo=database.client, mongo_database=name, event_store=event_store)


def test_a_client_that_was_closed_is_named(mongo_uri: str, event_store: dict[str, str]) -> None:
    """It is the application's to keep open."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri)
    client.close()
    with pytest.raises(ReadModelUnavailable, match="leave a MongoClient open"):
        ScoreLedger.open(mongo=client, event_store=event_store)


def test_a_file_alone_is_enough_to_name_the_event_store(tmp_path: Path, database: Any) -> None:
    """The library's own default keeps events in memory, where a grant would be lost."""
    file = tmp_path / "events.sqlite"
    for status in ("RECORDED", "DUPLICATE"):
        with ScoreLedger.open(
            mongo=database, event_store={"SQLITE_DBNAME": str(file)}, worker=False
        ) as ledger:
            assert ledger.grant(**make_grant(1).model_dump()).status == status


def test_a_folder_may_be_text_and_have_spaces(database: Any, tmp_path: Path) -> None:
    """As ``open()`` of Python takes it."""
    folder = tmp_path / "a folder with späces"
    with ScoreLedger.open(folder=str(folder), mongo=database, worker=False) as ledger:
        ledger.grant(**make_grant(1).model_dump())
    assert (folder / "events.sqlite").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With what to do about it."""
    (tmp_path / "file").touch()
    with pytest.raises(ProjectionError, match="SCORE_LEDGER_FOLDER"):
        ScoreLedger.open(folder=tmp_path / "file" / "folder")


def test_an_event_store_that_is_none_is_named(tmp_path: Path) -> None:
    """The sentence says where it was looked for, once, and what helps."""
    file = tmp_path / "events.sqlite"
    file.write_bytes(b"not a database" * 1000)
    with pytest.raises(ProjectionError, match="name a file that is SQLite's") as refused:
        ScoreLedger.open(event_store=sqlite_env(file))
    assert str(file) in str(refused.value)
    assert str(refused.value).count("cannot be opened") == 1


def test_an_application_that_was_closed_says_so(event_store: dict[str, str], database: Any) -> None:
    """Whoever closed it while a ledger used it, or before."""
    scoring = Scoring(event_store)
    scoring.close()
    with pytest.raises(ScoringError, match="was closed"):
        scoring.grant(**make_grant(1).model_dump())
    with (
        ScoreLedger.open(scoring=scoring, mongo=database, worker=False) as ledger,
        pytest.raises(ScoringError, match="was closed"),
    ):
        ledger.status()


def test_many_receipts_are_not_one(database: Any, event_store: dict[str, str]) -> None:
    """``wait`` says which of them to give."""
    with ScoreLedger.open(mongo=database, event_store=event_store, worker=False) as ledger:
        receipts: Any = ledger.grant_many([make_grant(1), make_grant(2)])
        with pytest.raises(TypeError, match="highest position"):
            ledger.wait(receipts)


@pytest.mark.parametrize(
    "page", [{"limit": 0}, {"limit": "3"}, {"limit": 2**70}, {"before": "2"}, {"before": 2**70}]
)
def test_a_page_that_cannot_be_is_refused(
    page: dict[str, Any], database: Any, event_store: dict[str, str]
) -> None:
    """MongoDB would find nothing after a text, and that is no page."""
    with (
        ScoreLedger.open(mongo=database, event_store=event_store, worker=False) as ledger,
        pytest.raises(ValueError, match="an integer"),
    ):
        ledger.history("ada", **page)


@pytest.mark.parametrize(
    ("name", "reason"), [("a b", "character"), ("config", "own"), ("local", "own")]
)
def test_a_database_that_can_keep_nothing_for_certain_is_refused(
    mongo_uri: str, name: str, reason: str
) -> None:
    """The server takes events into some of its own databases, and other nodes get no copy."""
    refused = f"MONGO_DATABASE.*{reason}"
    with pytest.raises(InvalidSetting, match=refused):
        Application(mongo_env(mongo_uri, name))
    with pytest.raises(InvalidSetting, match=refused):
        ScoreLedger.open(mongo=mongo_uri, mongo_database=name, events="mongo")
    with pytest.raises(InvalidSetting, match=refused):
        ScoreLedger.open(mongo=mongo_uri, mongo_database=name, scoring=Scoring())


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [([], "standalone.*--replSet"), (["--replSet", "rs0"], r"never initiated.*rs\.initiate\(\)")],
)
def test_a_server_that_cannot_do_transactions_is_told_what_it_lacks(
    tmp_path: Path, arguments: list[str], cure: str
) -> None:
    """Over a direct connection, which does not look for a replica set."""
    port = free_port(None)
    place = ["--dbpath", str(tmp_path), "--bind_ip", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [str(find_mongod()), *place, *arguments], stdout=subprocess.DEVNULL
    ) as server:
        try:
            uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
            with MongoClient[Any](uri) as client:
                client.admin.command("ping")  # for the ledger does not wait long for its start
            with pytest.raises(ReadModelUnavailable, match=cure):
                ScoreLedger.open(folder=tmp_path / "ledger", mongo=uri)
            # Events of any application, too, and at once, not with its first large commit.
            with pytest.raises(PersistenceError, match=cure):
                Application(mongo_env(uri, "kennel"))
        finally:
            server.kill()


def test_a_store_in_memory_is_refused_wherever_it_is_named(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a variable of the environment, too: every thread would have one of its own."""
    monkeypatch.setenv("SQLITE_DBNAME", ":memory:")
    with pytest.raises(InvalidSetting, match="name a file"):
        ScoreLedger.open(folder=tmp_path, mongo=database, worker=False)
