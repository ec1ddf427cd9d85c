"""Recording again what is recorded costs a few queries for a chunk, not some for each id."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteApplicationRecorder

from event_store_kinds import EVENT_STORES
from scoring import Contribution, Grant, GrantStatus, Scoring, UserScore
from scoring.event_store import Place
from scoring.identity import claim_stream_id, user_stream_id
from support import make_grant, sqlite_env


def contributions(grants: list[Grant]) -> list[Contribution]:
    return [
        Contribution(
            user_id=grant.user_id,
            key=f"award:badge:{number}" if number % 3 else grant.key,
            category=grant.category,
            source=grant.source,
            points=number % 4,
            at=grant.granted_at,
        )
        for number, grant in enumerate(grants)
    ]


GRANTS = [make_grant(number) for number in range(300)]
CONTRIBUTIONS = contributions(GRANTS)
RECORDED, DUPLICATE, CONFLICT = GrantStatus.RECORDED, GrantStatus.DUPLICATE, GrantStatus.CONFLICT


@pytest.fixture(params=[*EVENT_STORES, "memory"])
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a new event store."""
    return {} if request.param == "memory" else EVENT_STORES[request.param](request)()


def count_calls(monkeypatch: pytest.MonkeyPatch, recorder: object) -> Callable[[], int]:
    """Count the queries that a recorder is asked."""
    calls: list[str] = []
    for name in dir(recorder):
        method: Any = getattr(recorder, name)
        if not (name.startswith(("select_", "insert_", "max_")) and callable(method)):
            continue

        def counted(*args: Any, name: str = name, method: Any = method, **kwargs: Any) -> Any:
            calls.append(name)
            return method(*args, **kwargs)

        monkeypatch.setattr(recorder, name, counted)
    return lambda: len(calls)


