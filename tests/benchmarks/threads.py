"""Many threads and processes on one event store: what commits that are shared are worth."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from threading import Barrier

from measuring import Report
from postgres_server import running_postgres
from projections.embedded import open_server
from scoring import Scoring
from write_side import grant_each, grants

ROUNDS = 5
SECONDS = 2.0
PROCESSES = 4
WANTED = {"SQLite": (5, 20), "PostgreSQL": (8, 60), "MongoDB": (5, None)}
"""By store: how many times as much as one thread 32 of them record, and their p99 in ms."""

_PROCESS = """
import json, sys
from scoring import Scoring
from threads import granting
with Scoring(json.loads(sys.argv[1])) as app:
    print("ready", flush=True)
    sys.stdin.readline()
    print(len(granting(app, 8)))
"""


@contextmanager
def stores(folder: Path) -> Iterator[Mapping[str, dict[str, str]]]:
    """Settings of a new store of each kind, by name."""
    with ExitStack() as stack:
        uri = stack.enter_context(open_server(folder / "mongo")).uri
        postgres = stack.enter_context(running_postgres())
        yield {
            "SQLite": {
                "PERSISTENCE_MODULE": "eventsourcing.sqlite",
                "SQLITE_DBNAME": str(folder / "events.sqlite"),
            },
            "PostgreSQL": postgres.new_env(),
            "MongoDB": {
                "PERSISTENCE_MODULE": "projections.mongo",
                "MONGO_URI": uri,
                "MONGO_DATABASE": "events",
            },
        }


def granting(app: Scoring, threads: int) -> list[float]:
    """Grant to 2,000 users in threads for a while; how long each call took, in seconds."""
    start = Barrier(threads)

    def grant(thread: int) -> list[float]:
        taken: list[float] = []
        some = islice(grants(), thread * 61, None)  # not in step through the users
        start.wait()
        ends_at = time.perf_counter() + SECONDS
        while (began := time.perf_counter()) < ends_at:
            grant_each(app, [next(some)])
            taken.append(time.perf_counter() - began)
        return taken

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(grant, thread) for thread in range(threads)]
        return [seconds for future in futures for seconds in future.result()]


def many_threads(folder: Path, report: Report) -> None:
    """``grant()`` from 8 and 32 threads against one, in turns, and how long the slowest take."""
    with stores(folder) as envs:
        for name, env in envs.items():
            with Scoring(env) as app:
                warm_up(app)
                rates: dict[int, list[float]] = {1: [], 8: [], 32: []}
                slowest = []
                for _ in range(ROUNDS):
                    for threads, measured in rates.items():
                        taken = granting(app, threads)
                        measured.append(len(taken) / SECONDS)
                        if threads == 32:
                            slowest.append(quantiles(taken, n=100)[98] * 1000)
            times, limit = WANTED[name]
            for threads, wanted in ((8, ""), (32, f"≥ {times}")):
                report.add(
                    f"grant(), {threads} threads, {name}",
                    measured=f"{median(rates[threads]):,.0f}/s",
                    reference=f"1 thread: {median(rates[1]):,.0f}/s",
                    ratios=[a / b for a, b in zip(rates[threads], rates[1], strict=True)],
                    wanted=wanted,
                )
            report.add(
                f"p99 of grant(), 32 threads, {name}",
                measured=f"{median(slowest):.1f} ms",
                reference="-" if limit is None else f"{limit} ms",
                ratios=[each / (limit or 1) for each in slowest],
                wanted="" if limit is None else "≤ 1",
            )


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
            report.add(
                f"grant(), {PROCESSES} processes of 8 threads, {name}",
                measured=f"{median(four):,.0f}/s",
                reference=f"1 process: {median(one):,.0f}/s",
                ratios=[a / b for a, b in zip(four, one, strict=True)],
                wanted="≥ 1",
            )


def _granted_by(processes: int, env: dict[str, str]) -> int:
    program = [sys.executable, "-c", _PROCESS, json.dumps(env)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    program,
                    cwd=Path(__file__).parent,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={"PYTHONPATH": str(Path(__file__).parents[1])},
                )
            )
            for _ in range(processes)
        ]
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        return sum(int(each.communicate("go\n")[0]) for each in running)
