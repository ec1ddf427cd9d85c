"""Collections and documents that are not the ledger's, under the names that it uses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from pymongo import ASCENDING, MongoClient
from pymongo.database import Database

from heard_commands import Overtaken
from projections import MongoScoreView, ProjectionWorker
from projections.errors import ForeignDocument, NameTaken, ReadModelUnavailable
from projections.mongo import connect
from projections.mongo.collections import GENERATIONAL, INDEXES
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import roll_forward
from projections.queries.leaderboard import Leaderboard
from projections.status import status_of
from projections.verification.events import verify_events
from projections.worker.rebuild import Rebuild
from projections.worker.unparker import Unparker
from scoring import Scoring
from support import build_next, make_grant, worker_maker

Site = Database[dict[str, Any]]


def contents(database: Site) -> dict[str, list[Any]]:
    names = sorted(database.list_collection_names())
    return {name: list(database[name].find()) for name in names if name != "system.views"}


@pytest.mark.parametrize("name", INDEXES)
def test_a_name_with_others_documents_is_refused(database: Site, name: str) -> None:
    """With the cure; nothing is written, and nothing made beside it."""
    database[name].insert_one({"_id": "ada", "totalScore": 900})
    before = contents(database)
    with pytest.raises(NameTaken, match=rf"{name} .*holds documents.*MONGO_DATABASE") as caught:
        ReadModel(database.client, database.name).prepare()
    assert caught.value.collection == name
    assert contents(database) == before


def a_capped_collection(database: Site) -> None:
    database.create_collection("user_scores", capped=True, size=4096)


def a_time_series(database: Site) -> None:
    database.create_collection("user_scores", timeseries={"timeField": "at"})


def a_view(database: Site) -> None:
    database.theirs.insert_one({"_id": 1})
    database.create_collection("user_scores", viewOn="theirs", pipeline=[])


def a_collation(database: Site) -> None:
    database.create_collection("user_scores", collation={"locale": "de", "strength": 1})


def an_index_of_theirs(database: Site) -> None:
    database.user_scores.create_index([("email", ASCENDING)], unique=True)


@pytest.mark.parametrize(
    "make", [a_capped_collection, a_time_series, a_view, a_collation, an_index_of_theirs]
)
def test_what_is_not_a_plain_empty_collection_is_refused(
    database: Site, make: Callable[[Site], None]
) -> None:
    """It would lose documents, compare user ids otherwise, or refuse what is written."""
    make(database)
    before = contents(database)
    with pytest.raises(NameTaken, match=r"collection user_scores .*MONGO_DATABASE"):
        ReadModel(database.client, database.name).prepare()
    assert contents(database) == before


def test_an_empty_plain_collection_may_be_taken(scoring: Scoring, database: Site) -> None:
    """Another process may just have made it, or one that was killed at its first start."""
    for name in ("user_scores", "score_control"):
        database.create_collection(name)
    model = ReadModel(database.client, database.name)
    model.prepare()
    scoring.grant_many([make_grant(1)])
    with closing(MongoScoreView(model)) as view:
        ProjectionWorker(scoring, view).catch_up()
    assert verify_events(scoring, model).ok


def test_many_processes_open_a_new_database_at_once(
    scoring: Scoring, database: Site, mongo_uri: str
) -> None:
    """Each begins to project as soon as it may, and none takes the others' for foreign."""
    scoring.grant_many([make_grant(number) for number in range(50)])
    together = Barrier(8)

    def open_and_project(_: int) -> None:
        with connect(mongo_uri) as client:
            model = ReadModel(client, database.name)
            client.admin.command("ping")
            together.wait()
            model.prepare()
            with closing(MongoScoreView(model)) as view:
                ProjectionWorker(scoring, view, batch_size=10).catch_up()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(open_and_project, range(8)))
    model = ReadModel(database.client, database.name)
    assert verify_events(scoring, model).differences == []
    assert set(model.generations.state().collections) == {1}


def test_collections_that_others_make_are_never_renamed_or_dropped(
    scoring: Scoring, live: ReadModel
) -> None:
    """Whatever they are called: a rebuild goes round them, and only what it made is dropped."""
    theirs = ["user_scores__g1", "user_scores__g2", "score_grants__g7", "score_grants__g7_old"]
    theirs.append("photos__g41")  # which takes no number, as its name is never ours
    for name in theirs:
        live.database[name].insert_one({"_id": "theirs"})
    assert live.generations.kept() == []
    assert Rebuild(scoring, live, worker_maker(scoring)).run().generation == 8
    assert live.generations.kept() == live.generations.drop_kept() == [1]
    assert Rebuild(scoring, live, worker_maker(scoring)).run(fresh=True).live
    assert live.generations.drop_kept() == [8]
    assert verify_events(scoring, live).ok
    for name in theirs:
        assert live.database[name].distinct("_id") == ["theirs"]
    left = [name for name in live.database.list_collection_names() if "__" in name]
    assert sorted(left) == sorted(theirs)


