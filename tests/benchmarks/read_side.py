"""The read side: catching up against raw inserts and the library's runner, waiting, and memory."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

from eventsourcing.projection import ProjectionRunner
from pymongo import MongoClient, UpdateOne

from concurrency import meanwhile
from measuring import (
    SPAWN,
    Report,
    in_new_process,
    in_turns,
    peak_memory,
    seconds,
)
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
from projections.worker.rebuild import Rebuild
from projections.worker.worker import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_SIZE
from scoring import Scoring
from support import sqlite_env, worker_maker
from write_side import fill, grants, opened

WAITS = 300


class Served:
    """A server, and one view at a time, each on an empty database."""

    def __init__(self, uri: str, client: MongoClient[Any]) -> None:
        self.uri = uri
        self._client = client
        self._views: list[MongoScoreView] = []

    def empty(self) -> MongoScoreView:
        self.close()
        view = MongoScoreView(ReadModel(self._client, f"b{uuid4().hex[:8]}"))
        view.read_model.prepare()
        self._views.append(view)
        return view

    def close(self) -> None:
        while self._views:
            view = self._views.pop()
            view.close()
            self._client.drop_database(view.read_model.database.name)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    with (
        open_server(folder / "mongo") as server,
        connect(server.uri) as client,
        closing(Served(server.uri, client)) as mongo,
    ):
        yield mongo


def batches(app: Scoring, view: MongoScoreView) -> Iterator[Batch]:
    reader = BatchReader(
        app,
        AnchoredStore(app, view.read_model),
        BatchLimits(DEFAULT_BATCH_SIZE, DEFAULT_BATCH_BYTES),
    )
    yield from reader.batches(Tracked(), app.recorder.max_notification_id() or 0)


def grant_documents(batch: Batch) -> list[dict[str, Any]]:
    return [grant_document(event) for event in batch.events if isinstance(event, GrantEvent)]


def increments(batch: Batch) -> list[UpdateOne]:
    return [
        UpdateOne({"_id": user_id}, change.update(), upsert=True)
        for user_id, change in user_changes(batch.events).items()
    ]


def catch_up(folder: Path, report: Report) -> None:
    """Grants of few and of many users, against inserting the finished documents.

    The more users a batch touches the more sums are to be written. A rebuild does the same work
    beside an empty read model, and makes most indexes at the end.
    """
    many = report.scaled(400_000)
    for users, at_least in ((2000, 0.85), (8000, 0.65), (100_000, 0.4)):
        here = folder / str(users)
        here.mkdir()
        with opened(here / "events.sqlite") as app, served(here) as mongo:
            fill(app, many, users=users)
            # The last one moves over a claim only.
            prepared = [
                (grant_documents(batch), increments(batch))
                for batch in batches(app, mongo.empty())
                if batch.events
            ]
            mine, theirs, with_sums, rebuilt = [], [], [], []
            for _ in range(3):
                theirs.append(seconds(partial(_insert, prepared, mongo.empty().read_model)))
                mine.append(seconds(ProjectionWorker(app, mongo.empty()).catch_up))
                empty = mongo.empty().read_model
                with_sums.append(seconds(partial(_insert, prepared, empty, sums=True)))
                rebuilt.append(
                    seconds(
                        Rebuild(
                            app, mongo.empty().read_model, worker_maker(app, DEFAULT_BATCH_SIZE)
                        ).run
                    )
                )
        what = f"catch-up of {many:,} grants of {users:,} users"
        report.rates(what, many, mine, "insert_many", theirs, at_least=at_least)
        report.rates(what, many, mine, "insert_many and $inc", with_sums, at_least=0.8)
        what = f"rebuild with {many:,} grants of {users:,} users"
        report.rates(what, many, rebuilt, "insert_many", theirs, at_least=at_least)
        figures = {
            "catch-up": many / median(mine),
            "rebuild": many / median(rebuilt),
            "insert_many": many / median(theirs),
            "insert_many and $inc": many / median(with_sums),
        }
        report.draw(f"catching up with {many:,} grants", "grants/s", "users", users, figures)


def _insert(
    prepared: list[tuple[list[dict[str, Any]], list[UpdateOne]]],
    model: ReadModel,
    *,
    sums: bool = False,
) -> None:
    for documents, updates in prepared:
        model.grants.insert_many(documents)
        if sums:
            model.users.bulk_write(updates, ordered=False)


def batch_sizes(folder: Path, report: Report) -> None:
    """The same with transactions of other sizes than the default."""
    many = report.scaled(200_000)
    sizes = (1000, 5000, 10_000, 20_000)
    times: dict[int, list[float]] = {size: [] for size in (DEFAULT_BATCH_SIZE, *sizes)}
    with opened(folder / "events.sqlite") as app, served(folder) as mongo:
        fill(app, many)
        for _ in range(3):
            for size, taken in times.items():
                worker = ProjectionWorker(app, mongo.empty(), batch_size=size)
                taken.append(seconds(worker.catch_up))
    for size in sizes:
        what = f"catch-up, {size:,} grants a transaction"
        default = times[DEFAULT_BATCH_SIZE]
        report.rates(what, many, times[size], f"{DEFAULT_BATCH_SIZE:,}", default)


def against_the_runner(folder: Path, report: Report) -> None:
    """The library's runner, event by event, on the same view; both from PostgreSQL."""
    many, few = report.scaled(100_000), report.scaled(1000)
    with running_postgres() as postgres, served(folder) as mongo:
        env = postgres.new_env(POSTGRES_POOL_SIZE="5")
        with Scoring(env) as app:
            fill(app, many)
            page = app.recorder.select_notifications(
                start=1, limit=few, topics=ScoreGrantsProjection.topics
            )

            def ours() -> None:
                ProjectionWorker(app, mongo.empty()).catch_up()

            def theirs() -> None:
                with ProjectionRunner(
                    application_class=Scoring,
                    projection_class=ScoreGrantsProjection,
                    view_class=MongoScoreView,
                    env={
                        **env,
                        "SCOREGRANTSPROJECTION_PERSISTENCE_MODULE": "projections.mongo",
                        "MONGO_URI": mongo.uri,
                        "MONGO_DATABASE": mongo.empty().read_model.database.name,
                    },
                ) as runner:
                    runner.wait(page[-1].id, timeout=600)
                    runner.view.close()

            mine, per_event = in_turns(ours, theirs, rounds=3)
    # What each makes of an event.
    mine, per_event = ([each / n for each in some] for n, some in ((many, mine), (few, per_event)))
    report.rates("catch-up from PostgreSQL", 1, mine, "ProjectionRunner", per_event, at_least=30)


