"""What tests of the read model begin with."""

from __future__ import annotations

import pytest

from projections import MongoScoreView, ProjectionWorker
from projections.mongo.read_model import ReadModel
from scoring import Scoring
from support import make_grant


@pytest.fixture
def live(scoring: Scoring, view: MongoScoreView, read_model: ReadModel) -> ReadModel:
    """The first generation, with 20 grants of 7 users."""
    scoring.grant_many([make_grant(number) for number in range(20)])
    ProjectionWorker(scoring, view).catch_up()
    return read_model


@pytest.fixture
def answers_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a position also waits for MongoDB, beyond the end of a short wait.

    Otherwise a server that is slow for once, and not the position, is what a short wait tells of.
    """
    monkeypatch.setattr("projections.mongo.view._ASK_SECONDS", 60.0)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users are counted in ranges so small that few users fill many, and many documents."""
    for what in ("USERS", "RANGES"):
        monkeypatch.setattr(f"projections.mongo.ranks.MAX_{what}", 4)
        monkeypatch.setattr(f"projections.mongo.ranks.FEW_{what}", 2)
