"""A soak: writers, workers, rebuilds and three mongods under faults, checked from receipts.

    pytest -m soak tests/soak -n 0 -s

``SOAK_SECONDS`` is how long each event store is soaked, ``SOAK_SEED`` repeats a schedule.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from postgres_server import PostgresServer, new_server
from replica_set import ReplicaSet
from scoring import Scoring
from soak.checking import (
    Ledger,
    Protocols,
    check_documents,
    check_reads,
    check_receipts,
    check_refusals,
    check_rows,
)
from soak.event_stores import PostgresStore, SoakedStore, SQLiteStore
from soak.faults import Faults
from soak.fleet import Fleet

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SEED = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
ROUND_SECONDS = 45.0
CATCH_UP_SECONDS = 120.0


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SoakedStore]:
    if request.param == "sqlite":
        yield SQLiteStore(tmp_path)
        return
    with new_server() as server:
        yield PostgresStore(PostgresServer(server.get_uri()))


@pytest.mark.soak
@pytest.mark.timeout(4 * SECONDS + 600)
def test_every_receipt_stays_true_through_faults_and_restores(
    store: SoakedStore, replica_set: ReplicaSet, tmp_path: Path
) -> None:
    """Nothing is lost but what a restore takes back, and no process needs a restart by hand."""
    print(f"\nseed {SEED}, {SECONDS:g} s, {type(store).__name__}")  # noqa: T201 - figures are the point
    fleet = Fleet(store, replica_set, f"soak_{uuid4().hex}", tmp_path, SEED)
    randomness = random.Random(SEED)
    faults = Faults(fleet, randomness)
    counts: Counter[str] = Counter()
    rounds = 0
    with Scoring(store.env):
        pass  # makes its tables, so that there is something to be backed up
    try:
        for program in fleet.programs:
            program.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not fleet.deviations:
            rounds += 1
            disturb(fleet, faults, randomness, until=min(end, time.monotonic() + ROUND_SECONDS))
            faults.end_all()
            replica_set.await_healthy()
            fleet.settle()
            fleet.pause(f"round {rounds}")
            counts = compare(fleet)
            print(f"round {rounds}: {counts['grants stored']:,} grants", flush=True)  # noqa: T201
            fleet.resume()
    finally:
        fleet.kill_all()
        counts["rounds"] = rounds
        for name, number in sorted((faults.counts + counts).items()):
            print(f"{number:10,} {name}")  # noqa: T201
        print(f"{len(fleet.deviations):10,} deviations")  # noqa: T201
        print("\n".join(fleet.deviations[:20]), flush=True)  # noqa: T201
    assert not fleet.deviations


def disturb(fleet: Fleet, faults: Faults, randomness: random.Random, *, until: float) -> None:
    due = time.monotonic()
    while time.monotonic() < until:
        fleet.look()
        faults.agenda.run_due()
        if time.monotonic() >= due:
            faults.do_one()
            due = time.monotonic() + randomness.uniform(0.1, 1.5)
        time.sleep(0.05)


def compare(fleet: Fleet) -> Counter[str]:
    """Wait until everything is projected, then compare it all."""
    counts: Counter[str] = Counter()
    client: MongoClient[dict[str, Any]] = MongoClient(
        fleet.replica_set.uri, tz_aware=True, readConcernLevel="majority"
    )
    with client:
        database = client[fleet.database]
        await_position(fleet, database)
        ledger = Ledger(fleet.store.rows())
        protocols = Protocols.read(fleet.outputs.values())
        fleet.deviations += [
            *ledger.deviations,
            *check_rows(ledger, protocols),
            *check_receipts(ledger, protocols, fleet.restores, counts),
            *check_refusals(protocols, fleet.untold),
            *check_reads(protocols, fleet.untold, counts),
            *check_documents(ledger, database),
        ]
    counts["grants stored"] = len(ledger.grants)
    counts["buckets set"] = len(ledger.buckets_set)
    return counts


def await_position(fleet: Fleet, database: Database[dict[str, Any]]) -> None:
    newest = fleet.store.newest()
    deadline = time.monotonic() + CATCH_UP_SECONDS
    position = None
    while position != newest:
        if time.monotonic() > deadline:
            state = [
                *database["score_positions"].find(),
                *database["score_control"].find(),
                *database["score_workers"].find(),
                *database.client.admin.aggregate([{"$currentOp": {"idleSessions": True}}]),
            ]
            lines = "\n".join(str(document) for document in state)
            pytest.fail(f"projected up to {position} of {newest}\n{lines}\n{fleet.stacks()}")
        fleet.look()
        document = database["score_positions"].find_one({"_id": "Scoring"})
        position = document and document["position"]
        time.sleep(0.1)
