"""Many threads and processes on one event store: what commits that are shared are worth."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count, islice
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier as Start
from pathlib import Path
from statistics import median, quantiles
from uuid import uuid4

from concurrency import at_once
from measuring import SPAWN, Report
from postgres_server import running_postgres
from projections.embedded import open_server
from scoring import Scoring
from support import mongo_env, sqlite_env
from write_side import grant_each, grants

ROUNDS = 5
SECONDS = 2.0
PROCESSES = 4
WANTED = {"SQLite": (5, 20), "PostgreSQL": (8, 60), "MongoDB": (5, 60)}
"""By store: how many times as much as one thread 32 of them record, and their p99 in ms."""


@contextmanager
def stores(folder: Path) -> Iterator[Mapping[str, dict[str, str]]]:
    """Settings of a new store of each kind, by name."""
    with ExitStack() as stack:
        uri = stack.enter_context(open_server(folder / "mongo")).uri
        postgres = stack.enter_context(running_postgres())
        yield {
            "SQLite": sqlite_env(folder / "events.sqlite"),
            "PostgreSQL": postgres.new_env(),
            "MongoDB": mongo_env(uri, "events"),
        }


def granting(app: Scoring, threads: int) -> list[float]:
    """Grant to 2,000 users in threads for a while; how long each call took, in seconds."""

    def grant(thread: int) -> list[float]:
        taken: list[float] = []
        run, moment = uuid4().hex[:8], datetime.now(UTC)
        ends_at = time.perf_counter() + SECONDS
        for number in count(thread * 61):  # not in step through the users
            began = time.perf_counter()
            if began >= ends_at:
                break
            # Not a Grant, which would be checked twice: there is one lock for all that is Python.
            user_id, grant_id = f"user-{number % 2000}", f"{run}-{number}"
            app.grant(user_id, grant_id, f"quiz:{number}", "learning", "quiz", 5, moment)
            taken.append(time.perf_counter() - began)
        return taken

    return [seconds for taken in at_once(threads, grant) for seconds in taken]


def many_threads(folder: Path, report: Report) -> None:
    """``grant()`` from 8 and 32 threads against one, in turns, and how long the slowest take."""
    with stores(folder) as envs:
        for name, env in envs.items():
            with Scoring(env) as app:
                warm_up(app)
                rates: dict[int, list[float]] = {1: [], 8: [], 32: []}
                slowest, confined = [], []
                for _ in range(ROUNDS):
                    for threads, measured in rates.items():
                        taken = granting(app, threads)
                        measured.append(len(taken) / SECONDS)
                        if threads == 32:
                            slowest.append(quantiles(taken, n=100)[98] * 1000)
                    with one_core():
                        confined.append(len(granting(app, 32)) / SECONDS)
            times, limit = WANTED[name]
            for threads, at_least in ((8, None), (32, times)):
                what = f"grant(), {threads} threads, {name}"
                report.compare(what, "/s", rates[threads], "1 thread", rates[1], at_least=at_least)
            what = f"grant(), 32 threads on one core, {name}"
            report.compare(what, "/s", confined, "1 thread", rates[1])
            what = f"p99 of grant(), 32 threads, {name}"
            report.compare(what, " ms", slowest, "limit", [limit] * ROUNDS, at_most=1)
            for threads, measured in rates.items():
                figures = {name: median(measured)}
                report.draw("grants one by one", "grants/s", "threads", threads, figures)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep threads that are started meanwhile on one core, where the interpreter lock is cheap."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def warm_up(app: Scoring) -> None:
    """Have all users in memory, and PostgreSQL's plans made."""
    app.grant_many(islice(grants(), 2000))
    grant_each(app, list(islice(grants(), 100)))


def many_processes(folder: Path, report: Report) -> None:
    """4 processes of 8 threads against one of 8, on one store."""
    with stores(folder) as envs:
        for name, env in envs.items():
            with Scoring(env) as app:
                warm_up(app)
            one, four = [], []
            for _ in range(ROUNDS):
                one.append(_granted_by(1, env) / SECONDS)
                four.append(_granted_by(PROCESSES, env) / SECONDS)
            what = f"grant(), {PROCESSES} processes of 8 threads, {name}"
            report.compare(what, "/s", four, "1 process", one, at_least=1)


def _granted_by(processes: int, env: dict[str, str]) -> int:
    start, counts = SPAWN.Barrier(processes), SPAWN.SimpleQueue()
    running = [SPAWN.Process(target=_grant, args=(env, start, counts)) for _ in range(processes)]
    for each in running:
        each.start()
    for each in running:
        each.join()
        assert each.exitcode == 0
    return sum(counts.get() for _ in running)


def _grant(env: dict[str, str], start: Start, counts: SimpleQueue[int]) -> None:
    with Scoring(env) as app:
        warm_up(app)
        start.wait(timeout=60)
        counts.put(len(granting(app, 8)))
