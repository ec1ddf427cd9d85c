"""How long, how often and at what pace things are tried again."""

from __future__ import annotations

import logging
import time
from threading import Event
from typing import Any, cast

import pytest
from eventsourcing.persistence import DataError, OperationalError
from tenacity import Retrying, stop_after_attempt, wait_fixed, wait_none

import scoring.retries
from command_line import run_python
from concurrency import lasting_at_most, meanwhile, until
from projections import ReadModelUnavailable
from projections.retries import retries_until
from scoring import EventStoreNotOpened, ScoringError
from scoring.retries import (
    Retries,
    TimeLimit,
    open_event_store,
    read_event_store,
    remaining_seconds,
)


class Faulty:
    """Fails so many times, and then returns how often it was called."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)
        return self.calls


def busy() -> Exception:
    return OperationalError("database is locked")


def away() -> Exception:
    return ReadModelUnavailable("an election", transient=True)


def test_what_succeeds_at_once_does_not_enter_its_policy() -> None:
    """A grant pays for retries only if it needs one."""
    assert Retries(cast("Retrying", None)).call(Faulty()) == 1


def test_a_policy_gives_up_with_the_last_failure_itself() -> None:
    """Not with one of the mechanism's own."""
    last = ValueError("the third")
    retries = Retries(Retrying(stop=stop_after_attempt(3), wait=wait_none(), reraise=True))
    with pytest.raises(ValueError, match="the third") as raised:
        retries.call(Faulty(ValueError("the first"), ValueError("the second"), last))
    assert raised.value is last
    assert retries.failures == 3


def test_what_went_well_is_forgotten_by_the_policy() -> None:
    """Failures count in a row."""
    retries = Retries(Retrying(stop=stop_after_attempt(3), wait=wait_none(), reraise=True))
    for _ in range(3):
        assert retries.call(Faulty(busy(), busy())) == 3
        assert retries.failures == 0


def test_time_counts_from_the_first_failure_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from when it was begun, nor from the last success."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.5)
    retries = retries_until(Event())
    for _ in range(2):
        time.sleep(0.6)
        assert retries.call(Faulty(away())) == 2
    with lasting_at_most(30), pytest.raises(ReadModelUnavailable, match="an election"):
        retries.call(Faulty(*(away() for _ in range(10_000))))


def test_a_stop_ends_a_pause_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is tried after it."""
    monkeypatch.setattr("projections.retries.PACE", wait_fixed(300))
    stop, work = Event(), Faulty(away(), away())

    def end_the_pause(_: Event) -> None:
        until(lambda: "trying again" in caplog.text)  # which is said before it
        time.sleep(0.1)  # so that it has begun
        stop.set()

    caplog.set_level(logging.INFO)
    with lasting_at_most(120), meanwhile(end_the_pause), pytest.raises(ReadModelUnavailable):
        retries_until(stop).call(work)
    assert work.calls == 2


@pytest.mark.parametrize("failure", [ReadModelUnavailable("refused"), DataError(), ValueError()])
def test_what_cannot_pass_is_not_tried_again_on_the_read_side(failure: Exception) -> None:
    """MongoDB's failures, the event store's, and mistakes."""
    work = Faulty(failure)
    with pytest.raises(type(failure)):
        retries_until(Event()).call(work)
    assert work.calls == 1


def test_a_store_that_is_busy_for_a_moment_is_read_and_opened() -> None:
    """Without the caller noticing."""
    assert read_event_store(Faulty(busy(), busy())) == 3
    assert open_event_store(Faulty(busy(), busy())) == 3


def test_a_store_that_fails_at_once_and_again_is_not_asked_for_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The errors say what could not be done, and why."""
    policies: Any = (scoring.retries.STORE_FAILURES, scoring.retries._COLLISIONS)
    for policy in policies:
        monkeypatch.setattr(policy, "wait", wait_none())
    reads, openings = Faulty(*(busy() for _ in range(99))), Faulty(*(busy() for _ in range(99)))
    with pytest.raises(ScoringError, match=r"cannot be read: database is locked"):
        read_event_store(reads)
    with pytest.raises(EventStoreNotOpened, match=r"cannot be opened: database is locked"):
        open_event_store(openings)
    assert (reads.calls, openings.calls) == (30, 12)


def test_what_is_read_for_a_command_has_no_more_time_than_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Limits within limits do not add up."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(scoring.retries, "_LEAST_SECONDS", 0.01)
    work = Faulty(busy(), busy())
    with TimeLimit():
        time.sleep(0.6)
        assert remaining_seconds() == 0.01
        with pytest.raises(ScoringError):
            read_event_store(work)
    assert work.calls == 1
    assert remaining_seconds() == 0.5
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 30.0)
    assert read_event_store(work) == 3


FINALISERS = """
import gc
from contextvars import ContextVar, copy_context
from random import Random

from scoring.retries import TimeLimit

others = [ContextVar(f"other-{number}") for number in range(12)]
random = Random(1)

class Garbage:
    def __init__(self):
        self.itself = self

    def __del__(self):
        random.choice(others).set(object())

def limit_often():
    gc.disable()  # what sets these is not to be interrupted: it is not what is tested
    for other in others[: random.randrange(6)]:
        other.set(1)
    gc.enable()
    for _ in range(5_000):
        with TimeLimit():
            for _ in range(random.randrange(9)):
                Garbage()

gc.set_threshold(50)
for _ in range(10):
    copy_context().run(limit_often)
"""


def test_a_time_limit_outlives_finalisers_that_change_context_variables() -> None:
    """They run wherever memory is asked for; what is recorded must not be answered as failed."""
    ended = run_python("-c", FINALISERS)
    assert (ended.returncode, ended.stderr) == (0, "")
