"""What a worker knows of its last transaction: it is not read again, and not believed too long."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from event_store import damaged, grants_of
from heard_commands import HeardCommands
from projections import MongoScoreView, ProjectionWorker
from projections.mongo.read_model import ReadModel
from projections.verification.totals import verify_totals
from projections.worker.rebuild import Rebuild
from projections.worker.unparker import Unparker
from ranks import assert_counts_are_true
from scoring import Scoring
from support import make_grant, worker_maker


def test_a_grant_is_added_without_reading_what_the_last_batch_left(
    scoring: Scoring, read_model: ReadModel, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the user's totals nor the counts of users: a site adds one grant after the other."""
    monkeypatch.setattr("projections.mongo.inventory.LOOK_EVERY_SECONDS", 1e9)
    scoring.grant_many(make_grant(n, user_id=f"user-{n % 9}") for n in range(30))
    heard = HeardCommands()
    with (
        MongoClient[dict[str, Any]](mongo_uri, event_listeners=[heard]) as client,
        closing(MongoScoreView(ReadModel(client, read_model.database.name))) as view,
    ):
        worker = ProjectionWorker(scoring, view)
        worker.catch_up()
        for number in range(30, 40):
            scoring.grant(**make_grant(number, user_id=f"user-{number % 9}").model_dump())
            heard.sent.clear()
            worker.catch_up()
            found = [name for name in heard.targets if name.startswith(("find ", "getMore"))]
            assert sorted(found) == ["find score_parked", "find score_positions"]
    assert_counts_are_true(read_model)
    assert verify_totals(read_model).ok


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize(("turn", "most"), [(40, 1000), (40, 3), (3, 1000)])
def test_counts_are_true_whoever_adds_and_however_much_is_known(
    scoring: Scoring,
    view: MongoScoreView,
    read_model: ReadModel,
    monkeypatch: pytest.MonkeyPatch,
    turn: int,
    most: int,
) -> None:
    """Whoever finds that another one was there reads everything again."""
    monkeypatch.setattr("projections.mongo.committed.MAX_KNOWN_USERS", most)
    monkeypatch.setattr("projections.mongo.committed.MAX_KNOWN_PAGES", most)
    with closing(MongoScoreView(read_model.of_generation(None))) as other:
        workers = [ProjectionWorker(scoring, each) for each in (view, other)]
        for number in range(40):
            amount = number * 7 % 31 + 1
            grant = make_grant(number, user_id=f"user-{number * 5 % 23}", amount=amount)
            scoring.grant(**grant.model_dump())
            workers[number // turn % 2].catch_up()
            assert_counts_are_true(read_model)
    assert verify_totals(read_model).ok


def unpark(scoring: Scoring, read_model: ReadModel) -> None:
    """The position stays where it is then, but totals and counts of users do not."""
    with closing(MongoScoreView(read_model.of_generation(None))) as other:
        Unparker(scoring, other).run(other.parking.streams())


def mend_by_rebuilding(scoring: Scoring, read_model: ReadModel) -> None:
    """At the same position documents say something else afterwards."""
    read_model.users.update_one({"_id": "user-0"}, {"$inc": {"totalScore": 100}})
    read_model.ranks.delete_many({})
    assert Rebuild(scoring, read_model, worker_maker(scoring)).run().live


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("change", [unpark, mend_by_rebuilding])
def test_a_worker_knows_that_somebody_else_has_changed_documents_meanwhile(
    scoring: Scoring,
    view: MongoScoreView,
    read_model: ReadModel,
    tmp_path: Path,
    change: Callable[[Scoring, ReadModel], None],
) -> None:
    scoring.grant_many(make_grant(n, user_id=f"user-{n % 9}", amount=n + 1) for n in range(27))
    worker = ProjectionWorker(scoring, view, on_error="park")
    with damaged(tmp_path / "events.sqlite", next(grants_of(scoring)).id):
        worker.catch_up()
    change(scoring, read_model)
    scoring.grant(**make_grant(27, user_id="user-0", amount=20).model_dump())
    worker.catch_up()
    assert_counts_are_true(read_model)
    assert verify_totals(read_model).ok


@pytest.mark.usefixtures("small_ranges")
def test_a_worker_knows_that_one_of_another_release_was_there(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Which left no mark of its own, and the last one in its place."""
    worker = ProjectionWorker(scoring, view)
    for number in range(20):
        grant = make_grant(number, user_id=f"user-{number % 9}", amount=number + 1)
        scoring.grant(**grant.model_dump())
        if number % 3:
            worker.catch_up()
            continue
        before = read_model.positions.find_one() or {}
        with closing(MongoScoreView(read_model.of_generation(None))) as other:
            ProjectionWorker(scoring, other).catch_up()
        read_model.positions.update_one({}, {"$set": {"mark": before.get("mark")}})
    assert_counts_are_true(read_model)
    assert verify_totals(read_model).ok


def test_the_document_of_a_new_user_that_is_there_is_added_to(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """As of one whose grants were taken away by hand, or whom a foreign hand has made."""
    read_model.users.insert_one({"_id": "ada", "totalScore": 7, "recomputedTotal": 0})
    scoring.grant_many([make_grant(1, user_id="ada", amount=5), make_grant(2, user_id="bob")])
    ProjectionWorker(scoring, view).catch_up()
    ada = read_model.users.find_one({"_id": "ada"})
    assert ada is not None
    assert (ada["totalScore"], ada["grantCount"]) == (12, 1)
    assert read_model.users.count_documents({}) == 2
