"""Comparing with an old collection against a bare scan of both collections, and its memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from measuring import Report, in_new_process, in_turns, peak_memory
from projections import OldScores, ScoreLedger
from projections.embedded import open_server
from projections.mongo import connect
from support import sqlite_env

PER_USER = 20
ROUNDS = 5
SITE = "site"


def against_a_bare_scan(folder: Path, report: Report) -> None:
    """Every bucket the same, as on all nights but few; at two sizes, for the memory."""
    few, many = report.scaled(20_000), report.scaled(200_000)
    with open_server(folder / "mongo") as server, connect(server.uri) as client:
        for buckets in (few, many):
            fill(client, folder, f"size_{buckets}", buckets)
        peaks = {n: in_new_process(_peak, server.uri, folder, f"size_{n}") for n in (few, many)}
        mine, theirs = in_turns(
            lambda: compare(client, folder, f"size_{many}"),
            lambda: scan(client, f"size_{many}"),
            rounds=ROUNDS,
        )
    what = f"compare of {many:,} buckets"
    report.rates(what, many, mine, "bare scan of both", theirs, at_least=0.5)
    report.peaks("comparing buckets", peaks)


def _peak(uri: str, folder: Path, database: str) -> float:
    with connect(uri) as client:
        compare(client, folder, database)
    return peak_memory()


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
