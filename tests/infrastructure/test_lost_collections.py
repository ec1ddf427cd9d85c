"""What becomes of a ledger whose database, a collection or an index is dropped while it is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.server_api import ServerApi

from concurrency import meanwhile, until
from projections import MongoScoreView, ProjectionWorker, ScoreLedger, Settings
from projections.errors import ReadModelDamaged, ReadModelGone
from projections.mongo.collections import GENERATIONAL, INDEXES
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch
from projections.verification.events import verify_events
from projections.verification.totals import verify_totals
from projections.worker.rebuild import Rebuild
from scoring import Scoring
from support import make_grant, sqlite_env, worker_maker


@pytest.fixture
def ledger(mongo_uri: str, database: Any, tmp_path: Path) -> Iterator[ScoreLedger]:
    """An open ledger whose worker has projected 20 grants."""
    settings = Settings(folder=tmp_path, mongo_uri=mongo_uri, mongo_database=database.name)
    store = sqlite_env(tmp_path / "ledger.sqlite")
    with ScoreLedger.open(settings=settings, event_store=store) as ledger:
        receipts = ledger.grant_many([make_grant(number) for number in range(20)])
        ledger.wait(receipts[-1], timeout=60)
        yield ledger


def database_of(ledger: ScoreLedger) -> ReadModel:
    return ledger._view.read_model


def assert_indexes(live: ReadModel) -> None:
    for name, models in INDEXES.items():
        found = live.database[name].index_information()
        assert {model.document["name"] for model in models} <= found.keys()
    assert live.grants.index_information()["grantId_1"]["unique"] is True


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_dropped_database_is_made_anew_by_an_idle_worker(
    ledger: ScoreLedger, monkeypatch: pytest.MonkeyPatch, *, rebuilt: bool
) -> None:
    """With its indexes and every point, though nothing is recorded that would wake it."""
    monkeypatch.setattr("projections.mongo.inventory.LOOK_EVERY_SECONDS", 0.1)
    live = database_of(ledger)
    if rebuilt:
        assert ledger.rebuild().live
    live.database.client.drop_database(live.database)
    until(lambda: live.grants.count_documents({}) == 20, every_seconds=0.05)
    assert_indexes(live)
    assert ledger.verify().differences == []
    assert ledger.status().generation == 1
    ledger.wait(ledger.grant(**make_grant(100).model_dump()), timeout=60)
    assert ledger.verify().ok


def test_a_dropped_database_is_made_anew_when_something_is_recorded(ledger: ScoreLedger) -> None:
    """A batch does not make collections without indexes on the way."""
    live = database_of(ledger)
    live.database.client.drop_database(live.database)
    ledger.wait(ledger.grant(**make_grant(100).model_dump()), timeout=60)
    assert_indexes(live)
    assert ledger.verify().ok
    assert ledger.status().grants == 21


def test_a_rebuild_of_a_dropped_database_ends(scoring: Scoring, live: ReadModel) -> None:
    """It makes the database anew, and the read model in it."""
    live.database.client.drop_database(live.database)
    outcome = Rebuild(scoring, live, worker_maker(scoring)).run()
    assert (outcome.generation, outcome.live) == (2, True)
    assert_indexes(live)
    assert verify_events(scoring, live).ok


def test_readers_of_a_dropped_database_are_told(scoring: Scoring, live: ReadModel) -> None:
    """Nobody is shown an empty leaderboard for true, and verify does not call it ok."""
    live.database.client.drop_database(live.database)
    with pytest.raises(ReadModelGone, match=f"gone from database {live.database.name}"):
        live.counts()
    with pytest.raises(ReadModelGone):
        verify_events(scoring, live)
    with pytest.raises(ReadModelGone):
        verify_totals(live)
    assert live.database.list_collection_names() == []


@pytest.mark.parametrize("name", GENERATIONAL)
def test_a_worker_stops_when_a_collection_was_dropped(
    scoring: Scoring, live: ReadModel, view: MongoScoreView, name: str
) -> None:
    """Whether at work or begun anew: what was in there is not shown, so more would hide it."""
    live.database.drop_collection(name)
    position = view.max_tracking_id(scoring.name)
    receipt = scoring.grant(**make_grant(100).model_dump())
    scoring.contribute("ada", "quiz:best", "quiz", "quiz", 5)
    with pytest.raises(ReadModelDamaged, match=f"collection {name} is missing.*rebuild"):
        ProjectionWorker(scoring, view).catch_up()
    assert name not in live.database.list_collection_names()
    assert view.max_tracking_id(scoring.name) == position
    assert name in str(view.failure(scoring.name))
    for report in (verify_events(scoring, live), verify_totals(live)):
        assert f"collection {name}" in [difference.what for difference in report.differences]
    assert Rebuild(scoring, live, worker_maker(scoring)).run().live
    assert live.grants.count_documents({"_id": receipt.position}) == 1
    assert verify_events(scoring, live).ok


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("name", GENERATIONAL)
def test_a_batch_is_refused_in_the_moment_that_a_collection_is_dropped(
    scoring: Scoring, live: ReadModel, view: MongoScoreView, name: str, *, replaced: bool
) -> None:
    """Even if another one has its name already: none is written into that was not made for it."""
    dropped = live.database[name]
    check: Any = view.check_collections

    def drop_after_the_check() -> None:
        check()
        dropped.drop()
        if replaced:
            dropped.insert_one({"_id": "ada", "totalScore": 900})

    view.check_collections = drop_after_the_check  # type: ignore[method-assign]
    scoring.grant_many([make_grant(100), make_grant(101, user_id="ada")])
    scoring.contribute("ada", "quiz:best", "quiz", "quiz", 5)
    position = view.max_tracking_id(scoring.name)
    with pytest.raises(ReadModelDamaged, match=name):
        ProjectionWorker(scoring, view).catch_up()
    assert list(dropped.find()) == ([{"_id": "ada", "totalScore": 900}] if replaced else [])
    assert view.max_tracking_id(scoring.name) == position


def test_a_switch_of_a_dropped_database_writes_nothing(scoring: Scoring, live: ReadModel) -> None:
    """What it left would be taken for somebody else's when the database is made anew."""
    building = live.of_generation(live.generations.begin())
    building.inventory.create_building(scoring.name)
    switch = Switch(live, building, scoring.name)
    live.database.client.drop_database(live.database)
    with pytest.raises(ReadModelGone):
        switch.hold()
    assert "score_positions" not in live.database.list_collection_names()
    live.prepare()


