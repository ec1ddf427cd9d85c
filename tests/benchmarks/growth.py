"""How figures grow with the number of grants, and what a user would pick instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from event_stores import mongo_env
from measuring import Report, in_turns, seconds
from projections import MongoScoreView, ProjectionWorker, ScoreLedger
from projections.embedded import open_server
from projections.events.model import GrantEvent
from projections.mongo import connect
from projections.mongo.batches import grant_document
from read_side import batches, fill, served
from scoring import Grant, Scoring
from support import sqlite_env
from write_side import grant_each, grants, latencies, opened

SIZES = (10_000, 100_000, 1_000_000)
SINGLES = 500


def growth(folder: Path, report: Report) -> None:
    """Writing, catching up and verifying with ten and a hundred times as many grants."""
    file = folder / "events.sqlite"
    with opened(file) as app, served(folder) as empty:
        recorded = 0
        for size in SIZES:
            fill(app, size - recorded - 20_000 if size > SIZES[0] else 0)
            last = list(islice(grants(), 10_000 if size == SIZES[0] else 20_000))
            batched = seconds(lambda: app.grant_many(last))  # noqa: B023
            recorded = size
            single = median(latencies(app, list(islice(grants("ada"), SINGLES))))
            cold = median(seconds(lambda: _load(file)) for _ in range(9))
            report.draw(
                "writing",
                unit="grants/s",
                over="grants recorded before",
                size=size,
                grant=1 / single,
                grant_many=len(last) / batched,
            )
            report.draw(
                "loading a user with all grants known",
                unit="ms",
                over="grants recorded before",
                size=size,
                first_score_of_in_a_process=cold * 1000,
            )
            view = empty()
            caught_up = seconds(ProjectionWorker(app, view).catch_up)
            verified = seconds(lambda: _verify(view, file))  # noqa: B023
            inserted = _raw_inserts(app, empty())
            report.draw(
                "reading",
                unit="grants/s",
                over="grants",
                size=size,
                catch_up=size / caught_up,
                verify=size / verified,
                insert_many_of_the_same_documents=size / inserted,
            )
            report.add(
                f"catch-up of {size:,} grants",
                measured=f"{size / caught_up:,.0f}/s",
                reference=f"insert_many of the same documents: {size / inserted:,.0f}/s",
                ratios=[inserted / caught_up],
                wanted="≥ 0.5, and the same at every size",
            )


def _load(file: Path) -> None:
    with opened(file) as app:
        assert app.score_of("user-7").grant_count


def _verify(view: MongoScoreView, file: Path) -> None:
    with ScoreLedger.open(
        mongo=view.read_model.database, event_store=sqlite_env(file), worker=False
    ) as ledger:
        assert ledger.verify().ok


def _raw_inserts(app: Scoring, view: MongoScoreView) -> float:
    taken = 0.0
    for batch in batches(app, view):
        documents = [grant_document(each) for each in batch.events if isinstance(each, GrantEvent)]
        if documents:
            taken += seconds(lambda: view.read_model.grants.insert_many(documents))  # noqa: B023
    return taken


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
        ways: dict[str, Callable[[Grant], object]] = {
            "plain pymongo": plain.grant,
            "Scoring, events in SQLite": lambda grant: grant_each(sqlite, [grant]),
            "Scoring, events in MongoDB": lambda grant: grant_each(mongo, [grant]),
        }
        reference, *ours = ways
        for threads in (1, 8, 32):
            size = 250 * min(threads, 8)
            taken = {}
            for name in ours:
                taken[name], taken[reference] = in_turns(
                    lambda: _from_threads(ways[name], threads, size),  # noqa: B023
                    lambda: _from_threads(ways[reference], threads, size),  # noqa: B023
                    rounds=5,
                )
                report.add(
                    f"{name}: grant(), threads: {threads}",
                    measured=f"{size / median(taken[name]):,.0f}/s",
                    reference=f"{reference}: {size / median(taken[reference]):,.0f}/s",
                    ratios=[b / a for a, b in zip(taken[name], taken[reference], strict=True)],
                    wanted="shown",
                )
            report.draw(
                "grants one by one",
                unit="grants/s",
                over="threads",
                size=threads,
                **{name.replace(" ", "_"): size / median(times) for name, times in taken.items()},
            )


def _from_threads(way: Callable[[Grant], object], threads: int, size: int) -> None:
    stream: Iterator[Grant] = islice(grants(), size)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(way, stream))
