"""The old way and the new, driven by the same random histories: nobody may notice a difference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from old_way import OldBucket, OldWay
from projections import Leaderboard, LeaderboardRow, MongoScoreView, ProjectionWorker
from projections.events.anchor import Tracked
from projections.events.decoder import EventDecoder
from projections.mongo import connect
from projections.mongo.batches import Batch, bucket_documents, user_changes
from projections.mongo.read_model import ReadModel
from projections.worker.projection import ScoreGrantsProjection
from scoring import GrantStatus, Scoring, UserScore
from scoring.identity import is_grant_shaped, user_stream_id
from support import NOON

USERS = ("ada", "bob", "Zo\u00eb")
RECOMPUTE_KEYS = ("telemetry:activity", "profile", "content:comments:1")
IDS = ("1", "2")
LABELS = ("content", "award")


@dataclass
class Site:
    """The old way and the new one side by side, and a list of the grants that must count."""

    scoring: Scoring
    old: OldWay = field(default_factory=OldWay)
    granted: dict[str, tuple[str, OldBucket]] = field(default_factory=dict)

    def contribute(self, user: str, key: str, category: str, source: str, points: int) -> None:
        before = self.old.total(user)
        self.old.contribute(user, key, category, source, points)
        receipt = self.scoring.contribute(user, key, category, source, points, NOON)
        assert (receipt.recomputed_before, receipt.recomputed_after) == (
            before,
            self.old.total(user),
        )
        if is_grant_shaped(key) and points:
            bucket = OldBucket(points, category, source)
            self.granted.setdefault(f"{user}/{key}", (user, bucket))

    def feed_post(self, user: str, post: str, points: int) -> None:
        self.old.feed_post(user, post, points)
        self.scoring.feed_post(user, post, points)
        if points:
            bucket = OldBucket(points, "content", "feed")
            self.granted.setdefault(f"{user}/content:feed-post:{post}", (user, bucket))

    def award_badge(self, user: str, badge: str, points: int) -> None:
        self.old.award_badge(user, badge, points)
        self.scoring.award_badge(user, badge, points)
        if points:
            bucket = OldBucket(points, "award", "badge")
            self.granted.setdefault(f"{user}/award:badge:{badge}", (user, bucket))

    def grant(self, user: str, grant_id: str, key: str, amount: int) -> None:
        if is_grant_shaped(key):
            grant_id = f"{user}/{key}"
        receipt = self.scoring.grant(user, grant_id, key, "content", "feed", amount, NOON)
        assert (receipt.status is GrantStatus.RECORDED) == (grant_id not in self.granted)
        if receipt.status is GrantStatus.RECORDED:
            self.granted[grant_id] = (user, OldBucket(amount, "content", "feed"))
            if is_grant_shaped(key):  # such a grant counts as its bucket did
                self.old.contribute(user, key, "content", "feed", amount)

    def balance(self, user: str) -> int:
        return sum(bucket.points for owner, bucket in self.granted.values() if owner == user)

    def unaccounted(self, user: str) -> set[str]:
        """The keys whose bucket is not as their grant made it."""
        nothing = (user, None)
        return {
            key
            for key, bucket in self.old.buckets[user].items()
            if not is_grant_shaped(key) or bucket != self.granted.get(f"{user}/{key}", nothing)[1]
        }


users = st.sampled_from(USERS)
ids = st.sampled_from(IDS)
points = st.integers(0, 4)
kinds = st.sampled_from(("content:feed-post", "award:badge"))
grant_shaped_keys = st.builds("{}:{}".format, kinds, ids)
keys = st.one_of(st.sampled_from(RECOMPUTE_KEYS), grant_shaped_keys)
labels = st.sampled_from(LABELS)

Call = tuple[str, tuple[object, ...]]


def calls(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(name), st.tuples(*arguments))


def histories(max_size: int) -> st.SearchStrategy[list[Call]]:
    call = st.one_of(
        calls("contribute", users, keys, labels, labels, points),
        calls("feed_post", users, ids, points),
        calls("award_badge", users, ids, points),
        calls("grant", users, st.sampled_from(("g-1", "g-2", "g-3")), keys, st.integers(1, 4)),
    )
    # Calls are repeated later on, to the letter: redeliveries and replays.
    once = st.lists(call, max_size=max_size // 2)
    return once.flatmap(
        lambda some: st.lists(
            st.one_of(call, st.sampled_from(some)) if some else call, max_size=max_size // 2
        ).map(lambda more: some + more)
    )


def perform(site: Site, history: list[Call]) -> None:
    for name, arguments in history:
        method: Callable[..., None] = getattr(site, name)
        method(*arguments)


def visible_buckets(old: OldWay) -> dict[tuple[str, str], OldBucket]:
    return {(user, k): bucket for user, some in old.buckets.items() for k, bucket in some.items()}


@settings(max_examples=300)
@given(histories(40))
def test_totals_and_buckets_are_those_of_the_old_code(history: list[Call]) -> None:
    """For any history, after every call, on the events themselves."""
    with Scoring(clock=lambda: NOON + timedelta(days=1)) as scoring:
        site = Site(scoring)
        perform(site, history)
        batch = Batch("Scoring", Tracked(), Tracked(10**6))
        for notification in scoring.recorder.select_notifications(
            1, 10**6, topics=ScoreGrantsProjection.topics
        ):
            batch.events.append(EventDecoder(scoring.mapper).decode(notification))
        assert visible_buckets(site.old) == {
            place: OldBucket(int(bucket["points"]), bucket["category"], bucket["source"])
            for place, bucket in bucket_documents(batch.events).items()
        }
        changes = user_changes(batch.events)
        for user in USERS:
            score = scoring.score_of(user)
            assert score.recomputed_total == site.old.total(user)
            assert score.total_score == site.balance(user)
            assert sum(score.category_totals.values()) == score.total_score
            assert sum(score.source_totals.values()) == score.total_score
            if user in changes:
                assert changes[user].recomputed == score.recomputed_total
                assert changes[user].version == score.version
                aggregate: UserScore = scoring.repository.get(user_stream_id(user))
                assert set(aggregate.buckets) == site.unaccounted(user)


def documents(read_model: ReadModel) -> list[object]:
    return [
        list(collection.find().sort("_id", 1))
        for collection in (read_model.grants, read_model.users, read_model.buckets)
    ]


def compare(site: Site, read_model: ReadModel) -> None:
    """Buckets, both totals, sums and both leaderboards, against the old model."""
    assert visible_buckets(site.old) == {
        (document["_id"]["userId"], document["_id"]["key"]): OldBucket(
            document["points"], document["category"], document["source"]
        )
        for document in read_model.buckets.find()
    }
    known = {user for user in USERS if site.old.buckets.get(user) or site.balance(user)}
    board = Leaderboard(read_model)
    expected = [LeaderboardRow(*row) for row in site.old.leaderboard(known)]
    assert board.top(10) == expected
    assert [row for page in board.pages(size=2) for row in page] == expected
    for index, row in enumerate(expected):
        assert board.rank_of(row.user_id) == row
        assert board.around(row.user_id, 1) == expected[max(0, index - 1) : index + 2]
    for row in board.top(10, by="ledger"):
        assert row.score == site.balance(row.user_id)
        pipeline: list[dict[str, Any]] = [
            {"$match": {"userId": row.user_id}},
            {"$group": {"_id": None, "sum": {"$sum": "$amount"}}},
        ]
        (total,) = list(read_model.grants.aggregate(pipeline)) or [{"sum": 0}]
        assert row.score == total["sum"]


@pytest.fixture(scope="module")
def read_models(mongo_uri: str) -> tuple[ReadModel, ReadModel]:
    """One that is kept up to date, and one for replays from zero."""
    client = connect(mongo_uri)
    models = ReadModel(client, f"old_{uuid4().hex}"), ReadModel(client, f"replay_{uuid4().hex}")
    for model in models:
        model.prepare()
    return models


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.lists(histories(16), min_size=1, max_size=3), batch_size=st.integers(1, 9))
def test_the_read_model_is_that_of_the_old_code_in_any_batches_and_when_replayed(
    read_models: tuple[ReadModel, ReadModel], parts: list[list[Call]], batch_size: int
) -> None:
    """Projected as it goes, redelivered, and replayed from zero: the same to the last document."""
    for model in read_models:
        for name in set(model.database.list_collection_names()) - {model.control.name}:
            model.database[name].delete_many({})
    with (
        Scoring() as scoring,
        closing(MongoScoreView(read_models[0])) as view,
        closing(MongoScoreView(read_models[1])) as replayed,
    ):
        site = Site(scoring)
        worker = ProjectionWorker(scoring, view, batch_size=batch_size)
        for part in parts:
            perform(site, part)
            worker.catch_up()
            compare(site, read_models[0])
        before = documents(read_models[0])
        read_models[0].positions.delete_many({})
        worker.catch_up()
        assert documents(read_models[0]) == before
        ProjectionWorker(scoring, replayed).catch_up()
        assert documents(read_models[1]) == before
