"""Turns of the processes that grant on one event store in MongoDB, each with a chain of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from pymongo import MongoClient

from concurrency import until
from fail_points import failing
from group_commit import Watched
from projections.mongo import connect
from projections.mongo.event_store import MongoApplicationRecorder
from projections.mongo.event_store.turns import Turns
from scoring import GrantStatus, Scoring
from support import make_grant

MODULE = "projections.mongo.event_store"
NUMBERS = count()


@pytest.fixture(autouse=True)
def _never_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody stops taking turns because the machine stands still for a second."""
    monkeypatch.setattr(f"{MODULE}.chain._MET_SECONDS", 600)


@pytest.fixture
def database() -> str:
    return f"turns_{uuid4().hex[:8]}"


@pytest.fixture
def client(mongo_uri: str, database: str) -> Iterator[MongoClient[Any]]:
    client = connect(mongo_uri)
    yield client
    client.drop_database(database)
    client.close()


@pytest.fixture
def env(client: MongoClient[Any], mongo_uri: str, database: str) -> dict[str, str]:
    return {
        "PERSISTENCE_MODULE": "projections.mongo",
        "MONGO_URI": mongo_uri,
        "MONGO_DATABASE": database,
    }


@pytest.fixture
def new_recorder(client: MongoClient[Any], database: str) -> Callable[[], MongoApplicationRecorder]:
    """Recorders on one chain, one for each process."""

    def new() -> MongoApplicationRecorder:
        recorder = MongoApplicationRecorder(client, database, "test")
        recorder.prepare()
        return recorder

    return new


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Which queries for events of streams were made since the list was cleared."""
    made: list[object] = []

    def noting(name: str, query: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return query(*args, **kwargs)

        return noted

    for name in ("select_events", "select_events_after", "select_events_around"):
        query = getattr(MongoApplicationRecorder, name)
        monkeypatch.setattr(MongoApplicationRecorder, name, noting(name, query))
    return made


def grant(app: Scoring, user_id: str) -> int:
    """Grant one point, and return what the receipt says of the total before."""
    fields = make_grant(next(NUMBERS), user_id=user_id, amount=1).model_dump()
    receipt = app.grant(**fields)
    assert receipt.status is GrantStatus.RECORDED
    return receipt.total_before


def event(stream: str, version: int = 1) -> StoredEvent:
    return StoredEvent(stream, version, "topic", b"state")


def met(new_recorder: Callable[[], MongoApplicationRecorder]) -> list[MongoApplicationRecorder]:
    """Return the recorders of two processes that have met each other."""
    ours, theirs = both = [new_recorder(), new_recorder()]
    for number in range(2):
        ours.insert_events([event(f"ours {number}")])
        theirs.insert_events([event(f"theirs {number}")])
    ours.insert_events([event("ours")])
    assert ours._chain.meets_others
    assert theirs._chain.meets_others
    return both


def streams(events: Sequence[StoredEvent] | None) -> list[object]:
    assert events is not None
    return [each.originator_id for each in events]


def test_processes_that_grant_to_the_same_users_neither_look_them_up_nor_commit_in_vain(
    env: dict[str, str], searches: list[object]
) -> None:
    """After the first race: what others have recorded comes with the turn."""
    users = ["ada", "bob", "eve"]
    with Watched(env) as app, Watched(env) as other:
        for user_id in users * 2:
            grant(app, user_id)
            grant(other, user_id)
        app.commits.clear()
        other.commits.clear()
        searches.clear()
        totals = []
        for user_id in users * 5:
            totals += [grant(app, user_id), grant(other, user_id)]
        assert totals == [
            before for first in range(4, 14, 2) for _ in users for before in (first, first + 1)
        ]
        assert (len(app.commits), len(other.commits), searches) == (15, 15, [])


def test_users_are_looked_up_once_when_others_have_recorded_too_much_to_be_read(
    env: dict[str, str], searches: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watched(env) as app, Watched(env) as other:
        for user_id in ["ada", "bob"] * 2:
            grant(app, user_id)
            grant(other, user_id)
        monkeypatch.setattr(f"{MODULE}.chain._MOST_FOLLOWED", 2)
        for _ in range(3):
            grant(other, "ada")
        app.commits.clear()
        searches.clear()
        assert [grant(app, "ada"), grant(app, "bob"), grant(app, "ada")] == [7, 4, 8]
        assert (len(app.commits), len(searches)) == (3, 2)


def test_what_others_record_is_not_kept_without_end(
    env: dict[str, str], searches: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for users to whom this process may never grant again."""
    monkeypatch.setattr("scoring.followed._MOST_EVENTS", 3)
    with Watched(env) as app, Watched(env) as other:
        for user_id in ["ada", "bob"] * 2:
            grant(app, user_id)
            grant(other, user_id)
        for _ in range(5):
            grant(other, "ada")
            grant(app, "bob")
        assert app._scores._followed._count <= 4
        app.commits.clear()
        assert grant(app, "ada") == 9
        assert len(app.commits) == 1


