"""The write side: flat cost, rates against the library's own recorder, and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from uuid import uuid4

from eventsourcing.persistence import StoredEvent

from measuring import Report, in_turns, seconds
from projections.ports import UserScoreRepository
from scoring import Contribution, Grant, Scoring

MANY = 100_000
FEW = 1_000
BATCH = 1_000

_COLD = """
import sys, time
from scoring import Scoring
with Scoring({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": sys.argv[1]}) as app:
    started = time.perf_counter()
    assert app.score_of("ada").grant_count == int(sys.argv[2])
    print(time.perf_counter() - started)
"""

_MEMORY = """
import sys
from itertools import islice
from pathlib import Path
from measuring import peak_memory_kb
from write_side import grants, opened
with opened(Path(sys.argv[1])) as app:
    stream = grants()
    for _ in range(int(sys.argv[2]) // 10_000):
        app.grant_many(islice(stream, 10_000))
print(peak_memory_kb())
"""


def opened(file: Path) -> Scoring:
    return Scoring({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(file)})


def grants(user_id: str | None = None, users: int = 2000) -> Iterator[Grant]:
    """Endless grants, of one user or of many in turn."""
    run = uuid4().hex[:8]
    moment = datetime.now(UTC)
    for number in count():
        yield Grant(
            user_id=user_id or f"user-{number % users}",
            grant_id=f"{run}-{number}",
            key=f"quiz:history:{number}",
            category="learning",
            source="quiz",
            amount=number % 50 + 1,
            granted_at=moment,
        )


def grant_each(app: UserScoreRepository, some: list[Grant]) -> None:
    for grant in some:
        app.grant(
            grant.user_id,
            grant.grant_id,
            grant.key,
            grant.category,
            grant.source,
            grant.amount,
            grant.granted_at,
        )


def latencies(app: Scoring, some: list[Grant]) -> list[float]:
    result = []
    for grant in some:
        started = time.perf_counter()
        grant_each(app, [grant])
        result.append(time.perf_counter() - started)
    return result


def flat_cost(folder: Path, report: Report) -> None:
    """The last 1,000 of 100,000 grants of one user against the second 1,000, in turns."""
    young, old = grants("ada"), grants("ada")
    with opened(folder / "young.sqlite") as few, opened(folder / "old.sqlite") as many:
        grant_each(few, list(islice(young, FEW)))
        many.grant_many(islice(old, MANY - 10 * BATCH))
        grant_each(many, list(islice(old, 10 * BATCH - FEW)))
        late, early = [], []
        for _ in range(10):
            early.append(median(latencies(few, list(islice(young, FEW // 10)))))
            late.append(median(latencies(many, list(islice(old, FEW // 10)))))
    report.add(
        "latency of grant(), one user",
        measured=f"call 100,000: {median(late) * 1e6:.0f} µs",
        reference=f"call 2,000: {median(early) * 1e6:.0f} µs",
        ratios=[a / b for a, b in zip(late, early, strict=True)],
        wanted="≤ 1.2",
    )


def cold_load(folder: Path, report: Report) -> None:
    """``score_of`` in a new process: a user with 100,000 grants against one with 2,000."""
    sizes = {folder / "young.sqlite": 2 * FEW + 50, folder / "old.sqlite": MANY + 50}
    for file, size in sizes.items():
        with opened(file) as app:
            app.grant_many(islice(grants("ada"), size))

    def cold(file: Path) -> float:
        command = [sys.executable, "-c", _COLD, str(file), str(sizes[file])]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)

    young: list[float] = []
    old: list[float] = []
    for _ in range(11):
        young.append(cold(folder / "young.sqlite"))
        old.append(cold(folder / "old.sqlite"))
    report.add(
        "cold load of one user",
        measured=f"100,000 grants: {median(old) * 1e3:.2f} ms",
        reference=f"2,000 grants: {median(young) * 1e3:.2f} ms",
        ratios=[a / b for a, b in zip(old, young, strict=True)],
        wanted="≤ 1.2",
    )


def same_rows(app: Scoring, number: int) -> list[StoredEvent]:
    """The rows of the newest grants and their claims, each the first of a stream of its own."""
    newest = app.recorder.max_notification_id() or 0
    rows = app.recorder.select_notifications(start=newest - 2 * number + 1, limit=2 * number)
    return [StoredEvent(uuid4(), 1, row.topic, row.state) for row in rows]


def single_grants(folder: Path, report: Report) -> None:
    """``grant()`` against the recorder inserting the same two rows for a commit."""
    stream = grants("ada")
    size, rounds = 500, 9
    with opened(folder / "ours.sqlite") as ours, opened(folder / "bare.sqlite") as bare:
        grant_each(ours, list(islice(stream, 200)))
        chunks = iter([list(islice(stream, size)) for _ in range(rounds)])
        pairs = iter(
            [[same_rows(ours, 1) for _ in range(size)] for _ in range(rounds)],
        )

        def insert_each() -> None:
            for rows in next(pairs):
                bare.recorder.insert_events(rows)

        mine, theirs = in_turns(lambda: grant_each(ours, next(chunks)), insert_each, rounds=rounds)
    report.add(
        "rate of grant(), SQLite",
        measured=f"{size / median(mine):,.0f}/s",
        reference=f"recorder, same 2 rows: {size / median(theirs):,.0f}/s",
        ratios=[b / a for a, b in zip(mine, theirs, strict=True)],
        wanted="≥ 0.75",
    )


def batched_grants(folder: Path, report: Report) -> None:
    """``grant_many()`` against the recorder inserting the same rows in batches of 1,000 grants."""
    stream = grants()
    size, rounds = 10 * BATCH, 7
    with opened(folder / "ours.sqlite") as ours, opened(folder / "bare.sqlite") as bare:
        ours.grant_many(islice(stream, 2 * size))
        for _ in range(2 * size // BATCH):  # so that both files have grown as much
            bare.recorder.insert_events(same_rows(ours, BATCH))
        chunks = iter([list(islice(stream, size)) for _ in range(rounds)])
        batches = iter(
            [[same_rows(ours, BATCH) for _ in range(size // BATCH)] for _ in range(rounds)]
        )

        def insert_batches() -> None:
            for rows in next(batches):
                bare.recorder.insert_events(rows)

        mine, theirs = in_turns(
            lambda: ours.grant_many(next(chunks)), insert_batches, rounds=rounds
        )
    report.add(
        "rate of grant_many(), SQLite",
        measured=f"{size / median(mine):,.0f}/s",
        reference=f"recorder, same rows: {size / median(theirs):,.0f}/s",
        ratios=[b / a for a, b in zip(mine, theirs, strict=True)],
        wanted="≥ 0.6",
    )


def taken_ids(folder: Path, report: Report) -> None:
    """``grant_many()`` of 20,000 ids that are taken against 20,000 new ones, on SQLite."""
    size, rounds = 20 * BATCH, 3
    stream = grants()
    with opened(folder / "ours.sqlite") as ours:
        ours.grant_many(islice(stream, size))
        fresh = [list(islice(stream, size)) for _ in range(rounds + 1)]
        ours.grant_many(fresh[0])
        new, again = iter(fresh[1:]), iter(fresh)
        taken, first = in_turns(
            lambda: ours.grant_many(next(again)),
            lambda: ours.grant_many(next(new)),
            rounds=rounds,
        )
    report.add(
        "rate of grant_many() of taken ids, SQLite",
        measured=f"{size / median(taken):,.0f}/s",
        reference=f"new ids: {size / median(first):,.0f}/s",
        ratios=[b / a for a, b in zip(taken, first, strict=True)],
        wanted="≥ 1.0",
    )


def batched_contributions(folder: Path, report: Report) -> None:
    """``contribute_many()`` of 100,000 buckets, and of the same again, against ``grant_many()``."""
    stream = grants()
    size, rounds = 100 * BATCH, 3
    contributed, granted, again = [], [], []
    for number in range(rounds):
        some = list(islice(stream, size))
        buckets = [
            Contribution(
                user_id=grant.user_id,
                key=f"award:badge:{grant.grant_id}" if number % 4 == 0 else grant.key,
                category=grant.category,
                source=grant.source,
                points=grant.amount,
                at=grant.granted_at,
            )
            for number, grant in enumerate(some)
        ]
        with (
            opened(folder / f"grants-{number}.sqlite") as theirs,
            opened(folder / f"buckets-{number}.sqlite") as ours,
        ):
            granted.append(seconds(partial(theirs.grant_many, some)))
            contributed.append(seconds(partial(ours.contribute_many, buckets)))
            again.append(seconds(partial(ours.contribute_many, buckets)))
    report.add(
        "rate of contribute_many(), a quarter of it badges",
        measured=f"{size / median(contributed):,.0f}/s",
        reference=f"grant_many(): {size / median(granted):,.0f}/s",
        ratios=[b / a for a, b in zip(contributed, granted, strict=True)],
        wanted="≥ 0.5",
    )
    report.add(
        "the same again, which writes nothing",
        measured=f"{size / median(again):,.0f}/s",
        reference=f"the first time: {size / median(contributed):,.0f}/s",
        ratios=[b / a for a, b in zip(again, contributed, strict=True)],
        wanted="≥ 0.5",
    )


def memory(folder: Path, report: Report) -> None:
    """Peak memory of a process that writes many grants against one that writes few."""

    def peak(number: int) -> float:
        file = folder / f"{number}.sqlite"
        command = [sys.executable, "-c", _MEMORY, str(file), str(number)]
        here = str(Path(__file__).parent)
        done = subprocess.run(command, check=True, capture_output=True, cwd=here)
        return float(done.stdout) / 1024

    few, many = peak(50_000), peak(300_000)
    report.add(
        "peak memory of a writer",
        measured=f"300,000 grants: {many:.0f} MB",
        reference=f"50,000 grants: {few:.0f} MB",
        ratios=[many / few],
        wanted="about 1",
    )
