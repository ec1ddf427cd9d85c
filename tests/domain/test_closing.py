"""Closing an application while other threads use it: no crash, and nothing is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from eventsourcing.persistence import ConnectionPoolClosedError
from eventsourcing.sqlite import SQLiteDatastore, SQLiteFactory
from eventsourcing.utils import Environment
from pymongo import MongoClient

import scoring.retries
import scoring.sqlite_pool
from command_line import run_python
from concurrency import lasting_at_most
from projections.mongo import MongoFactory, connect
from receipts_check import read_ledger
from scoring import Scoring, ScoringError
from scoring.sqlite_connection import PooledConnection
from scoring.sqlite_pool import PatientConnectionPool
from support import make_grant, sqlite_env

# In a process of its own, as what it is to show is that the process survives.
_CLOSING_UNDER_LOAD = """
import json, random, sys, time
from itertools import count
from threading import Thread
from concurrency import lasting_at_most
from scoring import Scoring, ScoringError
from support import make_grant

def work(app, first):
    try:
        for number in count(first):
            app.grant(**make_grant(number, user_id="ada").model_dump())
            answered.append(number)
    except ScoringError as error:
        assert "was closed" in str(error), error
        refused.append(number)

answered, refused = [], []
for generation in range(10):
    app = Scoring(json.loads(sys.argv[1]))
    threads = [Thread(target=work, args=(app, (10 * generation + n) * 10**6)) for n in range(4)]
    before = len(answered)
    for thread in threads:
        thread.start()
    while len(answered) < before + 2:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    app.close()
    with lasting_at_most(60):
        for thread in threads:
            thread.join()
assert len(refused) == 40, "not every thread was told"
print(*answered)
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Scoring]:
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as app:
        app.grant(**make_grant(0).model_dump())
        yield app


def datastore(app: Scoring) -> SQLiteDatastore:
    assert isinstance(app.factory, SQLiteFactory)
    return app.factory.datastore


def pool_of(app: Scoring) -> PatientConnectionPool:
    pool = datastore(app).pool
    assert isinstance(pool, PatientConnectionPool)
    return pool


def test_closing_under_load_crashes_nothing_and_loses_nothing(
    new_env: Callable[[], dict[str, str]],
) -> None:
    """What was answered is recorded, and each thread is told in one sentence why it cannot go on.

    On a server the last answers may be lost, so that a little more is recorded.
    """
    env = new_env()
    done = run_python("-c", _CLOSING_UNDER_LOAD, json.dumps(env), cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    answered = {f"grant-{number}" for number in done.stdout.split()}
    assert len(answered) > 10
    with Scoring(env) as app:
        recorded = read_ledger(app).events.keys()
    assert answered <= recorded
    if env["PERSISTENCE_MODULE"] == "eventsourcing.sqlite":
        assert recorded == answered


class _Lent(Scoring):
    """Keeps events through a client of the application's own."""

    client: ClassVar[MongoClient[Any]]

    def construct_factory(self, env: Environment) -> MongoFactory:
        return MongoFactory(env, client=self.client)


def test_closing_leaves_a_client_that_was_lent_open(
    mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application refuses what it is asked from then on, as one with a client of its own."""
    name = f"events_{uuid4().hex[:8]}"
    with connect(mongo_uri) as client:
        monkeypatch.setattr(_Lent, "client", client, raising=False)
        app = _Lent({"PERSISTENCE_MODULE": "projections.mongo", "MONGO_DATABASE": name})
        app.grant(**make_grant(0).model_dump())
        app.close()
        with pytest.raises(ScoringError, match="was closed"):
            app.grant(**make_grant(1).model_dump())
        with pytest.raises(ScoringError, match="was closed"):
            app.score_of("somebody")
        with _Lent(app.env) as again:
            assert [*read_ledger(again).events] == ["grant-0"]
        assert client[name]["scoring_events"].count_documents({}) == 1
        client.drop_database(name)


def test_closing_waits_for_a_transaction_of_another_thread(
    app: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And commands that wait for their turn behind it are refused at once, not one by one."""
    begun, end, refused = Event(), Event(), []
    pool_of(app).pool_timeout = 600.0
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 600.0)

    def slow() -> None:
        with datastore(app).transaction(commit=True) as cursor:
            cursor.execute("CREATE TABLE slow (i)")
            begun.set()
            end.wait()

    def waiting(number: int) -> None:
        try:
            app.grant(**make_grant(number).model_dump())
        except ScoringError as error:
            refused.append(str(error))

    transaction = Thread(target=slow)
    transaction.start()
    begun.wait()
    others = [Thread(target=waiting, args=(n,)) for n in range(1, 5)]
    for other in others:
        other.start()
    time.sleep(0.1)  # so that most of them wait already
    closing = Thread(target=app.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    with lasting_at_most(60):  # and not ten minutes for each
        end.set()
        for thread in (transaction, closing, *others):
            thread.join()
    assert len(refused) == 4
    assert all("was closed" in reason for reason in refused)
    with Scoring(app.env) as again:
        assert [*read_ledger(again).events] == ["grant-0"]
        with datastore(again).transaction(commit=False) as cursor:
            cursor.execute("SELECT * FROM slow")


def test_a_signal_handler_may_close_what_it_interrupts(
    app: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for its own thread; the transaction it came into ends as it would have."""

    def handle(signal_number: int, frame: FrameType | None) -> None:
        del signal_number, frame
        app.close()

    monkeypatch.setattr(scoring.sqlite_pool, "PATIENCE_SECONDS", 600.0)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with lasting_at_most(60), datastore(app).transaction(commit=True) as cursor:
            signal.raise_signal(signal.SIGUSR1)
            cursor.execute("CREATE TABLE interrupted (i)")
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ScoringError, match="was closed"):
        app.grant(**make_grant(1).model_dump())
    with Scoring(app.env) as again, datastore(again).transaction(commit=False) as cursor:
        cursor.execute("SELECT * FROM interrupted")


def test_closing_does_not_wait_for_ever(app: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still in use then is closed by whoever returns it."""
    monkeypatch.setattr(scoring.sqlite_pool, "PATIENCE_SECONDS", 0.2)
    begun, end, kept = Event(), Event(), []

    def stuck() -> None:
        with datastore(app).get_connection(commit=False) as connection:
            kept.append(connection)
            begun.set()
            end.wait()
            connection.cursor().execute("SELECT 1")

    thread = Thread(target=stuck)
    thread.start()
    begun.wait()
    app.close()
    assert not kept[0].closed
    end.set()
    thread.join()
    assert kept[0].closed


def test_a_connection_that_cannot_be_opened_holds_up_nobody(
    app: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own pool keeps its lock on writing for ever then."""
    pool = pool_of(app)

    def fail(*_: object, **__: object) -> None:
        raise OSError("too many open files")

    for is_writer in (True, False):
        pool.hold()  # which closes all connections, so that one has to be opened
        pool.release()
        with monkeypatch.context() as patch:
            patch.setattr(PooledConnection, "connect", fail)
            with pytest.raises(OSError, match="too many"):
                pool.get_connection(is_writer=is_writer)
        pool.put_connection(pool.get_connection(1, is_writer=True))


def test_a_closed_pool_gives_nothing_out(app: Scoring) -> None:
    """Closing again changes nothing."""
    pool = pool_of(app)
    app.close()
    app.close()
    assert pool.closed
    for is_writer in (True, False, None):
        with pytest.raises(ConnectionPoolClosedError):
            pool.get_connection(is_writer=is_writer)
