"""``ScoreLedger.drift()`` while others record and project: true for when it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Timer
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from concurrency import meanwhile, until
from heard_commands import Overtaken
from projections import ScoreLedger
from projections.drift import keys
from projections.drift.measurement import measure_drift
from projections.drift.places import Board
from projections.mongo.read_model import ReadModel
from support import NOON, sqlite_env


@contextmanager
def posts_by_everybody(ledger: ScoreLedger) -> Iterator[None]:
    """Traffic that changes both totals of a user at once."""

    def write(stop: Event) -> None:
        for number in count():
            if stop.is_set():
                return
            ledger.feed_post(f"user-{number % 40:02d}", str(number), 1 + number % 5, NOON)

    with meanwhile(write):
        yield


def test_nobody_is_seen_half_changed(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals, buckets and grants of a user are of one instant, and nothing has to stand still."""
    monkeypatch.setattr(keys, "USERS_PER_PAGE", 7)
    event_store = sqlite_env(tmp_path / "events.sqlite")
    with (
        ScoreLedger.open(mongo=database, event_store=event_store) as ledger,
        posts_by_everybody(ledger),
    ):
        until(lambda: ledger.score_of("user-39").total_score)
        for _ in range(5):
            position = ledger.status().newest_position
            drift = ledger.drift(wait=60)
            assert drift.position >= position
            assert drift.verdict == "A flip is safe: of 40 users, nobody would see another score."
            assert [(board.moved, board.replaced) for board in drift.boards] == [(0, 0), (0, 0)]


def test_both_leaderboards_are_of_one_instant(database: Any, mongo_uri: str) -> None:
    """Somebody who gets in between the reading of one and of the other has not replaced anybody."""
    ids = [f"user-{number:02d}" for number in range(11)]
    database.user_scores.insert_many(
        {"_id": user_id, "recomputedTotal": 100 - place, "totalScore": 100 - place}
        for place, user_id in enumerate(ids)
    )

    def climb() -> None:
        database.user_scores.update_one(
            {"_id": ids[-1]}, {"$inc": {"recomputedTotal": 50, "totalScore": 50}}
        )

    overtaken = Overtaken(climb, command="find", nth=2)
    with MongoClient[Any](mongo_uri, event_listeners=[overtaken]) as client:
        drift = measure_drift(ReadModel(client, database.name))
    assert database.user_scores.find_one(ids[-1])["totalScore"] == 140
    assert drift.boards == [Board(rows=10, moved=0, replaced=0), Board(100, 0, 0)]


@pytest.mark.usefixtures("answers_awaited")
def test_it_waits_for_what_was_recorded_before_it_was_asked(database: Any, tmp_path: Path) -> None:
    """As long as it is told to; then it says what is missing."""
    event_store = sqlite_env(tmp_path / "events.sqlite")
    with ScoreLedger.open(mongo=database, event_store=event_store, worker=False) as ledger:
        ledger.award_badge("ada", "helper", 20, NOON)
        ledger.catch_up()
        ledger.contribute("ada", "telemetry:activity", "telemetry", "app", 5)
        behind = ledger.drift(wait=0)
        assert (behind.lag_events, behind.safe_to_flip) == (1, False)
        assert "still 1 event behind after waiting" in behind.verdict
        projecting = Timer(0.5, ledger.catch_up)
        projecting.start()
        drift = ledger.drift(wait=30)
        projecting.join()
        assert (drift.lag_events, drift.old, drift.new) == (0, 25, 20)


def test_a_user_whose_events_are_parked_stands_in_the_way(database: Any, tmp_path: Path) -> None:
    """Whatever the totals of before say."""
    event_store = sqlite_env(tmp_path / "events.sqlite")
    with ScoreLedger.open(mongo=database, event_store=event_store, worker=False) as ledger:
        ledger.award_badge("ada", "helper", 20, NOON)
        ledger.catch_up()
        database.score_parked.insert_one({"_id": str(uuid4()), "position": 9})
        drift = ledger.drift()
        assert (drift.different, drift.safe_to_flip) == (0, False)
        assert "the events of 1 user are parked" in drift.verdict
