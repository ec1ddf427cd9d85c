"""A ledger whose events are in MongoDB, beside its read model; and the setting that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import IntegrityError, StoredEvent

from projections import ProjectionError, ScoreLedger, Settings
from projections.errors import EventStoreReplaced, ReadModelUnavailable
from projections.mongo import connect
from projections.mongo.client import nodes_of
from projections.mongo.event_store import MongoApplicationRecorder, foundations
from replica_set import ReplicaSet
from scoring import InvalidSetting, Scoring
from support import make_grant, mongo_env, sqlite_env

EVENTS_IN_MONGO = {"scoring_events", "scoring_snapshots", "scoring_events_writers"}


def uuids(database: Any) -> dict[str, Any]:
    return {entry["name"]: entry["info"].get("uuid") for entry in database.list_collections()}


def by_argument(database: Any, uri: str, patch: pytest.MonkeyPatch) -> ScoreLedger:
    del uri, patch
    return ScoreLedger.open(events="mongo", mongo=database)


def by_setting(database: Any, uri: str, patch: pytest.MonkeyPatch) -> ScoreLedger:
    patch.setenv("SCORE_LEDGER_EVENTS", "mongo")
    return ScoreLedger.open(mongo=uri, mongo_database=database.name)


def by_environment(database: Any, uri: str, patch: pytest.MonkeyPatch) -> ScoreLedger:
    patch.setenv("SCORE_LEDGER_EVENTS", "mongo")
    patch.setenv("MONGO_URI", uri)
    patch.setenv("MONGO_DATABASE", database.name)
    return ScoreLedger.open()


def by_the_librarys_variable(database: Any, uri: str, patch: pytest.MonkeyPatch) -> ScoreLedger:
    del uri
    patch.setenv("PERSISTENCE_MODULE", "projections.mongo")
    return ScoreLedger.open(mongo=database)


@pytest.mark.parametrize(
    "opened", [by_argument, by_setting, by_environment, by_the_librarys_variable]
)
def test_events_and_read_model_share_a_database(
    opened: Callable[[Any, str, pytest.MonkeyPatch], ScoreLedger],
    database: Any,
    mongo_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever says it; a client that is lent carries both, and is left open."""
    with opened(database, mongo_uri, monkeypatch) as ledger:
        receipts = ledger.grant_many([make_grant(n, user_id="ada") for n in range(120)])
        ledger.wait(receipts[-1], timeout=60)
        assert ledger.totals("ada").grant_count == ledger.score_of("ada").grant_count == 120
        assert ledger.verify().ok
        status = ledger.status()
        assert status.event_store == "projections.mongo"
        assert status.events == f"{status.read_model}.scoring_events"
    assert {*uuids(database)} >= {*EVENTS_IN_MONGO, "score_grants"}


def test_events_are_in_the_folders_own_server_however_often_it_is_started(tmp_path: Path) -> None:
    """Its port and password change; there is no other file or server that says anything."""
    for number in range(2):
        with ScoreLedger.open(folder=tmp_path, events="mongo", worker=False) as ledger:
            assert ledger.grant(**make_grant(number, user_id="ada").model_dump()).position
            ledger.catch_up()
            assert ledger.totals("ada").grant_count == number + 1
    assert [path.name for path in tmp_path.iterdir()] == ["mongo"]


def test_an_event_store_in_mongodb_may_be_somewhere_else_than_the_read_model(
    database: Any, mongo_uri: str
) -> None:
    """If its own variables say so: the whole place, or the database alone."""
    elsewhere = f"{database.name}_events"
    module = {"PERSISTENCE_MODULE": "projections.mongo", "MONGO_DATABASE": elsewhere}
    client = database.client
    for number, env in enumerate([{**module, "MONGO_URI": mongo_uri}, module]):
        with ScoreLedger.open(event_store=env, mongo=database, worker=False) as ledger:
            ledger.grant(**make_grant(number, user_id="ada").model_dump())
            assert ledger.status().events == f"{nodes_of(client)}/{elsewhere}.scoring_events"
            assert ledger.catch_up() == 3 + number * 2
    assert "scoring_events" not in database.list_collection_names()
    client.drop_database(elsewhere)


