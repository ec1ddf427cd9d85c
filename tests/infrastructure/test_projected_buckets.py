"""The old total in the read model: exactly once, beside the running balance."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.projection import ProjectionRunner
from pymongo import MongoClient

from concurrency import at_once
from heard_commands import HeardCommands
from old_way import OldWay
from projections import MongoScoreView, PositionMoved, ProjectionWorker, ScoreGrantsProjection
from projections.events.anchor import Tracked
from projections.events.decoder import EventDecoder
from projections.mongo.batches import Batch
from projections.mongo.collections import Document
from projections.mongo.read_model import ReadModel
from projections.mongo.writer import Transaction
from projections.queries.history import UserHistory
from projections.verification.totals import verify_totals
from scoring import Scoring
from support import NOON, make_grant, sqlite_env

POST = "content:feed-post:1"


def everything(read_model: ReadModel) -> list[list[Document]]:
    return [
        list(collection.find().sort("_id", 1))
        for collection in (read_model.grants, read_model.users, read_model.buckets)
    ]


def assert_the_old_way_is_shown(read_model: ReadModel, old: OldWay) -> None:
    """Buckets as a reader of the old way would see them, and totals that are their sums."""
    found = {
        (document["_id"]["userId"], document["_id"]["key"]): (
            *(document["points"], document["category"], document["source"]),
        )
        for document in read_model.buckets.find()
    }
    assert found == {
        (user, key): (bucket.points, bucket.category, bucket.source)
        for user, buckets in old.buckets.items()
        for key, bucket in buckets.items()
    }
    totals = {d["_id"]: d["recomputedTotal"] for d in read_model.users.find()}
    assert {user: total for user, total in totals.items() if user in old.buckets} == {
        user: old.total(user) for user in list(old.buckets)
    }


def whole_batch(scoring: Scoring, after: int | None = None) -> Batch:
    """Everything recorded so far, as one batch."""
    newest = scoring.recorder.max_notification_id() or 0
    batch = Batch("Scoring", Tracked(after), Tracked(newest))
    for notification in scoring.recorder.select_notifications(
        1, 10_000, topics=ScoreGrantsProjection.topics
    ):
        batch.events.append(EventDecoder(scoring.mapper).decode(notification))
    return batch


def make_traffic(scoring: Scoring, old: OldWay, *, seed: int, calls: int) -> None:
    """Contributions, posts and badges, repeated and changed, with plain grants between them."""
    randomness = random.Random(seed)
    for number in range(calls):
        user = randomness.choice(["ada", "bob", "eve"])
        points = randomness.choice([0, 1, 2, 3, 5])
        kind = randomness.choice(["contribute", "contribute", "post", "badge", "grant"])
        which = str(randomness.randrange(4))
        if kind == "contribute":
            scoring.contribute(user, f"telemetry:{which}", "telemetry", "app", points)
            old.contribute(user, f"telemetry:{which}", "telemetry", "app", points)
        elif kind == "post":
            scoring.feed_post(user, which, points, NOON)
            old.feed_post(user, which, points)
        elif kind == "badge":
            scoring.award_badge(user, which, points, NOON)
            old.award_badge(user, which, points)
        else:
            scoring.grant(**make_grant(number, user_id=user).model_dump())


def test_a_user_who_only_contributes_has_a_document_with_zeros(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Of the same shape as any other, and the first grant adds to it."""
    scoring.contribute("ada", "telemetry:activity", "telemetry", "app", 7)
    ProjectionWorker(scoring, view).catch_up()
    assert read_model.users.find_one({"_id": "ada"}) == {
        "_id": "ada",
        "totalScore": 0,
        "categoryTotals": {},
        "sourceTotals": {},
        "grantCount": 0,
        "recomputedTotal": 7,
        "lastGrantAt": None,
        "version": 2,
    }
    assert list(read_model.buckets.find()) == [
        {
            "_id": {"userId": "ada", "key": "telemetry:activity"},
            "category": "telemetry",
            "source": "app",
            "points": 7,
        }
    ]
    scoring.feed_post("ada", "1", 5, NOON)
    ProjectionWorker(scoring, view).catch_up()
    totals = UserHistory(read_model).totals("ada")
    assert (totals.recomputed_total, totals.total_score) == (12, 5)
    assert (totals.category_totals, totals.last_grant_at) == ({"content": 5}, NOON)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_last_of_grant_and_bucket_wins_whatever_the_batches(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, batch_size: int
) -> None:
    """Overwritten before and after its grant, in one batch or in several."""
    old = OldWay()
    for points in (0, 5, 9, 5, 2):
        scoring.feed_post("ada", "1", points, NOON)
        old.feed_post("ada", "1", points)
    for points in (0, 4):
        scoring.award_badge("bob", "x", points, NOON)
        old.award_badge("bob", "x", points)
    ProjectionWorker(scoring, view, batch_size=batch_size).catch_up()
    assert_the_old_way_is_shown(read_model, old)