def test_a_name_that_is_taken_while_a_rebuild_begins_is_refused(
    scoring: Scoring, live: ReadModel
) -> None:
    """Its number was chosen, and somebody made a collection of that name before it did."""
    building = live.of_generation(live.generations.begin())
    live.database["user_scores__g2"].insert_one({"_id": "theirs"})
    with pytest.raises(NameTaken, match="user_scores__g2"):
        building.inventory.create_building(scoring.name)
    assert Rebuild(scoring, live, worker_maker(scoring)).run(fresh=True).generation == 3
    assert live.database["user_scores__g2"].distinct("_id") == ["theirs"]


def build_and_commit(scoring: Scoring, live: ReadModel) -> None:
    switch = build_next(scoring, live)
    assert switch.hold()
    assert switch.commit(at_least=0)


def rebuild_and_build(scoring: Scoring, live: ReadModel) -> None:
    assert Rebuild(scoring, live, worker_maker(scoring)).run().live
    build_next(scoring, live)


@pytest.mark.parametrize("overtake", [build_next, build_and_commit, rebuild_and_build])
def test_dropping_what_was_kept_leaves_a_rebuild_beside_it_alone(
    scoring: Scoring,
    live: ReadModel,
    mongo_uri: str,
    overtake: Callable[[Scoring, ReadModel], object],
) -> None:
    """However far that one comes between the look at what is kept and the drop."""
    assert Rebuild(scoring, live, worker_maker(scoring)).run().generation == 2
    listener = Overtaken(lambda: overtake(scoring, live))
    with MongoClient[dict[str, Any]](mongo_uri, event_listeners=[listener]) as client:
        assert ReadModel(client, live.database.name).generations.drop_kept() == [1]
    roll_forward(live)
    assert verify_events(scoring, live).ok
    assert Rebuild(scoring, live, worker_maker(scoring)).run().live
    assert verify_events(scoring, live).ok
    live.generations.drop_kept()
    assert not [name for name in live.database.list_collection_names() if "__" in name]


def as_before_uuids_were_put_down(live: ReadModel) -> None:
    """The documents and names of a database that an earlier release has left."""
    live.control.update_one({"_id": "read-model"}, {"$unset": {"collections": ""}})
    for name in live.database.list_collection_names():
        if name.endswith("_old"):
            live.database[name].rename(name.removesuffix("_old"))


def test_a_database_of_an_earlier_release_is_adopted(scoring: Scoring, live: ReadModel) -> None:
    """What is live, what was kept and what is being built; the rebuild carries on."""
    Rebuild(scoring, live, worker_maker(scoring)).run()
    build_next(scoring, live)
    as_before_uuids_were_put_down(live)
    live.database.drop_collection("score_parked")  # which there was not always
    later = ReadModel(live.client, live.database.name)
    later.prepare()
    state = later.generations.state()
    assert {number: set(uuids) for number, uuids in state.collections.items()} == {
        number: set(GENERATIONAL) for number in (1, 2, 3)
    }
    assert later.generations.kept() == [1]
    assert verify_events(scoring, later).ok
    scoring.grant_many([make_grant(100)])
    ProjectionWorker(scoring, MongoScoreView(later)).catch_up()
    assert Rebuild(scoring, later, worker_maker(scoring)).run().generation == 3
    assert later.generations.drop_kept() == [1, 2]
    assert verify_events(scoring, later).ok
    assert not [name for name in later.database.list_collection_names() if "__" in name]


def test_a_switch_that_an_earlier_release_committed_to_is_carried_on(
    scoring: Scoring, live: ReadModel
) -> None:
    """Its old collections get the names that it wrote down, and are kept and droppable."""
    build_and_commit(scoring, live)
    control = live.control.find_one({"_id": "read-model"})
    assert control is not None
    del control["collections"]
    for collection in control["switching"]["collections"]:
        collection["oldName"] = f"{collection['name']}__g1"
    control["switching"]["at"] = datetime.now(UTC) - timedelta(minutes=1)
    live.control.replace_one({"_id": "read-model"}, control)
    later = ReadModel(live.client, live.database.name)
    later.prepare()
    state = later.generations.state()
    assert (state.generation, state.switching_to) == (2, None)
    assert later.generations.drop_kept() == [1]
    assert verify_events(scoring, later).ok
    assert set(GENERATIONAL) <= set(later.database.list_collection_names())


