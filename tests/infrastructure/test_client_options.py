"""What a URI or an application's client says for itself does not touch what the ledger needs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.raw_bson import RawBSONDocument
from eventsourcing.application import Application
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.utils import Environment
from pymongo import MongoClient
from pymongo.errors import InvalidOperation
from pymongo.read_preferences import Nearest, ReadPreference

from concurrency import until
from event_store import damaged
from heard_commands import HeardCommands
from projections import ReadModelUnavailable, ScoreLedger
from projections.mongo import MongoFactory, close, connect
from projections.mongo.read_model import ReadModel
from projections.settings import Settings
from replica_set import ReplicaSet
from scoring import Scoring
from support import make_grant, mongo_env, sqlite_env

OPTIONS = [
    "readPreference=secondary",
    "readPreference=secondaryPreferred",
    "readPreference=nearest&maxStalenessSeconds=120",
    "readPreference=primaryPreferred",
    "w=0",
    "w=1&journal=false",
    "w=1&wtimeoutMS=1",
    "readConcernLevel=local",
    "readConcernLevel=linearizable",
    "readConcernLevel=available",
    "retryWrites=false&retryReads=false",
    "uuidRepresentation=pythonLegacy",
    "tz_aware=false",
    "timeoutMS=20000",
    "maxPoolSize=1",
    "maxIdleTimeMS=1",
    "compressors=zlib",
    "appName=somebody-else",
]


def use_every_call(ledger: ScoreLedger, file: Path) -> None:
    """Project, park, unpark, read, verify, rebuild, drop."""
    for number in range(20):
        receipt = ledger.grant(**make_grant(number).model_dump())
    with damaged(file, receipt.position):
        ledger.catch_up()
    assert [stream.reason for stream in ledger.status().parked_streams]
    assert ledger.unpark().streams == 1
    ledger.wait(receipt)
    assert len(ledger.leaderboard.top(7)) == 7
    assert len(ledger.leaderboard.top(7)) == 7
    assert sum(map(len, ledger.leaderboard.pages(size=2))) == 7
    assert ledger.totals("user-1").total_score
    assert ledger.history("user-1")
    assert ledger.drift().users == 7
    assert ledger.verify().ok
    assert ledger.rebuild().live
    assert ledger.drop_kept_generations() == [1]
    assert ledger.verify(events=False).ok


@pytest.mark.parametrize("options", OPTIONS)
def test_a_uri_with_options_does_everything(
    mongo_uri: str, read_model: ReadModel, tmp_path: Path, options: str
) -> None:
    """Reading from secondaries, unacknowledged writes and the like are not for the read model."""
    uri = mongo_uri.replace("/?directConnection=true", f"/?replicaSet=score-ledger&{options}")
    assert options in uri
    settings = Settings(
        folder=tmp_path, mongo_uri=uri, mongo_database=read_model.database.name, on_error="park"
    )
    file = tmp_path / "events.sqlite"
    with ScoreLedger.open(settings=settings, worker=False, event_store=sqlite_env(file)) as ledger:
        use_every_call(ledger, file)


@pytest.mark.parametrize("preference", [ReadPreference.SECONDARY, Nearest()], ids=str)
def test_a_client_that_reads_elsewhere_does_everything(
    mongo_uri: str, read_model: ReadModel, tmp_path: Path, preference: Any
) -> None:
    """An application's own client, whose other uses are to read from secondaries."""
    settings = Settings(folder=tmp_path, mongo_database=read_model.database.name, on_error="park")
    file = tmp_path / "events.sqlite"
    with (
        MongoClient[Any](mongo_uri, read_preference=preference, readConcernLevel="local") as client,
        ScoreLedger.open(
            settings=settings, worker=False, event_store=sqlite_env(file), mongo=client
        ) as ledger,
    ):
        use_every_call(ledger, file)


def test_with_secondaries_there_everything_is_asked_of_the_primary(
    replica_set: ReplicaSet, scoring: Scoring, tmp_path: Path
) -> None:
    """Where a preference for them could be followed; and one of them alone is told so."""
    file = tmp_path / "events.sqlite"
    settings = Settings(
        folder=tmp_path,
        mongo_uri=f"{replica_set.uri}&readPreference=secondary",
        mongo_database="preference",
        on_error="park",
    )
    with ScoreLedger.open(settings=settings, worker=False, event_store=sqlite_env(file)) as ledger:
        use_every_call(ledger, file)

    def what_a_secondary_tells() -> str:
        secondary = replica_set.secondaries()[0].address
        uri = f"mongodb://{secondary}/?directConnection=true"
        update = {"mongo_uri": uri, "mongo_database": "another"}
        there = settings.model_copy(update=update)
        try:
            ScoreLedger.open(settings=there, worker=False, event_store=sqlite_env(file)).close()
        except ReadModelUnavailable as error:
            return str(error)
        return ""

    # On a busy machine it may be elected meanwhile.
    until(lambda: "with directConnection" in what_a_secondary_tells(), every_seconds=0.1)


