"""``kill -9`` of ``score-ledger rebuild``, at random and inside each command of the switch."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from concurrency import until
from killing import open_transactions
from projections import Leaderboard, MongoScoreView, ProjectionWorker
from projections.mongo.collections import GENERATIONAL
from projections.mongo.read_model import ReadModel
from projections.verification.events import verify_events
from scoring import Scoring
from support import make_grant, worker_env

BLOCKED_SECONDS = 1.0


class Victim:
    """``score-ledger rebuild`` as a process of its own, on the ledger of the test."""

    def __init__(self, live: ReadModel, uri: str, folder: Path) -> None:
        self._live = live
        env = worker_env(folder, uri, live.database.name, batch_size=200)
        self._command = CommandLine(folder, env)

    def start(self) -> subprocess.Popen[bytes]:
        return self._command.start("rebuild", "--json")

    def run(self) -> None:
        assert self._command("rebuild", "--json").returncode == 0

    def kill(self, process: subprocess.Popen[bytes]) -> str:
        """Kill it and say what it was at."""
        process.kill()
        process.communicate()
        state = self._live.generations.state()
        if state.switching_to is not None:
            return "switching"
        if self._live.positions.count_documents({"hold": {"$exists": True}}):
            return "holding"
        return "building" if state.building is not None else "done"


@pytest.fixture
def victim(read_model: ReadModel, mongo_uri: str, tmp_path: Path) -> Victim:
    return Victim(read_model, mongo_uri, tmp_path)


@contextmanager
def blocked(live: ReadModel, command: str, *, skip: int) -> Iterator[Any]:
    """Make the server sit on a command, behind so many that it carries out; yield a waiter."""
    admin = live.client.admin
    entered = admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"skip": skip},
        data={
            "failCommands": [command],
            "blockConnection": True,
            "blockTimeMS": round(BLOCKED_SECONDS * 1000),
        },
    )["count"]
    try:
        yield lambda: admin.command(
            "waitForFailPoint", "failCommand", timesEntered=entered + 1, maxTimeMS=100_000
        )
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


def assert_sound(scoring: Scoring, live: ReadModel) -> None:
    """As the next reader, the next worker and the next verification find it."""
    assert Leaderboard(live).top(5, by="ledger")
    ProjectionWorker(scoring, MongoScoreView(live)).catch_up()
    outcome = verify_events(scoring, live)
    assert outcome.differences == []
    assert outcome.grants == live.grants.count_documents({})
    names = set(live.database.list_collection_names())
    assert set(GENERATIONAL) <= names


def built_position(live: ReadModel) -> int:
    """How far the generation that is being built has got; 0 if there is none."""
    state = live.generations.state()
    if state.building is None:
        return 0
    building = live.of_generation(state.building)
    found = building.positions.find_one({"_id": building.position_id("Scoring")}) or {}
    return int(found.get("position") or 0)


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], object]) -> None:
    until(lambda: process.poll() is not None or happened(), every_seconds=0.0005)


LONG = [pytest.mark.soak, pytest.mark.timeout(3600)]
SOME = [
    ("createIndexes", 1),  # of the users, once they are there
    *[("commitTransaction", skip) for skip in (3, 4)],  # of the counts, and of the hold
    *[("renameCollection", skip) for skip in (1, 4)],
]
ALL = [
    *[("createIndexes", skip) for skip in range(2)],
    *[("renameCollection", skip) for skip in range(2 * len(GENERATIONAL))],
    *[("commitTransaction", skip) for skip in range(7)],
]


@pytest.mark.parametrize("places", [SOME, pytest.param(ALL, marks=LONG)], ids=["some", "all"])
def test_a_rebuild_killed_in_a_command_of_the_switch_is_rolled_forward(
    scoring: Scoring, read_model: ReadModel, victim: Victim, places: list[tuple[str, int]]
) -> None:
    """Though the server carries the command out after the process is gone."""
    scoring.grant_many([make_grant(number) for number in range(100)])
    ProjectionWorker(scoring, MongoScoreView(read_model)).catch_up()
    for number, (command, skip) in enumerate(places):
        with blocked(read_model, command, skip=skip) as wait:
            process = victim.start()
            wait()
            victim.kill(process)
        # The server carries out what it sat on later, perhaps in the middle of what follows.
        scoring.grant_many([make_grant(1000 + number)])
        assert_sound(scoring, read_model)
        time.sleep(BLOCKED_SECONDS)
        assert_sound(scoring, read_model)
        read_model.generations.drop_kept()
    victim.run()
    assert_sound(scoring, read_model)


@pytest.mark.parametrize(("kills", "grants"), [(2, 3000), pytest.param(100, 10_000, marks=LONG)])
def test_a_rebuild_killed_at_random_moments_is_carried_on(
    scoring: Scoring, read_model: ReadModel, victim: Victim, kills: int, grants: int
) -> None:
    """Nothing is lost or doubled, in what is live or in what comes of it in the end.

    Every other one is killed when it has come to the switch.
    """
    live = read_model
    randomness = random.Random(2026)
    scoring.grant_many([make_grant(number) for number in range(grants)])
    ProjectionWorker(scoring, MongoScoreView(live)).catch_up()
    at: Counter[str] = Counter()
    in_a_transaction = 0
    while at.total() - at["done"] < kills:
        process = victim.start()
        if at.total() % 2:
            wait_for(process, lambda: live.positions.find_one({"hold": {"$exists": True}}))
        else:
            # Somewhere in what is left to be built, which is less after each kill.
            newest, built = scoring.recorder.max_notification_id() or 0, built_position(live)
            target = randomness.randint(built, max(built, newest - 1)) + 1
            wait_for(process, lambda target=target: built_position(live) >= target)  # type: ignore[misc]
        # The target is reached just after a commit: the kill is to come at any time in a batch.
        time.sleep(randomness.uniform(0, 0.03))
        at[victim.kill(process)] += 1
        in_a_transaction += open_transactions(live) > 0
        scoring.grant_many([make_grant(100_000 + at.total())])
        assert_sound(scoring, live)
        live.generations.drop_kept()
    victim.run()
    assert_sound(scoring, live)
    sys.stderr.write(f"killed {dict(at)}, {in_a_transaction} with a transaction open\n")
    # At what a few are killed is chance.
    assert in_a_transaction >= kills // 5
    assert at["holding"] + at["switching"] >= kills // 5
