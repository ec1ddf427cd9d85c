"""``Rebuild``: beside the live read model, while it is served and while grants arrive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from eventsourcing.persistence import Tracking

from concurrency import at_once, meanwhile
from projections import (
    EventStoreReplaced,
    MongoScoreView,
    Progress,
    ProjectionWorker,
    RebuildSuperseded,
    ScoreGrantsProjection,
    ScoreLedger,
    ShapeChanged,
)
from projections.mongo import MongoFactory
from projections.mongo.collections import SHAPE
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch
from projections.queries.leaderboard import Leaderboard
from projections.settings import Settings
from projections.verification.events import verify_events
from projections.verification.totals import verify_totals
from projections.worker.rebuild import Rebuild, RebuildOutcome
from scoring import Scoring, UserScore
from support import make_grant, sqlite_env, worker_maker


@pytest.fixture
def live(scoring: Scoring, view: MongoScoreView, read_model: ReadModel) -> ReadModel:
    """The first generation, with 300 grants."""
    scoring.grant_many([make_grant(number) for number in range(300)])
    ProjectionWorker(scoring, view).catch_up()
    return read_model


def rebuild(
    scoring: Scoring,
    live: ReadModel,
    *,
    batch_size: int = 50,
    fresh: bool = False,
    adopt: bool = False,
) -> RebuildOutcome:
    job = Rebuild(scoring, live, worker_maker(scoring, batch_size))
    return job.run(fresh=fresh, adopt=adopt)


def interrupted(scoring: Scoring, live: ReadModel, *, after: int = 100) -> RebuildOutcome:
    """A rebuild that was stopped after so many grants."""
    stop = Event()

    def on_progress(progress: Progress) -> None:
        if progress.grants >= after:
            stop.set()

    job = Rebuild(scoring, live, worker_maker(scoring, 50))
    return job.run(stop=stop, on_progress=on_progress)


def test_a_rebuild_makes_the_same_read_model_anew(scoring: Scoring, live: ReadModel) -> None:
    """Under the same names, with the same indexes; the old one is kept until it is dropped."""
    before = [list(c.find().sort("_id", 1)) for c in (live.grants, live.users, live.buckets)]
    indexes = live.grants.index_information()
    newest = scoring.recorder.max_notification_id()
    assert rebuild(scoring, live) == RebuildOutcome(generation=2, position=newest or 0, live=True)
    after = [list(c.find().sort("_id", 1)) for c in (live.grants, live.users, live.buckets)]
    assert after == before
    assert live.grants.index_information() == indexes
    assert live.database.score_grants__g1_old.count_documents({}) == 300
    assert live.generations.kept() == [1]
    assert live.generations.drop_kept() == [1]
    assert live.generations.kept() == live.generations.drop_kept() == []
    assert verify_events(scoring, live).ok


@pytest.mark.parametrize("new_env", ["postgres", "mongo"], indirect=True)
def test_the_read_model_of_a_store_on_a_server_is_rebuilt_repaired_and_verified(
    new_env: Callable[[], dict[str, str]], read_model: ReadModel
) -> None:
    """With grants and buckets of the old way arriving while it is made."""
    with Scoring(new_env()) as scoring, closing(MongoScoreView(read_model)) as view:
        scoring.grant_many([make_grant(number) for number in range(300)])
        ProjectionWorker(scoring, view).catch_up()
        read_model.users.update_one({}, {"$inc": {"totalScore": 1}})
        read_model.grants.delete_one({"grantId": "grant-7"})
        assert not verify_events(scoring, read_model).ok

        def arrive(progress: Progress) -> None:
            number = progress.grants
            scoring.grant_many([make_grant(1000 + number)])
            scoring.contribute("ada", "quiz:best", "quiz", "quiz", number)
            scoring.feed_post("ada", str(number), 3)

        arrive(Progress(0, 0, 0))
        job = Rebuild(scoring, read_model, worker_maker(scoring, 100))
        assert job.run(on_progress=arrive).live
        ProjectionWorker(scoring, view).catch_up()
        report = verify_events(scoring, read_model)
        assert (report.ok, report.differences) == (True, [])
        assert report.grants > 300 + 3
        top = Leaderboard(read_model).top(1)[0]
        assert top.score == scoring.score_of(top.user_id).recomputed_total > 0


def test_a_rebuild_repairs_whatever_is_wrong(
    scoring: Scoring, live: ReadModel, view: MongoScoreView
) -> None:
    """Damage, foreign documents, a collection that was dropped, and a lost position."""
    live.grants.update_one({"grantId": "grant-7"}, {"$set": {"amount": 1000}})
    live.grants.insert_one({"_id": 10**9, "grantId": "foreign"})
    live.users.drop()
    live.positions.update_one({"_id": "Scoring"}, {"$set": {"position": 5, "foreignGrants": 3}})
    assert not verify_events(scoring, live).ok
    assert rebuild(scoring, live).live
    assert verify_events(scoring, live).differences == []
    assert view.positions.foreign_count("Scoring") == 0


def test_a_rebuild_of_an_empty_store_is_empty(scoring: Scoring, read_model: ReadModel) -> None:
    """And the first grant afterwards is projected."""
    assert rebuild(scoring, read_model) == RebuildOutcome(generation=2, position=0, live=True)
    scoring.grant_many([make_grant(1)])
    ProjectionWorker(scoring, MongoScoreView(read_model)).catch_up()
    assert verify_events(scoring, read_model).grants == 1


def test_a_rebuild_that_adopts_an_empty_store_ends_and_is_empty(
    live: ReadModel, tmp_path: Path
) -> None:
    """Beside a live position that means nothing in it."""
    with Scoring(sqlite_env(tmp_path / "another.sqlite")) as empty:
        assert Rebuild(empty, live, worker_maker(empty)).run(adopt=True).live
        assert verify_events(empty, live).ok
    assert live.users.count_documents({}) == live.grants.count_documents({}) == 0


def test_a_rebuild_that_is_told_to_cures_a_position_behind_the_newest_event(
    scoring: Scoring, live: ReadModel, view: MongoScoreView
) -> None:
    """As when the event store was restored from a backup: positions do go back then."""
    live.positions.update_one({"_id": "Scoring"}, {"$set": {"position": 10**6}})
    with pytest.raises(EventStoreReplaced):
        rebuild(scoring, live)
    assert live.generations.state().building is None
    assert rebuild(scoring, live, adopt=True).live
    assert view.max_tracking_id("Scoring") == scoring.recorder.max_notification_id()
    assert verify_events(scoring, live).ok


def test_live_readers_and_workers_go_on_during_a_rebuild(
    scoring: Scoring, live: ReadModel, view: MongoScoreView
) -> None:
    """Grants that arrive meanwhile are visible in the old generation, and then in the new one."""
    visible: list[int] = []

    def grant(enough: Event) -> None:
        number = 10_000
        while not enough.is_set():
            receipts = scoring.grant_many([make_grant(number + n) for n in range(10)])
            number += 10
            view.wait("Scoring", receipts[-1].position, timeout=60)
            visible.append(sum(row.score for row in Leaderboard(live).top(100, by="ledger")))

    worker = ProjectionWorker(scoring, view, batch_size=20)
    with meanwhile(worker.follow), meanwhile(grant):
        while len(visible) < 5 or live.generations.state().generation < 5:
            assert rebuild(scoring, live).live
    assert visible == sorted(visible)
    assert verify_events(scoring, live).differences == []


def test_verifying_during_switches_finds_nothing(scoring: Scoring, live: ReadModel) -> None:
    """A verification that a switch came into begins again."""

    def rebuild_often(over: Event) -> None:
        while not over.is_set():
            rebuild(scoring, live)

    with meanwhile(rebuild_often):
        while live.generations.state().generation < 8:
            assert verify_events(scoring, live).differences == []
            assert verify_totals(live).differences == []


def test_the_librarys_runner_goes_on_through_a_hold(
    scoring: Scoring, live: ReadModel, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It projects one event at a time, and dies of any error."""
    monkeypatch.setattr("projections.mongo.switch.SILENT_HOLD_SECONDS", 60.0)
    building = live.of_generation(live.generations.begin())
    building.inventory.create_building(scoring.name)
    switch = Switch(live, building, scoring.name)
    receipt = scoring.grant(**make_grant(1000).model_dump())
    event = next(iter(scoring.events.get(UserScore.create_id(make_grant(1000).user_id), desc=True)))
    assert switch.hold()
    tracking = Tracking(scoring.name, receipt.position)
    projection = ScoreGrantsProjection(view)
    thread = Thread(target=projection.process_event, args=(event, tracking))
    thread.start()
    thread.join(1.2)  # longer than one wait for the release
    assert thread.is_alive()
    switch.release()
    thread.join(60)
    assert view.max_tracking_id(scoring.name) == receipt.position


