"""What a generation is loaded without, and how that is made before it goes live."""

from __future__ import annotations

from contextlib import closing
from threading import Event
from typing import Any

import pytest
from pymongo import MongoClient

from heard_commands import Overtaken
from projections import Leaderboard, MongoScoreView, Progress, ProjectionWorker
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
    """Each index would have to follow every change; but no grant can be there twice."""
    building = loading(scoring, live)
    assert building.grants.index_information().keys() == {"_id_", "grantId_1"}
    assert building.users.index_information().keys() == {"_id_"}
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


@pytest.mark.parametrize("find", [2, 3, 4])
def test_what_is_added_while_users_are_counted_is_counted(
    scoring: Scoring, live: ReadModel, mongo_uri: str, find: int
) -> None:
    """Another rebuild that shares the work may be a little behind."""
    building = loading(scoring, live)

    def add() -> None:
        with closing(MongoScoreView(building)) as view:
            ProjectionWorker(scoring, view, batch_size=10).catch_up()

    # The position, then the position again, and the users by one total and the other.
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