def test_whoever_waits_for_a_turn_is_told_what_was_recorded_in_that_of_another(
    new_recorder: Callable[[], MongoApplicationRecorder],
    client: MongoClient[Any],
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{MODULE}.turns._LAST_COMMIT_SECONDS", 60)
    monkeypatch.setattr(f"{MODULE}.turns._MOST_SECONDS", 60)
    monkeypatch.setattr(f"{MODULE}.turns._SOON_SECONDS", 0)
    ours, theirs = met(new_recorder)
    ours.take_turn(1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(theirs.take_turn, 1)
        until(lambda: bool(turn(client, database)["waiting"]))
        assert not waiting.done()
        ours.insert_events([event("meanwhile")])
        assert streams(waiting.result())[-1:] == ["meanwhile"]


def test_a_process_that_was_killed_in_its_turn_holds_nobody_up_for_long(
    new_recorder: Callable[[], MongoApplicationRecorder],
    client: MongoClient[Any],
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{MODULE}.turns._MOST_SECONDS", 60)
    ours, theirs = met(new_recorder)
    theirs.take_turn(1)
    assert turn(client, database)["holder"] == theirs._chain._turns._holder
    ours.take_turn(1)
    assert turn(client, database)["holder"] == ours._chain._turns._holder


def test_those_who_wait_come_in_their_order_and_the_dead_are_passed_over(
    client: MongoClient[Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.turns._LAST_COMMIT_SECONDS", 60)
    monkeypatch.setattr(f"{MODULE}.turns._MOST_SECONDS", 60)
    first, dead, second, third = (Turns(client, "test_events_writers", database) for _ in range(4))
    first.take(1)
    for each in (dead, second, third):
        each._asked(60)
    assert turn(client, database)["waiting"] == [dead._holder, second._holder, third._holder]
    first.committed()
    assert second.take(1)
    assert turn(client, database)["waiting"] == [third._holder]
    second.committed()
    assert not third.take(1)


def test_a_process_that_is_alone_asks_nobody_and_stops_asking_when_it_is_left_alone(
    env: dict[str, str],
    client: MongoClient[Any],
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{MODULE}.chain._MET_SECONDS", 0.05)
    with Scoring(env) as app:
        grant(app, "ada")
        grant(app, "ada")
        assert client[database]["scoring_events_writers"].find_one({"_id": "turn"}) is None
        with Scoring(env) as other:
            grant(other, "ada")
        grant(app, "ada")
        until(lambda: grant(app, "ada") and not app.recorder._chain.meets_others)  # type: ignore[attr-defined]
        begun = turn(client, database, "scoring")["begun"]
        grant(app, "ada")
        assert turn(client, database, "scoring")["begun"] == begun


def test_whoever_never_loses_a_race_takes_turns_when_others_do(
    env: dict[str, str], client: MongoClient[Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise those who wait for their turns would lose to it, one after another."""
    monkeypatch.setattr(f"{MODULE}.chain._LOOKS_FOR_OTHERS_SECONDS", 0)
    other = Turns(client, "scoring_events_writers", database)
    with Watched(env) as app:
        grant(app, "ada")
        other.take(1)
        grant(app, "ada")
        grant(app, "ada")
        assert turn(client, database, "scoring")["holder"] != other._holder
        assert len(app.commits) == 3


def test_who_is_refused_a_turn_records_without_one(env: dict[str, str], mongo_uri: str) -> None:
    with Scoring(env) as app, Scoring(env) as other:
        for _ in range(3):
            grant(app, "ada")
            grant(other, "ada")
        with failing(mongo_uri, "findAndModify", errorCode=13):
            assert [grant(each, "ada") for each in (app, other) * 3] == list(range(6, 12))


def turn(client: MongoClient[Any], database: str, prefix: str = "test") -> dict[str, Any]:
    found: Any = client[database][f"{prefix}_events_writers"].find_one({"_id": "turn"})
    return found or {"waiting": []}
