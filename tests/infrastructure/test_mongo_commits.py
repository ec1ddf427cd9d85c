"""Commits to the event store in MongoDB when something goes wrong: each is recorded once, whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from bson.codec_options import CodecOptions
from eventsourcing.persistence import (
    ConnectionPoolClosedError,
    DataError,
    IntegrityError,
    OperationalError,
    StoredEvent,
    Tracking,
)
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.message import _op_msg

from command_line import run_python
from concurrency import lasting_at_most, until
from fail_points import failing
from heard_commands import HeardCommands
from projections.mongo import connect
from projections.mongo.event_store import (
    GaplessMongoRecorder,
    MongoAggregateRecorder,
    MongoApplicationRecorder,
    MongoProcessRecorder,
    MongoTrackingRecorder,
)
from projections.mongo.event_store.chain import EventChain
from projections.mongo.event_store.documents import MAX_EVENTS
from scoring.event_store import StoreWentBack
from scoring.retries import TimeLimit


@pytest.fixture
def client(mongo_uri: str) -> Iterator[MongoClient[Any]]:
    client = connect(mongo_uri)
    yield client
    client.close()


@pytest.fixture
def database(client: MongoClient[Any]) -> Iterator[str]:
    name = f"events_{uuid4().hex[:8]}"
    yield name
    client.drop_database(name)


@pytest.fixture
def recorder(client: MongoClient[Any], database: str) -> MongoProcessRecorder:
    recorder = MongoProcessRecorder(client, database, "test")
    recorder.prepare()
    return recorder


def events(stream: str, count: int, *, after: int = 0) -> list[StoredEvent]:
    return [
        StoredEvent(stream, version, "topic", f"{stream} {version}".encode())
        for version in range(after + 1, after + count + 1)
    ]


def recorded(recorder: MongoApplicationRecorder) -> list[tuple[int, object, int]]:
    return [
        (each.id, each.originator_id, each.originator_version)
        for each in recorder.select_notifications(start=1, limit=10_000)
    ]


@pytest.mark.parametrize("count", [1, MAX_EVENTS + 1])
def test_a_commit_whose_answer_was_lost_is_recorded_once_and_answered_truthfully(
    recorder: MongoProcessRecorder, mongo_uri: str, count: int
) -> None:
    """The server has done it, and says that it cannot promise that it lasts."""
    command = "insert" if count == 1 else "commitTransaction"
    with failing(
        mongo_uri,
        command,
        mode={"times": 3},
        writeConcernError={"code": 91, "errmsg": "shutting down"},
    ):
        assert recorder.insert_events(events("a", count)) == list(range(1, count + 1))
    assert recorded(recorder) == [(n, "a", n) for n in range(1, count + 1)]


@pytest.mark.parametrize("command", ["insert", "commitTransaction", "find"])
def test_a_connection_that_is_cut_loses_and_doubles_nothing(
    recorder: MongoProcessRecorder, mongo_uri: str, command: str
) -> None:
    with failing(mongo_uri, command, mode={"times": 3}, closeConnection=True):
        recorder.insert_events(events("a", 1))
        recorder.insert_events(events("b", MAX_EVENTS + 1), tracking=Tracking("up", 7))
    assert [position for position, *_ in recorded(recorder)] == list(range(1, MAX_EVENTS + 3))
    assert recorder.max_tracking_id("up") == 7


def test_a_tracking_whose_answer_was_lost_is_no_conflict_with_itself(
    recorder: MongoProcessRecorder, mongo_uri: str
) -> None:
    with failing(
        mongo_uri,
        "update",
        mode={"times": 3},
        writeConcernError={"code": 91, "errmsg": "shutting down"},
    ):
        recorder.insert_tracking(Tracking("up", 3))
    with pytest.raises(IntegrityError):
        recorder.insert_tracking(Tracking("up", 3))


def hold_the_first(
    recorder: MongoProcessRecorder, monkeypatch: pytest.MonkeyPatch, *, threads: int
) -> None:
    """Have the first of these threads' commits wait until all others stand behind it."""
    insert = EventChain._insert

    def wait_for_all(self: EventChain, commits: Any, *args: Any) -> int:
        monkeypatch.setattr(EventChain, "_insert", insert)
        until(lambda: len(recorder._queue._waiting) == threads - len(commits))
        return insert(self, commits, *args)

    monkeypatch.setattr(EventChain, "_insert", wait_for_all)


