"""Connections that were made to a server while it was neither primary nor secondary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import ConfigurationError

from concurrency import at_once, until
from event_store import assert_equal_to_the_events
from projections import MongoScoreView, ProjectionWorker
from projections.embedded import open_server
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from projections.queries.leaderboard import Leaderboard
from projections.verification.totals import verify_totals
from scoring import Scoring
from support import make_grant

CONNECTIONS = 5


@contextmanager
def half_awake_pool(folder: Path) -> Iterator[MongoClient[Any]]:
    """A client whose pool has connections from while its server was in maintenance."""
    with open_server(folder) as server, MongoClient[Any](server.uri) as operator:
        operator.admin.command("replSetStepDown", 60, force=True)
        operator.admin.command("replSetMaintenance", True)  # noqa: FBT003 - the command's value
        with connect(server.uri) as client:
            at_once(CONNECTIONS, lambda _: client.admin.command("ping"))
            operator.admin.command("replSetMaintenance", False)  # noqa: FBT003
            operator.admin.command("replSetFreeze", 0)
            until(lambda: operator.admin.command("hello")["isWritablePrimary"])
            yield client


def test_they_do_not_keep_anybody_from_the_server_once_it_is_primary(
    scoring: Scoring, tmp_path: Path
) -> None:
    """Workers and readers go on, without a new client and without an error."""
    scoring.grant_many([make_grant(number) for number in range(50)])
    with half_awake_pool(tmp_path / "mongo") as client:
        with pytest.raises(ConfigurationError), client.start_session() as session:
            client.test.anything.find_one({}, session=session)
        read_model = ReadModel(client, "half_awake")
        read_model.prepare()
        with closing(MongoScoreView(read_model)) as view:
            ProjectionWorker(scoring, view, batch_size=10).catch_up()
        assert len(Leaderboard(read_model).top(7)) == 7
        assert verify_totals(read_model).ok
        assert assert_equal_to_the_events(scoring, read_model) == 50


def test_a_reader_gets_rid_of_all_of_them_by_itself(scoring: Scoring, tmp_path: Path) -> None:
    """Whichever it meets first."""
    scoring.grant_many([make_grant(number) for number in range(50)])
    folder = tmp_path / "mongo"
    with open_server(folder) as server:
        with connect(server.uri) as other:
            read_model = ReadModel(other, "half_awake")
            read_model.prepare()
            with closing(MongoScoreView(read_model)) as view:
                ProjectionWorker(scoring, view).catch_up()
        with half_awake_pool(folder) as client:
            board = Leaderboard(ReadModel(client, "half_awake"))
            assert len(board.top(7)) == 7
            assert len(board.top(7)) == 7
            assert sum(map(len, board.pages())) == 7