def test_an_interrupted_rebuild_is_carried_on(scoring: Scoring, live: ReadModel) -> None:
    """What it did is not done again, and it was never visible."""
    outcome = interrupted(scoring, live)
    assert (outcome.generation, outcome.live) == (2, False)
    assert live.generations.state().building == 2
    assert live.generations.drop_kept() == []
    seen: list[Progress] = []
    Rebuild(scoring, live, worker_maker(scoring, 50)).run(on_progress=seen.append)
    assert seen[-1].grants == 200
    assert live.generations.state().generation == 2
    assert verify_events(scoring, live).ok


def test_a_fresh_rebuild_gives_up_what_was_begun(scoring: Scoring, live: ReadModel) -> None:
    """Its collections and its position are gone, and whoever still builds it stops."""
    interrupted(scoring, live)
    worker = worker_maker(scoring)(MongoScoreView(live.of_generation(2)), lambda _: None)
    assert rebuild(scoring, live, fresh=True).generation == 3
    assert live.generations.kept() == [1]
    with pytest.raises(RebuildSuperseded, match="generation 2 is not being built any more"):
        worker.catch_up()
    assert live.generations.kept() == [1]
    assert verify_events(scoring, live).ok


def test_what_was_begun_before_the_store_was_put_back_is_given_up(
    scoring: Scoring, live: ReadModel
) -> None:
    """It holds grants that are not there any more."""
    interrupted(scoring, live)
    live.positions.update_one({"_id": "Scoring__g2"}, {"$set": {"position": 10**6}})
    assert rebuild(scoring, live).generation == 3
    assert verify_events(scoring, live).ok


