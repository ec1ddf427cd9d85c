"""How figures grow with the number of grants, and what a user would pick instead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from measuring import Report, in_turns, seconds
from projections import MongoScoreView, ProjectionWorker
from projections.embedded import open_server
from projections.mongo import connect
from read_side import batches, grant_documents, served
from scoring import Grant, Scoring
from support import mongo_env, sqlite_env
from write_side import fill, grant_each, grants, latencies, opened


def growth(folder: Path, report: Report) -> None:
    """Writing, loading and catching up with ten and a hundred times as many grants."""
    file = folder / "events.sqlite"
    recorded = 0
    ratios: dict[int, float] = {}
    with opened(file) as app, served(folder) as mongo:
        for size in report.sizes(1_000_000):
            alone = list(islice(grants("ada"), 500))
            last = list(islice(grants(), 5000))
            fill(app, size - recorded - len(alone) - len(last))
            recorded = size
            batched = seconds(partial(app.grant_many, last))
            written = {
                "grant()": 1 / median(latencies(app, alone)),
                "grant_many()": len(last) / batched,
            }
            report.draw("writing onto many", "grants/s", "grants", size, written)
            loaded = {"score_of()": 1000 * median(seconds(partial(_load, file)) for _ in range(9))}
            report.draw("opening and loading a user", "ms", "grants", size, loaded)
            caught_up, inserted = [], []
            for _ in range(max(1, min(5, 3_000_000 // size))):
                caught_up.append(seconds(ProjectionWorker(app, mongo.empty()).catch_up))
                inserted.append(_inserting(app, mongo.empty()))
            read = {
                "catch-up": size / median(caught_up),
                "insert_many": size / median(inserted),
            }
            report.draw("catching up", "grants/s", "grants", size, read)
            what = f"catch-up of {size:,} grants"
            report.rates(what, size, caught_up, "insert_many", inserted)
            ratios[size] = report.rows[-1].ratio
    for size, ratio in ratios.items():
        if size > 100_000:
            what = f"that ratio with {size:,} grants"
            report.compare(what, "", [ratio], "with 100,000", [ratios[100_000]], at_least=0.9)


def _load(file: Path) -> None:
    with opened(file) as app:
        assert app.score_of("user-7").grant_count


def _inserting(app: Scoring, view: MongoScoreView) -> float:
    """Seconds without those of reading the events."""
    insert = view.read_model.grants.insert_many
    return sum(
        seconds(partial(insert, documents))
        for documents in filter(None, map(grant_documents, batches(app, view)))
    )


class Plain:
    """What one would write without this project: a unique index, and sums in a transaction.

    It keeps no events: nothing can be projected anew, and nothing tells why a total is what it is.
    """

    def __init__(self, client: MongoClient[Any], name: str) -> None:
        self._client = client
        self._database = client[name]
        self._database.grants.create_index("grantId", unique=True)
        self._database.create_collection("totals")

    def grant(self, grant: Grant) -> bool:
        """Tell whether the grant is new."""

        def record(session: ClientSession) -> None:
            self._database.grants.insert_one(
                {
                    "grantId": grant.grant_id,
                    "userId": grant.user_id,
                    "key": grant.key,
                    "category": grant.category,
                    "source": grant.source,
                    "amount": grant.amount,
                    "grantedAt": grant.granted_at,
                },
                session=session,
            )
            self._database.totals.update_one(
                {"_id": grant.user_id},
                {
                    "$inc": {
                        "total": grant.amount,
                        f"categories.{grant.category}": grant.amount,
                        f"sources.{grant.source}": grant.amount,
                    }
                },
                upsert=True,
                session=session,
            )

        try:
            with self._client.start_session() as session:
                session.with_transaction(
                    record,
                    read_concern=ReadConcern("snapshot"),
                    write_concern=WriteConcern("majority"),
                    read_preference=ReadPreference.PRIMARY,
                )
        except DuplicateKeyError:
            return False
        return True


def alternatives(folder: Path, report: Report) -> None:
    """``grant()`` from 1, 8 and 32 threads, of 2,000 users, against plain pymongo."""
    with (
        open_server(folder / "mongo") as server,
        connect(server.uri) as client,
        Scoring(sqlite_env(folder / "events.sqlite")) as sqlite,
        Scoring(mongo_env(server.uri, "events")) as mongo,
    ):
        plain = Plain(client, "plain")
        reference = "plain pymongo"
        ours = {"Scoring, events in SQLite": sqlite, "Scoring, events in MongoDB": mongo}
        for threads in (1, 8, 32):
            size = report.scaled(250 * min(threads, 8))
            figures: dict[str, float] = {}
            for name, app in ours.items():
                taken, plainly = in_turns(
                    lambda: _from_threads(lambda grant: grant_each(app, [grant]), threads, size),  # noqa: B023
                    lambda: _from_threads(plain.grant, threads, size),  # noqa: B023
                    rounds=5,
                )
                what = f"grant() from {threads} threads, {name}"
                report.rates(what, size, taken, reference, plainly)
                figures |= {name: size / median(taken), reference: size / median(plainly)}
            report.draw("grants one by one", "grants/s", "threads", threads, figures)


def _from_threads(way: Callable[[Grant], object], threads: int, size: int) -> None:
    stream = islice(grants(), size)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(way, stream))
