"""Comparing with an old collection against a bare scan of both collections, and its memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from measuring import Report, in_turns
from projections import OldScores, ScoreLedger
from projections.embedded import open_server
from projections.mongo import connect
from support import sqlite_env

BUCKETS = 200_000
PER_USER = 20
ROUNDS = 5
SITE = "site"

_MEMORY = """
import sys
from pathlib import Path
from comparisons import compare
from measuring import peak_memory_kb
from projections.mongo import connect
with connect(sys.argv[2]) as client:
    compare(client, Path(sys.argv[1]), sys.argv[3])
print(peak_memory_kb())
"""


def against_a_bare_scan(folder: Path, report: Report) -> None:
    """Every bucket the same, as on all nights but few; at two sizes, for the memory."""
    with open_server(folder / "mongo") as server, connect(server.uri) as client:
        memory = []
        for buckets in (BUCKETS // 10, BUCKETS):
            database = f"size_{buckets}"
            fill(client, folder, database, buckets)
            memory.append(peak_memory_mib(folder, server.uri, database))
        mine, theirs = in_turns(
            lambda: compare(client, folder, database),
            lambda: scan(client, database),
            rounds=ROUNDS,
        )
    report.add(
        f"compare of {BUCKETS:,} buckets",
        measured=f"{min(mine):.2f} s",
        reference=f"bare scan of both: {min(theirs):.2f} s",
        ratios=[scanned / compared for compared, scanned in zip(mine, theirs, strict=True)],
        wanted=">= 0.5",
    )
    report.add(
        f"peak memory of comparing {BUCKETS:,} buckets",
        measured=f"{memory[1]:.0f} MiB",
        reference=f"{BUCKETS // 10:,}: {memory[0]:.0f} MiB",
        ratios=[memory[1] / memory[0]],
        wanted="about 1",
    )


def fill(client: MongoClient[Any], folder: Path, database: str, buckets: int) -> None:
    """The same in both, put there directly: what is compared is what is there."""
    with opened(client, folder, database):
        pass  # makes the collections
    users = _users(buckets)
    while some := list(islice(users, 500)):
        client[database][SITE].insert_many(
            {"_id": user, "buckets": theirs} for user, theirs in some
        )
        client[database]["user_scores"].insert_many(
            {"_id": user, "recomputedTotal": sum(each["points"] for each in theirs.values())}
            for user, theirs in some
        )
        client[database]["score_buckets"].insert_many(
            {"_id": {"userId": user, "key": key}, **bucket}
            for user, theirs in some
            for key, bucket in theirs.items()
        )


def _users(buckets: int) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    for number in range(buckets // PER_USER):
        yield (
            f"user-{number:07}",
            {
                f"telemetry:activity-{key}": {
                    "points": 1 + (number + key) % 50,
                    "category": "telemetry",
                    "source": "app",
                }
                for key in range(PER_USER)
            },
        )


def opened(client: MongoClient[Any], folder: Path, database: str) -> ScoreLedger:
    env = sqlite_env(folder / "events.sqlite")
    return ScoreLedger.open(worker=False, event_store=env, mongo=client[database])


def compare(client: MongoClient[Any], folder: Path, database: str) -> None:
    with opened(client, folder, database) as ledger:
        old = OldScores(collection=SITE, database=database, buckets="buckets")
        assert ledger.compare(old).ok


def scan(client: MongoClient[Any], database: str) -> None:
    for collection in (SITE, "score_buckets"):
        for _ in client[database][collection].find():
            pass


def peak_memory_mib(folder: Path, uri: str, database: str) -> float:
    program = [sys.executable, "-c", _MEMORY, str(folder), uri, database]
    done = subprocess.run(
        program,
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return int(done.stdout) / 1024
