"""MongoDB as the event store against the library's PostgreSQL, one server of each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Thread

from eventsourcing.utils import get_topic

from measuring import Report, in_turns
from postgres_server import running_postgres
from projections import MongoScoreView, ProjectionWorker
from projections.embedded import open_server
from projections.events.pages import read_page
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from read_side import fill, served
from replica_set import running_replica_set
from scoring import Scoring, UserScore
from scoring.identity import user_stream_id
from write_side import grant_each, grants, opened

EACH = 400
MANY = 20_000
ROUNDS = 5

_WRITER = """
import os, random, sys, time
from functools import partial
from itertools import islice
from scoring import Scoring
from write_side import grants
with Scoring() as app:
    for grant in islice(grants(), int(sys.argv[1])):
        receipt = app.grant(**grant.model_dump())
        print(receipt.position, time.time(), flush=True)
        time.sleep(random.uniform(0.02, 0.2))
"""


def mongo_env(uri: str, database: str) -> dict[str, str]:
    return {
        "PERSISTENCE_MODULE": "projections.mongo",
        "MONGO_URI": uri,
        "MONGO_DATABASE": database,
    }


@contextmanager
def both(folder: Path) -> Iterator[tuple[Scoring, Scoring, str]]:
    """An application on each, and the URI of the first."""
    with ExitStack() as stack:
        uri = stack.enter_context(open_server(folder / "mongo")).uri
        postgres = stack.enter_context(running_postgres())
        mine = stack.enter_context(Scoring(mongo_env(uri, "events")))
        theirs = stack.enter_context(Scoring(postgres.new_env(POSTGRES_POOL_SIZE="10")))
        yield mine, theirs, uri


def in_threads(threads: int, app: Scoring) -> None:
    some = list(islice(grants(), EACH))
    parts = [some[number::threads] for number in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: grant_each(app, part), parts))


def event_stores(folder: Path, report: Report) -> None:
    """Commands and reads on both, in turns."""

    def compare(
        what: str, work: Callable[[Scoring], object], size: int, wanted: str, rounds: int = ROUNDS
    ) -> None:
        a, b = in_turns(lambda: work(mine), lambda: work(theirs), rounds=rounds)
        report.add(
            f"{what}, MongoDB",
            measured=f"{size / median(a):,.0f}/s",
            reference=f"PostgreSQL: {size / median(b):,.0f}/s",
            ratios=[y / x for x, y in zip(a, b, strict=True)],
            wanted=wanted,
        )

    with both(folder) as (mine, theirs, _):
        for app in (mine, theirs):
            grant_each(app, list(islice(grants(), 100)))
        for threads, wanted in ((1, "≥ 0.6"), (8, "≥ 2")):
            compare(f"grant(), {threads} threads", partial(in_threads, threads), EACH, wanted)
        compare("grant_many", lambda app: app.grant_many(islice(grants(), MANY)), MANY, "≥ 1.2", 3)
        taken = list(islice(grants(), MANY))
        for app in (mine, theirs):
            app.grant_many(taken)
        compare("grant_many, all taken", lambda app: app.grant_many(taken), MANY, "≥ 1.0", 3)
        stop = min(app.recorder.max_notification_id() or 0 for app in (mine, theirs))
        topics = (get_topic(UserScore.GrantRecorded), get_topic(UserScore.BucketSet))

        def read(app: Scoring) -> None:
            after = 0
            while page := read_page(
                app.recorder, after=after, stop=stop, limit=2500, topics=topics
            ):
                after = page[-1].id

        compare("reading for the projection", read, stop // 2, "≥ 0.8")
        users = [f"user-{number}" for number in range(300)]

        def load(app: Scoring) -> None:
            for user in users:
                app.repository.get(user_stream_id(user))

        compare("loading a user", load, len(users), "≥ 0.5")


def catch_up_from_mongo(folder: Path, report: Report) -> None:
    """A catch-up whose events are in MongoDB against one whose are in SQLite."""
    with (
        opened(folder / "events.sqlite") as sqlite,
        served(folder) as empty,
        open_server(folder / "mongo") as server,
        Scoring(mongo_env(server.uri, "events")) as mongo,
    ):
        for app in (sqlite, mongo):
            fill(app, 100_000)
        mine, theirs = in_turns(
            lambda: ProjectionWorker(mongo, empty()).catch_up(),
            lambda: ProjectionWorker(sqlite, empty()).catch_up(),
            rounds=3,
        )
    report.add(
        "catch-up, events in MongoDB",
        measured=f"{100_000 / median(mine):,.0f}/s",
        reference=f"in SQLite: {100_000 / median(theirs):,.0f}/s",
        ratios=[b / a for a, b in zip(mine, theirs, strict=True)],
        wanted="≥ 0.8",
    )


def waits_on_mongo(folder: Path, report: Report) -> None:
    """``wait()`` for what another process records, on one node and on three."""
    with open_server(folder / "mongo") as server:
        _waits(report, "one node", server.uri, {50: 15, 99: 50})
    with running_replica_set(folder / "three") as replicas:
        _waits(report, "three nodes", replicas.uri, {50: 25})


def _waits(report: Report, name: str, uri: str, wanted: dict[int, int]) -> None:
    env = mongo_env(uri, "waits")
    with Scoring(env) as app, connect(uri) as client:
        read_model = ReadModel(client, "waits")
        read_model.prepare()
        view = MongoScoreView(read_model)
        stop = Event()
        thread = Thread(target=ProjectionWorker(app, view).follow, args=(stop,))
        thread.start()
        waits = []
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, "300"],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
            env={**os.environ, **env},
        ) as writer:
            for line in writer.stdout or ():
                position, recorded = line.split()
                view.wait("Scoring", int(position), timeout=30)
                waits.append(time.time() - float(recorded))
        stop.set()
        thread.join()
        view.close()
    percentiles = quantiles(waits, n=100)
    for percentile, limit in wanted.items():
        taken = percentiles[percentile - 1] * 1000
        report.add(
            f"wait() p{percentile}, events in MongoDB, {name}",
            measured=f"{taken:.1f} ms",
            reference=f"{limit} ms",
            ratios=[taken / limit],
            wanted="≤ 1",
        )