class UpperCase(TypeDecoder):
    """What an application of its own kind may register for all text that it reads."""

    bson_type = str

    def transform_bson(self, value: str) -> str:
        return value.upper()


@pytest.mark.parametrize(
    "options",
    [
        {"w": 0},
        {"w": 1, "journal": False},
        {"readConcernLevel": "linearizable"},
        {"read_preference": ReadPreference.SECONDARY},
        {"type_registry": TypeRegistry([UpperCase()])},
        {"document_class": RawBSONDocument},
    ],
    ids="+".join,  # not what they are, which may be told by an address
)
def test_every_event_and_snapshot_is_written_and_read_by_a_majority(
    mongo_uri: str, options: dict[str, Any]
) -> None:
    """Whatever an application has its client do elsewhere; one event, and many at once."""
    commands = HeardCommands()
    database = f"events_{uuid4().hex[:8]}"
    uri = mongo_uri.replace("directConnection=true", "replicaSet=score-ledger")
    with MongoClient[Any](uri, event_listeners=[commands], **options) as client:
        factory = MongoFactory(Environment("kennel", {"MONGO_DATABASE": database}), client=client)
        stored = [StoredEvent(f"dog-{number}", 1, "topic", b"state") for number in range(30)]
        events, snapshots = factory.process_recorder(), factory.aggregate_recorder("snapshots")
        commands.sent.clear()
        for some in (stored[:1], stored[1:]):
            events.insert_events(some, tracking=Tracking("upstream", len(some)))
            snapshots.insert_events(some)
        assert events.select_events("dog-7") == snapshots.select_events("dog-7") == [stored[7]]
        assert len(events.select_notifications(start=1, limit=100)) == 30
        client.drop_database(database)
    asked = [command for command in commands.sent if "startTransaction" in command]
    asked += [
        command
        for command in commands.sent
        if {"find", "aggregate"} & {*command} and "autocommit" not in command
    ]
    ended = [
        command
        for command in commands.sent
        if {"insert", "update"} & {*command} and "autocommit" not in command
    ]
    ended += [command for command in commands.sent if "commitTransaction" in command]
    assert {command["readConcern"]["level"] for command in asked} == {"majority"}
    assert {command["writeConcern"]["w"] for command in ended} == {"majority"}


@pytest.mark.parametrize(
    "options",
    [
        {"readConcernLevel": "majority"},
        {"read_preference": ReadPreference.SECONDARY},
        {"document_class": RawBSONDocument},
        {"uuidRepresentation": "standard"},
    ],
    ids="+".join,
)
def test_a_writer_that_died_is_found_by_every_client(
    mongo_uri: str, options: dict[str, Any]
) -> None:
    """It holds the position that comes next, and the server would wait for it for a minute."""
    database = f"events_{uuid4().hex[:8]}"
    uri = mongo_uri.replace("directConnection=true", "replicaSet=score-ledger")
    with connect(mongo_uri) as killed, MongoClient[Any](uri, **options) as client:
        env = Environment("kennel", {"MONGO_DATABASE": database})
        recorder = MongoFactory(env, client=client).application_recorder()
        dead = MongoFactory(env, client=killed).application_recorder()
        with killed.start_session() as session:
            dead._chain._writers.announce(session)
            session.start_transaction()
            dead._events.insert_one({"_id": 1, "l": 1, "c": b"", "e": []}, session=session)
            assert recorder.insert_events([StoredEvent("rex", 1, "topic", b"")]) == [1]
        killed.drop_database(database)


def test_a_worker_that_waits_for_events_leaves_others_the_only_connection(
    mongo_uri: str, database: Any
) -> None:
    """It asks again and again, and the pool is not fair."""
    with (
        MongoClient[Any](mongo_uri, maxPoolSize=1) as client,
        ScoreLedger.open(mongo=client, mongo_database=database.name, events="mongo") as ledger,
    ):
        for number in range(3):
            ledger.wait(ledger.grant(**make_grant(number).model_dump()), timeout=60)


def test_a_cluster_with_several_mongos_is_named_by_all_of_them(
    mongo_uri: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has no single address of such a one."""

    def address(_: object) -> None:
        raise InvalidOperation("load balancing among mongoses")

    monkeypatch.setattr(MongoClient, "address", property(address))
    with ScoreLedger.open(mongo=database, events="mongo", worker=False) as ledger:
        status = ledger.status()
    assert status.read_model == f"{mongo_uri.split('/')[2].rpartition('@')[2]}/{database.name}"


def test_an_application_that_was_closed_is_collected_without_a_word(
    mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library closes it once more then, in the middle of whatever asks for memory."""
    closed: list[MongoClient[Any]] = []
    monkeypatch.setattr("projections.mongo.factory.close", closed.append)
    env = mongo_env(mongo_uri, f"test_{uuid4().hex}")
    app: Application[Any] | None = Application(env)
    assert app is not None
    assert isinstance(app.factory, MongoFactory)
    own = app.factory._own_client
    app.close()
    app = None
    gc.collect()
    assert sum(client is own for client in closed) == 1
    for client in closed:  # those of applications of earlier tests, too, that are collected here
        close(client)