def test_commits_of_threads_go_together_and_one_that_is_refused_harms_no_other(
    client: MongoClient[Any],
    recorder: MongoProcessRecorder,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder.insert_events(events("taken", 1))
    hold_the_first(recorder, monkeypatch, threads=8)

    def commit(number: int) -> object:
        try:
            return recorder.insert_events(events("taken" if number % 4 == 0 else f"s{number}", 2))
        except IntegrityError as error:
            return type(error)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(commit, range(8)))
    assert [answer is IntegrityError for answer in answers] == [True, False, False, False] * 2
    positions = sorted(
        position for answer in answers if isinstance(answer, list) for position in answer
    )
    assert positions == list(range(2, 14))
    assert [position for position, *_ in recorded(recorder)] == list(range(1, 14))
    documents = client[database]["test_events"].count_documents({})
    assert documents < 1 + 6


@pytest.mark.parametrize(
    "refused",
    [
        StoredEvent("too large", 1, "topic", bytes(17 * 2**20)),
        StoredEvent("no text: \ud800", 1, "topic", b""),
        StoredEvent("no number of 64 bits", 2**63, "topic", b""),
    ],
    ids=lambda event: event.originator_id.partition(":")[0],
)
def test_what_cannot_be_stored_is_refused_for_its_own_caller_only(
    recorder: MongoProcessRecorder, monkeypatch: pytest.MonkeyPatch, refused: StoredEvent
) -> None:
    """Its neighbours were to go into the same document."""
    hold_the_first(recorder, monkeypatch, threads=6)

    def commit(number: int) -> Sequence[int] | None:
        if number > 1:
            return recorder.insert_events(events(f"s{number}", 1))
        with pytest.raises(DataError):
            recorder.insert_events([refused])
        return []

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(commit, range(6)))
    assert sorted(position for answer in answers for position in answer or ()) == [1, 2, 3, 4]


def test_large_events_are_recorded_together_in_several_documents(
    client: MongoClient[Any], recorder: MongoProcessRecorder, database: str
) -> None:
    """One document would be larger than MongoDB takes."""
    large = [StoredEvent("large", version, "topic", bytes(3 * 2**20)) for version in range(1, 8)]
    assert recorder.insert_events(large) == list(range(1, 8))
    assert recorder.select_events("large", gt=5) == large[5:]
    assert [each.id for each in recorder.select_notifications(start=4, limit=9)] == [4, 5, 6, 7]
    places = [(each["_id"], each["l"]) for each in client[database]["test_events"].find()]
    assert places == [(1, 2), (3, 4), (5, 6), (7, 7)]


