"""The library's own ``ProjectionRunner`` with our projection, view and persistence module."""

from __future__ import annotations

from contextlib import closing

import pytest
from eventsourcing.projection import ProjectionRunner

from event_store import assert_equal_to_the_events
from postgres_server import PostgresServer
from projections import (
    MongoScoreView,
    ProjectionWorker,
    ReadModelUnavailable,
    ScoreGrantsProjection,
)
from projections.read_model import ReadModel
from scoring import Scoring
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


def run_and_compare(env: dict[str, str], mongo_uri: str, read_model: ReadModel) -> None:
    env = {
        **env,
        "SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo",
        "MONGO_URI": mongo_uri,
        "MONGO_DATABASE": read_model.database.name,
    }
    with (
        ProjectionRunner(
            application_class=Scoring,
            projection_class=ScoreGrantsProjection,
            view_class=MongoScoreView,
            env=env,
        ) as runner,
        closing(runner.view),
    ):
        runner.app.grant_many([make_grant(number) for number in range(50)])
        for number in range(50, 60):
            receipt = runner.app.grant(**make_grant(number).model_dump())
        # The last event is a claim, which its topics keep from the projection.
        runner.wait(receipt.position, timeout=20)
        assert assert_equal_to_the_events(runner.app, read_model) == 60
        # Where the runner stopped, our own worker goes on, and the other way round.
        runner.stop()
        runner.app.grant(**make_grant(60).model_dump())
        ProjectionWorker(runner.app, runner.view).catch_up()
        assert assert_equal_to_the_events(runner.app, read_model) == 61


def test_the_persistence_module_says_what_it_needs() -> None:
    """Without ``MONGO_URI`` there is nothing to construct a view from."""
    with pytest.raises(ReadModelUnavailable, match="MONGO_URI is not set"):
        ProjectionRunner(
            application_class=Scoring,
            projection_class=ScoreGrantsProjection,
            view_class=MongoScoreView,
            env={"SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo"},
        )