def test_a_worker_that_follows_makes_a_dropped_index_anew(
    scoring: Scoring, live: ReadModel, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify says that it is missing until then."""
    live.grants.drop_index("grantId_1")
    live.users.drop_indexes()
    differences = verify_events(scoring, live).differences
    assert [(difference.what, difference.found) for difference in differences] == [
        ("index grantId_1 of score_grants", None),
        ("index recomputedTotal_-1__id_1 of user_scores", None),
        ("index totalScore_-1__id_1 of user_scores", None),
    ]
    assert differences[0].expected == "on {grantId: 1} unique"
    assert verify_totals(live).differences == differences
    monkeypatch.setattr("projections.mongo.inventory.LOOK_EVERY_SECONDS", 0.1)
    with meanwhile(ProjectionWorker(scoring, view).follow):
        until(lambda: verify_events(scoring, live).ok, every_seconds=0.05)
    assert_indexes(live)


def not_unique(live: ReadModel) -> None:
    live.grants.create_index("grantId")


def partial(live: ReadModel) -> None:
    live.grants.create_index("grantId", unique=True, partialFilterExpression={"amount": 5})


def sparse(live: ReadModel) -> None:
    live.grants.create_index("grantId", unique=True, sparse=True)


def collated(live: ReadModel) -> None:
    live.grants.create_index("grantId", unique=True, collation={"locale": "en", "strength": 1})


def impossible(live: ReadModel) -> None:
    live.grants.insert_one({"_id": 10**6, "grantId": "grant-1"})


@pytest.mark.parametrize("replace", [not_unique, partial, sparse, collated, impossible])
def test_an_index_that_cannot_be_made_anew_stops_the_worker(
    scoring: Scoring, live: ReadModel, view: MongoScoreView, replace: Callable[[ReadModel], None]
) -> None:
    """The ledger opens, verify names the index, a rebuild cures it."""
    live.grants.drop_index("grantId_1")
    replace(live)
    live.prepare()
    with pytest.raises(ReadModelDamaged, match=r"index grantId_1 of score_grants is .*rebuild"):
        ProjectionWorker(scoring, view).catch_up()
    named = [difference.what for difference in verify_events(scoring, live).differences]
    assert "index grantId_1 of score_grants" in named
    assert Rebuild(scoring, live, worker_maker(scoring)).run().live
    assert verify_events(scoring, live).ok


def test_an_index_of_another_name_will_do(scoring: Scoring, live: ReadModel) -> None:
    """What counts is what it does."""
    live.grants.drop_index("grantId_1")
    index = {"key": {"grantId": 1.0}, "unique": True, "name": "by_id"}
    live.database.command({"createIndexes": "score_grants", "indexes": [index]})
    assert verify_events(scoring, live).ok
    live.prepare()
    assert "grantId_1" not in live.grants.index_information()


def restore(live: ReadModel) -> None:
    """Put every collection back from a dump, which gives each a new UUID, as mongorestore does."""
    for name in live.database.list_collection_names():
        restored = live.database.create_collection("restored")
        if documents := list(live.database[name].find()):
            restored.insert_many(documents)
        for index in list(live.database[name].list_indexes()):
            live.database.command({"createIndexes": "restored", "indexes": [index]})
        restored.rename(name, dropTarget=True)


def test_a_restored_backup_carries_on_from_where_it_was_taken(
    scoring: Scoring, live: ReadModel, view: MongoScoreView
) -> None:
    """With what was kept, and what was being built."""
    Rebuild(scoring, live, worker_maker(scoring)).run()
    live.of_generation(live.generations.begin()).inventory.create_building(scoring.name)
    restore(live)
    scoring.grant_many([make_grant(100)])
    ProjectionWorker(scoring, view).catch_up()
    assert verify_events(scoring, live).ok
    assert live.generations.kept() == [1]
    assert Rebuild(scoring, live, worker_maker(scoring)).run().generation == 3
    assert live.generations.drop_kept() == [1, 2]
    assert verify_events(scoring, live).ok
    assert not [name for name in live.database.list_collection_names() if "__" in name]


def test_under_the_strict_stable_api_a_dropped_collection_is_noticed_at_the_next_look(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """Its commands cannot name UUIDs, and work without."""
    api = ServerApi("1", strict=True)
    with MongoClient[dict[str, Any]](mongo_uri, server_api=api) as client:
        strict = ReadModel(client, live.database.name)
        with closing(MongoScoreView(strict)) as view:
            scoring.grant_many([make_grant(100)])
            ProjectionWorker(scoring, view).catch_up()
            assert live.grants.count_documents({}) == 21
            live.users.drop()
            scoring.grant_many([make_grant(101)])
            with pytest.raises(ReadModelDamaged, match="user_scores is missing"):
                ProjectionWorker(scoring, view).catch_up()
