"""``ScoreLedger.compare``: what a site's own collection holds against the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.monitoring import CommandStartedEvent

from event_store import damaged
from heard_commands import HeardCommands
from projections import (
    Comparison,
    DifferenceKind,
    OldScores,
    ProjectionError,
    RebuildOutcome,
    ScoreLedger,
    ScoreSide,
)
from projections.migration import comparison, key_history, ledger_scores
from projections.migration.comparison import SETTLE_SECONDS
from projections.migration.old_glance import OldGlance
from projections.migration.old_users import OldUser
from projections.mongo import connect
from scoring import ContributionReceipt
from scoring.contributions import Contribution
from support import NOON, sqlite_env

Document = dict[str, Any]
SETTLE = 0.1


@pytest.fixture
def client(mongo_uri: str) -> Iterator[MongoClient[Document]]:
    with connect(mongo_uri) as client:
        yield client


@pytest.fixture
def database(client: MongoClient[Document]) -> Iterator[str]:
    name = f"compare_{uuid4().hex}"
    yield name
    client.drop_database(name)
    client.drop_database(f"{name}_site")


@pytest.fixture
def site(client: MongoClient[Document], database: str) -> Collection[Document]:
    """The old collection, in a database of its own: a map of buckets in each user's document."""
    return client[f"{database}_site"]["scores"]


@pytest.fixture
def ledger(client: MongoClient[Document], database: str, tmp_path: Path) -> Iterator[ScoreLedger]:
    with ScoreLedger.open(
        worker=False, event_store=sqlite_env(tmp_path / "events.sqlite"), mongo=client[database]
    ) as ledger:
        yield ledger


def described(site: Collection[Document], **changes: Any) -> OldScores:
    values = {"collection": site.name, "database": site.database.name, "buckets": "buckets"}
    return OldScores(**{**values, "at": "at", **changes})


def bucket(points: Any, category: str = "telemetry", source: str = "app", **more: Any) -> Document:
    return {"points": points, "category": category, "source": source, **more}


def written(site: Collection[Document], user: Any, key: str, points: Any, **more: Any) -> None:
    site.update_one(
        {"_id": user}, {"$set": {f"buckets.{key}": bucket(points, **more)}}, upsert=True
    )


def contributed(ledger: ScoreLedger, user: str, key: str, points: int) -> ContributionReceipt:
    return ledger.contribute(user, key, "telemetry", "app", points, at=NOON)


def found(comparison: Comparison) -> set[tuple[str | None, str | None, str]]:
    return {(d.user_id, d.key, str(d.kind)) for d in comparison.differences if not d.repaired}


def test_what_is_the_same_is_not_named(ledger: ScoreLedger, site: Collection[Document]) -> None:
    """Buckets, totals, and a bucket of 0 points where the other side has none."""
    for user in ("ada", "bob", "Zoë", "😀", "\uffee"):
        written(site, user, "telemetry:activity", 12)
        contributed(ledger, user, "telemetry:activity", 12)
    written(site, "ada", "telemetry:gone", 0)
    contributed(ledger, "bob", "telemetry:left", 0)
    outcome = ledger.compare(described(site), settle_seconds=SETTLE)
    assert outcome.ok
    assert (outcome.users, outcome.old_points, outcome.ledger_points) == (5, 60, 60)
    assert outcome.verdict == (
        "The ledger holds what the old collection holds: 7 buckets of 5 users."
    )


