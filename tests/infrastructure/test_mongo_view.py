"""``MongoScoreView``: one transaction for a batch, and the unique index on ``grantId``."""

from __future__ import annotations

import gc
from functools import partial

import pytest
from eventsourcing.persistence import TrackingRecorder
from eventsourcing.tests.persistence import TrackingRecorderTestCase
from pymongo.errors import DuplicateKeyError

from concurrency import at_once
from fail_points import failing
from projections import MongoScoreView, PositionMoved
from projections.errors import BatchRefused
from projections.events.anchor import Tracked
from projections.events.model import GrantEvent
from projections.mongo import connect
from projections.mongo.batches import Batch, user_changes
from projections.mongo.read_model import ReadModel
from projections.queries.history import UserHistory
from projections.verification.totals import verify_totals
from scoring import Grant, UserScore
from support import make_grant


def projected(*grants: Grant, first_position: int = 1) -> list[GrantEvent]:
    """Grants as events, at every second position, as claims lie between them."""
    scores: dict[str, UserScore] = {}
    result = []
    for index, grant in enumerate(grants):
        score = scores.setdefault(grant.user_id, UserScore(grant.user_id))
        score.record(grant)
        event = score.pending_events[-1]
        assert isinstance(event, UserScore.GrantRecorded)
        result.append(GrantEvent.of(first_position + 2 * index, event))
    return result


def batch(grants: list[GrantEvent], *, after: int | None = None, name: str = "Scoring") -> Batch:
    position = grants[-1].position if grants else (after or 0) + 1
    return Batch(name, Tracked(after), Tracked(position), [*grants])


@pytest.mark.usefixtures("answers_awaited")
class TestTracking(TrackingRecorderTestCase):
    """The library's own test case for tracking recorders."""

    @pytest.fixture(autouse=True)
    def _take_view(self, view: MongoScoreView) -> None:
        self.view = view

    def create_recorder(self) -> TrackingRecorder:
        return self.view


del TrackingRecorderTestCase  # or pytest would collect the abstract case too


def test_a_batch_becomes_documents_totals_and_a_position(
    view: MongoScoreView, read_model: ReadModel
) -> None:
    """The shapes that readers see are those of the specification."""
    grants = projected(
        make_grant(1, user_id="ada", amount=5, category="content", source="feed"),
        make_grant(2, user_id="ada", amount=7, category="content", source="quiz"),
        make_grant(3, user_id="bob", amount=9, grant_id="bob/award:badge:x", key="award:badge:x"),
    )
    view.apply(batch(grants))
    first = read_model.grants.find_one({"grantId": "grant-1"})
    assert first == {
        "_id": 1,
        "grantId": "grant-1",
        "userId": "ada",
        "key": "quiz:history:1",
        "category": "content",
        "source": "feed",
        "amount": 5,
        "grantedAt": make_grant(1).granted_at,
        "recordedAt": first and first["recordedAt"],
        "position": 1,
    }
    assert read_model.users.find_one({"_id": "ada"}) == {
        "_id": "ada",
        "totalScore": 12,
        "categoryTotals": {"content": 12},
        "sourceTotals": {"feed": 5, "quiz": 7},
        "grantCount": 2,
        "recomputedTotal": 0,
        "lastGrantAt": make_grant(2).granted_at,
        "version": 3,
    }
    bob = read_model.users.find_one({"_id": "bob"})
    assert bob is not None
    assert (bob["totalScore"], bob["recomputedTotal"]) == (9, 9)
    assert list(read_model.buckets.find()) == [
        {
            "_id": {"userId": "bob", "key": "award:badge:x"},
            "category": "content",
            "source": "quiz",
            "points": 9,
        }
    ]
    assert view.max_tracking_id("Scoring") == 5


def test_users_of_a_batch_are_written_in_the_order_of_their_ids(
    view: MongoScoreView, read_model: ReadModel
) -> None:
    """As they lie in the index, whoever came first: it is quicker, and locks in one order."""
    view.apply(batch(projected(*(make_grant(n, user_id=user) for n, user in enumerate("zaymbx")))))
    written = read_model.users.find().sort("$natural", 1)
    assert [user["_id"] for user in written] == ["a", "b", "m", "x", "y", "z"]