def test_servers_are_told_apart_by_status_and_by_the_error(
    database: Any, mongo_uri: str, replica_set: ReplicaSet
) -> None:
    """Where events and read model have one each: by all nodes, and without the password."""
    env = mongo_env(mongo_uri, f"{database.name}_events")
    with connect(replica_set.uri) as read_side:
        there = read_side[database.name]
        with ScoreLedger.open(event_store=env, mongo=there, worker=False) as ledger:
            ledger.grant(**make_grant().model_dump())
            ledger.catch_up()
            replica_set.kill(replica_set.secondaries()[0])
            status = ledger.status()
        nodes = ",".join(sorted(node.address for node in replica_set.nodes))
        address = mongo_uri.partition("@")[2].partition("/")[0]
        assert status.read_model == f"{nodes}/{database.name}"
        assert status.events == f"{address}/{database.name}_events.scoring_events"
        other = mongo_env(replica_set.uri, f"{database.name}_other")
        with ScoreLedger.open(event_store=other, mongo=there, worker=False) as ledger:
            with pytest.raises(EventStoreReplaced) as caught:
                ledger.catch_up()
            assert caught.value.event_store == f"projections.mongo {ledger.status().events}"
        assert caught.value.event_store.endswith(f" {nodes}/{database.name}_other.scoring_events")
        for name in (database.name, f"{database.name}_other"):
            read_side.drop_database(name)
    database.client.drop_database(f"{database.name}_events")


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({"SCORE_LEDGER_EVENTS": "mongo", "PERSISTENCE_MODULE": "eventsourcing.sqlite"}, {}),
        ({"SCORE_LEDGER_EVENTS": "sqlite", "SCORING_PERSISTENCE_MODULE": "projections.mongo"}, {}),
        ({"PERSISTENCE_MODULE": "eventsourcing.postgres"}, {"events": "mongo"}),
        ({"SCORE_LEDGER_EVENTS": "mongo"}, {"event_store": sqlite_env(Path("events.sqlite"))}),
        ({}, {"events": "mongo", "event_store": sqlite_env(Path("events.sqlite"))}),
        ({}, {"events": "sqlite", "scoring": Scoring()}),
        ({"SCORE_LEDGER_EVENTS": "mongo"}, {"scoring": Scoring()}),
    ],
)
def test_two_names_of_different_event_stores_are_one_error(
    environment: dict[str, str],
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither is guessed to be the one that is meant, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(InvalidSetting, match=r"SCORE_LEDGER_EVENTS .*name one event store$"):
        ScoreLedger.open(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_event_store_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument and as a variable; an argument beats the variable."""
    unknown: Any = "mysql"
    with pytest.raises(ValueError, match=r"events must be one of 'sqlite', .*; got 'mysql'"):
        ScoreLedger.open(events=unknown)
    monkeypatch.setenv("SCORE_LEDGER_EVENTS", "mysql")
    with pytest.raises(InvalidSetting, match=r"SCORE_LEDGER_EVENTS .*'sqlite', 'postgres' or"):
        Settings.from_environment()


def test_the_argument_beats_the_variable(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every argument does."""
    monkeypatch.setenv("SCORE_LEDGER_EVENTS", "mongo")
    with ScoreLedger.open(folder=tmp_path, events="sqlite", mongo=database, worker=False) as ledger:
        assert ledger.status().event_store == "eventsourcing.sqlite"


@pytest.mark.parametrize("events", ["sqlite", "mongo"])
def test_opening_says_in_the_log_where_events_and_read_model_are(
    database: Any, tmp_path: Path, events: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever names a MongoDB only may believe that everything is kept there."""
    caplog.set_level("INFO", "projections.ledger")
    with ScoreLedger.open(mongo=database, events=events, folder=tmp_path, worker=False) as ledger:
        status = ledger.status()
    events_place = f"events in {status.event_store} {status.events}"
    assert caplog.messages == [
        f"opening a ledger: {events_place}, read model in MongoDB at {status.read_model}"
    ]


def test_who_only_looks_makes_no_events(database: Any) -> None:
    """Neither with ``create=False`` nor with ``read_only=True``; the sentence says where."""
    looking: list[dict[str, Any]] = [{"create": False}, {"read_only": True}]
    for only_looking in looking:
        with pytest.raises(ProjectionError, match=rf"no ledger yet: .*{database.name}; name its"):
            ScoreLedger.open(events="mongo", mongo=database, worker=False, **only_looking)
        assert uuids(database) == {}


def test_a_server_that_is_not_there_is_named_as_such() -> None:
    """In the sentence that the read model has for it."""
    uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"
    with pytest.raises(ReadModelUnavailable, match="MongoDB cannot be reached"):
        ScoreLedger.open(events="mongo", mongo=uri)


def test_a_rebuild_leaves_the_events_beside_it_alone(database: Any) -> None:
    """They are neither renamed nor dropped, with what was replaced or without, nor refused."""
    with ScoreLedger.open(events="mongo", mongo=database, worker=False) as ledger:
        ledger.grant_many([make_grant(number, user_id="ada") for number in range(120)])
        ledger.catch_up()
        # What a process application of the library keeps under that name.
        database["scoring_tracking"].insert_one({"_id": "Other", "position": 1})
        before = {name: uuid for name, uuid in uuids(database).items() if "scoring_" in name}
        assert {*before} == {*EVENTS_IN_MONGO, "scoring_tracking"}
        for _ in range(2):
            assert ledger.rebuild().live
        assert ledger.drop_kept_generations() == [1, 2]
        database["user_scores"].drop()
        assert ledger.rebuild(fresh=True).live
        ledger.drop_kept_generations()
        after = {name: uuid for name, uuid in uuids(database).items() if "scoring_" in name}
        assert after == before
        assert ledger.verify().ok
        assert ledger.score_of("ada").grant_count == 120


@pytest.mark.parametrize("look_after", [0, 3])
def test_events_that_are_dropped_under_a_process_are_noticed_and_made_unique_again(
    database: Any, monkeypatch: pytest.MonkeyPatch, look_after: int
) -> None:
    """At the next look, also if others were recorded before; nothing builds on what is gone."""
    monkeypatch.setattr(foundations, "_LOOKS_BACK_SECONDS", 1e9)
    with ScoreLedger.open(events="mongo", mongo=database, worker=False) as ledger:
        for number in range(5):
            ledger.grant(**make_grant(number, user_id="ada", amount=1).model_dump())
        database.client.drop_database(database.name)
        for number in range(look_after):
            ledger.grant(**make_grant(100 + number, user_id="bob", amount=1).model_dump())
        monkeypatch.setattr(foundations, "_LOOKS_BACK_SECONDS", 0)
        receipt = ledger.grant(**make_grant(0, user_id="ada", amount=1).model_dump())
        assert (receipt.status, receipt.total_before) == ("RECORDED", 0)
        assert ledger.score_of("ada").grant_count == 1
        [index] = [ix for ix in database["scoring_events"].list_indexes() if ix["name"] != "_id_"]
        assert (index["key"], index["unique"]) == ({"e.s": 1, "e.v": 1}, True)


@pytest.mark.parametrize("many", [1, 50])
def test_nothing_is_recorded_on_events_that_were_dropped_a_moment_ago(
    database: Any, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Also before the next look, in one document as in a transaction of several."""
    monkeypatch.setattr(foundations, "_LOOKS_BACK_SECONDS", 1e9)
    with ScoreLedger.open(events="mongo", mongo=database, worker=False) as ledger:
        for number in range(50):
            ledger.grant(**make_grant(number, user_id="ada", amount=1).model_dump())
        database.client.drop_database(database.name)
        receipts = ledger.grant_many(
            [make_grant(100 + number, user_id="ada", amount=1) for number in range(many)]
        )
        assert [(r.status, r.total_after) for r in receipts] == [
            ("RECORDED", number + 1) for number in range(many)
        ]
        assert ledger.score_of("ada").version == many + 1
        assert "e.s_1_e.v_1" in database["scoring_events"].index_information()


def test_events_of_any_application_stay_unique_when_they_are_dropped(database: Any) -> None:
    """Its recorder looks at nothing that they build on."""
    recorder = MongoApplicationRecorder(database.client, database.name, "notes")
    recorder.prepare()
    event = StoredEvent(uuid4(), 1, "a:B", b"{}")
    recorder.insert_events([event])
    database.client.drop_database(database.name)
    assert recorder.insert_events([event]) == [1]
    with pytest.raises(IntegrityError):
        recorder.insert_events([event])