@pytest.mark.parametrize("seed", range(3))
def test_random_traffic_looks_like_the_old_way(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, seed: int
) -> None:
    """Buckets and totals are those of the old code, the balance is the sum of the grants."""
    old = OldWay()
    make_traffic(scoring, old, seed=seed, calls=150)
    ProjectionWorker(scoring, view, batch_size=7).catch_up()
    assert_the_old_way_is_shown(read_model, old)
    for user in ("ada", "bob", "eve"):
        score, totals = scoring.score_of(user), UserHistory(read_model).totals(user)
        assert totals.recomputed_total == score.recomputed_total
        assert totals.total_score == score.total_score
        assert totals.version == score.version
        amounts = [d["amount"] for d in read_model.grants.find({"userId": user})]
        assert totals.total_score == sum(amounts)


def test_redelivered_buckets_change_nothing_even_if_the_position_was_lost(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """As after a partial restore; only what is new in the batch is added."""
    old = OldWay()
    make_traffic(scoring, old, seed=1, calls=60)
    view.apply(whole_batch(scoring))
    before = everything(read_model)
    with pytest.raises(PositionMoved):
        view.apply(whole_batch(scoring))
    read_model.positions.delete_many({})
    view.apply(whole_batch(scoring))
    assert everything(read_model) == before
    make_traffic(scoring, old, seed=2, calls=60)
    read_model.positions.delete_many({})
    view.apply(whole_batch(scoring))
    assert_the_old_way_is_shown(read_model, old)
    assert view.positions.foreign_count("Scoring") == 0


def test_buckets_alone_are_redelivered_without_effect(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """No grant is in the batch whose id could be a duplicate."""
    for points in (5, 3, 8):
        scoring.contribute("ada", "a", "x", "s", points)
    for _ in range(2):
        view.apply(whole_batch(scoring))
        read_model.positions.delete_many({})
    user = read_model.users.find_one({"_id": "ada"})
    assert user is not None
    assert (user["recomputedTotal"], user["version"]) == (8, 4)


def test_a_batch_of_buckets_partly_projected_before_counts_what_is_new(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """As after a lost position: the first bucket of a user tells that there is something old."""
    for points in (5, 3):
        scoring.contribute("ada", "a", "x", "s", points)
    scoring.contribute("ada", "b", "x", "s", 1)
    view.apply(whole_batch(scoring))
    read_model.positions.delete_many({})
    scoring.contribute("ada", "b", "x", "s", 2)
    scoring.contribute("ada", "c", "x", "s", 20)
    scoring.contribute("bob", "a", "x", "s", 7)
    view.apply(whole_batch(scoring))
    totals = {user["_id"]: user["recomputedTotal"] for user in read_model.users.find()}
    assert totals == {"ada": 25, "bob": 7}
    assert verify_totals(read_model).ok


def test_a_redelivery_is_looked_up_in_pages(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of grants and of users with buckets; old, foreign and new ones on every page but the last."""
    monkeypatch.setattr("projections.mongo.redelivery._LOOKUP_SIZE", 10)
    for number in range(25):
        scoring.grant(**make_grant(number).model_dump())
        scoring.contribute(f"user-{number:02}", "a", "x", "s", 3)
    view.apply(whole_batch(scoring))
    before = everything(read_model)
    read_model.positions.delete_many({})
    view.apply(whole_batch(scoring))
    assert everything(read_model) == before
    read_model.positions.delete_many({})
    for number in range(25, 38):
        scoring.grant(**make_grant(number).model_dump())
        scoring.contribute(f"user-{number:02}", "a", "x", "s", 3)
    foreign = [{"_id": 10**6 + number, "grantId": f"grant-{number}"} for number in (26, 37)]
    read_model.grants.insert_many(foreign)
    view.apply(whole_batch(scoring))
    assert read_model.grants.count_documents({}) == 38
    assert view.positions.foreign_count("Scoring") == 2
    users = list(read_model.users.find())
    assert sum(user["recomputedTotal"] for user in users) == 3 * 38
    assert sum(user["grantCount"] for user in users) == 36


@pytest.mark.parametrize("kind", ["grants", "buckets"])
def test_a_redelivery_is_known_for_one_after_its_first_batch(
    scoring: Scoring, read_model: ReadModel, mongo_uri: str, kind: str
) -> None:
    """Then nothing is sent in vain, which would abort each transaction; new grants are sent."""
    for number in range(20):
        if kind == "buckets":
            scoring.contribute("ada", f"a:{number}", "x", "s", 3)
        else:
            scoring.grant(**make_grant(number).model_dump())
    heard = HeardCommands()
    with (
        MongoClient[Document](mongo_uri, event_listeners=[heard]) as client,
        closing(MongoScoreView(ReadModel(client, read_model.database.name))) as view,
    ):
        for sent in (4 if kind == "grants" else 0, 1 if kind == "grants" else 0):
            read_model.positions.delete_many({})
            heard.sent.clear()
            ProjectionWorker(scoring, view, batch_size=5).catch_up()
            assert heard.targets.count("insert score_grants") == sent
            assert heard.names.count("abortTransaction") <= 1
        for number in range(20, 40):
            scoring.grant(**make_grant(number).model_dump())
        heard.sent.clear()
        ProjectionWorker(scoring, view, batch_size=5).catch_up()
        assert heard.targets.count("insert score_grants") == 4


def test_a_bucket_beside_a_foreign_grant_is_projected(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """The grant is a counted no-op; what the same user contributed is not lost with it."""
    read_model.grants.insert_one({"_id": 999, "grantId": "ada/content:feed-post:1"})
    scoring.feed_post("ada", "1", 5, NOON)
    scoring.contribute("ada", "a", "x", "s", 3)
    ProjectionWorker(scoring, view).catch_up()
    user = read_model.users.find_one({"_id": "ada"})
    assert user is not None
    assert (user["recomputedTotal"], view.positions.foreign_count("Scoring")) == (3, 1)


def test_a_failure_leaves_neither_bucket_nor_total(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction for buckets, totals and position."""
    scoring.contribute("ada", "a", "x", "s", 3)

    send = Transaction._send

    def fail(transaction: Any, command: str, collection: Any, *rest: Any) -> None:
        if collection.name == "score_buckets":
            raise RuntimeError("between totals and buckets")
        send(transaction, command, collection, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "_send", fail)
        with pytest.raises(RuntimeError, match="between"):
            ProjectionWorker(scoring, view).catch_up()
    assert everything(read_model) == [[], [], []]
    assert view.max_tracking_id("Scoring") is None
    ProjectionWorker(scoring, view).catch_up()
    assert read_model.buckets.count_documents({}) == 1


def test_two_workers_at_once_count_every_contribution_once(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """The position decides, as for grants."""
    old = OldWay()
    make_traffic(scoring, old, seed=5, calls=200)
    at_once(2, lambda _: ProjectionWorker(scoring, view, batch_size=5).catch_up())
    assert_the_old_way_is_shown(read_model, old)


def test_the_librarys_own_runner_projects_buckets_too(
    mongo_uri: str, read_model: ReadModel, tmp_path: Path
) -> None:
    """Event by event, with the library's in-memory application."""
    env = {
        **sqlite_env(tmp_path / "runner.sqlite"),
        "PERSISTENCE_MODULE": "eventsourcing.popo",
        "SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo",
        "MONGO_URI": mongo_uri,
        "MONGO_DATABASE": read_model.database.name,
    }
    with ProjectionRunner(
        application_class=Scoring,
        projection_class=ScoreGrantsProjection,
        view_class=MongoScoreView,
        env=env,
    ) as runner:
        runner.app.feed_post("ada", "1", 5, NOON)
        receipt = runner.app.feed_post("ada", "1", 3, NOON)
        runner.wait(receipt.position, timeout=60)
        user = read_model.users.find_one({"_id": "ada"})
    assert user is not None
    assert (user["recomputedTotal"], user["totalScore"]) == (3, 5)
    assert MongoScoreView(read_model).max_tracking_id("Scoring") == receipt.position
