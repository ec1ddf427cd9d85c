"""``kill -9`` at random moments: nothing is lost and nothing counts twice."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from killing import SCENARIOS, Scenario, kill_again_and_again
from projections import MongoScoreView
from scoring import Scoring

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)


@each_scenario
def test_a_killed_worker_leaves_nothing_lost_and_nothing_twice(
    scenario: Scenario, scoring: Scoring, view: MongoScoreView, mongo_uri: str, tmp_path: Path
) -> None:
    """Each kill is followed by a run to the end and a comparison with every event."""
    tally = kill_again_and_again(
        scenario, kills=4, scoring=scoring, view=view, mongo_uri=mongo_uri, folder=tmp_path
    )
    # How many of them hit an open transaction is chance with so few; the soak run counts it.
    assert tally.kills == 4


@pytest.mark.soak
@pytest.mark.timeout(7200)
@each_scenario
def test_a_hundred_kills_leave_nothing_lost_and_nothing_twice(
    scenario: Scenario, scoring: Scoring, view: MongoScoreView, mongo_uri: str, tmp_path: Path
) -> None:
    """At least twenty of them hit an open transaction, by the server's own count."""
    tally = kill_again_and_again(
        scenario, kills=100, scoring=scoring, view=view, mongo_uri=mongo_uri, folder=tmp_path
    )
    print(  # noqa: T201 - the figures are what the run is for
        f"\n{tally.kills} kills, {tally.in_transaction} in an open transaction, "
        f"{tally.grants:,} grants; recovered in {median(tally.seconds_to_recover):.1f} s, at most "
        f"{max(tally.seconds_to_recover):.1f} s"
    )
    assert tally.in_transaction >= 20
