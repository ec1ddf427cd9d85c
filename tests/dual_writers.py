"""A small site whose writers are processes that are killed between their two writes.

The writers run the code of ``examples/dual_write.py``; what their buckets should be is not asked of
the code that compares them: ``resting_differences`` reads MongoDB and the rows of SQLite itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import msgspec
from pymongo import MongoClient

from forks import forks
from projections.mongo import connect
from scoring import ContributionReceipt, Scoring
from support import sqlite_env

EXAMPLE = Path(__file__).parents[1] / "examples" / "dual_write.py"

SHARED = [f"telemetry:shared-{number}" for number in range(3)]
"""Keys of one user that all who are to die set in their first moments, and race for."""


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("dual_write", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dual_write: Any = _example()
"""``examples/dual_write.py``, which is no module of a package."""


@dataclass
class Writer:
    """One process; but for the shared ones, its keys are only its own."""

    number: int
    process: ForkServerProcess


@dataclass
class Site:
    """The writers, and where they write.

    Attributes:
        uri: Of the server with the site's collection.
        database: Of the site.
        folder: With the event store, and what those who were killed leave.
    """

    uri: str
    database: str
    folder: Path

    def start(self, number: int, *, dies_after: int | None = None) -> Writer:
        arguments = (self.uri, self.database, str(self.folder), number, dies_after)
        process = forks().Process(target=_write, args=arguments, daemon=True)
        process.start()
        return Writer(number, process)

    def stop(self, writers: list[Writer]) -> None:
        """Have them end after both of their writes."""
        (self.folder / "stop").touch()
        for writer in writers:
            writer.process.join()
            assert writer.process.exitcode == 0

    def lost(self) -> set[tuple[str, str]]:
        """Users and keys of the calls that were lost between the two writes."""
        return {tuple(json.loads(file.read_text())) for file in self.folder.glob("lost-*")}


def _write(uri: str, database: str, folder: str, number: int, dies_after: int | None) -> None:
    randomness = random.Random(number)
    with connect(uri) as client, Scoring(sqlite_env(Path(folder) / "events.sqlite")) as scoring:
        # Who lives leaves the shared keys alone: they are compared when they are at rest.
        done = 0 if dies_after is not None else 2 * len(SHARED)

        def tell_ledger(*contribution: Any) -> ContributionReceipt:
            if done == dies_after:
                Path(folder, f"lost-{number}").write_text(json.dumps(contribution[:2]))
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(randomness.uniform(0, 0.03))  # so that much is in flight at any time
            return scoring.contribute(*contribution)

        writer = dual_write.DualWriter(client[database]["scores"], tell_ledger)
        while not Path(folder, "stop").exists():
            # Points that no write of this key ever had, so that what is lost makes a difference.
            points = 1 + done * 1000 + number
            if done < 2 * len(SHARED):
                key = SHARED[done % len(SHARED)]
                writer.contribute("shared", key, "telemetry", "app", points)
            elif done % 10 == 0:
                key = f"content:feed-post:{number}-{done}"
                writer.contribute(f"user-{number % 5}", key, "content", "feed", points)
            else:
                key = f"telemetry:writer-{number}-{done % 2}"
                writer.contribute(f"user-{number % 5}", key, "telemetry", "app", points)
            done += 1
            time.sleep(randomness.uniform(0, 0.03))


Buckets = dict[tuple[str, str], tuple[int, str, str]]


def in_the_collection(client: MongoClient[Any], database: str) -> Buckets:
    """What users see, as the site itself would read it."""
    return {
        (document["_id"], key): (bucket["points"], bucket["category"], bucket["source"])
        for document in client[database]["scores"].find()
        for key, bucket in document["buckets"].items()
    }


def in_the_events(file: Path) -> Buckets:
    """What the last event of each key says, from the rows of the event store."""
    buckets: Buckets = {}
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT topic, state FROM stored_events ORDER BY rowid")
        for topic, state in rows:
            if topic in {"scoring:UserScore.BucketSet", "scoring:UserScore.GrantRecorded"}:
                said = msgspec.json.decode(state)
                points = said["points"] if "points" in said else said["amount"]
                place = said["user_id"], said["key"]
                buckets[place] = points, said["category"], said["source"]
    return buckets


def differing(collection: Buckets, events: Buckets) -> set[tuple[str, str]]:
    """The places where they differ; 0 points are as good as no bucket."""
    return {
        place
        for place in collection.keys() | events.keys()
        if collection.get(place) != events.get(place)
        and any(buckets.get(place, (0,))[0] for buckets in (collection, events))
    }
