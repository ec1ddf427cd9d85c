"""What workers, rebuilds and transactions sit out, what they give up at, and that they stop."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

import projections.worker.rebuild
from concurrency import lasting_at_most, until
from event_store import assert_equal_to_the_events
from fail_points import failing
from projections import (
    MongoScoreView,
    PositionMoved,
    ProjectionWorker,
    ReadModelUnavailable,
    RebuildSuperseded,
)
from projections.mongo.switch import SILENT_HOLD_SECONDS, Switch
from projections.worker.rebuild import Rebuild, RebuildOutcome, _Renewing
from projections.worker.worker import Progress
from scoring import Scoring, ScoringError
from support import make_grant, worker_maker


@contextmanager
def without_its_table(file: Path) -> Iterator[None]:
    """The event store answers every question with an error inside the block."""
    with closing(sqlite3.connect(file, timeout=10)) as database:
        database.execute("ALTER TABLE stored_events RENAME TO away")
        try:
            yield
        finally:
            database.execute("ALTER TABLE away RENAME TO stored_events")


def test_a_store_that_fails_twice_and_then_works_is_sat_out(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker tries again, and projects all there is."""
    scoring.grant_many([make_grant(number) for number in range(20)])
    caplog.set_level(logging.INFO, logger="projections")

    def failures() -> int:
        return sum(record.message.startswith("trying again") for record in caplog.records)

    with ThreadPoolExecutor(1) as other:
        with without_its_table(tmp_path / "events.sqlite"):
            catching_up = other.submit(ProjectionWorker(scoring, view).catch_up)
            until(lambda: failures() >= 2 or catching_up.done())
            assert not catching_up.done()
        assert catching_up.result(60) == scoring.recorder.max_notification_id()
    assert assert_equal_to_the_events(scoring, view.read_model) == 20


