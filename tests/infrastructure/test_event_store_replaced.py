"""An event store that went back, or is another one, is refused; nothing of it is mixed in."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import Tracking

from command_line import CommandLine
from concurrency import at_once
from event_store import assert_equal_to_the_events, damaged
from processes import frozen
from projections import (
    EventStoreReplaced,
    MongoScoreView,
    PositionMoved,
    Progress,
    ProjectionWorker,
    ScoreGrantsProjection,
    ScoreLedger,
)
from projections.events.anchor import Tracked
from projections.mongo.batches import Batch
from projections.mongo.read_model import ReadModel
from projections.verification.events import verify_events
from projections.worker.rebuild import Rebuild
from restored_stores import MongoStore, PostgresStore, SQLiteFile, SQLiteStore, Store
from scoring import Scoring
from support import make_grant, mongo_env, sqlite_env, worker_maker


def record(env: dict[str, str], first: int, count: int) -> int:
    """Record grants with an application of its own; returns the newest position."""
    with Scoring(env) as app:
        app.grant_many([make_grant(first + number) for number in range(count)])
        return app.recorder.max_notification_id() or 0


@pytest.fixture(params=["sqlite", "postgres", "mongo"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store with a backup of 3 grants, in which 10 more were recorded since."""
    new: Store
    if request.param == "postgres":
        new = PostgresStore(request.getfixturevalue("postgres"))
    elif request.param == "mongo":
        name = request.getfixturevalue("read_model").database.name
        uri = request.getfixturevalue("mongo_uri")
        new = MongoStore(mongo_env(uri, name))
    else:
        new = (SQLiteStore if request.param == "sqlite" else SQLiteFile)(tmp_path)
    record(new.env, 0, 3)
    new.back_up()
    record(new.env, 3, 10)
    return new


@dataclass(frozen=True)
class Way:
    """A way in which a store becomes another one than was projected."""

    name: str
    happen: Callable[[Store], object]
    empties: bool = False

    def __call__(self, store: Store) -> None:
        if self.empties:
            store.empty()
        else:
            store.put_back()
        self.happen(store)

    def __str__(self) -> str:
        return self.name


WAYS = [
    Way("put back", lambda _: None),
    Way("put back, with a few new grants", lambda store: record(store.env, 100, 2)),
    Way("put back, and longer again", lambda store: record(store.env, 100, 30)),
    Way("empty", lambda _: None, empties=True),
    Way("another one, shorter", lambda store: record(store.env, 200, 2), empties=True),
    Way("another one, longer", lambda store: record(store.env, 200, 30), empties=True),
]


@contextmanager
def killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


@contextmanager
def opened(store: Store, read_model: ReadModel, *, worker: bool = False) -> Iterator[ScoreLedger]:
    with ScoreLedger.open(
        event_store=store.env, mongo=read_model.database, worker=worker
    ) as ledger:
        yield ledger


def documents(read_model: ReadModel) -> list[list[dict[str, Any]]]:
    collections = (
        *(read_model.grants, read_model.users, read_model.buckets),
        *(read_model.positions, read_model.control, read_model.parked),
    )
    return [list(collection.find().sort("_id", 1)) for collection in collections]


COMMANDS: dict[str, Callable[[ScoreLedger], object]] = {
    "catch_up": lambda ledger: ledger.catch_up(),
    "follow": lambda ledger: ledger.follow(stop=Event()),
    "wait": lambda ledger: ledger.wait(ledger.grant(**make_grant(999).model_dump()), timeout=60),
    "rebuild": lambda ledger: ledger.rebuild(),
    "rebuild, fresh": lambda ledger: ledger.rebuild(fresh=True),
    "verify": lambda ledger: ledger.verify(),
    "drift": lambda ledger: ledger.drift(),
    "unpark": lambda ledger: ledger.unpark(),
}


