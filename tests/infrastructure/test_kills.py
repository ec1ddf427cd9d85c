"""``kill -9`` at random moments: nothing is lost and nothing counts twice."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from killing import SCENARIOS, Scenario, kill_again_and_again
from projections import MongoScoreView
from scoring import Scoring


@pytest.mark.parametrize(
    "kills", [4, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])]
)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_killed_worker_leaves_nothing_lost_and_nothing_twice(
    scenario: Scenario,
    kills: int,
    scoring: Scoring,
    view: MongoScoreView,
    mongo_uri: str,
    tmp_path: Path,
) -> None:
    """Each kill is followed by a run to the end and a comparison with every event."""
    tally = kill_again_and_again(
        scenario, kills=kills, scoring=scoring, view=view, mongo_uri=mongo_uri, folder=tmp_path
    )
    print(  # noqa: T201 - the figures are what a long run is for
        f"\n{tally.kills} kills, {tally.in_transaction} in an open transaction, "
        f"{tally.grants:,} grants; recovered in {median(tally.seconds_to_recover):.1f} s, at most "
        f"{max(tally.seconds_to_recover):.1f} s"
    )
    assert tally.kills == kills
    # By the server's own count; how many of a few kills hit a transaction is chance.
    assert tally.in_transaction >= kills // 5 or kills < 10
