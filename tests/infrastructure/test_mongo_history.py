"""What writers were told and readers saw on three nodes, while everything breaks, is all true."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import PersistenceError
from pymongo import MongoClient, WriteConcern

import mongo_history
from fail_points import failing
from mongo_history import Reader, acknowledged, violations
from processes import freeze, thaw
from projections.mongo import connect
from replica_set import ReplicaSet, sit_out
from scoring import Scoring
from support import NOON, mongo_env

PROCESSES = 3
SOAK_SECONDS = int(os.environ.get("SOAK_SECONDS", "600"))


class Site:
    """Writers in processes of their own, and readers in this one."""

    def __init__(self, replica_set: ReplicaSet, folder: Path, rng: random.Random) -> None:
        self.replicas, self._folder, self._rng = replica_set, folder, rng
        self.database = f"history_{uuid4().hex[:8]}"
        self._seeds = iter(range(1, 10_000))
        self.left_open = 0
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
        """Whole lines: the last one of a writer may be cut off where it was killed."""
        said = (file.read_bytes() for file in sorted(self._folder.glob("*.out")))
        return b"".join(each[: each.rfind(b"\n") + 1] for each in said)

    # --- faults -----------------------------------------------------------------------------------

    def replace_writer(self) -> None:
        self.kill_writer()
        self.start_writer()

    def kill_inside_batch(self) -> None:
        """All writers, when one has a transaction open, which the server then goes on holding."""
        ends_at = time.monotonic() + 10
        with self.replicas.primary().client() as client:
            while time.monotonic() < ends_at:
                for writer in self._writers:
                    freeze(writer.pid)
                if _has_open_transaction(client):
                    break
                for writer in self._writers:
                    thaw(writer.pid)
                time.sleep(0.01)
            for _ in range(PROCESSES):
                self.kill_writer()
            self.left_open += _has_open_transaction(client)
        for _ in range(PROCESSES):
            self.start_writer()

    def cut_connections(self) -> None:
        """Of half of all commands, before they act."""
        self._fail("insert", "find", "aggregate", "commitTransaction", closeConnection=True)

    def lose_answers(self) -> None:
        """Half of what is written is done, and the server cannot say whether it lasts."""
        shutting_down = {"code": 91, "errmsg": "shutting down"}
        self._fail("insert", "commitTransaction", writeConcernError=shutting_down)

    def _fail(self, *commands: str, **failure: Any) -> None:
        primary = f"mongodb://{self.replicas.primary().address}/?directConnection=true"
        with failing(primary, *commands, mode={"activationProbability": 0.5}, **failure):
            time.sleep(0.5)

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

        def write(primary: MongoClient[Any]) -> None:
            notes = primary.get_database(self.database).get_collection("notes")
            notes.with_options(write_concern=WriteConcern(1)).insert_one({})
            time.sleep(0.5)

        self.replicas.roll_back(write)


Fault = Callable[[Site], object]
FAULTS: tuple[Fault, ...] = (
    *(Site.replace_writer, Site.replace_writer, Site.cut_connections, Site.lose_answers),
    *(Site.step_down, Site.kill_primary, Site.freeze_primary, Site.roll_back),
)


def _has_open_transaction(client: MongoClient[Any]) -> bool:
    stages: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": True, "idleSessions": True}},
        {"$match": {"type": "idleSession", "transaction.parameters.autocommit": False}},
        {"$limit": 1},
    ]
    return bool(list(client.admin.aggregate(stages)))


@pytest.mark.parametrize(
    ("seconds", "pause", "faults"),
    [
        (8, 1.0, FAULTS),
        pytest.param(SOAK_SECONDS, 5.0, (*FAULTS, Site.kill_inside_batch), marks=pytest.mark.soak),
    ],
    ids=["short", "long"],
)
@pytest.mark.timeout(SOAK_SECONDS + 300)
def test_what_was_acknowledged_is_there_once_and_whole_and_readers_see_a_beginning(
    replica_set: ReplicaSet, tmp_path: Path, seconds: int, pause: float, faults: Sequence[Fault]
) -> None:
    """Step-downs, kills, freezes, roll-backs and killed writers, also inside large batches.

    ``-s`` shows how many of each. ``SOAK_SECONDS`` is how long the long one takes.
    """
    rng = random.Random(time.time_ns())
    site = Site(replica_set, tmp_path, rng)
    stop = Event()
    caused: Counter[str] = Counter()
    with ExitStack() as stack, Scoring(mongo_env(replica_set.uri, site.database)) as scoring:
        client = stack.enter_context(connect(replica_set.uri))
        stack.callback(sit_out, lambda: client.drop_database(site.database))
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
            fault = rng.choice(faults)
            fault(site)
            caused[fault.__name__] += 1
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
        commits = sit_out(lambda: client[site.database]["scoring_events"].distinct("c"))
        caused["transactions left open"] = site.left_open
        caused.update({"commits": len(commits), "events": len(reader.seen)})
        caused.update(f"answers {said}" for _, said, _ in answers)
        print(*(f"{number:10,} {what}" for what, number in caused.items()), sep="\n")  # noqa: T201
        assert (
            violations(replica_set.uri, site.database, answers, [reader.seen, subscriber.seen])
            == []
        )