def test_each_kind_of_difference_is_told_with_both_sides(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """And with the time of the document and of the event, where there are any."""
    written(site, "ada", "telemetry:lost", 5, at=NOON)
    written(site, "ada", "telemetry:same", 5)
    contributed(ledger, "ada", "telemetry:same", 5)
    contributed(ledger, "bob", "telemetry:only-here", 3)
    written(site, "cyd", "telemetry:other", 8)
    contributed(ledger, "cyd", "telemetry:other", 7)
    for points in (8, 7):
        contributed(ledger, "dan", "telemetry:raced", points)
    written(site, "dan", "telemetry:raced", 8)
    contributed(ledger, "eve", "telemetry:label", 4)
    written(site, "eve", "telemetry:label", 4, source="web")
    written(site, "fay", "telemetry:fraction", 1.5)
    outcome = ledger.compare(described(site), settle_seconds=SETTLE)
    assert not outcome.ok
    assert found(outcome) == {
        ("ada", "telemetry:lost", "missing in the ledger"),
        ("bob", "telemetry:only-here", "missing in the old collection"),
        ("cyd", "telemetry:other", "other points"),
        ("dan", "telemetry:raced", "order of two writes"),
        ("eve", "telemetry:label", "other label"),
        ("fay", "telemetry:fraction", "not acceptable"),
    }
    by_user = {each.user_id: each for each in outcome.differences}
    assert by_user["ada"].old == ScoreSide(5, "telemetry", "app", NOON)
    assert by_user["ada"].ledger is None
    here = by_user["cyd"].ledger
    assert here is not None
    assert here[:3] == (7, "telemetry", "app")
    assert here.at is not None
    assert abs(here.at.timestamp() - time.time()) < 600
    assert "1.5" in by_user["fay"].reason


def test_repairing_gives_the_ledger_what_the_old_side_holds(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """Of every kind but what it does not accept; then the same comparison finds nothing."""
    written(site, "ada", "telemetry:lost", 5)
    written(site, "ada", "content:feed-post:1", 5, category="content", source="feed", at=NOON)
    contributed(ledger, "bob", "telemetry:only-here", 3)
    written(site, "cyd", "telemetry:other", 8)
    contributed(ledger, "cyd", "telemetry:other", 7)
    ledger.award_badge("dan", "first", 20, at=NOON)
    written(site, "dan", "award:badge:first", 25, category="award", source="badge")
    outcome = ledger.compare(described(site), repair=True, settle_seconds=SETTLE)
    assert outcome.ok
    assert outcome.repaired == {
        DifferenceKind.MISSING_IN_LEDGER: 2,
        DifferenceKind.MISSING_IN_OLD: 1,
        DifferenceKind.OTHER_POINTS: 2,
    }
    assert outcome.conflicts == 1  # the badge's grant keeps its points
    assert all(each.repaired for each in outcome.differences)
    again = ledger.compare(described(site), settle_seconds=SETTLE)
    assert again.ok
    assert not again.repaired
    assert ledger.score_of("dan").total_score == 20
    assert ledger.score_of("ada").total_score == 5
    assert [grant.granted_at for grant in ledger.history("ada")] == [NOON]


def test_what_cannot_be_repaired_is_left_and_says_why(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """A grant without a time, what the ledger does not accept, and a total that is no sum."""
    written(site, "ada", "content:feed-post:1", 5, category="content", source="feed")
    written(site, "bob", "telemetry:fraction", 1.5)
    written(site, "cyd", "telemetry:activity", 5)
    site.update_one({"_id": "cyd"}, {"$set": {"total": 7}})
    contributed(ledger, "cyd", "telemetry:activity", 5)
    old = described(site, total="total")
    for _ in range(2):
        outcome = ledger.compare(old, repair=True, settle_seconds=SETTLE)
        assert not outcome.repaired
        reasons = {each.user_id: each.reason for each in outcome.differences}
        assert "nothing says when it was earned" in reasons["ada"]
        assert "a fraction" in reasons["bob"]
        assert "the old total is 5 by its buckets" in reasons["cyd"]
    dated = described(site, total="total", granted_at=NOON)
    outcome = ledger.compare(dated, repair=True, settle_seconds=SETTLE)
    assert outcome.repaired == {DifferenceKind.MISSING_IN_LEDGER: 1}
    assert {each.user_id for each in outcome.differences if not each.repaired} == {"bob", "cyd"}


def test_users_whose_ids_sort_otherwise_as_text_are_compared_all_the_same(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """Integers, ObjectIds, texts between them, and a text in another normal form."""
    oid = ObjectId("0123456789abcdef01234567")
    users: list[Any] = [2, 10, 9, oid, "01", "Zoë", "ZZ"]
    for user in users:
        written(site, user, "telemetry:activity", 12)
        contributed(ledger, str(user), "telemetry:activity", 12)
    old = described(site, users_as_text=True)
    same = ledger.compare(old, settle_seconds=SETTLE)
    assert same.ok
    assert (same.users, same.buckets) == (7, 7)
    written(site, 10, "telemetry:activity", 13)
    written(site, oid, "telemetry:lost", 13)
    outcome = ledger.compare(old, settle_seconds=SETTLE)
    assert found(outcome) == {
        ("10", "telemetry:activity", "other points"),
        (str(oid), "telemetry:lost", "missing in the ledger"),
    }


def test_a_bucket_that_is_a_document_and_one_in_an_array(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """The two other shapes of an old collection are compared likewise."""
    for number in range(30):
        contributed(ledger, f"user-{number % 7}", f"telemetry:{number}", number + 1)
    single = [
        {"user": f"user-{n % 7}", "key": f"telemetry:{n}", **bucket(n + 1 + (n == 4))}
        for n in range(30)
        if n != 5
    ]
    site.insert_many(single)
    of_documents = described(site, buckets=None, user="user")
    arrays = site.database["arrays"]
    for user in {each["user"] for each in single}:
        arrays.insert_one({"_id": user, "all": [s for s in single if s["user"] == user]})
    of_arrays = described(arrays, buckets="all")
    for old in (of_documents, of_arrays):
        assert found(ledger.compare(old, settle_seconds=SETTLE)) == {
            ("user-4", "telemetry:4", "other points"),
            ("user-5", "telemetry:5", "missing in the old collection"),
        }


def test_more_differences_than_are_shown_are_counted(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """Whatever their number, and each is repaired."""
    keys = [f"telemetry:{number}" for number in range(700)]
    for user in ("ada", "bob"):
        site.insert_one({"_id": user, "buckets": {key: bucket(1) for key in keys}})
    outcome = ledger.compare(described(site), settle_seconds=SETTLE)
    assert outcome.counts == {DifferenceKind.MISSING_IN_LEDGER: 1400}
    assert len(outcome.differences) == 20
    outcome = ledger.compare(described(site), repair=True, settle_seconds=SETTLE)
    assert outcome.ok
    assert outcome.repaired_count == 1400
    assert ledger.score_of("ada").recomputed_total == 700


def test_who_may_only_read_compares_but_does_not_repair(
    ledger: ScoreLedger,
    site: Collection[Document],
    tmp_path: Path,
    client: MongoClient[Document],
    database: str,
) -> None:
    """And is told so before anything is read."""
    written(site, "ada", "telemetry:lost", 5)
    with ScoreLedger.open(
        worker=False,
        read_only=True,
        event_store=sqlite_env(tmp_path / "events.sqlite"),
        mongo=client[database],
    ) as reader:
        assert not reader.compare(described(site), settle_seconds=SETTLE).ok
        with pytest.raises(ProjectionError, match="read_only"):
            reader.compare(described(site), repair=True)


def test_nothing_is_repaired_from_a_collection_that_holds_no_bucket(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """A name that is misspelt must not set every score to 0."""
    written(site, "ada", "telemetry:activity", 5)
    contributed(ledger, "ada", "telemetry:activity", 5)
    for wrong in (described(site, collection="score"), described(site, buckets="bucket")):
        assert not ledger.compare(wrong, settle_seconds=SETTLE).ok
        with pytest.raises(ProjectionError, match="not one bucket"):
            ledger.compare(wrong, repair=True, settle_seconds=SETTLE)
    assert ledger.score_of("ada").recomputed_total == 5


def test_what_moves_is_in_flight_until_it_stands_still(
    ledger: ScoreLedger, site: Collection[Document]
) -> None:
    """A key that is being written is no difference; one beside it that stood still is."""
    written(site, "ada", "telemetry:lost", 5)
    written(site, "ada", "telemetry:late", 5)
    written(site, "ada", "telemetry:busy", 1)
    moves = count(2)

    class Moving(OldScores):
        """A collection that is written before each look."""

        def read(self, *args: Any, **kwargs: Any) -> Iterator[OldUser]:
            points = next(moves)
            written(site, "ada", "telemetry:busy", points)
            if points == 2:
                contributed(ledger, "ada", "telemetry:late", 5)
            return super().read(*args, **kwargs)

    outcome = ledger.compare(Moving(**dict(described(site))), settle_seconds=SETTLE)
    assert found(outcome) == {("ada", "telemetry:lost", "missing in the ledger")}
    assert (outcome.passed, outcome.in_flight) == (1, 1)


class Traffic(HeardCommands):
    """Has something done once in each look, between the reading of a user's total and buckets."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self._do, self.is_due = do, True

    def started(self, event: CommandStartedEvent) -> None:
        command = event.command
        is_of_a_user = command.get("find") == "score_buckets" and "$in" not in str(command)
        if is_of_a_user and self.is_due:
            self.is_due = False
            self._do()


def test_a_total_is_not_named_for_what_is_projected_while_it_is_looked_at(
    ledger: ScoreLedger,
    site: Collection[Document],
    mongo_uri: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though it is as much at every look, as where everything earns the same points."""
    points = count(5, 5)

    def earn() -> None:
        earned = next(points)
        written(site, "ada", "telemetry:activity", earned)
        contributed(ledger, "ada", "telemetry:activity", earned)
        ledger.catch_up()

    earn()
    traffic = Traffic(earn)

    def sleep(_: float) -> None:
        traffic.is_due = True

    monkeypatch.setattr(comparison, "time", SimpleNamespace(sleep=sleep))
    with (
        MongoClient[Document](mongo_uri, event_listeners=[traffic]) as client,
        ScoreLedger.open(
            worker=False, event_store=sqlite_env(tmp_path / "events.sqlite"), mongo=client[database]
        ) as watched,
    ):
        outcome = watched.compare(described(site), settle_seconds=SETTLE)
    assert found(outcome) == set()
    assert outcome.passed
    assert not traffic.is_due


def test_what_is_in_flight_while_the_machine_is_paused_is_no_difference(
    ledger: ScoreLedger, site: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call between its two writes ends when it has gone on for half of the time to settle."""
    written(site, "ada", "telemetry:activity", 5)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        # The first sleep is over when all that was paused meanwhile goes on.
        if sum(slept[1:]) > SETTLE_SECONDS / 2:
            contributed(ledger, "ada", "telemetry:activity", 5)

    monkeypatch.setattr(comparison, "time", SimpleNamespace(sleep=sleep))
    outcome = ledger.compare(described(site), settle_seconds=SETTLE_SECONDS)
    assert (outcome.ok, outcome.passed) == (True, 1)
    assert sum(slept) == pytest.approx(SETTLE_SECONDS)


def test_only_two_writes_within_a_minute_have_crossed(
    ledger: ScoreLedger, site: Collection[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many events of other keys there are behind them, and before."""
    monkeypatch.setattr(key_history, "_EVENTS_PER_PAGE", 2)

    def earlier(state: bytes) -> bytes:
        event = json.loads(state)
        moment = datetime.fromisoformat(event["timestamp"]["_data_"]) - key_history.RACE
        event["timestamp"]["_data_"] = moment.isoformat()
        return json.dumps(event).encode()

    early = contributed(ledger, "ada", "telemetry:early", 8)
    contributed(ledger, "ada", "telemetry:late", 8)
    for key in ("early", "late"):
        contributed(ledger, "ada", f"telemetry:{key}", 7)
        written(site, "ada", f"telemetry:{key}", 8)
    for number in range(5):
        contributed(ledger, "ada", f"telemetry:{number}", 1)
        written(site, "ada", f"telemetry:{number}", 1)
    with damaged(tmp_path / "events.sqlite", early.position, by=earlier):
        outcome = ledger.compare(described(site), settle_seconds=SETTLE)
    assert found(outcome) == {
        ("ada", "telemetry:early", "other points"),
        ("ada", "telemetry:late", "order of two writes"),
    }


def test_a_client_who_writes_while_the_key_is_repaired_has_the_last_word(
    ledger: ScoreLedger, site: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes both sides after the old one was read, and before the ledger is told."""
    written(site, "ada", "telemetry:activity", 5)
    contribute_many = ledger.contribute_many
    told: list[int] = []

    def overtaken(contributions: list[Contribution]) -> list[ContributionReceipt]:
        if not told:
            written(site, "ada", "telemetry:activity", 9)
            contributed(ledger, "ada", "telemetry:activity", 9)
        told.extend(each.points for each in contributions)
        return contribute_many(contributions)

    monkeypatch.setattr(ledger, "contribute_many", overtaken)
    outcome = ledger.compare(described(site), repair=True, settle_seconds=SETTLE)
    assert told == [5, 9]
    assert outcome.ok
    assert outcome.repaired_count == 1
    assert ledger.score_of("ada").recomputed_total == 9


def test_a_rebuild_that_ends_meanwhile_changes_nothing(
    ledger: ScoreLedger, site: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the generation before is read again, and what is left of it is gone."""
    monkeypatch.setattr(ledger_scores, "_BATCH_SIZE", 2)
    for user in ("ada", "bob", "cyd", "dan", "eve"):
        written(site, user, "telemetry:activity", 5)
        contributed(ledger, user, "telemetry:activity", 5 + (user == "bob"))
    ledger.catch_up()
    rebuilt: list[RebuildOutcome] = []

    class Overtaken(OldScores):
        def glance(self, client: MongoClient[Any]) -> Iterator[OldGlance]:
            for user in super().glance(client):
                yield user
                if not rebuilt:
                    rebuilt.append(ledger.rebuild())

    outcome = ledger.compare(Overtaken(**dict(described(site))), settle_seconds=SETTLE)
    assert rebuilt[0].live
    assert found(outcome) == {("bob", "telemetry:activity", "other points")}
    assert (outcome.users, outcome.buckets) == (5, 5)


def test_a_ledger_whose_total_is_not_the_sum_of_its_buckets_is_told_to_verify(
    ledger: ScoreLedger, site: Collection[Document], client: MongoClient[Document], database: str
) -> None:
    """Which no contribution can mend."""
    written(site, "ada", "telemetry:activity", 5)
    contributed(ledger, "ada", "telemetry:activity", 5)
    ledger.catch_up()
    client[database]["user_scores"].update_one({}, {"$set": {"recomputedTotal": 6}})
    (difference,) = ledger.compare(described(site), repair=True, settle_seconds=SETTLE).differences
    assert (difference.kind, difference.key) == (DifferenceKind.TOTAL, None)
    assert (difference.old, difference.ledger) == (ScoreSide(5), ScoreSide(6))
    assert "score-ledger verify" in difference.reason
