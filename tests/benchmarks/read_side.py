"""The read side: catching up against raw inserts and the library's runner, waiting, and memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from eventsourcing.projection import ProjectionRunner
from pymongo import UpdateOne

from measuring import Report, in_turns, seconds
from postgres_server import running_postgres
from projections import MongoScoreView, ProjectionWorker, ScoreGrantsProjection
from projections.embedded import open_server
from projections.events.anchor import Tracked
from projections.events.anchored_store import AnchoredStore
from projections.events.model import GrantEvent
from projections.mongo import connect
from projections.mongo.batches import Batch, grant_document, user_changes
from projections.mongo.read_model import ReadModel
from projections.worker.batch_reader import BatchLimits, BatchReader
from projections.worker.worker import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_SIZE
from scoring import Scoring
from write_side import grants, opened

MANY = 200_000
ROUNDS = 5

_MEMORY = """
import sys
from pathlib import Path
from measuring import peak_memory_kb
from projections import MongoScoreView, ProjectionWorker
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from write_side import opened
with opened(Path(sys.argv[1])) as app, connect(sys.argv[2]) as client:
    view = MongoScoreView(ReadModel(client, sys.argv[3]))
    view.read_model.prepare()
    ProjectionWorker(app, view).catch_up()
    view.close()
print(peak_memory_kb())
"""

_WRITER = """
import random, sys, time
from itertools import islice
from pathlib import Path
from write_side import grants, opened
with opened(Path(sys.argv[1])) as app:
    for grant in islice(grants(), int(sys.argv[2])):
        position = app.grant(**grant.model_dump()).position
        print(position, time.time(), flush=True)
        time.sleep(random.uniform(0.02, 0.5))
