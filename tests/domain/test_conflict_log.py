"""What is logged of conflicts: enough to look into them, and never a line for each of thousands."""

from __future__ import annotations

import logging
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from forks import in_child
from scoring import Scoring
from scoring.conflicts import LOGGED_IN_FULL, Conflict, ConflictLog
from support import make_grant


def add(log: ConflictLog, number: int) -> None:
    kept, given = {"amount": 1, "key": "same"}, {"amount": 2, "key": "same"}
    log.add(Conflict(f"grant {number}", kept, given))


def counted(messages: list[str]) -> int:
    """How many conflicts the lines account for."""
    found = [re.match(r"(\d+) further conflicts", message) for message in messages]
    return sum(int(each[1]) if each else 1 for each in found)


def test_importing_a_file_of_conflicts_logs_the_first_and_counts_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sum is right, and only what differs is named."""
    with Scoring() as scoring:
        scoring.grant_many([make_grant(number) for number in range(2500)])
        scoring.grant_many([make_grant(number, amount=999) for number in range(2500)])
        assert len(caplog.messages) == LOGGED_IN_FULL
        assert caplog.messages[1].endswith("another payload: given amount 999, kept amount 2")
        assert caplog.messages[-1].endswith("; further ones are counted")
    assert caplog.messages[LOGGED_IN_FULL:] == ["2490 further conflicts were not logged one by one"]


def test_conflicts_are_logged_in_full_again_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number of those that were left out, so that none is lost count of."""
    log = ConflictLog()
    for number in range(LOGGED_IN_FULL + 7):
        add(log, number)
    monkeypatch.setattr("scoring.conflicts.WINDOW_SECONDS", -1.0)
    caplog.clear()
    add(log, 99)
    assert caplog.messages == [
        "7 further conflicts were not logged one by one",
        "grant 99: given amount 2, kept amount 1",
    ]
    log.close()
    assert len(caplog.messages) == 2


def test_conflicts_of_many_threads_are_all_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Each is in a line or in a number."""
    log = ConflictLog()
    with ThreadPoolExecutor(8) as threads:
        for _ in range(1000):
            threads.submit(add, log, 1)
    log.close()
    assert counted(caplog.messages) == 1000
    assert len(caplog.messages) == LOGGED_IN_FULL + 1


def test_a_forked_child_counts_with_a_lock_of_its_own() -> None:
    """Though a thread of the parent held it at the moment of the fork."""
    log = ConflictLog()

    def work() -> None:
        signal.alarm(60)  # rather than waiting for ever
        logging.disable()
        add(log, 1)

    with log._lock:
        assert in_child(work) == "None"
