"""Opening balances bring both totals together, and count nothing twice whatever else goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from concurrency import meanwhile
from projections import ProjectionError, ScoreLedger
from projections.drift import OpenedBalances
from scoring import Grant
from support import NOON, make_grant, sqlite_env


@pytest.fixture
def open_ledger(database: Any, tmp_path: Path) -> Callable[..., ScoreLedger]:
    """Opens ledgers on one event store and one database."""
    env = sqlite_env(tmp_path / "events.sqlite")
    return partial(ScoreLedger.open, mongo=database, event_store=env, worker=False)


@pytest.fixture
def ledger(open_ledger: Callable[..., ScoreLedger]) -> Iterator[ScoreLedger]:
    with open_ledger() as ledger:
        yield ledger


def activity(ledger: ScoreLedger, user_id: str, points: int) -> None:
    ledger.contribute(user_id, "telemetry:activity", "telemetry", "app", points)


def activity_grant(user_id: str, number: int, amount: int) -> Grant:
    return make_grant(
        number, user_id=user_id, key="telemetry:activity", category="telemetry", amount=amount
    )


def opened(ledger: ScoreLedger, **options: Any) -> OpenedBalances:
    ledger.catch_up()
    result = ledger.open_balances(**options)
    ledger.catch_up()
    return result


def test_they_bring_both_totals_together_for_ever(ledger: ScoreLedger) -> None:
    """Once opened, there is nothing to open; what users see never moved."""
    for number in range(30):
        activity(ledger, f"user-{number:02d}", number)  # of which one has nothing
        ledger.contribute(f"user-{number:02d}", f"quiz:history:{number}", "learning", "quiz", 7)
        ledger.award_badge(f"user-{number:02d}", "helper", 20, NOON)
    ledger.catch_up()
    seen = [(row.user_id, row.score) for row in ledger.leaderboard.top(30)]
    assert not ledger.drift().safe_to_flip
    result = opened(ledger, granted_at=NOON)
    assert (result.users, result.grants, result.points) == (30, 59, sum(range(30)) + 30 * 7)
    assert result.kinds == {
        "telemetry:activity": [29, sum(range(30))], "quiz:history:*": [30, 210],
    }  # fmt: skip
    drift = ledger.drift()
    assert drift.verdict == "A flip is safe: of 30 users, nobody would see another score."
    assert drift.position >= result.position
    assert [(row.user_id, row.score) for row in ledger.leaderboard.top(30)] == seen
    again = opened(ledger)
    assert (again.grants, again.points, again.opened_before) == (0, 0, 0)
    (row, *_) = ledger.history("user-29")
    assert (row.key, row.category, row.source, row.granted_at) == (
        "telemetry:activity", "telemetry", "app", NOON,
    )  # fmt: skip


def test_a_bucket_that_changed_in_between_is_opened_for_what_it_gained(ledger: ScoreLedger) -> None:
    """One that shrank is not: the ledger never takes points back."""
    for user_id, first, second in (("ada", 10, 14), ("bob", 10, 4), ("cyd", 0, 3)):
        activity(ledger, user_id, first)
        opened(ledger)
        activity(ledger, user_id, second)
        opened(ledger)
    assert {user: ledger.score_of(user).total_score for user in ("ada", "bob", "cyd")} == {
        "ada": 14, "bob": 10, "cyd": 3,
    }  # fmt: skip


def test_grants_of_single_events_count_as_opened(ledger: ScoreLedger) -> None:
    """A key of which a part is granted gets the rest; one that has more gets nothing."""
    for user_id, amount in (("ada", 3), ("bob", 12)):
        activity(ledger, user_id, 10)
        ledger.grant_many([activity_grant(user_id, len(user_id) + amount, amount)])
    assert opened(ledger).kinds == {"telemetry:activity": [1, 7]}
    assert ledger.score_of("ada").total_score == 10
    assert ledger.score_of("bob").total_score == 12


def test_posts_and_badges_are_left_alone(ledger: ScoreLedger) -> None:
    """Their grants are those of contribute, for ever."""
    ledger.feed_post("ada", "1", 5, NOON)
    ledger.feed_post("ada", "1", 9, NOON)
    result = opened(ledger)
    assert (result.grants, result.grant_shaped) == (0, 1)
    assert ledger.score_of("ada").total_score == 5


def test_some_kinds_can_be_opened_before_others(ledger: ScoreLedger) -> None:
    """By the names of the drift report."""
    activity(ledger, "ada", 10)
    for number in range(3):
        ledger.contribute("ada", f"quiz:history:{number}", "learning", "quiz", 1 + number)
    assert opened(ledger, keys=["quiz:history:*"]).kinds == {"quiz:history:*": [3, 6]}
    assert opened(ledger, keys=["telemetry:*"]).grants == 0
    assert opened(ledger).kinds == {"telemetry:activity": [1, 10]}


def test_a_dry_run_says_the_same_and_records_nothing(ledger: ScoreLedger) -> None:
    """Not even an event."""
    for number in range(5):
        activity(ledger, f"user-{number}", 1 + number)
    ledger.catch_up()
    newest = ledger.status().newest_position
    would = opened(ledger, dry_run=True)
    assert ledger.status().newest_position == newest
    did = opened(ledger)
    assert (would.grants, would.points, would.kinds) == (did.grants, did.points, did.kinds)


def test_two_runs_at_once_and_a_read_model_that_is_behind_open_once(ledger: ScoreLedger) -> None:
    """The id says on top of what it was granted, so only one can be the next."""
    activity(ledger, "ada", 10)
    ledger.catch_up()
    first = ledger.open_balances()
    activity(ledger, "ada", 12)
    # As a run does that began before the first one was projected, whatever the bucket had then.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger._freshness, "await_recorded", lambda _: (0, 0))
        second = ledger.open_balances()
    assert (first.grants, second.grants, second.opened_before) == (1, 0, 1)
    assert ledger.score_of("ada").total_score == 10
    opened(ledger)
    assert ledger.score_of("ada").total_score == 12


@pytest.mark.usefixtures("answers_awaited")
def test_what_is_not_known_is_not_opened(ledger: ScoreLedger, mongo_uri: str) -> None:
    """Events that are not projected, and users who are parked."""
    activity(ledger, "ada", 10)
    with pytest.raises(ProjectionError, match="still 2 events behind after 0 s"):
        ledger.open_balances(wait=0)
    ledger.catch_up()
    ledger._view.read_model.parked.insert_one({"_id": str(uuid4()), "position": 9})
    with pytest.raises(ProjectionError, match="streams are parked"):
        ledger.open_balances()
    assert ledger.score_of("ada").total_score == 0


def test_one_whom_the_ledger_cannot_give_more_does_not_stop_the_others(
    ledger: ScoreLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, with the reason."""
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", 50)
    ledger.grant_many([make_grant(1, user_id="bob", amount=45)])
    for user_id in ("ada", "bob", "cyd"):
        activity(ledger, user_id, 10)
    result = opened(ledger)
    assert (result.grants, result.points, result.refused_count) == (2, 20, 1)
    ((user_id, key, reason),) = result.refused
    assert (user_id, key) == ("bob", "telemetry:activity")
    assert "at most 5" in reason
    assert ledger.score_of("cyd").total_score == 10


