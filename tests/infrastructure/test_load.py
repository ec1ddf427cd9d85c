"""What a generation is loaded without, and how that is made before it goes live."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from pymongo import MongoClient

from fail_points import failing
from heard_commands import Overtaken
from projections import Leaderboard, MongoScoreView, Progress, ProjectionWorker
from projections.mongo import connect
from projections.mongo.collections import INDEXES, LOADING, SHAPE, USERS
from projections.mongo.load import finish_load
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch
from projections.verification.events import verify_events
from projections.worker.rebuild import Rebuild
from ranks import assert_counts_are_true
from scoring import Scoring
from support import make_grant, worker_maker


@pytest.fixture
def live(scoring: Scoring, view: MongoScoreView, read_model: ReadModel) -> ReadModel:
    """The first generation, with 60 grants."""
    scoring.grant_many(make_grant(n, user_id=f"user-{n % 30}", amount=n + 1) for n in range(60))
    ProjectionWorker(scoring, view).catch_up()
    return read_model


def loading(scoring: Scoring, live: ReadModel) -> ReadModel:
    """A rebuild that was stopped after 20 grants."""
    stop = Event()

    def on_progress(progress: Progress) -> None:
        if progress.grants >= 20:
            stop.set()

    Rebuild(scoring, live, worker_maker(scoring, 10)).run(stop=stop, on_progress=on_progress)
    return live.of_generation(2)


def assert_a_rebuild_makes_it_whole(scoring: Scoring, live: ReadModel) -> None:
    assert Rebuild(scoring, live, worker_maker(scoring, 10)).run().generation == 2
    assert verify_events(scoring, live).differences == []
    assert live.inventory.damages() == []
    assert_counts_are_true(live)


def test_a_generation_is_loaded_without_what_only_readers_need(
    scoring: Scoring, live: ReadModel
) -> None:
    """Each index would have to follow every change."""
    building = loading(scoring, live)
    for collection in (building.grants, building.users):
        assert collection.index_information().keys() == {"_id_"}
    assert building.users.count_documents({}) == 10
    assert building.ranks.count_documents({}) == 0
    assert_a_rebuild_makes_it_whole(scoring, live)
    assert len(live.users.index_information()) == 3
    assert [row.rank for row in Leaderboard(live).top(3, by="ledger")] == [1, 2, 3]


def test_no_switch_accepts_a_generation_that_is_still_loading(
    scoring: Scoring, live: ReadModel
) -> None:
    """However far it has come."""
    building = loading(scoring, live)
    switch = Switch(live, building, scoring.name)
    assert switch.hold()
    assert not switch.commit(at_least=0)
    switch.release()
    finish_load(building, scoring.name)
    assert switch.hold()
    assert switch.commit(at_least=0)


def test_a_load_that_was_killed_between_its_indexes_is_finished(
    scoring: Scoring, live: ReadModel
) -> None:
    """Some are there, and others are not."""
    building = loading(scoring, live)
    building.database.command(
        "createIndexes", building.users.name, indexes=[INDEXES[USERS][0].document]
    )
    assert_a_rebuild_makes_it_whole(scoring, live)


def test_a_load_takes_as_long_as_it_takes(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """However little time a client has for what it usually does."""
    loading(scoring, live)
    slow: dict[str, Any] = {"blockConnection": True, "blockTimeMS": 4000, "mode": {"times": 1}}
    with (
        connect(f"{mongo_uri}&timeoutMS=3000") as client,
        failing(mongo_uri, "createIndexes", **slow),
    ):
        finish_load(ReadModel(client, live.database.name, generation=2), scoring.name)
    assert_a_rebuild_makes_it_whole(scoring, live)


@pytest.mark.parametrize("find", [4, 5, 6])
def test_what_is_added_while_users_are_counted_is_counted(
    scoring: Scoring, live: ReadModel, mongo_uri: str, find: int
) -> None:
    """Another rebuild that shares the work may be a little behind."""
    building = loading(scoring, live)

    def add() -> None:
        with closing(MongoScoreView(building)) as view:
            ProjectionWorker(scoring, view, batch_size=10).catch_up()

    # After two for the state and one for the shape: the position, and the users by either total.
    listener = Overtaken(add, command="find", nth=find)
    with MongoClient[dict[str, Any]](mongo_uri, event_listeners=[listener]) as client:
        slow = ReadModel(client, live.database.name, generation=2)
        finish_load(slow, scoring.name)
    assert building.users.count_documents({}) == 30
    assert_counts_are_true(building)
    assert_a_rebuild_makes_it_whole(scoring, live)


def test_what_is_added_after_the_load_is_counted_at_once(scoring: Scoring, live: ReadModel) -> None:
    """As in the live generation, and in one that an earlier release has begun."""
    building = loading(scoring, live)
    position = {"_id": building.position_id(scoring.name)}
    assert (building.positions.find_one(position) or {})["shape"] == LOADING
    finish_load(building, scoring.name)
    assert (building.positions.find_one(position) or {})["shape"] == SHAPE
    with closing(MongoScoreView(building)) as view:
        ProjectionWorker(scoring, view, batch_size=10).catch_up()
    assert building.users.count_documents({}) == 30
    assert_counts_are_true(building)
    assert_a_rebuild_makes_it_whole(scoring, live)


def test_a_document_that_is_in_the_place_of_a_grant_is_not_built_upon(
    scoring: Scoring, live: ReadModel
) -> None:
    """Somebody has inserted it while there was no index; the next generation has it throughout."""
    building = loading(scoring, live)
    building.grants.insert_one({"_id": 10**9, "grantId": "grant-7"})
    assert Rebuild(scoring, live, worker_maker(scoring, 10)).run().generation == 3
    assert verify_events(scoring, live).differences == []
    assert_counts_are_true(live)


def test_an_id_that_is_in_the_event_store_twice_is_projected_once_by_a_rebuild_too(
    scoring: Scoring, read_model: ReadModel, tmp_path: Path
) -> None:
    """The first counts, and the second is counted as foreign, as when the live view met it."""
    scoring.grant_many(make_grant(n, user_id=f"user-{n}", amount=n + 1) for n in range(30))
    with sqlite3.connect(tmp_path / "events.sqlite") as file:
        file.execute(
            "UPDATE stored_events SET state = replace(state, 'grant-20', 'grant-10') "
            "WHERE topic LIKE '%GrantRecorded'"
        )
    with closing(MongoScoreView(read_model)) as view:
        ProjectionWorker(scoring, view, batch_size=10).catch_up()
        live = list(read_model.users.find().sort("_id", 1))
        assert len(live) == 29
        Rebuild(scoring, read_model, worker_maker(scoring, 10)).run()
        assert list(read_model.users.find().sort("_id", 1)) == live
        assert view.positions.foreign_count(scoring.name) == 1
    assert_counts_are_true(read_model)