"""


@contextmanager
def served(folder: Path) -> Iterator[Callable[[], MongoScoreView]]:
    """A server, and how to get a view on an empty database of it."""
    views: list[MongoScoreView] = []
    with open_server(folder / "mongo") as server, connect(server.uri) as client:

        def empty() -> MongoScoreView:
            while views:
                old = views.pop()
                old.close()
                client.drop_database(old.read_model.database.name)
            view = MongoScoreView(ReadModel(client, f"b{uuid4().hex[:8]}"))
            view.read_model.prepare()
            views.append(view)
            return view

        yield empty
        while views:
            views.pop().close()


def fill(app: Scoring, number: int, *, users: int = 2000) -> None:
    stream = grants(users=users)
    for _ in range(number // 10_000):
        app.grant_many(islice(stream, 10_000))


def batches(app: Scoring, view: MongoScoreView) -> Iterator[Batch]:
    reader = BatchReader(
        app,
        AnchoredStore(app, view.read_model),
        BatchLimits(DEFAULT_BATCH_SIZE, DEFAULT_BATCH_BYTES),
    )
    yield from reader.batches(Tracked(), app.recorder.max_notification_id() or 0)


def grant_documents(app: Scoring, view: MongoScoreView) -> list[dict[str, Any]]:
    return [
        grant_document(event)
        for batch in batches(app, view)
        for event in batch.events
        if isinstance(event, GrantEvent)
    ]


def catch_up(folder: Path, report: Report) -> None:
    """200,000 grants of 2,000 users, against inserting the finished documents."""
    with opened(folder / "events.sqlite") as app, served(folder) as empty:
        fill(app, MANY)
        view = empty()
        documents = grant_documents(app, view)
        increments = [
            [
                UpdateOne({"_id": user_id}, change.update(), upsert=True)
                for user_id, change in user_changes(batch.events).items()
            ]
            for batch in batches(app, view)
            if batch.events  # the last one moves over a claim only
        ]

        def raw() -> None:
            view.read_model.grants.insert_many(documents)

        def raw_with_sums() -> None:
            for number, updates in enumerate(increments):
                start = number * DEFAULT_BATCH_SIZE
                view.read_model.grants.insert_many(documents[start : start + DEFAULT_BATCH_SIZE])
                view.read_model.users.bulk_write(updates, ordered=False)

        def ours() -> None:
            ProjectionWorker(app, view).catch_up()

        mine: list[float] = []
        theirs: dict[str, list[float]] = {"insert_many": [], "and $inc": []}
        for _ in range(ROUNDS):
            for times, work in (
                (theirs["insert_many"], raw),
                (mine, ours),
                (theirs["and $inc"], raw_with_sums),
            ):
                view = empty()
                times.append(seconds(work))
    for name, wanted in (("insert_many", "≥ 0.5"), ("and $inc", "≥ 0.8")):
        report.add(
            f"catch-up of {MANY:,} grants",
            measured=f"{MANY / median(mine):,.0f}/s",
            reference=f"{name}: {MANY / median(theirs[name]):,.0f}/s",
            ratios=[b / a for a, b in zip(mine, theirs[name], strict=True)],
            wanted=wanted,
        )


def catch_up_of_users(folder: Path, report: Report) -> None:
    """400,000 grants of few and of many users, against inserting the finished documents.

    The more users a batch touches the more sums are to be written.
    """
    number = 2 * MANY
    for users, wanted in ((2000, "≥ 0.65"), (8000, "≥ 0.65"), (100_000, "≥ 0.4")):
        (folder / str(users)).mkdir()
        with (
            opened(folder / str(users) / "events.sqlite") as app,
            served(folder / str(users)) as empty,
        ):
            fill(app, number, users=users)
            documents = grant_documents(app, empty())
            mine: list[float] = []
            theirs: list[float] = []
            for _ in range(3):
                collection = empty().read_model.grants
                theirs.append(seconds(lambda: collection.insert_many(documents)))  # noqa: B023
                worker = ProjectionWorker(app, empty())
                mine.append(seconds(worker.catch_up))
        report.add(
            f"catch-up of {number:,} grants of {users:,} users",
            measured=f"{number / median(mine):,.0f}/s",
            reference=f"insert_many: {number / median(theirs):,.0f}/s",
            ratios=[b / a for a, b in zip(mine, theirs, strict=True)],
            wanted=wanted,
        )
        report.draw(
            f"catching up with {number:,} grants",
            unit="grants/s",
            over="users",
            size=users,
            catch_up=number / median(mine),
            insert_many_of_the_same_documents=number / median(theirs),
        )


def batch_sizes(folder: Path, report: Report) -> None:
    """The same with transactions of other sizes than the default."""
    sizes = (1000, 5000, 10_000, 20_000)
    with opened(folder / "events.sqlite") as app, served(folder) as empty:
        fill(app, MANY)
        times: dict[int, list[float]] = {}
        for _ in range(3):
            for size in (DEFAULT_BATCH_SIZE, *sizes):
                worker = ProjectionWorker(app, empty(), batch_size=size)
                times.setdefault(size, []).append(seconds(worker.catch_up))
    for size in sizes:
        report.add(
            f"catch-up, {size:,} grants a transaction",
            measured=f"{MANY / median(times[size]):,.0f}/s",
            reference=f"{DEFAULT_BATCH_SIZE:,}: {MANY / median(times[DEFAULT_BATCH_SIZE]):,.0f}/s",
            ratios=[b / a for a, b in zip(times[size], times[DEFAULT_BATCH_SIZE], strict=True)],
            wanted="≤ 1",
        )


def against_the_runner(folder: Path, report: Report) -> None:
    """The library's runner, event by event, on the same view; both from PostgreSQL."""
    many, few = 100_000, 1000
    with running_postgres() as postgres, served(folder) as empty:
        env = postgres.new_env(POSTGRES_POOL_SIZE="5")
        with Scoring(env) as app:
            fill(app, many)

            def ours() -> None:
                ProjectionWorker(app, empty()).catch_up()

            def theirs() -> None:
                view = empty()
                with ProjectionRunner(
                    application_class=Scoring,
                    projection_class=ScoreGrantsProjection,
                    view_class=MongoScoreView,
                    env={
                        **env,
                        "SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo",
                        "MONGO_URI": _uri(view),
                        "MONGO_DATABASE": view.read_model.database.name,
                    },
                ) as runner:
                    page = app.recorder.select_notifications(
                        start=1, limit=few, topics=ScoreGrantsProjection.topics
                    )
                    runner.wait(page[-1].id, timeout=600)
                    runner.view.close()

            mine, per_event = in_turns(ours, theirs, rounds=3)
    report.add(
        "catch-up from PostgreSQL",
        measured=f"{many / median(mine):,.0f}/s",
        reference=f"ProjectionRunner: {few / median(per_event):,.0f}/s",
        ratios=[(b / few) / (a / many) for a, b in zip(mine, per_event, strict=True)],
        wanted="≥ 30",
    )


