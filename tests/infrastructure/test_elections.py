"""A read model on three nodes whose primary steps down, is killed, or is frozen."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from command_line import CommandLine
from concurrency import meanwhile, until
from event_store import assert_equal_to_the_events
from projections import Leaderboard, ReadModelUnavailable
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from projections.verification.events import verify_events
from projections.worker.rebuild import Rebuild
from replica_set import ReplicaSet, sit_out
from scoring import Scoring
from support import make_grant, worker_env, worker_maker

GRANTS = 1500


def step_down(replica_set: ReplicaSet) -> None:
    replica_set.step_down()


def kill(replica_set: ReplicaSet) -> None:
    replica_set.kill(replica_set.primary())


def freeze(replica_set: ReplicaSet) -> None:
    """Until another is elected; then there are two that believe to be primary."""
    node = replica_set.primary()
    replica_set.freeze(node)
    replica_set.primary()
    replica_set.thaw(node)


@pytest.mark.parametrize("lose_the_primary", [step_down, kill, freeze], ids=lambda f: f.__name__)
def test_a_worker_outlives_its_primary_and_projects_every_grant_once(
    lose_the_primary: Callable[[ReplicaSet], None],
    replica_set: ReplicaSet,
    scoring: Scoring,
    tmp_path: Path,
) -> None:
    """In the middle of its catch-up; readers never see anything but a sum of whole grants."""
    grants = [make_grant(number) for number in range(GRANTS)]
    scoring.grant_many(grants)
    balances: dict[str, list[int]] = defaultdict(lambda: [0])
    for grant in grants:
        balances[grant.user_id].append(balances[grant.user_id][-1] + grant.amount)
    with connect(replica_set.uri) as client:
        model = ReadModel(client, f"test_{uuid4().hex}")
        sit_out(model.prepare)
        with reading(model, balances), following(model, replica_set, tmp_path) as worker:
            newest = scoring.recorder.max_notification_id() or 0
            until(lambda: position_of(model) >= newest / 4)
            lose_the_primary(replica_set)
            replica_set.await_healthy()
            while position_of(model) < newest:
                assert worker.poll() is None, worker.communicate()
                time.sleep(0.05)
        assert assert_equal_to_the_events(scoring, model) == GRANTS
        assert verify_events(scoring, model).ok
        sit_out(lambda: client.drop_database(model.database.name))


def position_of(model: ReadModel) -> int:
    with suppress(PyMongoError):  # a busy machine has elections of its own
        document = model.positions.find_one({"_id": "Scoring"})
        return document["position"] if document else 0
    return 0


@contextmanager
def following(
    model: ReadModel, replica_set: ReplicaSet, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in small batches, as a process of its own, that ends well when it is told to."""
    env = worker_env(folder, replica_set.uri, model.database.name, batch_size=20)
    with CommandLine(folder, env).start("project", "--follow") as worker:
        try:
            yield worker
            worker.terminate()
            assert worker.wait() == 0, worker.communicate()
        finally:
            worker.kill()


@contextmanager
def reading(model: ReadModel, balances: dict[str, list[int]]) -> Iterator[None]:
    """Every balance that is read inside the block is one that the user had, and none goes back."""
    leaderboard = Leaderboard(model)
    wrong: list[str] = []

    def read(stop: Event) -> None:
        last: dict[str, int] = defaultdict(int)
        while not stop.is_set():
            try:
                rows = leaderboard.top(100, by="ledger")
            except ReadModelUnavailable as error:
                if not error.transient:
                    wrong.append(f"a reader was told to give up: {error}")
                continue
            for row in rows:
                if row.score not in balances[row.user_id] or row.score < last[row.user_id]:
                    wrong.append(f"{row} after {last[row.user_id]}")
                last[row.user_id] = row.score
            time.sleep(0.005)  # or it would keep a core from those it watches

    with meanwhile(read):
        yield
    assert not wrong


def test_an_index_is_made_while_a_node_is_down(replica_set: ReplicaSet, scoring: Scoring) -> None:
    """By a rebuild, and again where one is missing: a majority has it, as all that is written."""
    scoring.grant_many([make_grant(number) for number in range(20)])
    with connect(replica_set.uri) as client, ThreadPoolExecutor() as pool:
        model = ReadModel(client, f"test_{uuid4().hex}")
        sit_out(model.prepare)
        node = replica_set.secondaries()[0]
        replica_set.kill(node)
        try:
            outcome = pool.submit(Rebuild(scoring, model, worker_maker(scoring)).run).result(60)
            assert (outcome.generation, outcome.live) == (2, True)
            sit_out(model.users.drop_indexes)
            pool.submit(sit_out, model.inventory.check).result(100)
            assert "totalScore_-1__id_1" in sit_out(model.users.index_information)
        finally:
            replica_set.restart(node)
        sit_out(lambda: client.drop_database(model.database.name))


def test_what_only_a_primary_has_seen_is_rolled_back(replica_set: ReplicaSet) -> None:
    """The helper does what tests of a rollback need."""
    with connect(replica_set.uri) as client:
        sit_out(lambda: client["rolled"]["back"].replace_one({"_id": "kept"}, {}, upsert=True))

        def write(primary: MongoClient[Any]) -> None:
            database = primary.get_database("rolled", write_concern=WriteConcern(1))
            database["back"].insert_one({"_id": "gone"})

        replica_set.roll_back(write)
        found = sit_out(lambda: list(client["rolled"]["back"].find()))
        assert [document["_id"] for document in found] == ["kept"]
    for node in replica_set.nodes:
        with node.client() as direct:
            on_node = direct["rolled"]["back"].find()
            assert [document["_id"] for document in on_node] == ["kept"]
