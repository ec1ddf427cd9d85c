"""A program that grants and contributes, and prints what it asks for and what it is answered.

It is killed, frozen and continued. Each line is JSON and on the disk before the next step: first
the call, then its receipts. While the file ``pause`` is there it does nothing, and says so.

    python writer.py NAME OUTPUT PAUSE SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from scoring import BatchFailed, ContributionReceipt, Grant, GrantReceipt, Scoring, ScoringError

USERS = 25
KEYS = 6
THREADS = 2
REST_SECONDS = 0.02
REMEMBERED = 500
SHARED_EVERY_SECONDS = 0.5

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LABELS = [("content", "feed"), ("learning", "quiz"), ("activity", "telemetry")]


class Protocol:
    """The lines of one process, in the order in which its threads wrote them."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a")
        self._lock = Lock()
        # The process before this one may have been killed within a line.
        self._file.write("\n")

    def write(self, **line: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def shared_grant(number: int, *, amount: int) -> Grant:
    """One that all writers ask for at about the same time, perhaps with different amounts."""
    return new_grant(f"shared-{number}", random.Random(number), amount=amount)


def new_grant(grant_id: str, randomness: random.Random, *, amount: int | None = None) -> Grant:
    category, source = randomness.choice(LABELS)
    return Grant(
        user_id=f"user-{randomness.randrange(USERS)}",
        grant_id=grant_id,
        key=f"quiz:{randomness.randrange(1000)}",
        category=category,
        source=source,
        amount=amount or randomness.randrange(1, 1000),
        granted_at=NOON + timedelta(seconds=randomness.randrange(10**6)),
    )


class Writer(Thread):
    """One thread, which calls again and again until it is told to stop."""

    def __init__(
        self, name: str, scoring: Scoring, protocol: Protocol, pause: Path, stop: Event, seed: str
    ) -> None:
        super().__init__()
        self._label = name
        self._scoring = scoring
        self._protocol = protocol
        self._pause = pause
        self._stop_asked = stop
        self._randomness = random.Random(seed)
        self._numbers = count()
        self._recent: list[Grant] = []

    def run(self) -> None:
        while not self._stop_asked.is_set():
            if self._pause.exists():
                self._protocol.write(paused=self._pause.read_text(), thread=self._label)
                while self._pause.exists() and not self._stop_asked.wait(0.1):
                    pass
                continue
            self._call()
            time.sleep(self._randomness.uniform(0, 2 * REST_SECONDS))

    def _call(self) -> None:
        choice = self._randomness.random()
        if choice < 0.5:
            self._grant(self._new())
        elif choice < 0.6:
            self._grant(self._old())
        elif choice < 0.65:
            old = self._old()
            self._grant(old.model_copy(update={"amount": old.amount + 1}))
        elif choice < 0.75:
            number = int(time.time() / SHARED_EVERY_SECONDS)
            self._grant(shared_grant(number, amount=self._randomness.choice([5, 5, 5, 6])))
        elif choice < 0.85:
            batch = [self._new() for _ in range(self._randomness.randrange(2, 150))]
            batch.append(self._old())
            self._randomness.shuffle(batch)
            self._grant_many(batch)
        else:
            self._contribute(is_routed=choice > 0.93)

    def _new(self) -> Grant:
        grant = new_grant(f"{self._label}-{next(self._numbers)}", self._randomness)
        self._recent.append(grant)
        del self._recent[:-REMEMBERED]
        return grant

    def _old(self) -> Grant:
        return self._randomness.choice(self._recent) if self._recent else self._new()

    def _grant(self, grant: Grant) -> None:
        self._report(
            grants=[grant.model_dump(mode="json")],
            call=lambda: [self._scoring.grant(**grant.model_dump())],
        )

    def _grant_many(self, grants: list[Grant]) -> None:
        self._report(
            grants=[grant.model_dump(mode="json") for grant in grants],
            call=lambda: self._scoring.grant_many(grants),
        )

    def _contribute(self, *, is_routed: bool) -> None:
        user_id = f"user-{self._randomness.randrange(USERS)}"
        points = self._randomness.randrange(1, 1000)
        if is_routed:
            # Few enough that the same post comes again, with other points.
            post_id = str(self._randomness.randrange(200))
            contribution = {
                "user_id": user_id,
                "key": f"content:feed-post:{post_id}",
                "category": "content",
                "source": "feed",
                "points": points,
            }
        else:
            category, source = self._randomness.choice(LABELS)
            contribution = {
                "user_id": user_id,
                "key": f"telemetry:{self._randomness.randrange(KEYS)}",
                "category": category,
                "source": source,
                "points": points,
            }
        at = NOON + timedelta(seconds=points)
        self._report(
            contribution={**contribution, "at": at.isoformat()},
            call=lambda: [self._scoring.contribute(**contribution, at=at)],  # type: ignore[arg-type]
        )

    def _report(self, *, call: Any, **asked: Any) -> None:
        number = f"{self._label}-{time.monotonic_ns()}"
        self._protocol.write(call=number, began=time.monotonic_ns(), **asked)
        try:
            receipts: list[GrantReceipt | ContributionReceipt] = call()
        except (ScoringError, BatchFailed) as error:
            self._protocol.write(call=number, ended=time.monotonic_ns(), error=str(error))
            time.sleep(0.2)
            return
        self._protocol.write(
            call=number,
            ended=time.monotonic_ns(),
            receipts=[{**asdict(receipt), "user_id": None} for receipt in receipts],
        )


def stop_on_sigterm() -> Event:
    """Prepare a program of threads: told to end it ends well, and a bug in a thread ends it."""
    stop = Event()
    # Waited for by a thread, since a handler would run in the main thread only, which may wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_the_signal() -> None:
        signal.sigwait({signal.SIGTERM})
        stop.set()

    Thread(target=wait_for_the_signal, daemon=True).start()

    def end(failure: threading.ExceptHookArgs) -> None:
        sys.excepthook(
            failure.exc_type, failure.exc_value or BaseException(), failure.exc_traceback
        )
        os._exit(70)

    threading.excepthook = end
    return stop


def main() -> None:
    name, output, pause, seed = sys.argv[1:]
    stop = stop_on_sigterm()
    protocol = Protocol(Path(output))
    with Scoring(dict(os.environ)) as scoring:
        threads = [
            Writer(
                # Ids are never used again by a later process of the same name.
                f"{name}.{number}-{time.monotonic_ns()}",
                scoring,
                protocol,
                Path(pause),
                stop,
                f"{seed}-{time.monotonic_ns()}",
            )
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        stop.wait()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
