"""The acceptance of the original request, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pymongo.errors import DuplicateKeyError

from concurrency import at_once
from old_way import OldWay
from projections import Leaderboard, MongoScoreView, ProjectionWorker
from projections.events.anchor import Tracked
from projections.events.model import GrantEvent
from projections.mongo.batches import Batch
from projections.mongo.read_model import ReadModel
from projections.queries.history import UserHistory
from scoring import GrantStatus, Scoring, UserScore
from support import NOON, make_grant


@pytest.fixture
def scoring(new_env: Callable[[], dict[str, str]]) -> Iterator[Scoring]:
    """The write side on an event store of each kind."""
    with Scoring(new_env()) as app:
        yield app


def test_grants_persist(scoring: Scoring, read_model: ReadModel) -> None:
    """In the event store, for another process; and in ``score_grants``, field by field."""
    grants = [make_grant(number, user_id="ada") for number in range(20)]
    scoring.grant_many(grants)
    with Scoring(scoring.env) as another:
        assert another.score_of("ada").total_score == sum(grant.amount for grant in grants)
        ProjectionWorker(another, MongoScoreView(read_model)).catch_up()
    rows = UserHistory(read_model).history("ada")
    assert [
        (row.grant_id, row.key, row.category, row.source, row.amount, row.granted_at)
        for row in reversed(rows)
    ] == [(g.grant_id, g.key, g.category, g.source, g.amount, g.granted_at) for g in grants]


def test_a_duplicate_grant_id_is_a_no_op(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Neither events nor documents nor totals hear of it, whatever its payload."""
    grant = make_grant(1)
    scoring.grant(**grant.model_dump())
    ProjectionWorker(scoring, view).catch_up()
    before = scoring.recorder.max_notification_id(), list(read_model.users.find())
    again = scoring.grant(**grant.model_dump())
    other = scoring.grant(**{**grant.model_dump(), "amount": 999, "user_id": "somebody-else"})
    ProjectionWorker(scoring, view).catch_up()
    assert (again.status, other.status) == (GrantStatus.DUPLICATE, GrantStatus.CONFLICT)
    assert (scoring.recorder.max_notification_id(), list(read_model.users.find())) == before


def test_in_a_unique_index_race_the_second_insert_is_rejected_and_handled(
    mongo_uri: str, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Two views apply the same grant at once: both return, and it counts once."""
    score = UserScore("ada")
    grant = make_grant(1, user_id="ada", amount=5)
    score.record(grant)
    event = score.pending_events[-1]
    assert isinstance(event, UserScore.GrantRecorded)
    views = [view, MongoScoreView(ReadModel(read_model.client, read_model.database.name))]

    def apply(number: int) -> None:
        # Tracked apart, so that only the unique index stands between them.
        views[number].apply(
            Batch(f"Worker {number}", Tracked(), Tracked(2), [GrantEvent.of(2, event)])
        )

    at_once(2, apply)
    with pytest.raises(DuplicateKeyError):
        read_model.grants.insert_one({"_id": 99, "grantId": grant.grant_id})
    totals = UserHistory(read_model).totals("ada")
    assert (totals.total_score, totals.grant_count) == (5, 1)


def test_the_running_balance_equals_the_sum_of_grant_amounts(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Also where the old total went down meanwhile."""
    for number in range(60):
        scoring.grant(**make_grant(number, user_id="ada").model_dump())
        scoring.contribute("ada", "telemetry:activity", "telemetry", "app", 60 - number)
        scoring.feed_post("ada", str(number % 10), number % 7, NOON)
    ProjectionWorker(scoring, view).catch_up()
    amounts = [document["amount"] for document in read_model.grants.find({"userId": "ada"})]
    totals = UserHistory(read_model).totals("ada")
    assert totals.total_score == sum(amounts) == scoring.score_of("ada").total_score
    assert sum(totals.category_totals.values()) == totals.total_score
    assert sum(totals.source_totals.values()) == totals.total_score


def test_feed_post_and_badge_contributions_are_unchanged_to_look_at(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Repeated, changed, taken back to 0: buckets and total are those of the old code."""
    old = OldWay()
    for points in (5, 5, 9, 0, 5, 0, 7):
        for post in ("1", "2"):
            scoring.feed_post("ada", post, points, NOON)
            old.feed_post("ada", post, points)
        scoring.award_badge("ada", "helper", points, NOON)
        old.award_badge("ada", "helper", points)
        ProjectionWorker(scoring, view).catch_up()
        totals = UserHistory(read_model).totals("ada")
        assert totals.recomputed_total == old.total("ada") == 3 * points
        found = {d["_id"]["key"]: d["points"] for d in read_model.buckets.find()}
        assert found == {key: bucket.points for key, bucket in old.buckets["ada"].items()}


def test_leaderboards_still_read_the_recomputed_total(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """A user with much in the ledger and little the old way is where the old way puts them."""
    scoring.grant(**make_grant(1, user_id="ada", amount=1000).model_dump())
    scoring.contribute("ada", "telemetry:activity", "telemetry", "app", 1)
    scoring.contribute("bob", "telemetry:activity", "telemetry", "app", 2)
    ProjectionWorker(scoring, view).catch_up()
    board = Leaderboard(read_model)
    assert [(row.user_id, row.score) for row in board.top(10)] == [("bob", 2), ("ada", 1)]
    assert [(row.user_id, row.score) for row in board.top(10, by="ledger")] == [
        ("ada", 1000),
        ("bob", 0),
    ]
