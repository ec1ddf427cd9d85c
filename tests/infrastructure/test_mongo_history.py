"""What writers were told and readers saw on three nodes, while everything breaks, is all true."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import pytest
from eventsourcing.persistence import PersistenceError
from pymongo import WriteConcern

import mongo_history
from mongo_history import Reader, acknowledged, env_of, violations
from projections.mongo import connect
from replica_set import ReplicaSet
from scoring import Scoring
from support import NOON

PROCESSES = 3

logger = logging.getLogger(__name__)


class Site:
    """Writers in processes of their own, and readers in this one."""

    def __init__(self, replica_set: ReplicaSet, folder: Path, rng: random.Random) -> None:
        self.replicas, self._folder, self._rng = replica_set, folder, rng
        self.database = f"history_{uuid4().hex[:8]}"
        self._seeds = iter(range(1, 10_000))
        self._writers: list[subprocess.Popen[bytes]] = []

    def start_writer(self) -> None:
        seed = next(self._seeds)
        with (self._folder / f"{seed}.out").open("wb") as output:
            self._writers.append(
                subprocess.Popen(
                    [
                        *("setpriv", "--pdeathsig", "KILL", sys.executable),
                        *(mongo_history.__file__, self.replicas.uri, self.database, str(seed)),
                    ],
                    stdout=output,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                )
            )

    def kill_writer(self) -> None:
        writer = self._writers.pop(self._rng.randrange(len(self._writers)))
        writer.kill()
        writer.wait()

    def output(self) -> bytes:
        return b"".join(file.read_bytes() for file in sorted(self._folder.glob("*.out")))

    # --- faults -----------------------------------------------------------------------------------

    def replace_writer(self) -> None:
        self.kill_writer()
        self.start_writer()

    def step_down(self) -> None:
        self.replicas.step_down()

    def kill_primary(self) -> None:
        self.replicas.kill(self.replicas.primary())

    def freeze_primary(self) -> None:
        node = self.replicas.primary()
        self.replicas.freeze(node)
        self.replicas.primary()
        self.replicas.thaw(node)

    def roll_back(self) -> None:
        """What a primary took that no majority has is gone; nobody was told of it."""
        with self.replicas.rollback() as client:
            notes = client.get_database(self.database).get_collection("notes")
            notes.with_options(write_concern=WriteConcern(1)).insert_one({})
            time.sleep(0.5)

    FAULTS = (replace_writer, replace_writer, step_down, kill_primary, freeze_primary, roll_back)


@pytest.mark.parametrize(
    ("seconds", "pause"), [(8, 1.0), pytest.param(600, 5.0, marks=pytest.mark.soak)]
)
@pytest.mark.timeout(900)
def test_what_was_acknowledged_is_there_once_and_whole_and_readers_see_a_beginning(
    replica_set: ReplicaSet, tmp_path: Path, seconds: int, pause: float
) -> None:
    """Step-downs, kills, freezes, roll-backs and killed writers, also inside large batches."""
    rng = random.Random(time.time_ns())
    site = Site(replica_set, tmp_path, rng)
    stop = Event()
    faults: Counter[str] = Counter()
    with ExitStack() as stack, Scoring(env_of(replica_set.uri, site.database)) as scoring:
        client = stack.enter_context(connect(replica_set.uri))
        stack.callback(client.drop_database, site.database)
        reader, subscriber = Reader(scoring.recorder), Reader(scoring.recorder)

        def read() -> None:
            while not stop.is_set():
                with suppress(PersistenceError):
                    reader.read()

        def subscribe() -> None:
            while not stop.is_set():
                last = subscriber.seen[-1].id if subscriber.seen else 0
                with suppress(PersistenceError), scoring.recorder.subscribe(gt=last) as events:
                    for event in events:
                        subscriber.seen.append(event)
                        if stop.is_set():
                            break

        threads = [Thread(target=read), Thread(target=subscribe, daemon=True)]
        for thread in threads:
            thread.start()
        for _ in range(PROCESSES):
            site.start_writer()
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            time.sleep(pause * rng.uniform(0.5, 1.5))
            fault = rng.choice(site.FAULTS)
            fault(site)
            faults[fault.__name__] += 1
            replica_set.await_healthy()
        # After the last fault everybody gets on.
        answered = site.output().count(b"\n")
        while site.output().count(b"\n") < answered + 50 or len(subscriber.seen) <= 100:
            time.sleep(0.1)
        for _ in range(PROCESSES):
            site.kill_writer()
        stop.set()
        threads[0].join()
        while len(reader.seen) < (scoring.recorder.max_notification_id() or 0):
            reader.read(5000)
        scoring.grant("last", "wakes-the-subscriber", "k", "any", "any", 1, NOON)
        threads[1].join(60)
        answers = acknowledged(site.output())
        logger.info("%s; %s answers, %s events", dict(faults), len(answers), len(reader.seen))
        assert (
            violations(replica_set.uri, site.database, answers, [reader.seen, subscriber.seen])
            == []
        )
