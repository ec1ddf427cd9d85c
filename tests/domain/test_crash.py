"""A writer killed at random moments: what it was told is recorded is stored, and stored once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from receipts_check import check_receipts, read_ledger
from scoring import Grant, GrantReceipt, GrantStatus, Scoring
from support import make_grant

MOST_ROUNDS = 40
NEW_IDS_PER_ROUND = 100
TESTS = Path(__file__).parents[1]

# Grants the numbers from a window that moves on, so most are new and many are repeated, alone and
# in batches, and prints the receipts. A short nap before that makes for more kills between the
# commit and its acknowledgement.
WRITER = """
import json, os, random, sys, time
sys.path.insert(0, sys.argv[1])
from scoring import Scoring
from support import make_grant

env, first, seed = json.loads(sys.argv[2])
rng = random.Random(seed)
scoring = Scoring(env)
os.write(1, b"ready\\n")
while True:
    numbers = rng.sample(range(first, first + 100), rng.choice((1, 1, 1, 5, 50)))
    first += len(numbers) // 2 + 1
    grants = [make_grant(number) for number in numbers]
    if len(grants) == 1:
        receipts = [scoring.grant(**grants[0].model_dump())]
    else:
        receipts = scoring.grant_many(grants)
    time.sleep(rng.uniform(0, 0.02))
    for number, receipt in zip(numbers, receipts):
        line = [number, receipt.status, receipt.position, receipt.total_before, receipt.total_after]
        os.write(1, json.dumps(line).encode() + b"\\n")
"""


def run_and_kill(env: dict[str, str], round_: int) -> list[tuple[Grant, GrantReceipt]]:
    """Start two writers on the same ids, kill them at a random moment, read what they printed."""
    rng = random.Random(round_)
    # A round begins among the ids of the one before, so that retries after a crash happen.
    first = round_ * NEW_IDS_PER_ROUND
    writers = []
    for number in range(2):
        task = json.dumps([env, first, f"{round_}-{number}"])
        writers.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(TESTS), task],
                stdout=subprocess.PIPE,
                bufsize=0,  # communicate() would not see what readline() had read ahead
            )
        )
    printed: list[tuple[Grant, GrantReceipt]] = []
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    time.sleep(rng.uniform(0.001, 0.3))
    for writer in writers:
        writer.kill()
    for writer in writers:
        output, _ = writer.communicate(timeout=30)
        assert writer.returncode == -signal.SIGKILL
        for line in output.splitlines(keepends=True):
            if line.endswith(b"\n"):
                number, status, position, before, after = json.loads(line)
                grant = make_grant(number)
                receipt = GrantReceipt(GrantStatus(status), position, before, after, grant.user_id)
                printed.append((grant, receipt))
    return printed


@pytest.fixture
def env(new_env: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The settings of a new event store."""
    return new_env()


@pytest.mark.parametrize("rounds", [5, pytest.param(12, marks=pytest.mark.soak)])
def test_what_was_acknowledged_before_a_kill_is_stored_once(
    env: dict[str, str], rounds: int
) -> None:
    """Every printed receipt is true after the crash, and every grant still has its claim."""
    answers: list[tuple[Grant, GrantReceipt]] = []
    statuses: list[GrantStatus] = []
    for round_ in range(MOST_ROUNDS):
        answers += run_and_kill(env, round_)
        with Scoring(env) as scoring:
            # Fails if an id is stored twice, a grant lacks its claim or a claim its grant.
            ledger = read_ledger(scoring)
        recorded = check_receipts(ledger, answers)
        assert set(recorded.values()) <= {1}
        assert recorded.keys() <= ledger.events.keys()
        statuses = [receipt.status for _, receipt in answers]
        hit_between_commit_and_answer = len(ledger.events) > statuses.count(GrantStatus.RECORDED)
        if round_ + 1 >= rounds and hit_between_commit_and_answer:
            break  # on a busy machine it may take a few more rounds until a kill falls there
    assert statuses.count(GrantStatus.RECORDED) > 100
    assert GrantStatus.DUPLICATE in statuses
    # The point of the exercise: some were stored whose writer died before it could say so.
    assert len(ledger.events) > statuses.count(GrantStatus.RECORDED)


def test_granting_everything_again_after_a_crash_completes_it(env: dict[str, str]) -> None:
    """The cure for a crash is to run the same input again."""
    printed = run_and_kill(env, 0)
    grants = [make_grant(number) for number in range(3000)]
    with Scoring(env) as scoring:
        before = read_ledger(scoring).events.keys()
        receipts = scoring.grant_many(grants)
        ledger = read_ledger(scoring)
    recorded = check_receipts(ledger, [*printed, *zip(grants, receipts, strict=True)])
    assert set(recorded.values()) == {1}
    assert ledger.events.keys() == before | {grant.grant_id for grant in grants}