def test_the_garbage_collector_does_not_walk_what_users_of_a_batch_get() -> None:
    """There are tens of thousands, and nothing in them refers to anything but numbers."""
    changes = user_changes(projected(make_grant(1), make_grant(2)))
    assert len(changes) == 2
    assert not any(gc.is_tracked(change) for change in changes.values())


def test_of_two_threads_inserting_the_same_grant_id_one_is_rejected(read_model: ReadModel) -> None:
    """The unique index decides the race, every time."""

    def insert(number: int, which: int) -> str:
        try:
            read_model.grants.insert_one({"_id": 2 * number + which, "grantId": f"g{number}"})
        except DuplicateKeyError:
            return "rejected"
        return "inserted"

    for number in range(20):
        assert sorted(at_once(2, partial(insert, number))) == ["inserted", "rejected"]


def test_of_two_workers_projecting_the_same_grants_at_once_one_counts(
    mongo_uri: str, read_model: ReadModel
) -> None:
    """The rejected insert is handled: both return, and every grant counts once."""
    grants = projected(*(make_grant(number) for number in range(50)))
    for name in ("One", "Two"):  # tracked apart, so that only the index stands between them
        MongoScoreView(read_model).apply(Batch(name, Tracked(), Tracked(0)))

    with connect(mongo_uri) as one, connect(mongo_uri) as two:
        views = [MongoScoreView(ReadModel(own, read_model.database.name)) for own in (one, two)]
        at_once(2, lambda n: views[n].apply(batch(grants, after=0, name=("One", "Two")[n])))
    assert read_model.grants.count_documents({}) == 50
    outcome = verify_totals(read_model)
    assert (outcome.ok, outcome.grants) == (True, 50)


def test_a_redelivered_batch_changes_nothing(view: MongoScoreView, read_model: ReadModel) -> None:
    """Not even when the tracked position was lost, as after a partial restore."""
    grants = projected(*(make_grant(number) for number in range(10)))
    view.apply(batch(grants))
    before = list(read_model.users.find())
    with pytest.raises(PositionMoved):
        view.apply(batch(grants))
    read_model.positions.delete_many({})
    view.apply(batch(grants))
    assert list(read_model.users.find()) == before
    assert view.positions.foreign_count("Scoring") == 0


def test_a_foreign_document_is_a_counted_no_op(view: MongoScoreView, read_model: ReadModel) -> None:
    """Its grant adds nothing, the rest of the batch is committed, and status can say so."""
    read_model.grants.insert_one({"_id": 999, "grantId": "grant-1", "amount": 1})
    read_model.grants.insert_one({"_id": 3, "grantId": "not ours", "amount": 1})
    view.apply(batch(projected(*(make_grant(n, user_id="ada") for n in (1, 2, 3)))))
    assert view.positions.foreign_count("Scoring") == 2
    totals = UserHistory(read_model).totals("ada")
    assert (totals.grant_count, totals.total_score) == (1, make_grant(3).amount)
    assert view.max_tracking_id("Scoring") == 5


def test_a_batch_is_applied_whole_or_not_at_all(
    view: MongoScoreView, read_model: ReadModel
) -> None:
    """A failure after the grants are written leaves nothing of them."""
    read_model.users.insert_one({"_id": "ada", "totalScore": "not a number"})
    with pytest.raises(BatchRefused, match="non-numeric"):
        view.apply(batch(projected(make_grant(1, user_id="ada"))))
    assert read_model.grants.count_documents({}) == 0
    assert view.max_tracking_id("Scoring") is None


@pytest.mark.usefixtures("answers_awaited")
def test_a_short_wait_puts_up_with_a_server_that_is_slow_for_once(
    view: MongoScoreView, mongo_uri: str
) -> None:
    """Whoever does not want to wait for a worker still wants an answer of the server."""
    slow = {"blockConnection": True, "blockTimeMS": 100}
    with (
        failing(mongo_uri, "find", mode={"times": 1}, **slow),
        pytest.raises(TimeoutError, match="was not projected within 0 s"),
    ):
        view.wait("Scoring", 1, timeout=0)
