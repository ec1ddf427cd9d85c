"""Killing a command at a random moment, again and again, while grants are recorded.

``kill_again_and_again`` runs one scenario: what the command is, and what has to be compared. The
scenarios of catching up and following are here; another one (rebuilding, switching) is a
``Scenario`` more in ``SCENARIOS``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event, Thread

from command_line import COMMAND, ready_command
from event_store import assert_equal_to_the_events
from projections import MongoScoreView
from projections.mongo.read_model import ReadModel
from scoring import Scoring
from support import make_grant, worker_env

BACKLOG = 800
"""Grants recorded before each start, so that there is something to be killed in."""


@dataclass
class Scenario:
    """A command to be killed.

    Attributes:
        arguments: Of ``score-ledger``.
        writes_meanwhile: Whether grants are recorded while it runs.
        finish: The command that is run after each kill and has to succeed.
        compare: Compares the outcome with the event store; returns how many grants there are.
        longest_seconds: The kill comes at most so long after the command got so far.
    """

    arguments: tuple[str, ...]
    writes_meanwhile: bool = False
    finish: tuple[str, ...] = ("project", "--json")
    compare: Callable[[Scoring, ReadModel], int] = assert_equal_to_the_events
    longest_seconds: float = 0.03


SCENARIOS = {
    "catch-up": Scenario(("project",)),
    "follow": Scenario(("project", "--follow"), writes_meanwhile=True),
}


@dataclass
class Tally:
    """What came of the kills.

    Attributes:
        kills: How often it was killed while it ran.
        in_transaction: How many of these left a transaction open on the server.
        seconds_to_recover: From each kill until the read model equalled the event store.
        grants: How many grants there were in the end.
    """

    kills: int = 0
    in_transaction: int = 0
    seconds_to_recover: list[float] = field(default_factory=list)
    grants: int = 0


def kill_again_and_again(
    scenario: Scenario,
    *,
    kills: int,
    scoring: Scoring,
    view: MongoScoreView,
    mongo_uri: str,
    folder: Path,
    seed: int = 2026,
) -> Tally:
    """Kill, run to the end, compare everything with the event store; ``kills`` times."""
    randomness = random.Random(seed)
    numbers = count()
    tally = Tally()
    name = view.read_model.database.name
    env = {**os.environ, **worker_env(folder, mongo_uri, name, batch_size=100)}
    while tally.kills < kills:
        scoring.grant_many([make_grant(next(numbers)) for _ in range(BACKLOG)])
        before = view.max_tracking_id("Scoring")
        stop = Event()
        writer = Thread(target=_write, args=(scoring, numbers, stop))
        with subprocess.Popen(
            [sys.executable, COMMAND, *scenario.arguments],
            env=env,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            if scenario.writes_meanwhile:
                writer.start()
            # Starting and ending Python take most of the time, and there is nothing to interrupt
            # in either: the kill comes somewhere in the work, by how far it has got.
            target = (before or 0) + randomness.randrange(1, BACKLOG)
            while (view.max_tracking_id("Scoring") or 0) < target and process.poll() is None:
                time.sleep(0.002)
            time.sleep(randomness.uniform(0, scenario.longest_seconds))
            running = process.poll() is None
            process.send_signal(signal.SIGKILL)
            left_open = open_transactions(view.read_model) if running else 0
        killed = time.monotonic()
        stop.set()
        if scenario.writes_meanwhile:
            writer.join()
        if not running:
            continue
        tally.kills += 1
        tally.in_transaction += left_open > 0
        subprocess.run(
            [*ready_command(), *scenario.finish],
            env=env,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        tally.seconds_to_recover.append(time.monotonic() - killed)
        tally.grants = scenario.compare(scoring, view.read_model)
        assert view.max_tracking_id("Scoring") == scoring.recorder.max_notification_id()
    return tally


def open_transactions(read_model: ReadModel) -> int:
    """The server's own count of transactions that nobody has ended."""
    status = read_model.client.admin.command("serverStatus")
    return int(status["transactions"]["currentOpen"])


def _write(scoring: Scoring, numbers: count[int], stop: Event) -> None:
    while not stop.is_set():
        scoring.grant_many([make_grant(next(numbers)) for _ in range(50)])
        # Everything is compared after each kill, so there must not be millions of them.
        time.sleep(0.02)
