"""The library's own ``ProjectionRunner`` with our projection, view and persistence module."""

from __future__ import annotations

from contextlib import closing

import pytest
from eventsourcing.persistence import Tracking
from eventsourcing.projection import ProjectionRunner

from event_store import assert_equal_to_the_events
from postgres_server import PostgresServer
from projections import MongoScoreView, ProjectionWorker, ScoreGrantsProjection
from projections.mongo.read_model import ReadModel
from projections.settings import Settings
from scoring import InvalidSetting, Scoring
from support import make_grant


def test_the_runner_of_the_library_projects_into_mongo_from_postgres(
    postgres: PostgresServer, mongo_uri: str, read_model: ReadModel
) -> None:
    """It constructs view and event store from the environment, and follows by ``subscribe()``."""
    run_and_compare({**postgres.new_env(POSTGRES_POOL_SIZE="5")}, mongo_uri, read_model)


def test_the_runner_of_the_library_projects_into_mongo_from_memory(
    mongo_uri: str, read_model: ReadModel
) -> None:
    """Likewise for the store that is the library's default."""
    run_and_compare({}, mongo_uri, read_model)


def test_runners_and_a_worker_share_a_store(
    postgres: PostgresServer, mongo_uri: str, read_model: ReadModel
) -> None:
    """Whoever is faster projects an event; the others neither fail nor count it again."""
    env = postgres.new_env(POSTGRES_POOL_SIZE="5")
    with (
        new_runner(env, mongo_uri, read_model) as one,
        new_runner(env, mongo_uri, read_model) as other,
        closing(one.view),
        closing(other.view),
    ):
        for number in range(150):
            receipt = one.app.grant(**make_grant(number).model_dump())
            if number % 50 == 0:
                ProjectionWorker(one.app, one.view).catch_up()
        one.wait(receipt.position, timeout=60)
        other.wait(receipt.position, timeout=60)
        assert assert_equal_to_the_events(one.app, read_model) == 150


def test_an_event_delivered_again_is_moved_over(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Grants, buckets and what is not used: the position stays, and nothing is counted again."""
    scoring.grant(**make_grant(1).model_dump())
    scoring.contribute("ada", "quiz:best", "quiz", "quiz", 5)
    projection = ScoreGrantsProjection(view)
    notifications = scoring.recorder.select_notifications(start=1, limit=100)
    for notification in [*notifications, *notifications]:
        event = scoring.mapper.to_domain_event(notification)
        projection.process_event(event, Tracking(scoring.name, notification.id))
    assert view.max_tracking_id(scoring.name) == len(notifications)
    assert assert_equal_to_the_events(scoring, read_model) == 1


def new_runner(
    env: dict[str, str], mongo_uri: str, read_model: ReadModel
) -> ProjectionRunner[Scoring, MongoScoreView]:
    return ProjectionRunner(
        application_class=Scoring,
        projection_class=ScoreGrantsProjection,
        view_class=MongoScoreView,
        env={
            **env,
            "SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo",
            "MONGO_URI": mongo_uri,
            "MONGO_DATABASE": read_model.database.name,
        },
    )


def run_and_compare(env: dict[str, str], mongo_uri: str, read_model: ReadModel) -> None:
    with new_runner(env, mongo_uri, read_model) as runner, closing(runner.view):
        runner.app.grant_many([make_grant(number) for number in range(50)])
        for number in range(50, 60):
            receipt = runner.app.grant(**make_grant(number).model_dump())
        # The last event is a claim, which its topics keep from the projection.
        runner.wait(receipt.position, timeout=60)
        assert assert_equal_to_the_events(runner.app, read_model) == 60
        # Where the runner stopped, our own worker goes on, and the other way round.
        runner.stop()
        runner.app.grant(**make_grant(60).model_dump())
        ProjectionWorker(runner.app, runner.view).catch_up()
        assert assert_equal_to_the_events(runner.app, read_model) == 61


def test_the_librarys_runner_uses_the_database_that_ledgers_use_unless_told(mongo_uri: str) -> None:
    """So that both find the same read model if neither names one."""
    env = {"SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo", "MONGO_URI": mongo_uri}
    with (
        ProjectionRunner(
            application_class=Scoring,
            projection_class=ScoreGrantsProjection,
            view_class=MongoScoreView,
            env=env,
        ) as runner,
        closing(runner.view),
    ):
        database = runner.view.read_model.database
        try:
            runner.wait(runner.app.grant(**make_grant(1).model_dump()).position, timeout=60)
            assert database.name == Settings().mongo_database == "score_ledger"
            assert runner.view.read_model.grants.count_documents({}) == 1
        finally:
            database.client.drop_database(database)


def test_the_persistence_module_says_what_it_needs() -> None:
    """Without ``MONGO_URI`` there is nothing to construct a view from."""
    with pytest.raises(InvalidSetting, match=r"MONGO_URI .* is not set"):
        ProjectionRunner(
            application_class=Scoring,
            projection_class=ScoreGrantsProjection,
            view_class=MongoScoreView,
            env={"SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo"},
        )