def test_whoever_is_interrupted_while_leading_leaves_the_others_to_the_next(
    recorder: MongoProcessRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the thread that commits for all: what it had sent is not sent twice."""
    insert = EventChain._insert
    interrupted: list[Any] = []

    def once(self: EventChain, commits: Any, *args: Any) -> int:
        first = insert(self, commits, *args)
        if len(commits) > 1 and not interrupted:
            interrupted.append(commits)
            raise KeyboardInterrupt
        return first

    monkeypatch.setattr(EventChain, "_insert", once)
    hold_the_first(recorder, monkeypatch, threads=6)

    def commit(number: int) -> object:
        try:
            return recorder.insert_events(events(f"s{number}", 1))
        except KeyboardInterrupt:
            return KeyboardInterrupt

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(commit, range(6)))
    assert interrupted
    assert answers.count(KeyboardInterrupt) == 1
    answered = sorted(
        position for answer in answers if isinstance(answer, list) for position in answer
    )
    assert len(answered) == 5
    assert [position for position, *_ in recorded(recorder)] == [1, 2, 3, 4, 5, 6]
    places = {stream: position for position, stream, _ in recorded(recorder)}
    for number, answer in enumerate(answers):
        if isinstance(answer, list):
            assert answer == [places[f"s{number}"]]


@pytest.mark.parametrize("count", [1, MAX_EVENTS + 1])
def test_a_writer_that_died_inside_a_transaction_holds_nobody_up_for_long(
    client: MongoClient[Any], recorder: MongoProcessRecorder, database: str, count: int
) -> None:
    """It holds the position that comes next; the server would wait for it for a minute."""
    dead = MongoProcessRecorder(client, database, "test")
    session = client.start_session()
    dead._chain._writers.announce(session)
    session.start_transaction()
    dead._events.insert_one({"_id": 1, "l": 1, "c": b"", "e": []}, session=session)
    # Which gives up after less than that.
    assert recorder.insert_events(events("a", count)) == list(range(1, count + 1))
    session.end_session()


def test_a_store_that_was_put_back_is_noticed_before_anything_is_written(
    client: MongoClient[Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.mongo.event_store.foundations._LOOKS_BACK_SECONDS", 0)
    recorder = GaplessMongoRecorder(client, database, "test")
    recorder.prepare()
    recorder.insert_events(events("a", 3))
    recorder.insert_events(events("b", 1))
    client[database]["test_events"].delete_many({"_id": {"$gt": 1}})
    with pytest.raises(StoreWentBack):
        recorder.insert_events(events("c", 1))
    assert recorder.insert_events(events("c", 1)) == [4]
    with pytest.raises(StoreWentBack):
        recorder.insert_events(events("b", 1, after=1))
    assert recorder.insert_events(events("a", 1, after=3)) == [5]


def test_what_new_events_build_on_is_looked_for_once_and_together(
    mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many streams, and however many streams of one event, such as claims, come between."""
    monkeypatch.setattr("projections.mongo.event_store.foundations._LOOKS_BACK_SECONDS", 1e9)
    monkeypatch.setattr("projections.mongo.event_store.foundations._MAX_STREAMS", 350)
    streams = [f"user-{number}" for number in range(300)]
    heard = HeardCommands()
    with connect(mongo_uri) as client:
        first = GaplessMongoRecorder(client, database, "test")
        first.prepare()
        first.insert_events([event for stream in streams for event in events(stream, 2)])
    with MongoClient[Any](mongo_uri, event_listeners=[heard]) as client:
        recorder = GaplessMongoRecorder(client, database, "test")
        recorder.insert_events([e for stream in streams for e in events(stream, 1, after=2)])
        looked_for = [
            sent["filter"]["$or"] for sent in heard.sent if "$or" in sent.get("filter", ())
        ]
        assert [len(conditions) for conditions in looked_for] == [1]
        heard.sent.clear()
        for number in range(4):
            recorder.insert_events([e for n in range(20) for e in events(f"{number}-{n}", 1)])
        recorder.insert_events([e for stream in streams for e in events(stream, 1, after=3)])
        assert "find test_events" not in heard.targets


def test_a_page_is_as_long_as_asked_for_wherever_it_begins(recorder: MongoProcessRecorder) -> None:
    """A document in which it begins may have nothing more of its topics."""
    first, second = events("a", 2)
    recorder.insert_events([replace(first, topic="wanted"), second])
    recorder.insert_events([replace(event, topic="wanted") for event in events("b", 1)])
    [found] = recorder.select_notifications(start=2, limit=1, topics=["wanted"])
    assert (found.id, found.originator_id) == (3, "b")


@pytest.mark.parametrize("kind", [MongoTrackingRecorder, MongoProcessRecorder])
def test_sessions_that_wrote_transactions_are_forgotten_in_time(
    client: MongoClient[Any], database: str, kind: type[MongoTrackingRecorder]
) -> None:
    """Those of views, too, which record no events."""
    recorder = kind(client, database, "test")
    recorder.prepare()
    recorder.insert_tracking_with(Tracking("up", 1), lambda session: session)
    [writers] = client[database].list_collections(filter={"name": {"$regex": "writers"}})
    indexes = client[database][writers["name"]].index_information().values()
    assert [index["expireAfterSeconds"] for index in indexes if index["key"] != [("_id", 1)]]


def test_a_view_whose_own_write_meets_a_duplicate_is_told_and_has_not_moved(
    client: MongoClient[Any], recorder: MongoProcessRecorder, database: str
) -> None:
    """Whatever its keys are called: it is not taken for a lost race, or for an event."""
    seen = client[database]["seen"]
    seen.create_index("name", unique=True)
    seen.insert_one({"_id": 1, "name": "ada"})
    for number, document in enumerate([{"_id": 1}, {"_id": 2, "name": "ada"}], 1):
        with pytest.raises(IntegrityError, match="E11000"):
            recorder.insert_tracking_with(
                Tracking("up", number),
                lambda session, each=document: seen.insert_one(each, session=session),  # type: ignore[misc]
            )
    assert recorder.max_tracking_id("up") is None
    assert seen.count_documents({}) == 1


def test_a_commit_that_loses_every_race_ends_in_time(
    recorder: MongoProcessRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.insert_events(events("a", 1))
    monkeypatch.setattr("projections.mongo.event_store.chain._MAX_SECONDS", 0.3)
    monkeypatch.setattr(EventChain, "_last_position", lambda *_: 0)
    recorder._chain.reset_after_fork()
    with pytest.raises(OperationalError, match="others were faster"):
        recorder.insert_events(events("b", 1))
    assert recorded(recorder) == [(1, "a", 1)]


def test_a_command_that_has_little_time_left_asks_no_longer_than_that(
    recorder: MongoProcessRecorder, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the limits of what it reads and of what it writes add up."""
    monkeypatch.setattr("projections.mongo.event_store.chain._MAX_SECONDS", 500.0)
    monkeypatch.setattr("scoring.retries.MAX_SECONDS", 0.5)
    with (
        failing(mongo_uri, "aggregate", blockConnection=True, blockTimeMS=2000),
        TimeLimit(),
        pytest.raises(OperationalError),
    ):
        recorder.select_events("a")
    with (
        failing(mongo_uri, "insert", errorCode=91),
        lasting_at_most(60),
        TimeLimit(),
        pytest.raises(OperationalError),
    ):
        recorder.insert_events(events("a", 1))


def test_what_may_be_recorded_is_not_said_to_be_refused(
    recorder: MongoProcessRecorder, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was lost, and then the rights to ask."""

    def refuse(*_: object) -> None:
        raise OperationFailure("not authorized", 13)

    monkeypatch.setattr(EventChain, "_recognise", refuse)
    with (
        failing(mongo_uri, "insert", writeConcernError={"code": 91, "errmsg": "shutting down"}),
        pytest.raises(OperationalError, match="may be recorded"),
    ):
        recorder.insert_events(events("a", 1))
    until(lambda: recorded(recorder))  # by a majority: nobody has waited for that
    assert recorded(recorder) == [(1, "a", 1)]


def test_what_fails_together_is_said_to_fail_for_the_servers_reason(
    client: MongoClient[Any], database: str, mongo_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what it sends together the driver says only that errors occurred."""
    snapshots = MongoAggregateRecorder(client, database, "test_snapshots")
    failure = {"code": 91, "errmsg": "shutting down"}
    with (
        failing(mongo_uri, "insert", writeConcernError=failure),
        pytest.raises(OperationalError, match=r"^MongoDB refused: shutting down$"),
    ):
        snapshots.insert_events(events("a", 2))
    snapshots.insert_events(events("a", 2))
    with pytest.raises(IntegrityError, match=r"^MongoDB refused: E11000 .*}$"):
        snapshots.insert_events(events("a", 2))
    caplog.set_level("INFO", "projections")
    recorder = MongoApplicationRecorder(client, database, "test")
    with failing(mongo_uri, "insert", mode={"times": 1}, errorCode=50):
        recorder.insert_events(events("a", 1))
    # A machine that was paused meanwhile has tried again for its time limits, too.
    said = "trying again to append events: MongoDB refused: Failing command via 'failCommand'"
    assert [text for text in caplog.messages if text.startswith(said)]


def test_a_closed_recorder_takes_no_positions(recorder: MongoProcessRecorder) -> None:
    recorder.close()
    with pytest.raises(ConnectionPoolClosedError):
        recorder.insert_tracking_with(Tracking("up", 1), lambda session: session)


def test_none_of_eight_writers_is_starved(client: MongoClient[Any], database: str) -> None:
    """Each has a chain of its own, as processes have."""
    recorders = [MongoApplicationRecorder(client, database, "test") for _ in range(8)]
    recorders[0].prepare()
    start, commits = Barrier(8), [0] * 8

    def write(number: int) -> None:
        start.wait()
        # By chance, and on a busy machine, a few of them get several times as far as others.
        while min(commits) < 10 and sum(commits) < 2000:
            recorders[number].insert_events(events(f"s{number}", 2, after=2 * commits[number]))
            commits[number] += 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert min(commits) >= 10
    assert [position for position, *_ in recorded(recorders[0])] == list(
        range(1, 2 * sum(commits) + 1)
    )


_FORKS = """
from concurrency import at_once
from forks import in_child
from scoring import Scoring
from support import make_grant

scoring = Scoring({"PERSISTENCE_MODULE": "projections.mongo"})

def grant(number):
    return scoring.grant(**make_grant(number).model_dump()).status.name

def forking(thread):
    for number in range(1000 * thread + 1, 1000 * thread + 6):
        assert grant(number) == "RECORDED"
        said = in_child(lambda: (grant(number), grant(-number)))
        assert said == "('DUPLICATE', 'RECORDED')", said

at_once(3, forking)
print(scoring.recorder.max_notification_id())
"""


def test_parent_and_child_go_on_after_a_fork(mongo_uri: str, database: str) -> None:
    """Also where other threads of the parent were committing at that moment."""
    path = os.pathsep.join(sys.path)
    code = ("-W", "ignore", "-c", _FORKS)
    done = run_python(*code, PYTHONPATH=path, MONGO_URI=mongo_uri, MONGO_DATABASE=database)
    assert (done.returncode, done.stderr) == (0, "")
    # Two events a grant, and one that begins the stream of each of the seven users.
    assert int(done.stdout) == 2 * 2 * 15 + 7


def test_an_answer_that_nobody_has_read_is_not_taken_for_that_of_a_commit(
    recorder: MongoProcessRecorder,
) -> None:
    """As after an exception from a signal handler: it does not say what the commit has done."""
    recorder.insert_events(events("first", 1))
    topology: Any = recorder._client._topology
    for server in topology._servers.values():
        for connection in server.pool.conns:
            _, ping, *_ = _op_msg(0, {"ping": 1, "$db": "admin"}, "admin", None, CodecOptions())
            connection.send_message(ping, 0)
    recorder.insert_events(events("second", 1))
    assert [stream for _, stream, _ in recorded(recorder)] == ["first", "second"]
