"""The projection of tier-ups: every threshold is announced once, whatever is delivered again."""

from __future__ import annotations

from pathlib import Path

import pytest
from eventsourcing.persistence import IntegrityError, Tracking

from command_line import run_python
from examples import tier_ups as example
from examples.tier_ups import TierUp, TierUps, TierUpsProjection, catch_up, open_view, replay
from scoring import Scoring
from support import make_grant, sqlite_env


@pytest.fixture
def view(tmp_path: Path) -> TierUps:
    """A view in a file of its own."""
    return open_view(tmp_path / "tier-ups.sqlite")


def grant(scoring: Scoring, user_id: str, *amounts: int) -> None:
    newest = scoring.recorder.max_notification_id() or 0
    scoring.grant_many(
        [
            make_grant(newest + number, user_id=user_id, amount=amount)
            for number, amount in enumerate(amounts)
        ]
    )


def announced(view: TierUps) -> list[tuple[str, int]]:
    told: list[TierUp] = []
    view.announce(told.append)
    return [(tier_up.user_id, tier_up.threshold) for tier_up in told]


def test_each_threshold_is_announced_when_it_is_crossed(scoring: Scoring, view: TierUps) -> None:
    """Just reached counts, and one grant may cross two."""
    projection = TierUpsProjection(view)
    grant(scoring, "ada", 60, 39)
    catch_up(scoring, projection)
    assert announced(view) == []
    grant(scoring, "ada", 1)
    grant(scoring, "bob", 5_000)
    catch_up(scoring, projection)
    assert announced(view) == [("ada", 100), ("bob", 100), ("bob", 1_000)]
    grant(scoring, "ada", 1)
    catch_up(scoring, projection)
    assert announced(view) == []


def test_a_replay_announces_nothing_again(scoring: Scoring, view: TierUps) -> None:
    """Totals are made again; announcements are facts."""
    projection = TierUpsProjection(view)
    grant(scoring, "ada", 150, 900)
    catch_up(scoring, projection)
    assert len(announced(view)) == 2
    replay(scoring, projection)
    assert announced(view) == []
    with view.datastore.transaction(commit=False) as c:
        c.execute("SELECT * FROM totals")
        assert [tuple(row) for row in c.fetchall()] == [("ada", 1050)]


def test_a_replay_with_another_threshold_announces_just_that_one(
    scoring: Scoring, view: TierUps
) -> None:
    """Which is what replays are for."""
    projection = TierUpsProjection(view)
    grant(scoring, "ada", 150, 900)
    catch_up(scoring, projection)
    announced(view)
    projection.thresholds = (*example.THRESHOLDS, 500)
    replay(scoring, projection)
    assert announced(view) == [("ada", 500)]


def test_a_grant_that_is_delivered_again_changes_nothing(scoring: Scoring, view: TierUps) -> None:
    """Its position is tracked in the transaction that would count it."""
    projection = TierUpsProjection(view)
    grant(scoring, "ada", 99)
    catch_up(scoring, projection)
    (notification,) = scoring.recorder.select_notifications(
        start=1, limit=9, topics=projection.topics
    )
    event = scoring.mapper.to_domain_event(notification)
    with pytest.raises(IntegrityError):
        projection.process_event(event, Tracking(scoring.name, notification.id))
    assert announced(view) == []


def test_the_example_runs_as_a_script(tmp_path: Path) -> None:
    """Twice: the second time there is nothing new, even on replaying."""
    (tmp_path / ".score-ledger").mkdir()
    with Scoring(sqlite_env(tmp_path / ".score-ledger" / "events.sqlite")) as scoring:
        grant(scoring, "ada", 100)
    printed = [
        run_python(example.__file__, *arguments, cwd=tmp_path).stdout
        for arguments in ([], ["--replay"])
    ]
    assert printed == ["ada has reached 100 points\n1 announcements\n", "0 announcements\n"]
