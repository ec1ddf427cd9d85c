"""The write side: flat cost, rates against the library's own recorder, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from uuid import uuid4

from eventsourcing.persistence import StoredEvent

from measuring import Report, in_new_process, in_turns, peak_memory, seconds
from projections.ports import UserScoreRepository
from scoring import Contribution, Grant, Scoring
from support import sqlite_env

BATCH = 1_000


def opened(file: Path) -> Scoring:
    return Scoring(sqlite_env(file))


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


def fill(app: Scoring, number: int, *, users: int = 2000) -> None:
    stream = islice(grants(users=users), number)
    while some := list(islice(stream, 10_000)):
        app.grant_many(some)


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
    size = report.scaled(100_000)
    young, old = grants("ada"), grants("ada")
    with opened(folder / "young.sqlite") as few, opened(folder / "old.sqlite") as many:
        grant_each(few, list(islice(young, 1000)))
        many.grant_many(islice(old, report.scaled(90_000)))
        grant_each(many, list(islice(old, report.scaled(9000))))
        late, early = [], []
        for _ in range(10):
            early.append(median(latencies(few, list(islice(young, 100)))))
            late.append(median(latencies(many, list(islice(old, 100)))))
    report.times(
        f"grant() to one user, the last of {size:,}", late, "the last of 2,000", early, at_most=1.2
    )


def cold_load(folder: Path, report: Report) -> None:
    """``score_of`` in a new process: a user with 100,000 grants against one with 2,000."""
    few, many = 2050, report.scaled(100_000) + 50
    files = {size: folder / f"{size}.sqlite" for size in (few, many)}
    for size, file in files.items():
        with opened(file) as app:
            app.grant_many(islice(grants("ada"), size))
    young, old = [], []
    for _ in range(11):
        young.append(in_new_process(_load_ada, files[few], few))
        old.append(in_new_process(_load_ada, files[many], many))
    report.times(
        f"cold load of a user with {many:,} grants", old, f"with {few:,}", young, at_most=1.2
    )


def _load_ada(file: Path, size: int) -> float:
    with opened(file) as app:
        started = time.perf_counter()
        assert app.score_of("ada").grant_count == size
        return time.perf_counter() - started


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
    report.rates("grant(), SQLite", size, mine, "recorder, same 2 rows", theirs, at_least=0.75)


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
    report.rates("grant_many(), SQLite", size, mine, "recorder, same rows", theirs, at_least=0.6)


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
    report.rates("grant_many() of taken ids, SQLite", size, taken, "new ids", first, at_least=1)


def batched_contributions(folder: Path, report: Report) -> None:
    """``contribute_many()`` of 100,000 buckets, and of the same again, against ``grant_many()``."""
    stream = grants()
    size, rounds = report.scaled(100_000), 3
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
    what = "contribute_many(), a quarter of it badges"
    report.rates(what, size, contributed, "grant_many()", granted, at_least=0.5)
    what = "the same again, which writes nothing"
    report.rates(what, size, again, "the first time", contributed, at_least=0.5)


def memory(folder: Path, report: Report) -> None:
    """Peak memory of a process that writes many grants against one that writes few."""
    sizes = (report.scaled(50_000), report.scaled(300_000))
    peaks = {size: in_new_process(_write, folder / f"{size}.sqlite", size) for size in sizes}
    report.peaks("writing grants", peaks)


def _write(file: Path, number: int) -> float:
    with opened(file) as app:
        fill(app, number)
    return peak_memory()