@pytest.mark.parametrize(
    ("store", "way"),
    [
        *((kind, way) for kind in ("sqlite", "postgres", "mongo") for way in WAYS),
        *(("file", way) for way in WAYS if not way.empties),
    ],
    ids=str,
    indirect=["store"],
)
def test_every_command_refuses_a_store_that_was_replaced_until_it_is_adopted(
    way: Way, store: Store, read_model: ReadModel
) -> None:
    """In one sentence, without a change; status shows it, and grants can still be recorded."""
    with opened(store, read_model) as ledger:
        ledger.catch_up()
        assert ledger.status().event_store_replaced is None
    before = documents(read_model)
    way(store)
    with opened(store, read_model) as ledger:
        for name, command in COMMANDS.items():
            with pytest.raises(EventStoreReplaced) as raised:
                command(ledger)
            assert documents(read_model) == before, name
            said = str(raised.value)
            assert all(
                part in said
                for part in (
                    *(raised.value.expected, raised.value.found, "rebuild --adopt"),
                    *(store.env["PERSISTENCE_MODULE"], read_model.database.name),
                )
            )
        status = ledger.status()
        assert status.event_store_replaced is not None
        assert status.worker_error is not None
        assert (status.lag_events, status.lag_seconds) == (None, None)
        assert (status.grants, status.users) == (13, 7)
        assert ledger.rebuild(adopt=True).live
        ledger.catch_up()
        assert ledger.verify().ok
        status = ledger.status()
        assert (status.event_store_replaced, status.lag_events) == (None, 0)


def test_a_wait_for_a_grant_that_is_not_visible_does_not_return(
    store: Store, read_model: ReadModel
) -> None:
    """Though the tracked position, which is of other events, is beyond it."""
    with opened(store, read_model, worker=True) as ledger:
        ledger.wait(ledger.grant(**make_grant(20).model_dump()), timeout=60)
    store.put_back()
    with opened(store, read_model, worker=True) as ledger:
        receipt = ledger.grant(**make_grant(21, user_id="bob").model_dump())
        assert receipt.position < ledger.status().tracked_position
        with pytest.raises(EventStoreReplaced):
            ledger.wait(receipt, timeout=60)
        assert ledger.totals("bob").version == 0


def test_a_store_that_is_put_back_to_what_was_projected_is_the_right_one(
    store: Store, read_model: ReadModel
) -> None:
    """Restored to the tracked position, or to anything beyond it."""
    store.back_up()
    with opened(store, read_model) as ledger:
        ledger.catch_up()
    record(store.env, 300, 5)
    store.put_back()
    record(store.env, 400, 5)
    with opened(store, read_model) as ledger:
        ledger.catch_up()
        assert ledger.verify().ok
        assert ledger.status().grants == 18


def test_a_follower_that_was_frozen_while_its_store_went_back_and_grew_projects_nothing(
    store: Store, read_model: ReadModel, mongo_uri: str, tmp_path: Path
) -> None:
    """Beyond the position that it stands at; it says why it stops."""
    cli = CommandLine(
        tmp_path, {**store.env, "MONGO_URI": mongo_uri, "MONGO_DATABASE": read_model.database.name}
    )
    view = MongoScoreView(read_model)
    with cli.start("project", "--follow") as process, killed_at_last(process):
        newest = record(store.env, 50, 1)
        view.wait("Scoring", newest, timeout=60)
        before = documents(read_model)
        with frozen(process.pid):
            store.put_back()
            assert record(store.env, 100, 40) > newest
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"does not have the history" in said
    assert b"Traceback" not in said
    assert documents(read_model) == before


class Replacement:
    """Puts another file in the place of a store just before its ``at``-th read."""

    def __init__(self, app: Scoring, store: SQLiteStore, file: Path, at: int) -> None:
        self.happened = False
        datastore: Any = app.recorder.datastore  # type: ignore[attr-defined]
        original, reads = datastore.transaction, 0

        def transaction(*args: Any, **kwargs: Any) -> Any:
            nonlocal reads
            reads += 1
            if reads == at:
                store.load(file)
                self.happened = True
            return original(*args, **kwargs)

        datastore.transaction = transaction