def test_what_an_earlier_release_rebuilt_meanwhile_is_adopted_by_a_worker(
    scoring: Scoring, live: ReadModel, view: MongoScoreView
) -> None:
    """Both may be at work during an upgrade."""
    ProjectionWorker(scoring, view).catch_up()
    Rebuild(scoring, live, worker_maker(scoring)).run()
    live.control.update_one({"_id": "read-model"}, {"$unset": {"collections.2": ""}})
    scoring.grant_many([make_grant(100)])
    ProjectionWorker(scoring, view).catch_up()
    assert verify_events(scoring, live).ok
    assert set(live.generations.state().collections) == {1, 2}


def a_foreign_control_document(live: ReadModel) -> None:
    live.control.replace_one({"_id": "read-model"}, {"theirs": True})


def a_control_document_of_other_types(live: ReadModel) -> None:
    live.control.replace_one({"_id": "read-model"}, {"generation": "one", "shape": 1})


def a_position_that_is_none(live: ReadModel) -> None:
    live.positions.replace_one({"_id": "Scoring"}, {"position": "top left"})


def a_parked_stream_that_is_none(live: ReadModel) -> None:
    live.parked.insert_one({"_id": "car park", "cars": 7})


def show(scoring: Scoring, live: ReadModel) -> object:
    live.prepare()
    return status_of(scoring, MongoScoreView(live))


def project(scoring: Scoring, live: ReadModel) -> object:
    scoring.grant_many([make_grant(100)])
    return ProjectionWorker(scoring, MongoScoreView(live)).catch_up()


def unpark(scoring: Scoring, live: ReadModel) -> object:
    view = MongoScoreView(live)
    return Unparker(scoring, view).run(view.parking.streams())


def lead(_: Scoring, live: ReadModel) -> object:
    return Leaderboard(live).top()


@pytest.mark.parametrize(
    ("plant", "collection", "uses"),
    [
        (a_foreign_control_document, "score_control", (show, project, lead, verify_events)),
        (a_control_document_of_other_types, "score_control", (show, project, lead)),
        (a_position_that_is_none, "score_positions", (show, project, verify_events)),
        (a_parked_stream_that_is_none, "score_parked", (show, unpark, verify_events)),
    ],
)
def test_a_foreign_document_gets_a_sentence(
    scoring: Scoring,
    read_model: ReadModel,
    live: ReadModel,
    plant: Callable[[ReadModel], None],
    collection: str,
    uses: tuple[Callable[[Scoring, ReadModel], object], ...],
) -> None:
    """Whoever meets it first."""
    plant(live)
    for use in uses:
        with pytest.raises(ForeignDocument, match=f"in {collection} was not written by Score"):
            use(scoring, ReadModel(read_model.client, read_model.database.name))


def test_foreign_documents_among_workers_are_left_alone(scoring: Scoring, live: ReadModel) -> None:
    """Nobody's session is ended for one, and those who are gone are still found behind it."""
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    live.workers.insert_one({"_id": "ada", "seenAt": long_ago})
    live.workers.insert_one({"_id": f"failure/{scoring.name}", "theirs": True})
    with live.client.start_session() as session:
        live.workers.insert_one({"_id": session.session_id["id"], "seenAt": long_ago})
        session.start_transaction()
        live.positions.update_one({}, {"$set": {"x": 1}}, session=session)
        scoring.grant_many([make_grant(100)])
        ProjectionWorker(scoring, MongoScoreView(live)).catch_up()
    assert live.workers.count_documents({"_id": {"$in": ["ada"]}}) == 1
    assert MongoScoreView(live).failure(scoring.name) is None
    assert status_of(scoring, MongoScoreView(live)).worker_error is None
    assert verify_events(scoring, live).ok


def test_a_database_that_lost_its_control_document_is_refused(live: ReadModel) -> None:
    """Nothing else tells its collections from a site's own."""
    live.control.delete_one({"_id": "read-model"})
    with pytest.raises(ReadModelUnavailable, match="not of Score ledger"):
        ReadModel(live.client, live.database.name).prepare()
