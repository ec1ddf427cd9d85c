"""Several processes that contribute in the old way to the same users, on one event store."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

from forks import forks
from scoring import Contribution, ContributionReceipt, GrantStatus, Scoring, UserScore
from support import NOON

Call = tuple[str, str, int]  # user, key, points
Answers = list[tuple[Call, ContributionReceipt]]

PROCESSES = 4
CALLS = 120
USERS = ("ada", "bob", "eve")
KEYS = ("award:badge:7", "content:feed-post:8", "content:feed-post:9", "quiz:best", "profile")


def contribute(
    worker: int, env: dict[str, str], start: Barrier, results: Queue[Answers | str]
) -> None:
    rng = random.Random(worker)
    answers: Answers = []
    try:
        start.wait()
        with Scoring(env) as scoring:
            while len(answers) < CALLS:
                calls = [
                    (rng.choice(USERS), rng.choice(KEYS), rng.choice([0, 3, 5, 8]))
                    for _ in range(min(rng.choice([1, 1, 4]), CALLS - len(answers)))
                ]
                batch = [
                    Contribution(
                        user_id=user_id,
                        key=key,
                        category="any",
                        source="any",
                        points=points,
                        at=NOON,
                    )
                    for user_id, key, points in calls
                ]
                receipts = (
                    [scoring.contribute(**batch[0].model_dump())]
                    if len(batch) == 1
                    else scoring.contribute_many(batch)
                )
                answers += zip(calls, receipts, strict=True)
        results.put(answers)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


def replayed(scoring: Scoring) -> dict[int, tuple[str, str, int, int, int]]:
    """By position: user, key, points, and the recomputed total before and after it.

    Sums what a map from key to points holds, and checks each event's account of it.
    """
    buckets: dict[str, dict[str, int]] = defaultdict(dict)
    steps = {}
    for notification in scoring.recorder.select_notifications(start=1, limit=2**31):
        event = scoring.mapper.to_domain_event(notification)
        if isinstance(event, UserScore.GrantRecorded):
            points = event.amount
        elif isinstance(event, UserScore.BucketSet):
            points = event.points
        else:
            continue
        mine = buckets[event.user_id]
        before = sum(mine.values())
        assert event.replaced_points == mine.get(event.key, 0)
        mine[event.key] = points
        steps[notification.id] = (
            *(event.user_id, event.key, points),
            *(before, sum(mine.values())),
        )
    for user_id, mine in buckets.items():
        assert scoring.score_of(user_id).recomputed_total == sum(mine.values())
    return steps


def test_racing_contributions_leave_one_true_history(env: dict[str, str]) -> None:
    """Each badge and post is one grant; every receipt is borne out by the events."""
    start: Barrier = forks().Barrier(PROCESSES)
    results: Queue[Answers | str] = forks().Queue()
    processes = [
        forks().Process(target=contribute, args=(worker, env, start, results), daemon=True)
        for worker in range(PROCESSES)
    ]
    answers: Answers = []
    try:
        for process in processes:
            process.start()
        for _ in processes:
            result = results.get(timeout=150)
            assert not isinstance(result, str), result
            answers += result
    finally:
        for process in processes:
            process.kill()
    assert len(answers) == PROCESSES * CALLS
    with Scoring(env) as scoring:
        steps = replayed(scoring)
        grants = Counter(
            event.grant_id
            for user_id in USERS
            for event in scoring.events.get(UserScore.create_id(user_id))
            if isinstance(event, UserScore.GrantRecorded)
        )
        totals = {user_id: scoring.score_of(user_id).total_score for user_id in USERS}
    shaped = [key for key in KEYS if key.startswith(("award", "content"))]
    assert grants == dict.fromkeys((f"{user}/{key}" for user in USERS for key in shaped), 1)
    assert all(0 < total <= 8 * len(shaped) for total in totals.values())
    recorded = Counter(
        (user_id, key, receipt.status)
        for (user_id, key, points), receipt in answers
        if key in shaped and points
    )
    assert {recorded[user, key, GrantStatus.RECORDED] for user in USERS for key in shaped} == {1}
    moved = 0
    for (user_id, key, points), receipt in answers:
        if receipt.recomputed_before != receipt.recomputed_after:
            change = receipt.recomputed_before, receipt.recomputed_after
            assert steps[receipt.position] == (user_id, key, points, *change)
            moved += 1
    # What a call changed is answered by that call and by no other.
    assert moved == sum(before != after for _, _, _, before, after in steps.values())