@pytest.mark.parametrize("common", [2, 4, 8, 16])
def test_a_store_that_is_replaced_between_any_two_reads_is_not_mixed_in_unnoticed(
    common: int, read_model: ReadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever its history parts: 4 grants are projected, 16 recorded, 5 are in a batch."""
    monkeypatch.setattr("projections.worker.batch_reader.PAGE_SIZE", 3)
    store, view = SQLiteStore(tmp_path), MongoScoreView(read_model)
    files = {number: tmp_path / f"{number}.sqlite" for number in (2, 4, 8, 16)}
    recorded = 0
    for number, file in files.items():
        record(store.env, recorded, number - recorded)
        store.save(file)
        recorded = number
    store.load(files[common])
    record(store.env, 500, 40)
    store.save(other := tmp_path / "other.sqlite")
    noticed = 0
    for at in range(1, 100):
        for name in ("grants", "users", "ranks", "positions"):
            getattr(read_model, name).delete_many({})
        store.load(files[4])
        with Scoring(store.env) as app:
            ProjectionWorker(app, view).catch_up()
        store.load(files[16])
        with Scoring(store.env) as app:
            replacement = Replacement(app, store, other, at)
            try:
                ProjectionWorker(app, view, batch_size=5).catch_up()
                if replacement.happened:
                    ProjectionWorker(app, view, batch_size=5).catch_up()
            except EventStoreReplaced:
                noticed += 1
                continue
        if not replacement.happened:
            break
        with Scoring(store.env) as app:
            assert_equal_to_the_events(app, read_model)
    assert at > 10
    assert noticed == {2: at - 1, 16: 0}.get(common, noticed)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_store_that_goes_back_to_what_was_not_projected_yet_is_the_right_one(
    at: int, read_model: ReadModel, tmp_path: Path
) -> None:
    """Even if its newest event of before was asked for already."""
    store, view = SQLiteStore(tmp_path), MongoScoreView(read_model)
    record(store.env, 0, 4)
    with Scoring(store.env) as app:
        ProjectionWorker(app, view).catch_up()
    record(store.env, 4, 4)
    store.back_up()
    record(store.env, 8, 8)
    with Scoring(store.env) as app:
        Replacement(app, store, tmp_path / "backup.sqlite", at)
        ProjectionWorker(app, view).catch_up()
        assert assert_equal_to_the_events(app, read_model) == 8


def test_an_interrupted_rebuild_of_before_a_restore_is_given_up(
    store: Store, read_model: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    """It has projected what is not there any more; the live read model has not."""
    late = record(store.env, 0, 0)
    store.put_back()
    with opened(store, read_model) as ledger:
        ledger.catch_up()
        ledger.grant_many([make_grant(number) for number in range(50, 60)])
        stop = Event()

        def on_progress(progress: Progress) -> None:
            if progress.position == progress.newest:
                stop.set()

        interrupted = ledger.rebuild(stop=stop, on_progress=on_progress)
        assert (interrupted.live, interrupted.generation) == (False, 2)
    store.put_back()
    assert record(store.env, 100, 40) > max(late, interrupted.position)
    with opened(store, read_model) as ledger, caplog.at_level(logging.WARNING):
        outcome = ledger.rebuild()
        assert (outcome.live, outcome.generation) == (True, 3)
        ledger.catch_up()
        assert ledger.verify().differences == []
    assert "generation 2 is given up" in caplog.text


@pytest.mark.parametrize("adopt", [False, True])
def test_a_store_that_goes_back_when_a_rebuild_is_all_but_done_keeps_it_from_going_live(
    *, adopt: bool, read_model: ReadModel, tmp_path: Path
) -> None:
    """Whether or not another change of the store was adopted; and the hold is lifted."""
    store = SQLiteStore(tmp_path)
    record(store.env, 0, 3)
    store.back_up()
    view = MongoScoreView(read_model)
    with Scoring(store.env) as app:
        ProjectionWorker(app, view).catch_up()
        if adopt:
            read_model.positions.update_one({}, {"$set": {"anchor.hash": "of another store"}})
        app.grant_many([make_grant(number) for number in range(50, 60)])

        def on_progress(progress: Progress) -> None:
            if progress.position == progress.newest:
                store.put_back()
                record(store.env, 100, 40)

        job = Rebuild(app, read_model, worker_maker(app))
        with pytest.raises(EventStoreReplaced):
            job.run(adopt=adopt, on_progress=on_progress)
        assert read_model.generations.state().generation == 1
        assert "hold" not in (read_model.positions.find_one({"_id": "Scoring"}) or {})
        assert job.run(adopt=adopt).live
        assert verify_events(app, read_model).ok


def test_of_two_stores_that_are_followed_into_one_database_only_one_is(
    read_model: ReadModel, tmp_path: Path
) -> None:
    """Begun at the same moment, in an empty database."""
    envs = [sqlite_env(tmp_path / name) for name in ("one.sqlite", "two.sqlite")]
    for number, env in enumerate(envs):
        record(env, 100 * number, 40)
    raised: list[int] = []

    def catch_up(number: int) -> None:
        with Scoring(envs[number]) as app, closing(MongoScoreView(read_model)) as view:
            try:
                ProjectionWorker(app, view, batch_size=3).catch_up()
            except EventStoreReplaced:
                raised.append(number)

    at_once(2, catch_up)
    assert len(raised) == 1
    with Scoring(envs[1 - raised[0]]) as app:
        assert assert_equal_to_the_events(app, read_model) == 40


def test_a_batch_does_not_continue_the_position_of_another_store(
    store: Store, read_model: ReadModel
) -> None:
    """Though its number is the same."""
    with opened(store, read_model) as ledger:
        ledger.catch_up()
    tracked = MongoScoreView(read_model).tracked("Scoring")
    assert tracked.anchor is not None
    read_model.positions.update_one({}, {"$set": {"anchor.hash": "of another store"}})
    record(store.env, 50, 1)
    with opened(store, read_model) as ledger:
        view = MongoScoreView(read_model)
        batch = Batch("Scoring", tracked, Tracked((tracked.position or 0) + 1))
        with pytest.raises(PositionMoved):
            view.apply(batch)
        with pytest.raises(EventStoreReplaced):
            ledger.catch_up()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_position_without_an_anchor_is_believed_if_the_store_has_come_so_far(
    *, ahead: bool, store: Store, read_model: ReadModel
) -> None:
    """Earlier releases kept none; the next batch does."""
    with opened(store, read_model) as ledger:
        ledger.catch_up()
    read_model.positions.update_one({}, {"$unset": {"anchor": ""}})
    if ahead:
        store.put_back()
    record(store.env, 50, 1)
    with opened(store, read_model) as ledger:
        if ahead:
            for name, command in COMMANDS.items():
                if name != "wait":
                    with pytest.raises(EventStoreReplaced):
                        command(ledger)
            assert ledger.status().event_store_replaced is not None
            return
        ledger.catch_up()
        assert ledger.verify().ok
        tracked = MongoScoreView(read_model).tracked("Scoring")
        assert tracked.anchor is not None
        assert tracked.anchor.position == tracked.position


def test_what_the_librarys_runner_moves_leaves_the_anchor_and_is_no_false_alarm(
    store: Store, read_model: ReadModel
) -> None:
    """It knows the number of an event only; what was known before is still true."""
    with opened(store, read_model) as ledger:
        ledger.catch_up()
    view = MongoScoreView(read_model)
    anchor = view.tracked("Scoring").anchor
    record(store.env, 50, 3)
    with Scoring(store.env) as app:
        projection = ScoreGrantsProjection(view)
        for event in app.recorder.select_notifications(
            start=view.max_tracking_id("Scoring"), limit=100, inclusive_of_start=False
        ):
            tracking = Tracking("Scoring", event.id)
            projection.process_event(app.mapper.to_domain_event(event), tracking)
        assert view.max_tracking_id("Scoring") == app.recorder.max_notification_id()
    assert view.tracked("Scoring").anchor == anchor
    record(store.env, 60, 1)
    with opened(store, read_model) as ledger:
        assert ledger.status().event_store_replaced is None
        ledger.catch_up()
        assert ledger.verify().ok
    assert view.tracked("Scoring").anchor != anchor


def test_an_event_that_was_parked_and_mended_in_its_place_is_no_false_alarm(
    read_model: ReadModel, tmp_path: Path
) -> None:
    """Though it is the newest, and its hash has changed."""
    store = SQLiteStore(tmp_path)
    record(store.env, 0, 3)
    view = MongoScoreView(read_model)
    with Scoring(store.env) as app:
        app.contribute("ada", "quiz:best", "quiz", "quiz", 3)
        receipt = app.contribute("ada", "quiz:best", "quiz", "quiz", 5)
        with damaged(store.file, receipt.position):
            ProjectionWorker(app, view, on_error="park").catch_up()
        assert view.max_tracking_id("Scoring") == receipt.position
    with opened(store, read_model) as ledger:
        assert ledger.unpark().streams == 1
        assert ledger.verify().ok


def test_a_stream_is_not_unparked_from_a_store_that_was_replaced_meanwhile(
    read_model: ReadModel, tmp_path: Path
) -> None:
    """Before any of the reads that it takes."""
    store = SQLiteStore(tmp_path)
    record(store.env, 0, 3)
    store.save(tmp_path / "other.sqlite")
    view = MongoScoreView(read_model)
    with Scoring(store.env) as app:
        position = app.grant_many([make_grant(n, user_id="ada") for n in range(10, 14)])[1].position
        with damaged(store.file, position):
            ProjectionWorker(app, view, on_error="park").catch_up()
    store.save(tmp_path / "whole.sqlite")
    store.load(tmp_path / "other.sqlite")
    with Scoring(store.env) as app:
        app.grant_many([make_grant(number, user_id="ada") for number in range(100, 140)])
    store.save(tmp_path / "other.sqlite")
    before = documents(read_model)
    for at in range(1, 100):
        store.load(tmp_path / "whole.sqlite")
        with opened(store, read_model) as ledger:
            replacement = Replacement(ledger._scoring, store, tmp_path / "other.sqlite", at)
            try:
                ledger.unpark()
            except EventStoreReplaced:
                assert documents(read_model) == before
                continue
            break
    assert at > 3
    assert not replacement.happened
    store.load(tmp_path / "whole.sqlite")
    with opened(store, read_model) as ledger:
        assert ledger.verify().ok


def test_the_events_of_another_application_in_the_same_table_do_not_matter(
    read_model: ReadModel, tmp_path: Path
) -> None:
    """A position may be of one of those."""
    store = SQLiteStore(tmp_path)
    record(store.env, 0, 3)
    with closing(sqlite3.connect(store.file)) as database, database:
        database.executemany(
            "INSERT INTO stored_events VALUES (?, 1, 'elsewhere:Thing.Happened', '{}')",
            [(uuid4().hex,) for _ in range(50)],
        )
    with opened(store, read_model) as ledger:
        newest = ledger.status().newest_position
        assert ledger.catch_up() == newest
    with opened(store, read_model) as ledger:
        assert ledger.verify().ok
    with closing(sqlite3.connect(store.file)) as database, database:
        database.execute("UPDATE stored_events SET state = 'x' WHERE rowid = ?", (newest,))
    with opened(store, read_model) as ledger, pytest.raises(EventStoreReplaced):
        ledger.catch_up()
