"""An event store that is copied into another one is the same store, at every place of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count, product
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import Notification, StoredEvent
from psycopg import sql

from event_store_kinds import EVENT_STORES
from fail_points import failing
from postgres_server import PostgresServer
from projections import (
    CopyProgress,
    EventStoresDiffer,
    ProjectionError,
    ScoreLedger,
    SourceWritten,
    copy_events,
)
from projections.mongo import connect
from projections.relocation.stores import copyable
from replica_set import ReplicaSet, sit_out
from scoring import GrantStatus, Scoring
from support import NOON, make_grant, mongo_env, sqlite_env

PAIRS = list(product(EVENT_STORES, EVENT_STORES))


@pytest.fixture
def stores(request: pytest.FixtureRequest, mongo_uri: str) -> Iterator[Callable[[str], Scoring]]:
    """Open a new event store of a kind; what is opened is closed, and MongoDB's databases go."""
    opened: list[Scoring] = []

    def open_one(kind: str) -> Scoring:
        opened.append(Scoring(EVENT_STORES[kind](request)()))
        return opened[-1]

    yield open_one
    with connect(mongo_uri) as client:
        for scoring in opened:
            scoring.close()
            with suppress(KeyError):
                client.drop_database(scoring.env["MONGO_DATABASE"])


@pytest.fixture
def gappy(stores: Callable[[str], Scoring], postgres: PostgresServer) -> Scoring:
    """A store that lacks positions at its beginning, one within, and many."""
    scoring = stores("postgres")
    number = 0
    for burnt in (3, 1, 50, 0, 20, 19):
        sequence = f"{scoring.env['POSTGRES_SCHEMA']}.scoring_events_notification_id_seq"
        for _ in range(burnt):
            postgres.execute(sql.SQL("SELECT nextval({})").format(sql.Literal(sequence)))
        for _ in range(12):
            number += 1
            scoring.grant(**make_grant(number).model_dump())
    return scoring


def fill(scoring: Scoring) -> None:
    """Grants, buckets, and a user with snapshots."""
    scoring.grant_many([make_grant(number) for number in range(40)])
    scoring.grant_many([make_grant(number, user_id="ada") for number in range(100, 350)])
    for points in (3, 1):
        scoring.contribute("ada", "telemetry:activity", "telemetry", "app", points, NOON)
    scoring.feed_post("ada", "8812", 5, NOON)
    for number in range(1000, 1100):
        scoring.grant(**make_grant(number, user_id="bob").model_dump())


def events_of(scoring: Scoring) -> list[Notification]:
    return list(scoring.recorder.select_notifications(1, 100_000))


def snapshots_of(scoring: Scoring) -> list[StoredEvent]:
    return list(copyable(scoring).snapshots(None, 100_000))


def assert_same(source: Scoring, target: Scoring) -> None:
    assert events_of(target) == events_of(source)
    assert snapshots_of(target) == snapshots_of(source)


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_a_copy_is_taken_for_the_store_itself(
    kind: str, other: str, stores: Callable[[str], Scoring], mongo_uri: str
) -> None:
    """By the read model, which stays where it is, by receipts, by ids that are taken, by verify."""
    source, target = stores(kind), stores(other)
    fill(source)
    database = f"copied_{uuid4().hex[:8]}"
    with ScoreLedger.open(
        scoring=source, mongo=mongo_uri, mongo_database=database, worker=False
    ) as before:
        before.catch_up()
        totals = before.totals("ada")
    copy = copy_events(source, target)
    assert copy.is_complete
    assert (copy.events, copy.events_copied) == (len(events_of(source)),) * 2
    assert copy.snapshots == len(snapshots_of(source)) > 0
    assert_same(source, target)
    with ScoreLedger.open(
        scoring=target, mongo=mongo_uri, mongo_database=database, worker=False
    ) as ledger:
        assert ledger.status().lag_events == 0
        assert ledger.totals("ada") == totals
        assert ledger.score_of("ada") == source.score_of("ada")
        new = ledger.grant(**make_grant(5000, user_id="ada").model_dump())
        assert new.status is GrantStatus.RECORDED
        assert copy.newest_position < new.position <= copy.newest_position + 2
        taken = ledger.grant(**make_grant(7).model_dump())
        assert taken.status is GrantStatus.DUPLICATE
        ledger.catch_up()
        assert ledger.totals("ada").total_score == totals.total_score + make_grant(5000).amount
        assert ledger.verify().ok
        with connect(mongo_uri) as client:
            client.drop_database(database)


