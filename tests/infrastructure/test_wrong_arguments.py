"""What was given by mistake: one sentence that says what is wrong, and nothing is guessed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from projections import ProjectionError, ReadModelUnavailable, ScoreLedger, Settings
from projections.connections import open_scoring
from projections.embedded import find_mongod
from projections.embedded.launch import free_port
from projections.mongo import connect
from scoring import Scoring, ScoringError
from support import make_grant, sqlite_env


@pytest.fixture
def event_store(tmp_path: Path) -> dict[str, str]:
    return sqlite_env(tmp_path / "events.sqlite")


@pytest.fixture
def database(mongo_uri: str) -> Iterator[Any]:
    """A database of the embedding application's own client."""
    with connect(mongo_uri) as client:
        name = f"test_{uuid4().hex}"
        yield client[name]
        client.drop_database(name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"folder": ""}, "folder must be a path"),
        ({"folder": 3}, "folder must be a path"),
        ({"folder": "here", "settings": Settings()}, "give one"),
        ({"settings": {"folder": "here"}}, "must be a Settings object"),
        ({"scoring": "here"}, "must be a Scoring object"),
        ({"scoring": Scoring}, "must be a Scoring object"),
        ({"event_store": ["SQLITE_DBNAME"]}, "must map names"),
        ({"event_store": {"SQLITE_LOCK_TIMEOUT": 5}}, "must map names"),
        ({"event_store": {"SQLITE_DBNAME": ":memory:"}}, "name a file"),
        ({"event_store": {"PERSISTENCE_MODULE": "no.such"}}, r"no\.such"),
        ({"event_store": {"AGGREGATE_CACHE_MAXSIZE": "many"}}, "AGGREGATE_CACHE_MAXSIZE"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(
    arguments: dict[str, Any],
    sentence: str,
    database: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is granted, in one line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProjectionError, match=sentence) as refused:
        ScoreLedger.open(mongo=database, worker=False, **arguments)
    assert "\n" not in str(refused.value)


def test_an_empty_uri_is_not_taken_for_none(event_store: dict[str, str]) -> None:
    """A variable that is not set must not start a server in the folder."""
    with pytest.raises(ProjectionError, match="mongo is an empty text"):
        ScoreLedger.open(mongo="", event_store=event_store)


@pytest.mark.parametrize("name", ["", "a b", "a.b"])
def test_a_name_that_no_database_has_is_refused(
    name: str, database: Any, event_store: dict[str, str]
) -> None:
    """An empty one too: it is not the default's."""
    with pytest.raises(ReadModelUnavailable, match="mongo_database"):
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
        open_scoring(Settings(), event_store=sqlite_env(file))
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
    "page", [{"limit": 0}, {"limit": "3"}, {"limit": 2**70}, {"after": "2"}, {"after": 2**70}]
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
            with pytest.raises(ReadModelUnavailable, match=cure):
                ScoreLedger.open(folder=tmp_path / "ledger", mongo=uri)
        finally:
            server.kill()