@pytest.mark.parametrize("command", ["grant_many", "contribute_many"])
@pytest.mark.parametrize("env", [*EVENT_STORES], indirect=True)
def test_a_chunk_costs_a_constant_number_of_queries(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """300 ids of 300 users: new ones, then taken ones in a new process, then once more."""
    grants = [make_grant(number, user_id=f"user-{number}") for number in range(300)]
    batch: list[Any] = [*grants] if command == "grant_many" else [*contributions(grants)]
    expected = iter([RECORDED, DUPLICATE, DUPLICATE])
    for times in (1, 2):
        with Scoring(env) as app:
            assert app.snapshots is not None
            for status in islice(expected, times):
                with monkeypatch.context() as patch:
                    asked = count_calls(patch, app.recorder)
                    asked_for_snapshots = count_calls(patch, app.snapshots.recorder)
                    receipts = getattr(app, command)(batch)
                    assert {receipt.status for receipt in receipts} == {status}
                    assert asked() + asked_for_snapshots() <= 20


@pytest.mark.parametrize("env", [*EVENT_STORES], indirect=True)
def test_users_who_are_behind_in_memory_are_brought_up_to_date_together(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has granted to all of them meanwhile."""
    grants = [make_grant(number, user_id=f"user-{number}") for number in range(100)]
    with Scoring(env) as app, Scoring(env) as other:
        app.contribute_many(contributions(grants))
        other.contribute_many(
            [
                each.model_copy(update={"key": "quiz:new", "points": 5})
                for each in contributions(grants)
            ]
        )
        asked = count_calls(monkeypatch, app.recorder)
        receipts = app.contribute_many(contributions(grants))
        assert asked() <= 12
    assert [(r.status, r.recomputed_after) for r in receipts] == [
        (DUPLICATE, number % 4 + 5) for number in range(100)
    ]


@pytest.mark.parametrize("env", [*EVENT_STORES], indirect=True)
def test_users_whom_nobody_has_written_to_are_not_looked_up_one_by_one(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those who were looked up before nor those to whom this process has granted since."""
    grants = [make_grant(number, user_id=f"user-{number % 150}") for number in range(500)]
    with Scoring(env) as app:
        for _ in range(2):
            app.grant_many(grants)
        app.grant_many([make_grant(1000 + n, user_id=f"user-{n}") for n in range(3)])
        looked_up: list[Place] = []
        select: Any = app.recorder.select_events_after  # type: ignore[attr-defined]

        def select_events_after(places: list[Place]) -> Any:
            looked_up.extend(places)
            return select(places)

        monkeypatch.setattr(app.recorder, "select_events_after", select_events_after)
        assert {receipt.status for receipt in app.grant_many(grants)} == {DUPLICATE}
        assert looked_up == []


def test_ids_are_asked_for_once_where_none_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """And before each chunk once some were, so that no more is committed in vain."""
    with Scoring() as app:
        asked: list[int] = []
        originals_of: Any = app._scores.originals_of

        def counted(grant_ids: list[str]) -> Any:
            asked.append(len(grant_ids))
            return originals_of(grant_ids)

        monkeypatch.setattr(app._scores, "originals_of", counted)
        app.grant_many([make_grant(number) for number in range(3000)])
        assert asked == [1]
        asked.clear()
        app.grant_many([make_grant(number) for number in range(1, 3001)])
        assert asked == [1, 999, 1000, 1000]


def test_what_others_have_recorded_is_in_the_totals_of_taken_ids(env: dict[str, str]) -> None:
    """Little of it, more of it than there are users in the batch, and with ours in between."""
    grants = [make_grant(number, user_id=f"user-{number % 120}", amount=1) for number in range(600)]
    numbers = iter(range(1000, 2000))

    def five_points(app: Scoring, user: int, times: int = 1) -> None:
        some = [make_grant(next(numbers), user_id=f"user-{user}", amount=5) for _ in range(times)]
        app.grant_many(some)
        totals[f"user-{user}"] += 5 * times

    with Scoring(env) as app, Scoring(env) if env else nullcontext(app) as other:
        app.grant_many(grants)
        totals = {grant.user_id: 5 for grant in grants}
        for ours, theirs, times in [(0, 0, 0), (1, 2, 1), (3, 3, 1), (4, 5, 150), (5, 4, 1)]:
            five_points(other, theirs, times)
            five_points(app, ours)
            five_points(other, ours, times)
            receipts = app.grant_many(grants)
            assert {receipt.user_id: receipt.total_after for receipt in receipts} == totals


@pytest.mark.parametrize("env", [*EVENT_STORES], indirect=True)
def test_what_others_have_recorded_is_in_the_total_of_an_id_that_comes_twice(
    env: dict[str, str],
) -> None:
    """In one batch, for two users: nothing is recorded for the second, which would find out."""
    with Scoring(env) as app, Scoring(env) as other:
        app.grant_many([make_grant(1, user_id="ada", amount=5)])
        other.grant_many([make_grant(2, user_id="ada", amount=5)])
        _, conflict = app.grant_many([make_grant(3, user_id=name) for name in ("bob", "ada")])
        assert (conflict.status, conflict.total_before, conflict.total_after) == (CONFLICT, 10, 10)


def test_taken_ids_are_answered_alike_on_every_store(env: dict[str, str]) -> None:
    """Duplicates, conflicts, new ones and strangers in one batch, with the totals of each."""
    with Scoring(env) as app:
        app.grant_many(GRANTS)
        total = {f"user-{n}": app.score_of(f"user-{n}").total_score for n in range(7)}
        batch: list[Grant] = [
            *GRANTS,
            make_grant(3, amount=999),
            make_grant(4, user_id="stranger"),
            make_grant(1000, user_id="user-3", amount=5),
        ]
        receipts = app.grant_many(batch)
        statuses = [receipt.status for receipt in receipts]
        assert statuses == [DUPLICATE] * 300 + [CONFLICT, CONFLICT, RECORDED]
        after = {**total, "user-3": total["user-3"] + 5, "stranger": 0}
        for grant, receipt in zip(batch[:-1], receipts[:-1], strict=True):
            assert receipt.total_before == receipt.total_after == after[grant.user_id]
        assert (receipts[-1].total_before, receipts[-1].total_after) == (
            total["user-3"],
            after["user-3"],
        )


@pytest.mark.parametrize("env", [*EVENT_STORES], indirect=True)
def test_an_id_is_not_answered_from_another_grant_that_is_stored_before_its_claim(
    env: dict[str, str],
) -> None:
    """Whoever saved them had all grants first, and then all claims."""
    grants = [make_grant(number, user_id="ada", amount=number + 1) for number in range(9)]
    user = UserScore(user_id="ada")
    for grant in grants:
        user.record(grant)
    opening, *events = user.collect_events()
    with Scoring(env) as app:
        app.events.put([opening, *events[::2], *events[1::2]])
        assert {receipt.status for receipt in app.grant_many(grants)} == {DUPLICATE}


@pytest.mark.parametrize("env", ["mongo"], indirect=True)
def test_a_grant_in_the_document_before_that_of_its_claim_costs_no_query_of_its_own(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document has twenty events; the user's opening event is the first."""
    grants = [make_grant(number, user_id="ada") for number in range(15)]
    with Scoring(env) as app:
        app.grant_many(grants)
        asked = count_calls(monkeypatch, app.recorder)
        originals = app._scores.originals_of([grant.grant_id for grant in grants])
        assert (len(originals), asked()) == (15, 1)


def test_events_are_found_by_place_in_the_order_of_the_places(env: dict[str, str]) -> None:
    """One that is not there is ``None``, one that is asked for twice is there twice."""
    user = user_stream_id("user-1")
    with Scoring(env) as app:
        app.grant_many([make_grant(1), make_grant(8)])
        places = [(user, 3), (user, 9), (claim_stream_id("grant-1"), 1), (user, 2), (user, 3)]
        found = app.events.at(places)
        assert [event and event.originator_version for event in found] == [3, None, 1, 2, 3]
        stored = [*app.events.get(user)]
        assert [found[0], found[3], found[4]] == [stored[2], stored[1], stored[2]]
        assert app.events.at([]) == []
        many = [(user, version) for version in range(1, 5001)]
        assert [event for event in app.events.at(many) if event] == stored


class TheirRecorder(SQLiteApplicationRecorder):
    """A recorder of somebody else's, which answers for one stream at a time."""

    def select_events(self, originator_id: UUID | str, **kwargs: Any) -> Any:
        found: list[StoredEvent] = [*super().select_events(originator_id, **kwargs)]
        return found


def test_a_recorder_of_somebody_elses_is_asked_one_by_one(tmp_path: Path) -> None:
    """Slower, and with the same answers."""
    chosen = {"APPLICATION_RECORDER_TOPIC": f"{__name__}:TheirRecorder"}
    with Scoring({**sqlite_env(tmp_path / "events.sqlite"), **chosen}) as app:
        assert isinstance(app.recorder, TheirRecorder)
        for command, batch in ((app.grant_many, GRANTS), (app.contribute_many, CONTRIBUTIONS)):
            record: Any = command
            first = {receipt.status for receipt in record(batch)}
            assert (first, {r.status for r in record(batch)}) == ({RECORDED}, {DUPLICATE})