def test_interrupted_it_carries_on(ledger: ScoreLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded counts once."""
    monkeypatch.setattr("projections.drift.balances._GRANTS_AT_ONCE", 4)
    for number in range(20):
        activity(ledger, f"user-{number:02d}", 5)
    stop = Event()
    result = opened(
        ledger, stop=stop, on_progress=lambda seen: stop.set() if seen.users == 7 else None
    )
    assert (result.interrupted, result.users, result.grants) == (True, 7, 7)
    rest = opened(ledger)
    assert (rest.interrupted, rest.grants) == (False, 13)
    assert ledger.drift().safe_to_flip


def test_traffic_may_go_on(open_ledger: Callable[..., ScoreLedger]) -> None:
    """Clients grant each event first and contribute the count afterwards; nobody gets too much."""
    with open_ledger(worker=True) as ledger:
        counts = dict.fromkeys((f"user-{number}" for number in range(6)), 10)
        for user_id, points in counts.items():
            activity(ledger, user_id, points)

        def work(users: list[str], begin: int, stop: Event) -> None:
            for number in count(begin, 2):
                if stop.is_set():
                    return
                user_id = users[number % len(users)]
                counts[user_id] += 1
                ledger.grant_many([activity_grant(user_id, number, 1)])
                activity(ledger, user_id, counts[user_id])

        users = list(counts)
        with meanwhile(partial(work, users[:3], 0), partial(work, users[3:], 1)):
            for _ in range(4):
                ledger.open_balances()
        for user_id, points in counts.items():
            assert ledger.score_of(user_id).total_score <= points
        # A point may lack to whoever was between a grant and its count whenever one looked.
        ledger.open_balances()
        assert ledger.open_balances().grants == 0
        for user_id, points in counts.items():
            score = ledger.score_of(user_id)
            assert (score.recomputed_total, score.total_score) == (points, points)


def test_ids_say_on_top_of_what_they_were_granted(ledger: ScoreLedger) -> None:
    """They are in stored events, so they must not change; a user may be called anything."""
    for user_id in ("ada", "x/award:badge:y", "é" * 128):
        activity(ledger, user_id, 10)
        opened(ledger)
        activity(ledger, user_id, 13)
        opened(ledger)
        assert ledger.score_of(user_id).total_score == 13
    assert [row.grant_id for row in ledger.history("ada")] == [
        "opening-balance/ada/telemetry%3Aactivity/10",
        "opening-balance/ada/telemetry%3Aactivity/0",
    ]
