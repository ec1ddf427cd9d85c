"""Steps of a switch that arrive late: their process was frozen, and others have gone on since."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from projections import MongoScoreView, ProjectionWorker
from projections.mongo.collections import GENERATIONAL
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import next_step, roll_forward
from projections.queries.leaderboard import Leaderboard
from projections.verification.events import verify_events
from projections.worker.rebuild import Rebuild
from scoring import Scoring
from support import build_next, make_grant, worker_maker

STEPS = ["hold", "commit", *(f"rename {n + 1}" for n in range(2 * len(GENERATIONAL))), "finish"]


@pytest.fixture(autouse=True)
def _short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits takes over soon."""
    monkeypatch.setattr("projections.mongo.generations.SILENT_SWITCH_SECONDS", 0.02)
    monkeypatch.setattr("projections.mongo.switch.SILENT_HOLD_SECONDS", 0.1)


def frozen_before(step: str, scoring: Scoring, live: ReadModel) -> Callable[[], object]:
    """Go through a switch up to a step, and return that one instead of making it."""
    switch = build_next(scoring, live)
    for name in STEPS:
        callable_of: dict[str, Callable[[], object] | None] = {
            "hold": switch.hold,
            "commit": lambda: switch.commit(at_least=0),
        }
        this = callable_of.get(name) or next_step(live)
        assert this is not None
        if name == step:
            return this
        this()
    raise AssertionError(step)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_arrives_after_further_switches_changes_nothing(
    scoring: Scoring, live: ReadModel, step: str
) -> None:
    """Readers see the newest generation, with every grant, before and after the next switch."""
    late = frozen_before(step, scoring, live)
    roll_forward(live)
    others = ReadModel(live.client, live.database.name)
    for further in (1, 2):
        scoring.grant_many([make_grant(100 + further)])
        assert Rebuild(scoring, others, worker_maker(scoring)).run().live
        before = (others.generations.state(), others.generations.kept())
        position = MongoScoreView(others).max_tracking_id(scoring.name)
        late()
        assert (others.generations.state(), others.generations.kept()) == before
        assert MongoScoreView(others).max_tracking_id(scoring.name) == position
        rows = Leaderboard(live).top(100, by="ledger")
        assert sum(row.score for row in rows) == sum(
            scoring.score_of(row.user_id).total_score for row in rows
        )
        scoring.grant_many([make_grant(200 + further)])
        ProjectionWorker(scoring, MongoScoreView(others)).catch_up()
        report = verify_events(scoring, others)
        assert (report.differences, report.grants) == ([], 20 + 2 * further)
    # Also in the middle of another switch, while nothing has the live names.
    frozen_before(f"rename {len(GENERATIONAL) + 1}", scoring, others)
    late()
    roll_forward(others)
    late()
    others.generations.drop_kept()
    late()
    ProjectionWorker(scoring, MongoScoreView(others)).catch_up()
    assert verify_events(scoring, others).differences == []
    assert others.generations.kept() == []