@pytest.mark.parametrize("kind", EVENT_STORES)
def test_positions_that_the_source_leaves_out_stay_out(
    kind: str, gappy: Scoring, stores: Callable[[str], Scoring]
) -> None:
    """Readers find the same from every position on, new events follow, and all may go back."""
    target, back = stores(kind), stores("postgres")
    copy_events(gappy, target)
    assert_same(gappy, target)
    newest = gappy.recorder.max_notification_id()
    assert newest
    for start in range(newest + 2):
        for limit in (1, 25):
            page = target.recorder.select_notifications(start, limit)
            assert page == gappy.recorder.select_notifications(start, limit), start
    target.grant(**make_grant(900).model_dump())
    assert [event.id for event in events_of(target)][-2:] == [newest + 1, newest + 2]
    assert target.grant(**make_grant(1).model_dump()).status is GrantStatus.DUPLICATE
    assert target.score_of("user-1") == gappy.score_of("user-1")
    copy_events(target, back)
    assert_same(target, back)


def test_gaps_outlive_sqlite_s_own_cleaning(
    gappy: Scoring, stores: Callable[[str], Scoring], tmp_path: Path
) -> None:
    """VACUUM numbers the rows of some tables anew, but not of this one; nor does VACUUM INTO."""
    target = stores("sqlite")
    copy_events(gappy, target)
    expected = events_of(gappy)
    with closing(sqlite3.connect(target.env["SQLITE_DBNAME"])) as database:
        database.execute("VACUUM")
        database.execute(f"VACUUM INTO '{tmp_path}/backup.sqlite'")
    assert events_of(target) == expected
    with Scoring(sqlite_env(tmp_path / "backup.sqlite")) as backup:
        assert events_of(backup) == expected