def _uri(view: MongoScoreView) -> str:
    client = view.read_model.client
    host, port = client.address or ("", 0)
    known = client.options.pool_options._credentials
    user = "" if known is None else f"{known.username}:{known.password}@"
    return f"mongodb://{user}{host}:{port}/?directConnection=true"


def waiting(folder: Path, report: Report) -> None:
    """From the receipt until ``wait`` returns, one grant at a time, the worker live."""
    calls = 300
    with opened(folder / "events.sqlite") as app, served(folder) as empty:
        view = empty()
        stop = Event()
        thread = Thread(target=ProjectionWorker(app, view).follow, args=(stop,))
        thread.start()
        own = []
        for grant in islice(grants(), calls):
            receipt = app.grant(**grant.model_dump())
            own.append(seconds(lambda: view.wait("Scoring", receipt.position, timeout=30)))  # noqa: B023
            time.sleep(random.uniform(0.02, 0.2))  # busy and quiet times
        others = []
        command = [sys.executable, "-c", _WRITER, str(folder / "events.sqlite"), str(calls)]
        here = str(Path(__file__).parent)
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=here) as writer:
            for line in writer.stdout or ():
                position, recorded = line.split()
                view.wait("Scoring", int(position), timeout=30)
                others.append(time.time() - float(recorded))
        stop.set()
        thread.join()
    for name, waits in (("same process", own), ("another process", others)):
        percentiles = quantiles(waits, n=100)
        for percentile, wanted in ((50, 20), (99, 100)):
            taken = percentiles[percentile - 1] * 1000
            report.add(
                f"wait() p{percentile}, recorded by {name}",
                measured=f"{taken:.1f} ms",
                reference=f"{wanted} ms",
                ratios=[taken / wanted],
                wanted="≤ 1",
            )


def memory(folder: Path, report: Report) -> None:
    """Peak memory of a process that catches up with many grants against few."""
    few, many = 100_000, 1_000_000
    peaks = []
    with served(folder) as empty:
        uri = _uri(empty())
        for number in (few, many):
            file = folder / f"{number}.sqlite"
            with opened(file) as app:
                fill(app, number)
            command = [sys.executable, "-c", _MEMORY, str(file), uri, f"m{number}"]
            here = str(Path(__file__).parent)
            env = {**os.environ}
            done = subprocess.run(command, check=True, capture_output=True, cwd=here, env=env)
            peaks.append(float(done.stdout) / 1024)
    report.add(
        "peak memory of a catch-up",
        measured=f"{many:,} grants: {peaks[1]:.0f} MB",
        reference=f"{few:,} grants: {peaks[0]:.0f} MB",
        ratios=[peaks[1] / peaks[0]],
        wanted="≤ 1.2",
    )


def idling(folder: Path, report: Report) -> None:
    """CPU time of a process that follows a SQLite store in which nothing happens."""
    with opened(folder / "events.sqlite") as app, served(folder) as empty:
        fill(app, 10_000)
        worker = ProjectionWorker(app, empty())
        worker.catch_up()
        stop = Event()
        with closing(app):
            thread = Thread(target=worker.follow, args=(stop,))
            thread.start()
            time.sleep(1)
            used, began = time.process_time(), time.monotonic()
            time.sleep(10)
            share = (time.process_time() - used) / (time.monotonic() - began)
            stop.set()
            thread.join()
    report.add(
        "idle worker, SQLite",
        measured=f"{share:.2%} of a core",
        reference="1%",
        ratios=[share / 0.01],
        wanted="≤ 1",
    )