def waiting(folder: Path, report: Report) -> None:
    """From the receipt until ``wait`` returns, one grant at a time, the worker live."""
    env = sqlite_env(folder / "events.sqlite")
    with Scoring(env) as app, served(folder) as mongo:
        view = mongo.empty()
        with meanwhile(ProjectionWorker(app, view).follow):
            own = []
            for grant in islice(grants(), WAITS):
                receipt = app.grant(**grant.model_dump())
                own.append(seconds(lambda: view.wait("Scoring", receipt.position, timeout=30)))  # noqa: B023
                time.sleep(random.uniform(0.02, 0.2))  # busy and quiet times
            others = waits_for_another_process(view, env)
    for recorder, waits in (("this process", own), ("another process", others)):
        add_percentiles(report, f"recorded by {recorder}", waits, {50: 20, 99: 100})


def waits_for_another_process(view: MongoScoreView, env: dict[str, str]) -> list[float]:
    """Seconds from what another process is told until the view has it."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_record, args=(sender, env))
    process.start()
    sender.close()
    waits = []
    for _ in range(WAITS):
        position, recorded = receiver.recv()
        view.wait("Scoring", position, timeout=30)
        waits.append(time.time() - recorded)
    process.join()
    return waits


def _record(sender: Connection, env: dict[str, str]) -> None:
    with Scoring(env) as app:
        for grant in islice(grants(), WAITS):
            sender.send((app.grant(**grant.model_dump()).position, time.time()))
            time.sleep(random.uniform(0.02, 0.2))


def add_percentiles(report: Report, name: str, waits: list[float], limits: dict[int, int]) -> None:
    percentiles = quantiles(waits, n=100)
    for percentile, limit in limits.items():
        taken = percentiles[percentile - 1] * 1000
        what = f"wait() p{percentile}, {name}"
        report.compare(what, " ms", [taken], "limit", [limit], at_most=1)


def memory(folder: Path, report: Report) -> None:
    """Peak memory of a process that catches up with many grants against few."""
    peaks = {}
    with served(folder) as mongo:
        for size in (report.scaled(100_000), report.scaled(1_000_000)):
            file = folder / f"{size}.sqlite"
            with opened(file) as app:
                fill(app, size)
            peaks[size] = in_new_process(_peak, mongo.uri, file)
    report.peaks("catching up with grants", peaks)


def _peak(uri: str, file: Path) -> float:
    with (
        opened(file) as app,
        connect(uri) as client,
        closing(MongoScoreView(ReadModel(client, f"m{file.stem}"))) as view,
    ):
        view.read_model.prepare()
        ProjectionWorker(app, view).catch_up()
    return peak_memory()


def idling(folder: Path, report: Report) -> None:
    """CPU time of a process that follows a SQLite store in which nothing happens."""
    with opened(folder / "events.sqlite") as app, served(folder) as mongo:
        fill(app, 10_000)
        view = mongo.empty()
        ProjectionWorker(app, view).catch_up()
        with meanwhile(ProjectionWorker(app, view).follow):
            time.sleep(1)
            used, began = time.process_time(), time.monotonic()
            time.sleep(10)
            share = (time.process_time() - used) / (time.monotonic() - began)
    report.compare("idle worker, SQLite", "% of a core", [share * 100], "limit", [1], at_most=1)
