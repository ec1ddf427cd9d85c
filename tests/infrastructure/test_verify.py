"""Verifying: each kind of damage is found, and nothing else is."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import bson
import pytest
from bson.codec_options import CodecOptions
from bson.int64 import Int64
from pymongo import MongoClient
from pymongo.monitoring import CommandStartedEvent

from concurrency import meanwhile
from event_store import damaged as unreadable
from fail_points import failing
from heard_commands import HeardCommands
from projections import (
    MongoScoreView,
    ProjectionWorker,
    ReadModelUnavailable,
    Verification,
    VerificationProgress,
)
from projections.mongo import connect
from projections.mongo.collections import Document
from projections.mongo.read_model import ReadModel
from projections.verification.events import verify_events
from projections.verification.report import DOCUMENT, MAX_DIFFERENCES, Difference
from projections.verification.totals import verify_totals
from projections.worker.unparker import Unparker
from scoring import Grant, Scoring, UserScore
from support import NOON, make_grant, sqlite_env

BADGE = "award:badge:first"


def with_badges(count: int) -> list[Grant]:
    """Plain grants, and a badge for every user, which sets a bucket."""
    badges = [
        make_grant(
            1000 + user,
            user_id=f"user-{user}",
            key=BADGE,
            grant_id=f"user-{user}/{BADGE}",
            amount=5,
        )
        for user in range(7)
    ]
    return [make_grant(number) for number in range(count)] + badges


@pytest.fixture
def projected(scoring: Scoring, view: MongoScoreView, read_model: ReadModel) -> ReadModel:
    scoring.grant_many(with_badges(60))
    ProjectionWorker(scoring, view, batch_size=20).catch_up()
    return read_model


Findings = set[tuple[str | None, str]]


def both(user_id: str | None, what: str) -> tuple[Findings, Findings]:
    """Said by both ways of verifying."""
    return {(user_id, what)}, {(user_id, what)}


@dataclass(frozen=True)
class Damage:
    """Something that is broken, and what verifying must say of it: (user, what) pairs."""

    name: str
    plant: Callable[[ReadModel], object]
    against_events: Findings
    in_the_database: Findings = field(default_factory=set)

    def __str__(self) -> str:
        return self.name


def set_user(**fields: Any) -> Callable[[ReadModel], object]:
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return lambda model: model.users.update_one({"_id": "user-3"}, {"$set": named})


def set_grant(**fields: Any) -> Callable[[ReadModel], object]:
    return lambda model: model.grants.update_one({"grantId": "grant-3"}, {"$set": fields})


def set_bucket(**fields: Any) -> Callable[[ReadModel], object]:
    key = {"userId": "user-3", "key": BADGE}
    return lambda model: model.buckets.update_one({"_id": key}, {"$set": fields})


def set_ranks(**fields: Any) -> Callable[[ReadModel], object]:
    return lambda model: model.ranks.update_one({"_id.total": "totalScore"}, {"$set": fields})


def set_position(**change: Any) -> Callable[[ReadModel], object]:
    return lambda model: model.positions.update_one({"_id": "Scoring"}, change["update"])


def add_grant_between(model: ReadModel) -> None:
    """At the position of a claim."""
    taken = {document["_id"] for document in model.grants.find()}
    free = next(position for position in range(20, 200) if position not in taken)
    add_grant(_id=Int64(free))(model)


def add_grant_at_the_end(model: ReadModel) -> None:
    """At the position of the last claim, behind which there is no event."""
    add_grant(_id=Int64((model.positions.find_one() or {})["position"]))(model)


def add_grant(**fields: Any) -> Callable[[ReadModel], object]:
    document = {
        "grantId": "forged", "userId": "user-3", "key": "k", "category": "content",
        "source": "feed", "amount": 7, "grantedAt": NOON, "recordedAt": NOON, **fields,
    }  # fmt: skip
    return lambda model: model.grants.insert_one(dict(document))


FORGED_SUMS: Findings = {
    ("user-3", name)
    for name in ("totalScore", "grantCount", "categoryTotals.content", "sourceTotals.feed")
}

DAMAGES = [
    Damage(
        "a missing grant",
        lambda model: model.grants.delete_one({"grantId": "grant-3"}),
        {("user-3", DOCUMENT)},
        {("user-3", n) for n in ("totalScore", "grantCount", "categoryTotals.content",
         "sourceTotals.quiz")},
    ),
    Damage("an extra grant between", add_grant_between, {("user-3", DOCUMENT)}, FORGED_SUMS),
    Damage("an extra grant at the end", add_grant_at_the_end, {("user-3", DOCUMENT)}, FORGED_SUMS),
    Damage("an extra grant before", add_grant(_id=-5), {("user-3", DOCUMENT)}, FORGED_SUMS),
    Damage(
        "an extra grant behind", add_grant(_id=10**12), {("user-3", DOCUMENT)}, FORGED_SUMS
    ),
    Damage(
        "an extra grant without a position",
        add_grant(_id="x", userId=None),
        {(None, DOCUMENT)},
        {(None, DOCUMENT)},
    ),
    Damage("an altered amount", set_grant(amount=99), {("user-3", "amount")}, {
        ("user-3", n) for n in ("totalScore", "categoryTotals.content", "sourceTotals.quiz")
    }),
    Damage("an altered key", set_grant(key="other"), {("user-3", "key")}),
    Damage("an altered category", set_grant(category="x"), {("user-3", "category")}, {
        ("user-3", n) for n in ("categoryTotals.content", "categoryTotals.x")
    }),
    Damage("an altered source", set_grant(source="x"), {("user-3", "source")}, {
        ("user-3", n) for n in ("sourceTotals.quiz", "sourceTotals.x")
    }),
    Damage("an altered time", set_grant(grantedAt=NOON - timedelta(1)), {("user-3", "grantedAt")}),
    Damage("an altered time of recording", set_grant(recordedAt=NOON), {("user-3", "recordedAt")}),
    Damage("an altered position field", set_grant(position=1), {("user-3", "position")}),
    Damage("a field too many", set_grant(note="hi"), {("user-3", "note")}),
    Damage("a wrong total", set_user(totalScore=1), *both("user-3", "totalScore")),
    Damage("a wrong count", set_user(grantCount=1), *both("user-3", "grantCount")),
    Damage(
        "a wrong category",
        set_user(categoryTotals__content=1),
        *both("user-3", "categoryTotals.content"),
    ),
    Damage(
        "a category too many",
        set_user(categoryTotals__forged=1),
        *both("user-3", "categoryTotals.forged"),
    ),
    Damage(
        "a wrong source", set_user(sourceTotals__quiz=1), *both("user-3", "sourceTotals.quiz")
    ),
    Damage(
        "a wrong recomputed total",
        set_user(recomputedTotal=6),
        *both("user-3", "recomputedTotal"),
    ),
    Damage(
        "a wrong last grant", set_user(lastGrantAt=NOON), *both("user-3", "lastGrantAt")
    ),
    Damage("a version too low", set_user(version=2), *both("user-3", "version")),
    Damage("a version too high", set_user(version=10**6), {("user-3", "version")}),
    Damage(
        "a missing user",
        lambda model: model.users.delete_one({"_id": "user-3"}),
        *both("user-3", DOCUMENT),
    ),
    Damage(
        "a user too many",
        lambda model: model.users.insert_one({"_id": "user-31", "totalScore": 1}),
        *both("user-31", DOCUMENT),
    ),
    Damage(
        "a user without a name",
        lambda model: model.users.insert_one({"_id": 7, "totalScore": 1}),
        *both(None, DOCUMENT),
    ),
    Damage(
        "wrong points of a bucket",
        set_bucket(points=4),
        {("user-3", "points")},
        {("user-3", "recomputedTotal")},
    ),
    Damage("a wrong category of a bucket", set_bucket(category="x"), {("user-3", "category")}),
    Damage("a wrong source of a bucket", set_bucket(source="x"), {("user-3", "source")}),
    Damage(
        "a missing bucket",
        lambda model: model.buckets.delete_one({"_id": {"userId": "user-3", "key": BADGE}}),
        {("user-3", DOCUMENT)},
        {("user-3", "recomputedTotal")},
    ),
    Damage(
        "a bucket too many",
        lambda model: model.buckets.insert_one(
            {"_id": {"userId": "user-3", "key": "a"}, "points": 3}
        ),
        {("user-3", DOCUMENT)},
        {("user-3", "recomputedTotal")},
    ),
    Damage(
        "a bucket of nobody",
        lambda model: model.buckets.insert_one({"_id": "odd", "points": 3}),
        *both(None, DOCUMENT),
    ),
    Damage(
        "a bucket of somebody without a name",
        lambda model: model.buckets.insert_one({"_id": {"userId": 7, "key": "a"}, "points": 3}),
        *both(None, DOCUMENT),
    ),
    Damage(
        "a bucket whose key is no text",
        lambda model: model.buckets.insert_one(
            {"_id": {"userId": "user-3", "key": 7}, "points": 3}
        ),
        {(None, DOCUMENT)},
        {("user-3", "recomputedTotal")},
    ),
    Damage(
        "a bucket whose id is the other way round",
        lambda model: model.buckets.insert_one(
            {"_id": {"key": "a", "userId": "user-3"}, "points": 3}
        ),
        {(None, DOCUMENT)},
        {("user-3", "recomputedTotal")},
    ),
    Damage(
        "a wrong number of users in a range",
        set_ranks(users=[6]),
        *both(None, "users with totalScore from -9223372036854775808 to 9223372036854775807"),
    ),
    Damage(
        "a wrong number of users above",
        set_ranks(above=1),
        *both(None, "users with totalScore above 9223372036854775807"),
    ),
    Damage(
        "ranges that do not begin with the lowest score",
        set_ranks(**{"from": 10}),
        *both(None, "lowest totalScore that is counted"),
    ),
    Damage(
        "no counts of users",
        lambda model: model.ranks.delete_many({"_id.total": "recomputedTotal"}),
        *both(None, "lowest recomputedTotal that is counted"),
    ),
    Damage(
        "counts of something else",
        lambda model: model.ranks.insert_one({"_id": {"total": "grantCount", "to": 7}}),
        *both(None, DOCUMENT),
    ),
    Damage(
        "counts without ranges",
        lambda model: model.ranks.insert_one({"_id": {"total": "totalScore", "to": 7}}),
        *both(None, DOCUMENT),
    ),
    Damage(
        "a position too low",
        set_position(update={"$set": {"position": 50}}),
        {(None, "position")},
    ),
    Damage(
        "no position",
        set_position(update={"$unset": {"position": ""}}),
        {(None, "position")},
    ),
    Damage(
        "grants that were kept out by foreign documents",
        set_position(update={"$set": {"foreignGrants": 2}}),
        {(None, "foreignGrants")},
    ),
]  # fmt: skip


def found(outcome: Verification) -> Findings:
    assert outcome.difference_count == len(outcome.differences)
    return {(difference.user_id, difference.what) for difference in outcome.differences}


def test_a_sound_read_model_has_no_differences(scoring: Scoring, projected: ReadModel) -> None:
    """Both ways, and everything was looked at."""
    outcome = verify_events(scoring, projected)
    assert (outcome.ok, outcome.grants, outcome.users, outcome.buckets) == (True, 67, 7, 7)
    outcome = verify_totals(projected)
    assert (outcome.ok, outcome.grants, outcome.users) == (True, 67, 7)
    projected.users.insert_one({"_id": "nobody"})
    outcome = verify_totals(projected)
    assert (outcome.ok, outcome.grants, outcome.users) == (False, 67, 8)


def test_an_empty_read_model_of_an_empty_store_is_sound(
    scoring: Scoring, read_model: ReadModel
) -> None:
    """Nothing expected, nothing found."""
    assert verify_events(scoring, read_model) == Verification()
    assert verify_totals(read_model) == Verification()


@pytest.fixture(scope="module")
def sound(
    mongo_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Scoring, ReadModel]]:
    """One ledger for all kinds of damage."""
    env = sqlite_env(tmp_path_factory.mktemp("sound") / "events.sqlite")
    with Scoring(env) as scoring, connect(mongo_uri) as client:
        model = ReadModel(client, f"test_{uuid4().hex}")
        model.prepare()
        scoring.grant_many(with_badges(60))
        with closing(MongoScoreView(model)) as view:
            ProjectionWorker(scoring, view).catch_up()
        yield scoring, model
        client.drop_database(model.database.name)


@pytest.fixture
def damaged(sound: tuple[Scoring, ReadModel]) -> Iterator[tuple[Scoring, ReadModel]]:
    """The same, put right again afterwards."""
    _, model = sound
    collections = (model.grants, model.users, model.buckets, model.ranks, model.positions)
    before = [list(collection.find()) for collection in collections]
    yield sound
    for collection, documents in zip(collections, before, strict=True):
        collection.delete_many({})
        collection.insert_many(documents)


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_each_kind_of_damage_is_found_and_nothing_else(
    damaged: tuple[Scoring, ReadModel], damage: Damage
) -> None:
    """Against the events exactly; in the database as far as it contradicts itself."""
    scoring, model = damaged
    assert verify_events(scoring, model).ok
    damage.plant(model)
    assert found(verify_events(scoring, model)) == damage.against_events
    assert found(verify_totals(model)) == damage.in_the_database


def test_a_grant_that_was_skipped_by_moving_the_position_is_missing(
    scoring: Scoring, projected: ReadModel
) -> None:
    """As after an operator's slip; the totals are wrong too then."""
    receipt = scoring.grant(**make_grant(2000, user_id="late").model_dump())
    projected.positions.update_one({"_id": "Scoring"}, {"$set": {"position": receipt.position}})
    outcome = verify_events(scoring, projected)
    assert found(outcome) == {("late", DOCUMENT)}
    assert outcome.difference_count == 2  # the grant, and the user's document
    assert outcome.differences[0].position == receipt.position
    assert outcome.differences[0].expected["grantId"] == "grant-2000"