def test_two_rebuilds_at_once_share_the_work(scoring: Scoring, live: ReadModel) -> None:
    """Both say that the same generation is live."""
    scoring.grant_many([make_grant(number) for number in range(1000, 1500)])
    at_work = Barrier(2)  # or the first might have ended before the other begins

    def share(_: int) -> RebuildOutcome:
        batches = count()

        def meet(_: Progress) -> None:
            if next(batches) == 0:
                at_work.wait(60)

        return Rebuild(scoring, live, worker_maker(scoring, 20)).run(on_progress=meet)

    outcomes = at_once(2, share)
    assert [(outcome.generation, outcome.live) for outcome in outcomes] == [(2, True)] * 2
    state = live.generations.state()
    assert (state.generation, state.building) == (2, None)
    assert live.generations.kept() == [1]
    assert verify_events(scoring, live).differences == []


class TestShape:
    """A release that projects other documents than the one that made the read model."""

    @pytest.fixture
    def settings(self, mongo_uri: str, database: Any, tmp_path: Path) -> Settings:
        return Settings(folder=tmp_path, mongo_uri=mongo_uri, mongo_database=database.name)

    def test_another_shape_is_said_at_start_and_cured_by_a_rebuild(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One sentence with the command; rebuilding works in that state."""
        store = sqlite_env(tmp_path / "events.sqlite")
        with ScoreLedger.open(settings=settings, event_store=store, worker=False) as ledger:
            ledger.grant_many([make_grant(number) for number in range(10)])
            ledger.catch_up()
        monkeypatch.setattr("projections.mongo.collections.SHAPE", SHAPE + 1)
        with pytest.raises(ShapeChanged, match=r"shape \d, .* \d\): run score-ledger rebuild"):
            ScoreLedger.open(settings=settings, event_store=store)
        env = {"MONGO_URI": str(settings.mongo_uri), "MONGO_DATABASE": settings.mongo_database}
        factory = MongoFactory(env)
        with pytest.raises(ShapeChanged):
            factory.tracking_recorder(MongoScoreView)
        factory.close()
        with ScoreLedger.open(
            settings=settings, event_store=store, worker=False, any_shape=True
        ) as ledger:
            assert ledger.status().grants == 10
            assert ledger.rebuild().live
        with ScoreLedger.open(settings=settings, event_store=store, worker=False) as ledger:
            assert ledger.verify().grants == 10

    def test_readers_and_workers_of_the_old_release_stop_at_the_switch(
        self, scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They would misread, or write documents of the old shape among the new ones."""
        old_view, old_board = MongoScoreView(live), Leaderboard(live)
        old_board.top()
        with monkeypatch.context() as patch:
            patch.setattr("projections.mongo.collections.SHAPE", SHAPE + 1)
            rebuild(scoring, ReadModel(live.client, live.database.name))
        scoring.grant_many([make_grant(1000)])
        with pytest.raises(ShapeChanged):
            ProjectionWorker(scoring, old_view).catch_up()
        with pytest.raises(ShapeChanged):
            old_board.top()
        assert live.grants.count_documents({}) == 300

    def test_what_another_release_began_to_build_is_given_up(
        self, scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is of the wrong shape."""
        interrupted(scoring, live)
        monkeypatch.setattr("projections.mongo.collections.SHAPE", SHAPE + 1)
        newer = ReadModel(live.client, live.database.name)
        assert rebuild(scoring, newer).generation == 3
        assert newer.generations.kept() == [1]