@pytest.mark.parametrize("kind", EVENT_STORES)
def test_two_that_copy_at_once_help_each_other(
    kind: str, scoring: Scoring, stores: Callable[[str], Scoring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there twice, and both say that it is all there."""
    monkeypatch.setattr("projections.relocation.event_copy._EVENTS_AT_ONCE", 20)
    fill(scoring)
    target = stores(kind)
    with Scoring(target.env) as again, ThreadPoolExecutor() as threads:
        copies = list(threads.map(lambda to: copy_events(scoring, to), [target, again]))
    assert all(copy.is_complete for copy in copies)
    assert_same(scoring, target)


@pytest.mark.parametrize("kind", EVENT_STORES)
def test_what_is_recorded_in_the_source_meanwhile_is_noticed(
    kind: str, stores: Callable[[str], Scoring]
) -> None:
    """It is said, and copying again takes it along, snapshots of whatever stream among it."""
    source, target = stores(kind), stores("sqlite")
    fill(source)
    late = iter([[make_grant(n, user_id=f"late-{n % 4}") for n in range(7000, 7480)]])

    def grant_late(progress: CopyProgress) -> None:
        if progress.stage == "comparing events":
            for grants in late:
                source.grant_many(grants)

    before = source.recorder.max_notification_id() or 0
    with pytest.raises(SourceWritten) as caught:
        copy_events(source, target, on_progress=grant_late)
    after = source.recorder.max_notification_id() or 0
    assert (caught.value.expected, caught.value.found) == (before, after)
    assert copy_events(source, target).events_copied == after - before > 0
    assert_same(source, target)


@pytest.mark.parametrize("kind", EVENT_STORES)
def test_a_store_that_has_something_else_is_refused(
    kind: str, scoring: Scoring, stores: Callable[[str], Scoring]
) -> None:
    """Whether it is another one or has gone on, it stays as it is."""
    fill(scoring)
    other, ahead = stores(kind), stores(kind)
    other.grant(**make_grant(8000, user_id="new").model_dump())
    copy_events(scoring, ahead)
    ahead.grant(**make_grant(8000, user_id="new").model_dump())
    for target, expected in ((other, "version 1 of stream"), (ahead, "nothing")):
        events = events_of(target)
        with pytest.raises(EventStoresDiffer) as caught:
            copy_events(scoring, target)
        assert caught.value.expected.startswith(expected)
        assert caught.value.found.startswith("version 1 of stream")
        assert str(caught.value).count("\n") == 0
        assert events_of(target) == events


def test_what_is_recorded_meanwhile_is_not_run_after(
    scoring: Scoring, stores: Callable[[str], Scoring]
) -> None:
    """A source that is written to all the time is copied to an end; a single grant is noticed."""
    fill(scoring)
    target, before = stores("sqlite"), scoring.recorder.max_notification_id()
    late = iter([make_grant(7000)])

    def grant_late(_: CopyProgress) -> None:
        for grant in late:
            scoring.grant(**grant.model_dump())

    with pytest.raises(SourceWritten):
        copy_events(scoring, target, on_progress=grant_late)
    assert target.recorder.max_notification_id() == before


def test_nothing_is_added_before_all_that_is_there_was_compared(
    scoring: Scoring, stores: Callable[[str], Scoring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of somebody else's is left alone, though its positions begin behind some pages."""
    monkeypatch.setattr("projections.relocation.event_copy._EVENTS_AT_ONCE", 100)
    fill(scoring)
    target = stores("sqlite")
    target.grant(**make_grant(8000).model_dump())
    with closing(sqlite3.connect(target.env["SQLITE_DBNAME"])) as database, database:
        database.execute("UPDATE stored_events SET rowid = rowid + 500")
    events = events_of(target)
    with pytest.raises(EventStoresDiffer):
        copy_events(scoring, target)
    assert events_of(target) == events


@pytest.mark.parametrize("kind", EVENT_STORES)
def test_a_grant_in_a_half_filled_store_is_noticed(
    kind: str, scoring: Scoring, stores: Callable[[str], Scoring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the way of the events to come, and copying stops at it at once."""
    monkeypatch.setattr("projections.relocation.event_copy._EVENTS_AT_ONCE", 100)
    fill(scoring)
    target = stores(kind)
    early = iter([make_grant(8000, user_id="early")])

    def grant_early(_: CopyProgress) -> None:
        for grant in early:
            target.grant(**grant.model_dump())

    with pytest.raises(EventStoresDiffer, match=r"version 1 of stream .* at position 101 where"):
        copy_events(scoring, target, on_progress=grant_early)
    assert target.recorder.max_notification_id() == 103


@pytest.mark.parametrize(
    "failure",
    [
        {"closeConnection": True},
        {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
    ],
    ids=["not-done", "done"],
)
def test_an_answer_that_is_lost_is_asked_for_again(
    failure: dict[str, object], scoring: Scoring, stores: Callable[[str], Scoring], mongo_uri: str
) -> None:
    """Whether MongoDB had inserted the page or not."""
    fill(scoring)
    target = stores("mongo")
    with failing(mongo_uri, "insert", mode={"times": 3}, **failure):
        assert copy_events(scoring, target).is_complete
    assert_same(scoring, target)


@pytest.mark.parametrize(
    ("elected", "asked"), [("source", "select_notifications"), ("target", "insert_notifications")]
)
def test_a_copy_goes_on_over_elections(
    elected: str,
    asked: str,
    scoring: Scoring,
    replica_set: ReplicaSet,
    stores: Callable[[str], Scoring],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The primary of one side dies before a page is read or added, and its successor steps down."""
    monkeypatch.setattr("projections.relocation.event_copy._EVENTS_AT_ONCE", 200)
    database = f"copied_{uuid4().hex[:8]}"
    three = mongo_env(replica_set.uri, database)
    fill(scoring)
    with Scoring(three) as replicated, connect(replica_set.uri) as client:
        source, target = scoring, replicated
        if elected == "source":
            copy_events(scoring, replicated)
            source, target = replicated, stores("sqlite")
        faults = {2: lambda: replica_set.kill(replica_set.primary()), 4: replica_set.step_down}
        ask, calls = getattr(replicated.recorder, asked), count(1)

        def strike(*args: Any, **kwargs: Any) -> Any:
            faults.pop(next(calls), bool)()
            return ask(*args, **kwargs)

        with monkeypatch.context() as patched:
            # Shorter than an election, so that the driver's own patience is not enough.
            reading = "projections.mongo.event_store.aggregate_recorder._READ_SECONDS"
            patched.setattr(reading, 0.5)
            patched.setattr(replicated.recorder, asked, strike)
            assert copy_events(source, target).is_complete
        assert not faults
        replica_set.await_healthy()
        assert_same(scoring, target)
        sit_out(lambda: client.drop_database(database))


def test_the_last_look_sees_every_event_and_snapshot(
    scoring: Scoring, stores: Callable[[str], Scoring]
) -> None:
    """One that is damaged after it was copied is not passed over."""
    fill(scoring)
    damages = {
        "UPDATE stored_events SET state = 'x' WHERE rowid = 5": "another version",
        "UPDATE stored_events SET topic = 'x' WHERE rowid = 5": "another version",
        "UPDATE stored_events SET originator_version = 9 WHERE rowid = 5": "version 9",
        "UPDATE stored_events SET rowid = 100000 WHERE rowid = 5": "at position 6",
        "DELETE FROM stored_events WHERE rowid > 100": "nothing",
        "UPDATE stored_snapshots SET state = 'x'": "another snapshot",
        "DELETE FROM stored_snapshots": "nothing",
    }
    for damage, said in damages.items():
        target = stores("sqlite")
        undone = iter([damage])

        def break_it(progress: CopyProgress, to: Scoring = target, left: object = undone) -> None:
            if progress.stage == "copying snapshots":
                with closing(sqlite3.connect(to.env["SQLITE_DBNAME"])) as database, database:
                    for statement in left:  # type: ignore[attr-defined]
                        database.execute(statement)

        with pytest.raises(EventStoresDiffer) as caught:
            copy_events(scoring, target, on_progress=break_it)
        assert said in caught.value.found, damage


def test_what_nobody_here_can_read_is_copied(stores: Callable[[str], Scoring]) -> None:
    """States are copied as they are: compressed, and encrypted with a key that is not here."""
    source, between, target = stores("sqlite"), stores("postgres"), stores("mongo")
    secret = {
        "COMPRESSOR_TOPIC": "zlib",
        "CIPHER_TOPIC": "eventsourcing.cipher:AESCipher",
        "CIPHER_KEY": "Q3WUb7jXZVKzFfFvY1Q8mw==",
    }
    with Scoring({**source.env, **secret}) as encrypted:
        fill(encrypted)
        expected = encrypted.score_of("ada")
    copy_events(source, between)
    copy_events(between, target)
    with Scoring({**target.env, **secret}) as decrypted:
        assert decrypted.score_of("ada") == expected


def test_a_copy_that_is_stopped_is_carried_on(
    scoring: Scoring, stores: Callable[[str], Scoring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops between two pages, says that it is not complete, and leaves a beginning."""
    monkeypatch.setattr("projections.relocation.event_copy._EVENTS_AT_ONCE", 100)
    fill(scoring)
    target, stop = stores("mongo"), Event()
    stopped = copy_events(scoring, target, stop=stop, on_progress=lambda _: stop.set())
    assert (stopped.is_complete, stopped.events_copied) == (False, 100)
    assert events_of(target) == events_of(scoring)[:100]
    said: list[CopyProgress] = []
    carried_on = copy_events(scoring, target, on_progress=said.append)
    assert said[0] == CopyProgress("comparing what is there", 100, 100)
    assert carried_on.is_complete
    assert carried_on.events_copied == len(events_of(scoring)) - 100
    assert_same(scoring, target)


@pytest.mark.parametrize("kind", ["postgres", "mongo"])
def test_a_store_is_not_copied_into_itself_under_another_name(
    kind: str, stores: Callable[[str], Scoring], tmp_path: Path
) -> None:
    """The copy would seem to be complete, and somebody might put the old store away."""
    scoring = stores(kind)
    scoring.grant(**make_grant().model_dump())
    env = dict(scoring.env)
    if kind == "postgres":
        (tmp_path / "socket").symlink_to(env["POSTGRES_HOST"])
        env["POSTGRES_HOST"] = str(tmp_path / "socket")
    else:
        env["MONGO_URI"] = env["MONGO_URI"].replace("127.0.0.1", "localhost")
    with Scoring(env) as again, pytest.raises(ProjectionError, match="into itself, which"):
        copy_events(scoring, again)


def test_snapshots_of_streams_with_text_ids_are_in_the_same_order_everywhere(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL sorts texts as people do, unless asked for the order of the other stores."""
    asked: list[str] = []
    execute = psycopg.Cursor.execute

    def heard(cursor: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(query.as_string() if isinstance(query, sql.Composed) else str(query))
        return execute(cursor, query, *args, **kwargs)

    with Scoring(postgres.new_env(ORIGINATOR_ID_TYPE="text")) as scoring:
        monkeypatch.setattr(psycopg.Cursor, "execute", heard)
        copyable(scoring).snapshots(StoredEvent("rex", 1, "topic", b""), 10)
    (query,) = [each for each in asked if "ORDER BY" in each]
    assert query.count('originator_id COLLATE "C"') == 2


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_ids_of_streams_that_are_texts_are_copied_where_texts_are_asked_for(
    kind: str, other: str, request: pytest.FixtureRequest
) -> None:
    """Otherwise nothing is added to a store that would not give them out again."""
    texts = {"ORIGINATOR_ID_TYPE": "text"}
    source_env, env, wrong = (EVENT_STORES[each](request)() for each in (kind, other, other))
    stored = [StoredEvent(name, 1, "topic", b"state") for name in ("rex", "Fido", "é")]
    with Scoring({**source_env, **texts}) as source, Scoring(wrong) as uuids:
        source.recorder.insert_events(stored)
        if other != "mongo":
            with pytest.raises(ProjectionError, match="ORIGINATOR_ID_TYPE to text"):
                copy_events(source, uuids)
            assert uuids.recorder.max_notification_id() is None
        if kind == "sqlite":
            with Scoring(source_env) as misread, pytest.raises(ProjectionError, match="to text"):
                copy_events(misread, uuids)
        with Scoring({**env, **texts}) as target:
            assert copy_events(source, target).events == 3
            assert_same(source, target)


@pytest.mark.parametrize("kind", EVENT_STORES)
def test_a_store_is_not_copied_into_itself(kind: str, stores: Callable[[str], Scoring]) -> None:
    """Nor is one that is empty, which may be a mistyped name, or one in memory."""
    scoring, empty = stores(kind), stores(kind)
    scoring.grant(**make_grant().model_dump())
    with Scoring(scoring.env) as again, pytest.raises(ProjectionError, match="into itself"):
        copy_events(scoring, again)
    with pytest.raises(ProjectionError, match="there are no events in"):
        copy_events(empty, scoring)
    in_memory = Scoring({"PERSISTENCE_MODULE": "eventsourcing.popo"})
    with in_memory, pytest.raises(ProjectionError, match="cannot be copied"):
        copy_events(scoring, in_memory)