def test_a_foreign_document_that_keeps_a_grant_out_is_named(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Next to the grant that is missing because of it."""
    scoring.grant_many([make_grant(1), make_grant(2)])
    foreign = {"_id": 777, "grantId": "grant-1", "amount": 1}
    read_model.grants.insert_many([{"_id": 776, "grantId": "another"}, foreign])
    ProjectionWorker(scoring, view).catch_up()
    outcome = verify_events(scoring, read_model)
    first = outcome.differences[0]
    assert (first.grant_id, first.user_id, first.found) == ("grant-1", "user-1", foreign)
    assert Difference(None, DOCUMENT, None, foreign, 777, "grant-1") in outcome.differences
    assert Difference(None, "foreignGrants", 0, 1) in outcome.differences


def test_the_first_differences_are_reported_and_the_rest_counted(
    scoring: Scoring, projected: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with damage."""
    projected.grants.update_many({}, {"$inc": {"amount": 1}})
    outcome = verify_events(scoring, projected)
    assert (len(outcome.differences), outcome.difference_count) == (MAX_DIFFERENCES, 67)
    assert [difference.what for difference in outcome.differences] == ["amount"] * MAX_DIFFERENCES
    wrong = dict.fromkeys(("totalScore", "grantCount", "recomputedTotal", "version"), -1)
    projected.users.update_many({}, {"$set": wrong})
    for outcome in (verify_events(scoring, projected), verify_totals(projected)):
        assert len(outcome.differences) == MAX_DIFFERENCES < outcome.difference_count
        of_one = [d.what for d in outcome.differences if d.user_id == "user-0"]
        assert of_one == sorted(of_one)  # the same on every run
    monkeypatch.setattr("projections.verification.events._EVENTS_PER_PAGE", 30)
    outcome = verify_events(scoring, projected)
    assert len(outcome.differences) == MAX_DIFFERENCES < outcome.difference_count


def test_an_event_that_cannot_be_read_is_a_difference_of_its_own(
    scoring: Scoring, projected: ReadModel, tmp_path: Path
) -> None:
    """Nothing can be said of its user's sums, so nothing is."""
    with sqlite3.connect(tmp_path / "events.sqlite") as database:
        changed = database.execute(
            "UPDATE stored_events SET state = ? WHERE rowid = "
            "(SELECT rowid FROM stored_events WHERE topic LIKE '%GrantRecorded' LIMIT 1)",
            (b"{",),
        )
        assert changed.rowcount == 1
    database.close()
    outcome = verify_events(scoring, projected)
    assert [(d.what, d.position) for d in outcome.differences] == [("event", 2)]


def test_of_a_user_with_an_unreadable_event_no_bucket_is_compared(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """It may be the event that set it; the other users' are compared all the same."""
    ada, bob = (scoring.award_badge(user, "first", 5, NOON) for user in ("ada", "bob"))
    ProjectionWorker(scoring, view).catch_up()
    read_model.buckets.update_many({}, {"$set": {"points": 6}})
    with unreadable(tmp_path / "events.sqlite", ada.position):
        outcome = verify_events(scoring, read_model)
    assert [(d.user_id, d.what, d.position) for d in outcome.differences] == [
        (None, "event", ada.position),
        ("bob", "points", None),
    ]
    assert bob.position > ada.position


def test_a_mended_stream_that_is_still_parked_is_not_missing(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """That it is parked is said; what was left behind with it is no damage."""
    receipts = [
        scoring.grant(**make_grant(number, user_id=("ada", "bob")[number % 2]).model_dump())
        for number in range(10)
    ]
    with unreadable(tmp_path / "events.sqlite", receipts[5].position):
        ProjectionWorker(scoring, view, on_error="park").catch_up()
    outcome = verify_events(scoring, read_model)
    assert (outcome.differences, outcome.grants, outcome.users) == ([], 7, 2)
    # What was projected before it is compared, up to the last one.
    read_model.grants.delete_one({"_id": receipts[3].position})
    outcome = verify_events(scoring, read_model)
    assert [(d.what, d.position) for d in outcome.differences] == [(DOCUMENT, receipts[3].position)]


def test_documents_that_are_stored_otherwise_but_say_the_same_are_no_difference(
    scoring: Scoring, projected: ReadModel
) -> None:
    """As after a copy by another program: fields in another order, numbers of another type."""
    for document in projected.grants.find():
        projected.grants.replace_one(
            {"_id": document["_id"]},
            {**dict(sorted(document.items(), reverse=True)), "amount": float(document["amount"])},
        )
    outcome = verify_events(scoring, projected)
    assert (outcome.differences, outcome.grants) == ([], 67)


def test_a_page_of_sound_grants_is_not_decoded(
    scoring: Scoring, projected: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page with damage is, and only that one."""
    decoded: list[int] = []

    def decode_all(batch: bytes, options: CodecOptions[Document]) -> list[Document]:
        documents = bson.decode_all(batch, options)
        decoded.append(len(documents))
        return documents

    monkeypatch.setattr("projections.verification.events._EVENTS_PER_PAGE", 10)
    monkeypatch.setattr("projections.verification.events.decode_all", decode_all)
    assert verify_events(scoring, projected).grants == 67
    assert sum(decoded) == 0
    set_grant(amount=99)(projected)
    assert found(verify_events(scoring, projected)) == {("user-3", "amount")}
    assert sum(decoded) == 10


def test_sums_are_the_same_however_few_of_them_are_kept_in_memory(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, times out of order, buckets that are set again, with and without grants."""
    monkeypatch.setattr("projections.verification.events._EVENTS_PER_PAGE", 3)
    for number in range(24):
        user = f"user-{number % 4}"
        labels = {"category": f"c{number % 3}", "source": f"s{number % 2}"}
        moment = NOON + timedelta(hours=number * 7 % 24)
        grant = make_grant(number, user_id=user, granted_at=moment, **labels)
        scoring.grant(**grant.model_dump())
        scoring.contribute(f"user-{number % 5}", f"k{number % 2}", "x", "s", number)
    ProjectionWorker(scoring, view).catch_up()
    for kept in (0, 4, 1000):
        monkeypatch.setattr("projections.verification.expectation._KEPT_IN_MEMORY", kept)
        outcome = verify_events(scoring, read_model)
        assert (outcome.differences, outcome.grants, outcome.users) == ([], 24, 5)
    read_model.users.update_many({}, {"$inc": {"categoryTotals.c1": 1, "version": 1}})
    monkeypatch.setattr("projections.verification.expectation._KEPT_IN_MEMORY", 4)
    assert found(verify_events(scoring, read_model)) == {
        (f"user-{number}", what) for number in range(5) for what in ("categoryTotals.c1", "version")
    }


def test_sums_beyond_what_any_document_can_hold_are_differences(
    scoring: Scoring, projected: ReadModel, tmp_path: Path
) -> None:
    """As of events that were tampered with."""

    def huge(state: bytes) -> bytes:
        return re.sub(rb'"amount":\d+', b'"amount":%d' % (2**63 - 1), state)

    positions = [document["_id"] for document in projected.grants.find({"userId": "user-3"})]
    with unreadable(tmp_path / "events.sqlite", *positions[:3], by=huge):
        differences = found(verify_events(scoring, projected))
    assert {("user-3", "amount"), ("user-3", "totalScore")} <= differences
    assert {user_id for user_id, _ in differences} == {"user-3"}


def test_the_largest_sum_that_a_document_can_hold_is_no_difference(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """It is compared as the integer that it is."""
    position = scoring.grant(**make_grant(1).model_dump()).position
    largest = b'"amount":%d' % (2**63 - 1)
    with unreadable(
        tmp_path / "events.sqlite", position, by=lambda it: re.sub(rb'"amount":\d+', largest, it)
    ):
        ProjectionWorker(scoring, view).catch_up()
        assert read_model.users.distinct("totalScore") == [2**63 - 1]
        assert verify_events(scoring, read_model).ok


def test_a_user_without_grants_is_compared_wherever_they_sort(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Before, between and behind those with grants, whose totals have labels."""
    for user in ("bob", "dan"):
        scoring.grant(**make_grant(1, user_id=user, grant_id=user).model_dump())
    for user in ("ada", "cyd", "eve"):
        scoring.contribute(user, "a", "x", "s", 3)
    ProjectionWorker(scoring, view).catch_up()
    outcome = verify_events(scoring, read_model)
    assert (outcome.ok, outcome.users, outcome.buckets) == (True, 5, 3)
    read_model.users.update_many({}, {"$inc": {"recomputedTotal": 1}})
    assert found(verify_events(scoring, read_model)) == {
        (user, "recomputedTotal") for user in ("ada", "bob", "cyd", "dan", "eve")
    }


def test_the_latest_time_of_a_grant_counts_in_whatever_order_they_come(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Be it the first, the last, or beside buckets, which have none."""
    for user, hours in (("early", (1, 2, 3)), ("late", (3, 2, 1)), ("mixed", (2, 3, 1))):
        scoring.contribute(user, "a", "x", "s", 1)
        for hour in hours:
            moment = NOON + timedelta(hours=hour)
            grant = make_grant(hour, user_id=user, grant_id=f"{user}-{hour}", granted_at=moment)
            scoring.grant(**grant.model_dump())
        scoring.contribute(user, "a", "x", "s", 2)
    ProjectionWorker(scoring, view).catch_up()
    assert verify_events(scoring, read_model).ok
    assert verify_totals(read_model).ok
    for moment in (NOON + timedelta(hours=1), NOON + timedelta(hours=2)):
        read_model.users.update_many({}, {"$set": {"lastGrantAt": moment}})
        expected = {(user, "lastGrantAt") for user in ("early", "late", "mixed")}
        assert found(verify_events(scoring, read_model)) == expected
        assert found(verify_totals(read_model)) == expected


def test_pages_of_events_and_users_meet_without_a_gap(
    scoring: Scoring, projected: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage at the edges of pages is found once."""
    monkeypatch.setattr("projections.verification.events._EVENTS_PER_PAGE", 3)
    monkeypatch.setattr("projections.verification.events._MAX_LAST_STRETCH_EVENTS", 10)
    monkeypatch.setattr("projections.verification.totals._USERS_PER_PAGE", 2)
    seen: list[VerificationProgress] = []
    outcome = verify_events(scoring, projected, on_progress=seen.append)
    assert (outcome.ok, outcome.grants) == (True, 67)
    assert len([progress for progress in seen if progress.stage == "grants"]) >= 22
    seen.clear()
    outcome = verify_totals(projected, on_progress=seen.append)
    assert (outcome.ok, outcome.grants, outcome.users) == (True, 67, 7)
    assert seen == [VerificationProgress("users", done, 7) for done in (2, 4, 6, 7)]
    ids = [document["_id"] for document in projected.grants.find()]
    projected.grants.update_many({}, {"$set": {"note": 1}})
    monkeypatch.setattr("projections.verification.report.MAX_DIFFERENCES", 1000)
    outcome = verify_events(scoring, projected)
    assert [difference.position for difference in outcome.differences] == ids
    projected.grants.delete_many({})
    outcome = verify_totals(projected)
    assert [d.user_id for d in outcome.differences if d.what == "totalScore"] == [
        f"user-{number}" for number in range(7)
    ]


class Interruptions(HeardCommands):
    """Calls something before every reading command of a client, but not within itself."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupt: Callable[[str], None] | None = None
        self.interrupted: set[str] = set()
        self.at_one_instant: Counter[tuple[str, bool]] = Counter()
        self.limited: set[str] = set()

    def started(self, event: CommandStartedEvent) -> None:
        collection = str(event.command.get(event.command_name))
        at_one_instant = event.command.get("readConcern", {}).get("level") == "snapshot"
        if event.command_name == "find" and "maxTimeMS" in event.command:
            self.limited.add(collection)
        self.at_one_instant[collection, at_one_instant] += event.command_name == "find"
        if event.command_name in {"find", "aggregate"} and self.interrupt is not None:
            self.interrupted.add(collection)
            interrupt, self.interrupt = self.interrupt, None
            interrupt(collection)
            self.interrupt = interrupt


def test_what_is_committed_between_any_two_reads_of_verifying_is_no_difference(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, mongo_uri: str, tmp_path: Path
) -> None:
    """A grant, a bucket, and one stream unparked and another parked, before each command."""
    interruptions = Interruptions()
    numbers = count(1)

    def project(_: str) -> None:
        number = next(numbers)
        faults.close()
        Unparker(scoring, view).run(view.parking.streams())
        poison = scoring.grant(**make_grant(number, user_id=f"bad-{number}").model_dump())
        faults.enter_context(unreadable(tmp_path / "events.sqlite", poison.position))
        scoring.grant(**make_grant(1000 + number, user_id="ada").model_dump())
        scoring.contribute("bob", "a", "x", "s", number)
        ProjectionWorker(scoring, view, on_error="park").catch_up()

    with (
        ExitStack() as faults,
        MongoClient[Document](mongo_uri, event_listeners=[interruptions]) as client,
    ):
        project("")
        verified = ReadModel(client, read_model.database.name)
        interruptions.interrupt = project
        outcome = verify_events(scoring, verified)
        assert (outcome.differences, outcome.users >= 2) == ([], True)
        assert verify_totals(verified).differences == []
        read = {verified.positions, verified.parked, verified.grants, verified.users}
        assert {collection.name for collection in {*read, verified.buckets}} <= (
            interruptions.interrupted
        )
        interruptions.interrupt = None
        assert verify_events(scoring, verified).differences == []


def test_a_stream_that_is_parked_or_unparked_while_a_long_history_is_read_is_no_difference(
    scoring: Scoring,
    view: MongoScoreView,
    read_model: ReadModel,
    mongo_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read before the last stretch is read at no one instant."""
    monkeypatch.setattr("projections.verification.events._EVENTS_PER_PAGE", 3)
    monkeypatch.setattr("projections.verification.events._MAX_LAST_STRETCH_EVENTS", 10)
    receipts = [
        scoring.grant(**make_grant(number, user_id=f"user-{number % 3}").model_dump())
        for number in range(30)
    ]
    interruptions = Interruptions()
    reads = count(1)

    def interfere(collection: str) -> None:
        if collection == read_model.grants.name and next(reads) == 3:
            faults.close()
            assert Unparker(scoring, view).run(view.parking.streams()).streams == 1
            bad = scoring.grant(**make_grant(99, user_id="user-1").model_dump())
            broken.enter_context(unreadable(tmp_path / "events.sqlite", bad.position))
            ProjectionWorker(scoring, view, on_error="park").catch_up()

    with (
        ExitStack() as faults,
        ExitStack() as broken,
        MongoClient[Document](mongo_uri, event_listeners=[interruptions]) as client,
    ):
        faults.enter_context(unreadable(tmp_path / "events.sqlite", receipts[0].position))
        ProjectionWorker(scoring, view, on_error="park").catch_up()
        interruptions.interrupt = interfere
        outcome = verify_events(scoring, ReadModel(client, read_model.database.name))
        assert next(reads) > 4
        assert (outcome.differences, outcome.parked_streams, outcome.grants) == ([], 0, 30)


def test_a_difference_names_the_bucket_that_it_is_about(
    scoring: Scoring, projected: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how far the comparison has come is told for users and buckets."""
    monkeypatch.setattr("projections.verification.events._PROGRESS_EVERY", 3)
    set_bucket(points=4)(projected)
    projected.buckets.delete_one({"_id": {"userId": "user-4", "key": BADGE}})
    told: list[VerificationProgress] = []
    outcome = verify_events(scoring, projected, on_progress=told.append)
    badge = make_grant(1004)
    expected = {"category": badge.category, "source": badge.source, "points": 5}
    assert outcome.differences == [
        Difference("user-3", "points", 5, 4, key=BADGE),
        Difference("user-4", DOCUMENT, expected, None, key=BADGE),
    ]
    assert [progress for progress in told if progress.stage != "grants"] == [
        VerificationProgress(stage, done, 7) for stage in ("users", "buckets") for done in (3, 6)
    ]


def test_only_the_last_stretch_of_grants_is_read_at_one_instant(
    scoring: Scoring, projected: ReadModel, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MongoDB keeps an instant for minutes, and reading a long history takes longer."""
    monkeypatch.setattr("projections.verification.events._EVENTS_PER_PAGE", 5)
    monkeypatch.setattr("projections.verification.events._MAX_LAST_STRETCH_EVENTS", 20)
    listener = Interruptions()
    with MongoClient[Document](mongo_uri, event_listeners=[listener]) as client:
        assert verify_events(scoring, ReadModel(client, projected.database.name)).ok
    reads = listener.at_one_instant
    assert reads["score_grants", False] >= 67 // 5
    assert reads["score_grants", True] <= 20 // 5 + 2
    # The documents, and the index of each of the two totals.
    assert (reads["user_scores", True], reads["user_scores", False]) == (3, 0)
    # However long that takes: it is not a question that somebody waits for.
    assert not {"score_grants", "user_scores", "score_buckets"} & listener.limited


@pytest.mark.parametrize("code", [239, 246], ids=["SnapshotTooOld", "SnapshotUnavailable"])
def test_an_instant_that_is_gone_is_replaced_by_another(
    scoring: Scoring, projected: ReadModel, mongo_uri: str, code: int
) -> None:
    """A few times; what failed half-way is not counted twice, and another failure is told."""
    projected.users.insert_one({"_id": "nobody"})
    data: dict[str, Any] = {"errorCode": code, "namespace": projected.users.full_name}
    with failing(mongo_uri, "find", mode={"times": 4}, **data):
        outcome = verify_events(scoring, projected)
    assert (outcome.grants, outcome.users, found(outcome)) == (67, 8, {("nobody", DOCUMENT)})
    with (
        failing(mongo_uri, "find", mode={"times": 5}, **data),
        pytest.raises(ReadModelUnavailable, match="minSnapshotHistoryWindowInSeconds"),
    ):
        verify_events(scoring, projected)
    data["errorCode"] = 13
    with (
        failing(mongo_uri, "find", mode={"times": 1}, **data),
        pytest.raises(ReadModelUnavailable, match="refused access"),
    ):
        verify_events(scoring, projected)


def test_parts_of_a_verification_are_added_up_and_each_can_spoil_it() -> None:
    """What differs, and what is parked and so was not compared."""
    whole = Verification(users=1, grants=2, buckets=3)
    whole.add(Verification(users=10, grants=20, buckets=30))
    assert (whole.users, whole.grants, whole.buckets, whole.ok) == (11, 22, 33, True)
    assert not Verification(difference_count=1).ok
    assert not Verification(parked_streams=1).ok


def test_verifying_while_a_worker_projects_finds_nothing(
    scoring: Scoring, view: MongoScoreView, projected: ReadModel
) -> None:
    """Each user is compared at one instant, whatever is committed meanwhile."""

    def grant(stop: Event) -> None:
        number = 10_000
        while not stop.is_set():
            scoring.grant_many([make_grant(number + n) for n in range(50)])
            number += 50

    with meanwhile(grant, ProjectionWorker(scoring, view, batch_size=25).follow):
        grants = rounds = 0
        while rounds < 15 or grants <= 67:
            rounds += 1
            outcome = verify_events(scoring, projected)
            assert outcome.differences == []
            assert verify_totals(projected).differences == []
            assert outcome.grants >= grants
            grants = outcome.grants


def test_a_stream_that_lacks_versions_is_found_until_its_gaps_are_closed(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """With its user and the versions; the read model equals the events all the while."""
    scoring.grant_many([make_grant(n, user_id=f"user-{n % 2}") for n in range(20)])
    with closing(sqlite3.connect(tmp_path / "events.sqlite")) as other, other:
        other.execute(
            "DELETE FROM stored_events WHERE originator_id = ? AND originator_version IN (3, 4, 7)",
            (UserScore.create_id("user-1").hex,),
        )
    worker = ProjectionWorker(scoring, view)
    worker.catch_up()
    found = verify_events(scoring, read_model)
    assert [(d.user_id, d.what, d.expected, d.found) for d in found.differences] == [
        ("user-1", "stream", "versions 3 to 4", "missing"),
        ("user-1", "stream", "version 7", "missing"),
    ]
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as other_process:
        assert other_process.close_gaps("user-1") == [range(3, 5), range(7, 8)]
        worker.catch_up()
        assert verify_events(scoring, read_model).ok
        totals = read_model.users.find_one({"_id": "user-1"}) or {}
        assert totals["totalScore"] == other_process.score_of("user-1").total_score
