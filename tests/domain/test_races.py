"""Several processes and threads on one event store: each id counts once, and nobody is lied to."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from typing import Any

import pytest

from concurrency import meanwhile
from forks import forks
from group_commit import Watched, together
from receipts_check import check_receipts, read_ledger
from scoring import Grant, GrantReceipt, GrantStatus, Scoring
from support import make_grant

Answers = list[tuple[Grant, GrantReceipt]]
Result = Answers | str  # an error is sent back as text

PROCESSES = 4


def contested_grants(worker: int) -> list[Grant]:
    """80 ids for 5 users; an odd id means something else to every worker."""
    return [
        make_grant(number, user_id=f"user-{number % 5}", amount=1 + number % 2 * worker)
        for number in range(80)
    ]


def race(worker: int, env: dict[str, str], start: Barrier, results: Queue[Result]) -> None:
    """Grant everything twice, one by one and in batches, in an order of its own."""
    rng = random.Random(worker)
    answers: Answers = []
    try:
        start.wait()
        with Scoring(env) as scoring:
            for _ in range(2):
                grants = contested_grants(worker)
                rng.shuffle(grants)
                while grants:
                    batch = [grants.pop() for _ in range(min(len(grants), rng.randint(1, 8)))]
                    if len(batch) == 1:
                        answers.append((batch[0], scoring.grant(**batch[0].model_dump())))
                    else:
                        answers += zip(batch, scoring.grant_many(batch), strict=True)
        results.put(answers)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


def open_together(envs: list[dict[str, str]], start: Barrier, results: Queue[Result]) -> None:
    """Open one new store after the other, each at the same moment as everybody else."""
    answers: Answers = []
    for env in envs:
        start.wait()
        try:
            with Scoring(env) as scoring:
                grant = make_grant()
                answers.append((grant, scoring.grant(**grant.model_dump())))
        except BaseException as error:
            results.put(f"{type(error).__name__}: {error}")
            raise
    results.put(answers)


def keep_granting(
    worker: int, env: dict[str, str], start: Barrier, stop: Event, results: Queue[Result]
) -> None:
    """Grant to three users until told to stop."""
    answers: Answers = []
    try:
        with Scoring(env) as scoring:
            start.wait()
            number = 0
            while not stop.is_set():
                number += 1
                grant = make_grant(
                    number, user_id=f"user-{number % 3}", grant_id=f"{worker}-{number}"
                )
                answers.append((grant, scoring.grant(**grant.model_dump())))
        results.put(answers)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


@contextmanager
def running(target: Callable[..., None], tasks: list[tuple[object, ...]]) -> Iterator[None]:
    """Run one process for each task; none is left behind when a test fails."""
    processes = [forks().Process(target=target, args=task, daemon=True) for task in tasks]
    try:
        for process in processes:
            process.start()
        yield
        for process in processes:
            process.join(timeout=150)
    finally:
        for process in processes:
            process.kill()


@contextmanager
def followed(scoring: Scoring) -> Iterator[list[int]]:
    """Tail the store like a projection does, never looking back; yields the positions seen."""
    seen: list[int] = []

    def follow(done: threading.Event) -> None:
        last_round = False
        while not last_round:
            last_round = done.is_set()
            start = seen[-1] + 1 if seen else 1
            seen.extend(
                n.id for n in scoring.recorder.select_notifications(start=start, limit=10_000)
            )
            time.sleep(0.001)

    with meanwhile(follow):
        yield seen


def collect(results: Queue[Result], count: int) -> Answers:
    answers: Answers = []
    for _ in range(count):
        result = results.get(timeout=150)
        assert not isinstance(result, str), result
        answers += result
    return answers


def test_racing_processes_count_each_id_once(new_env: Callable[[], dict[str, str]]) -> None:
    """Exactly one RECORDED for each id, whoever asks, and all positions become visible in order."""
    env = new_env()
    start, results = forks().Barrier(PROCESSES), forks().Queue()
    racers: list[tuple[object, ...]] = [
        (worker, env, start, results) for worker in range(PROCESSES)
    ]
    with Scoring(env) as scoring, followed(scoring) as seen, running(race, racers):
        answers = collect(results, PROCESSES)
    with Scoring(env) as scoring:
        ledger = read_ledger(scoring)
        everything = scoring.recorder.select_notifications(start=1, limit=2**31)
    assert len(answers) == PROCESSES * 2 * 80
    times_recorded = check_receipts(ledger, answers)
    assert times_recorded == {f"grant-{number}": 1 for number in range(80)}
    assert seen == [notification.id for notification in everything]


def test_processes_may_open_a_new_store_together(new_env: Callable[[], dict[str, str]]) -> None:
    """Creating tables is a race of its own, and nobody is told about it."""
    envs = [new_env() for _ in range(12)]
    start, results = forks().Barrier(PROCESSES), forks().Queue()
    with running(open_together, [(envs, start, results)] * PROCESSES):
        answers = collect(results, PROCESSES)
    assert len(answers) == PROCESSES * len(envs)
    assert sum(receipt.status == "RECORDED" for _, receipt in answers) == len(envs)


def test_no_read_sees_a_user_half_advanced(new_env: Callable[[], dict[str, str]]) -> None:
    """Threads read and write through one application while processes write beside it."""
    env = new_env()
    start, stop, results = forks().Barrier(3), forks().Event(), forks().Queue()
    torn: list[object] = []
    done = [0] * 6

    def read(scoring: Scoring, reader: int) -> None:
        newest = dict.fromkeys(range(3), 0)
        while not stop.is_set():
            for user in newest:
                score = scoring.score_of(f"user-{user}")
                sums = {sum(score.category_totals.values()), sum(score.source_totals.values())}
                if sums != {score.total_score} or score.total_score < newest[user]:
                    torn.append((score, newest[user]))
                newest[user] = score.total_score
            done[reader] += 1

    def write(scoring: Scoring, writer: int) -> Answers:
        answers: Answers = []
        number = 0
        while not stop.is_set():
            number += 1
            grant = make_grant(number, user_id=f"user-{number % 3}", grant_id=f"t{writer}-{number}")
            answers.append((grant, scoring.grant(**grant.model_dump())))
            done[writer] += 1
        return answers

    others: list[tuple[object, ...]] = [(worker, env, start, stop, results) for worker in range(2)]
    with Scoring(env) as scoring, ThreadPoolExecutor(8) as threads, running(keep_granting, others):
        start.wait()
        reading = [threads.submit(read, scoring, reader) for reader in range(3)]
        writing = [threads.submit(write, scoring, writer) for writer in range(3, 6)]
        everybody: list[Future[Any]] = [*reading, *writing]
        try:
            time.sleep(1)
            # Somebody who failed makes no more progress, and says why below.
            while min(done) < 10 and not any(each.done() for each in everybody):
                time.sleep(0.01)
        finally:
            stop.set()
        for reads in reading:
            reads.result()
        written = [writes.result() for writes in writing]
        answers = [answer for some in written for answer in some] + collect(results, 2)
        assert torn == []
        ledger = read_ledger(scoring)
    times_recorded = check_receipts(ledger, answers)
    assert times_recorded == dict.fromkeys(ledger.events, 1)


def test_threads_that_grant_the_same_id_agree_on_who_did(
    new_env: Callable[[], dict[str, str]],
) -> None:
    """One application, eight threads, the same ids in batches that overlap."""
    with Scoring(new_env()) as scoring, ThreadPoolExecutor(8) as threads:

        def grant_all(worker: int) -> Answers:
            grants = contested_grants(worker)
            random.Random(worker).shuffle(grants)
            batches = [grants[at : at + 7] for at in range(0, len(grants), 7)]
            return [
                answer
                for batch in batches
                for answer in zip(batch, scoring.grant_many(batch), strict=True)
            ]

        answers = [answer for some in threads.map(grant_all, range(8)) for answer in some]
        ledger = read_ledger(scoring)
    times_recorded = check_receipts(ledger, answers)
    assert times_recorded == {f"grant-{number}": 1 for number in range(80)}


def grant_to_one_user(worker: int, env: dict[str, str], start: Barrier, counts: Queue[int]) -> None:
    """Grant to the same user as everybody else for ten seconds."""
    with Scoring(env) as scoring:
        start.wait()
        count, end = 0, time.monotonic() + 10
        while time.monotonic() < end:
            grant = make_grant(1, user_id="hot", grant_id=f"{worker}-{count}")
            scoring.grant(**grant.model_dump())
            count += 1
        counts.put(count)


@pytest.mark.soak
def test_nobody_is_refused_where_many_processes_grant_to_one_user(
    new_env: Callable[[], dict[str, str]],
) -> None:
    """Whoever keeps losing races gets their turn within the time of a command."""
    env = new_env()
    with Scoring(env):
        pass
    counts: Queue[int] = forks().Queue()
    start = forks().Barrier(16)
    processes = [
        forks().Process(target=grant_to_one_user, args=(worker, env, start, counts))
        for worker in range(16)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 16
    granted = [counts.get() for _ in processes]
    assert min(granted) > 0
    with Scoring(env) as scoring:
        assert scoring.score_of("hot").grant_count == sum(granted)


@pytest.mark.parametrize("calls", [1, 3], ids=["alone", "together"])
def test_whoever_has_lost_a_race_looks_before_the_next_ones(
    new_env: Callable[[], dict[str, str]], calls: int
) -> None:
    """A commit that fails costs more than a look; when nobody else writes, nobody looks."""
    numbers = itertools.count()

    def grant_each(app: Scoring) -> None:
        grants = [make_grant(next(numbers), user_id=f"user-{number}") for number in range(calls)]
        answers = together(app, [partial(app.grant, **grant.model_dump()) for grant in grants])
        assert {answer.result().status for answer in answers} == {GrantStatus.RECORDED}

    env = new_env()
    with Watched(env) as app, Scoring(env) as other:
        for _ in range(15):
            grant_each(app)
            grant_each(other)
        assert len(app.commits) == 15 + 1
        for _ in range(20):
            grant_each(app)
        grant_each(other)
        grant_each(app)
        assert len(app.commits) == 15 + 1 + 20 + 2
        assert app.score_of("user-0").grant_count == 15 + 15 + 20 + 2