def test_a_store_that_fails_for_good_is_an_error_and_on_record(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a worker has come further."""
    scoring.grant_many([make_grant(number) for number in range(20)])
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.2)
    with (
        without_its_table(tmp_path / "events.sqlite"),
        pytest.raises(ScoringError, match="stored_events"),
    ):
        ProjectionWorker(scoring, view).catch_up()
    assert "stored_events" in (view.failure("Scoring") or "")
    ProjectionWorker(scoring, view).catch_up()
    assert view.failure("Scoring") is None


def test_a_rebuild_stops_where_it_is_told_to_and_the_next_goes_on(
    scoring: Scoring, view: MongoScoreView
) -> None:
    """Between two batches, with what it has done kept."""
    scoring.grant_many([make_grant(number) for number in range(60)])
    ProjectionWorker(scoring, view).catch_up()
    stop = Event()
    seen: list[int] = []

    def stop_at_the_second(progress: Progress) -> None:
        seen.append(progress.grants)
        if len(seen) == 2:
            stop.set()

    rebuild = Rebuild(scoring, view.read_model, worker_maker(scoring, 10))
    stopped = rebuild.run(stop=stop, on_progress=stop_at_the_second)
    assert not stopped.live
    assert 0 < stopped.position < (scoring.recorder.max_notification_id() or 0)
    assert view.read_model.generations.state().building == stopped.generation
    seen.clear()
    assert rebuild.run(on_progress=lambda progress: seen.append(progress.grants)).live
    assert max(seen) <= 40
    assert assert_equal_to_the_events(scoring, view.read_model) == 60


def test_a_rebuild_stops_while_mongodb_fails(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not try for the rest of its time, and says how far it came."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 500.0)
    scoring.grant_many([make_grant(number) for number in range(60)])
    ProjectionWorker(scoring, view).catch_up()
    stop, begun, go_on = Event(), Event(), Event()
    rebuild = Rebuild(scoring, view.read_model, worker_maker(scoring, 10))

    def wait_after_the_first(_: Progress) -> None:
        begun.set()
        go_on.wait()

    with ThreadPoolExecutor(1) as other:
        running = other.submit(rebuild.run, stop=stop, on_progress=wait_after_the_first)
        assert begun.wait(60)
        with failing(mongo_uri, "find", "update", "insert", errorCode=11601):
            go_on.set()
            time.sleep(0.3)
            assert not running.done()
            with lasting_at_most(60):
                stop.set()
                outcome = running.result()
    assert not outcome.live
    assert rebuild.run().live
    assert assert_equal_to_the_events(scoring, view.read_model) == 60


def test_a_rebuild_that_is_stopped_while_it_cannot_switch_says_how_far_it_came(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str
) -> None:
    """All is projected when MongoDB begins to fail, and nothing is switched to."""
    scoring.grant_many([make_grant(number) for number in range(10)])
    ProjectionWorker(scoring, view).catch_up()
    newest, stop, began = scoring.recorder.max_notification_id(), Event(), list[None]()
    with ExitStack() as failures:

        def fail_at_the_end(progress: Progress) -> None:
            if progress.position == newest and not began:
                began.append(failures.enter_context(failing(mongo_uri, "find", errorCode=11601)))
                Timer(0.3, stop.set).start()

        rebuild = Rebuild(scoring, view.read_model, worker_maker(scoring))
        outcome = rebuild.run(stop=stop, on_progress=fail_at_the_end)
    assert outcome == RebuildOutcome(2, newest or 0, live=False)
    assert view.read_model.generations.state().building == 2


def test_a_rebuild_that_is_near_enough_switches_after_one_round(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far both have come: it is the distance that counts."""
    monkeypatch.setattr("projections.worker.rebuild.MAX_LAG_AT_HOLD_EVENTS", 5)
    scoring.grant_many([make_grant(number) for number in range(10)])
    ProjectionWorker(scoring, view).catch_up()
    rounds: list[int] = []

    class Counted(ProjectionWorker):
        def catch_up(self, *, stop: Event | None = None) -> int:
            position = super().catch_up(stop=stop)
            rounds.append(position)
            return position

    def counted(building: MongoScoreView, report: Callable[[Progress], None]) -> ProjectionWorker:
        return Counted(scoring, building, on_progress=report)

    assert Rebuild(scoring, view.read_model, counted).run().live
    assert rounds == [view.max_tracking_id("Scoring")]


def test_a_hold_is_renewed_well_before_it_counts_as_silent(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever reports progress while it is held."""
    assert projections.worker.rebuild._RENEWAL_SECONDS <= SILENT_HOLD_SECONDS / 4
    monkeypatch.setattr("projections.worker.rebuild._RENEWAL_SECONDS", 0.0)
    switch = Switch(view.read_model, view.read_model.of_generation(2), scoring.name)
    told: list[Progress] = []
    renewing = _Renewing(switch, told.append)
    assert switch.hold()
    held = view.read_model.positions.find_one() or {}
    time.sleep(0.01)
    progress = Progress(1, 2, 3)
    renewing(progress)
    renewed = view.read_model.positions.find_one() or {}
    assert renewed["hold"]["at"] > held["hold"]["at"]
    monkeypatch.setattr("projections.worker.rebuild._RENEWAL_SECONDS", 60.0)
    renewing(progress)  # again at once, which would be a write for nothing
    assert view.read_model.positions.find_one() == renewed
    assert told == [progress, progress]


def test_a_rebuild_that_nobody_stopped_raises_what_does_not_pass(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one that was stopped."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.3)
    scoring.grant_many([make_grant(number) for number in range(10)])
    ProjectionWorker(scoring, view).catch_up()
    with ExitStack() as failures:

        def failing_worker(
            building: MongoScoreView, report: Callable[[Progress], None]
        ) -> ProjectionWorker:
            failures.enter_context(failing(mongo_uri, "find", errorCode=11601))
            return worker_maker(scoring)(building, report)

        with pytest.raises(ReadModelUnavailable):
            Rebuild(scoring, view.read_model, failing_worker).run(stop=Event())
    assert view.read_model.generations.state().building == 2


def test_a_rebuild_that_gets_on_has_its_whole_patience_for_the_next_failure(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building takes hours, and whatever was sat out in them is over."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 1.0)
    scoring.grant_many([make_grant(number) for number in range(40)])
    ProjectionWorker(scoring, view).catch_up()
    newest, failed = scoring.recorder.max_notification_id(), Event()
    with ExitStack() as failures:

        def fail_at_the_end(progress: Progress) -> None:
            time.sleep(0.3)
            if progress.position == newest and not failed.is_set():
                failed.set()
                failure = failing(mongo_uri, "find", mode={"times": 1}, errorCode=11601)
                failures.enter_context(failure)

        rebuild = Rebuild(scoring, view.read_model, worker_maker(scoring, 10))
        assert rebuild.run(on_progress=fail_at_the_end).live
    assert assert_equal_to_the_events(scoring, view.read_model) == 40


def test_a_rebuild_whose_switch_cannot_end_is_not_tried_for_ever(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is projected any more, so nothing has gone well since it failed first."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("projections.mongo.generations.SILENT_SWITCH_SECONDS", 0.02)
    scoring.grant_many([make_grant(number) for number in range(10)])
    ProjectionWorker(scoring, view).catch_up()
    rounds: list[int] = []
    rebuild = Rebuild(scoring, view.read_model, worker_maker(scoring))
    with failing(mongo_uri, "delete", errorCode=11601), pytest.raises(ReadModelUnavailable):
        rebuild.run(on_progress=lambda progress: rounds.append(progress.position))
    assert len(rounds) < 10
    assert rebuild.run().live


def test_a_rebuild_ends_where_another_one_has_given_its_generation_up(
    scoring: Scoring, view: MongoScoreView
) -> None:
    """Also where there is no event whose batch would be refused for it."""
    given_up = Event()

    def give_up(_: Progress) -> None:
        if not given_up.is_set():
            given_up.set()
            view.read_model.generations.begin(fresh=True)

    with pytest.raises(RebuildSuperseded):
        Rebuild(scoring, view.read_model, worker_maker(scoring)).run(on_progress=give_up)
    assert view.read_model.generations.state().building == 3


def test_a_rebuild_that_is_stopped_before_it_has_begun_says_what_failed(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str
) -> None:
    """There is no generation yet that it could speak of."""
    scoring.grant_many([make_grant(number) for number in range(10)])
    stop = Event()
    stop.set()
    rebuild = Rebuild(scoring, view.read_model, worker_maker(scoring))
    with failing(mongo_uri, "update", errorCode=13), pytest.raises(ReadModelUnavailable):
        rebuild.run(stop=stop)
    assert view.read_model.generations.state().building is None


def test_a_worker_that_keeps_losing_has_its_whole_patience_for_each_failure(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long another one has been at work, and whatever was sat out before."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("projections.worker.worker._PAUSE_AFTER_LOSING_SECONDS", 0.02)
    scoring.grant(**make_grant(1).model_dump())
    apply, began, met = view.apply, time.monotonic(), list[str]()

    def fail_lose_and_fail(*args: Any, **kwargs: Any) -> None:
        if met and (time.monotonic() - began < 1.0 or met.count("lost") < 6):
            met.append("lost")
            raise PositionMoved("by another worker")
        if met.count("failed") < 2:
            met.append("failed")
            raise ReadModelUnavailable("an election", transient=True)
        apply(*args, **kwargs)

    monkeypatch.setattr(view, "apply", fail_lose_and_fail)
    ProjectionWorker(scoring, view).catch_up()
    assert (met[0], met[-1]) == ("failed", "failed")
    assert assert_equal_to_the_events(scoring, view.read_model) == 1
