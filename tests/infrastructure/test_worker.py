"""``ProjectionWorker``: catching up, following, and being killed."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from concurrency import at_once, meanwhile
from event_store import assert_equal_to_the_events, damaged
from projections import MongoScoreView, PoisonEvent, Progress, ProjectionWorker
from projections.mongo.batches import Batch
from projections.mongo.read_model import ReadModel
from projections.queries.leaderboard import Leaderboard
from projections.verification.totals import verify_totals
from projections.worker.batch_reader import BatchReader
from scoring import Grant, Scoring
from support import make_grant, worker_env


def test_catching_up_makes_the_read_model_equal_to_the_events(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """In several batches, and the position moves over claims to the very end."""
    scoring.grant_many([make_grant(number) for number in range(250)])
    seen: list[Progress] = []
    worker = ProjectionWorker(scoring, view, batch_size=40, on_progress=seen.append)
    newest = scoring.recorder.max_notification_id()
    assert worker.catch_up() == newest
    assert view.max_tracking_id("Scoring") == newest
    assert seen[-1].grants == 250
    assert all(a.position <= b.position for a, b in pairwise(seen))
    assert assert_equal_to_the_events(scoring, read_model) == 250


def test_only_one_batch_is_read_ahead_of_the_one_that_is_written(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long writing takes: two are in memory, and their size is what memory is made of."""
    scoring.grant_many([make_grant(number) for number in range(600)])
    counts: Counter[str] = Counter()
    ahead: list[int] = []
    read = BatchReader.batches

    def reading(*args: Any, **options: Any) -> Iterator[Batch]:
        for batch in read(*args, **options):
            counts["read"] += 1
            yield batch

    def writing(_: Batch) -> AbstractContextManager[None]:
        counts["written"] += 1
        time.sleep(0.05)
        ahead.append(counts["read"] - counts["written"])
        return nullcontext()

    monkeypatch.setattr(BatchReader, "batches", reading)
    ProjectionWorker(scoring, view, batch_size=60, around_batch=writing).catch_up()
    assert len(ahead) >= 10
    assert max(ahead) == 1


def test_catching_up_again_does_nothing(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """There is nothing between the tracked position and the newest event."""
    scoring.grant_many([make_grant(number) for number in range(20)])
    ProjectionWorker(scoring, view).catch_up()
    before = list(read_model.users.find())
    ProjectionWorker(scoring, view).catch_up()
    assert list(read_model.users.find()) == before


def test_an_empty_store_is_projected_without_a_position(
    scoring: Scoring, view: MongoScoreView
) -> None:
    """Nothing to do is not an error."""
    assert ProjectionWorker(scoring, view).catch_up() == 0


def test_following_projects_what_is_recorded_meanwhile(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Grants made while the worker runs become visible without asking."""
    with meanwhile(ProjectionWorker(scoring, view).follow):
        for number in range(30):
            receipt = scoring.grant(**make_grant(number).model_dump())
        view.wait("Scoring", receipt.position, timeout=60)
        assert assert_equal_to_the_events(scoring, read_model) == 30


def test_two_workers_at_once_count_every_grant_once(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """The compare-and-set of the position lets one batch win; the other worker reads anew."""
    scoring.grant_many([make_grant(number) for number in range(600)])
    at_once(2, lambda _: ProjectionWorker(scoring, view, batch_size=20).catch_up())
    assert assert_equal_to_the_events(scoring, read_model) == 600


def test_a_poison_event_stops_the_worker_after_everything_before_it(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """The error names position, stream and topic."""
    receipts = scoring.grant_many([make_grant(number) for number in range(10)])
    seventh = sorted(receipt.position for receipt in receipts)[6]
    with (
        damaged(tmp_path / "events.sqlite", seventh),
        pytest.raises(PoisonEvent) as poison,
    ):
        ProjectionWorker(scoring, view).catch_up()
    assert poison.value.position == seventh
    assert poison.value.topic == "scoring:UserScore.GrantRecorded"
    assert read_model.grants.count_documents({}) == 6
    assert verify_totals(read_model).ok


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_a_worker_killed_in_the_middle_of_many_grants_loses_and_doubles_nothing(
    scoring: Scoring,
    mongo_uri: str,
    read_model: ReadModel,
    view: MongoScoreView,
    tmp_path: Path,
    count: int,
) -> None:
    """``kill -9`` of ``score-ledger project``, several times, then a run to the end."""
    grants: list[Grant] = []
    name = read_model.database.name
    command = CommandLine(tmp_path, worker_env(tmp_path, mongo_uri, name, batch_size=count // 50))
    killed_in_the_middle = 0
    randomness = random.Random(2026)
    while killed_in_the_middle < 3:  # on a busy machine it may have ended before
        grants += [make_grant(len(grants) + number) for number in range(count // 3)]
        scoring.grant_many(grants[-(count // 3) :])
        newest = scoring.recorder.max_notification_id() or 0
        before = view.max_tracking_id("Scoring")
        with command.start("project") as process:
            while view.max_tracking_id("Scoring") == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(randomness.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        if (view.max_tracking_id("Scoring") or 0) < newest:
            killed_in_the_middle += 1
            assert verify_totals(read_model).ok
    assert '"interrupted": false' in command("project", "--json").stdout
    assert assert_equal_to_the_events(scoring, read_model) == len(grants)
    leaders = Leaderboard(read_model).top(10, by="ledger")
    assert sum(row.score for row in leaders) == sum(grant.amount for grant in grants)
