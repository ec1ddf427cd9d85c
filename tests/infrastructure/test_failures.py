"""Errors that pass by themselves, forced at every statement of a transaction and outside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from bson.decimal128 import Decimal128
from pymongo.errors import PyMongoError

from concurrency import at_once, meanwhile
from event_store import assert_equal_to_the_events, damaged
from fail_points import failing
from processes import kill
from projections import MongoScoreView, ProjectionWorker, ReadModelUnavailable, ScoreLedger
from projections.embedded import open_server
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from projections.settings import Settings
from projections.worker.unparker import Unparker
from scoring import Scoring
from support import make_grant, sqlite_env

# What a server answers during an election, after a conflict, or when it shuts down.
NOT_PRIMARY, WRITE_CONFLICT, TIME_LIMIT, NO_SUCH_TRANSACTION = 10107, 112, 262, 251
LOST_ANSWER = {"writeConcernError": {"code": 64, "errmsg": "the answer got lost"}}
TRANSIENT = {"errorLabels": ["TransientTransactionError"]}
FAILURES = [
    ("insert", {"errorCode": WRITE_CONFLICT, **TRANSIENT}),
    ("insert", {"closeConnection": True}),
    ("insert", {"errorCode": NOT_PRIMARY, **TRANSIENT}),
    ("update", {"errorCode": WRITE_CONFLICT, **TRANSIENT}),
    ("update", {"closeConnection": True}),
    ("find", {"closeConnection": True}),
    ("find", {"errorCode": TIME_LIMIT}),
    ("commitTransaction", {"errorCode": NO_SUCH_TRANSACTION, **TRANSIENT}),
    ("commitTransaction", {"errorCode": NOT_PRIMARY}),
    ("commitTransaction", {"closeConnection": True}),
    # Here the transaction is committed, and only the answer says otherwise.
    ("commitTransaction", LOST_ANSWER),
]


def grant_some(scoring: Scoring, first: int, number: int) -> None:
    scoring.grant_many([make_grant(n) for n in range(first, first + number)])


@pytest.mark.parametrize(
    ("command", "failure"), FAILURES, ids=lambda value: value if isinstance(value, str) else None
)
def test_a_failure_that_passes_is_survived_and_counts_nothing_twice(
    scoring: Scoring,
    view: MongoScoreView,
    mongo_uri: str,
    command: str,
    failure: dict[str, Any],
) -> None:
    """It comes three times in a row, in the middle of catching up."""
    grant_some(scoring, 0, 300)
    worker = ProjectionWorker(scoring, view, batch_size=50)
    with failing(mongo_uri, command, mode={"times": 3}, **failure):
        assert worker.catch_up() == scoring.recorder.max_notification_id()
    assert assert_equal_to_the_events(scoring, view.read_model) == 300


def test_failures_at_random_are_survived_together_with_duplicates_from_outside(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str
) -> None:
    """A third of all inserts and commits fail, while two workers redeliver everything."""
    grant_some(scoring, 0, 200)
    ProjectionWorker(scoring, view).catch_up()
    grant_some(scoring, 200, 200)
    # As after a partial restore: the grants are there and the position is lost.
    view.read_model.positions.delete_many({})
    failure = {"mode": {"activationProbability": 0.33}, "errorCode": WRITE_CONFLICT, **TRANSIENT}
    with (
        closing(MongoScoreView(view.read_model)) as second,
        failing(mongo_uri, "insert", "commitTransaction", **failure),
    ):
        workers = [ProjectionWorker(scoring, some, batch_size=20) for some in (view, second)]
        at_once(2, lambda number: workers[number].catch_up())
    assert view.positions.foreign_count("Scoring") == 0
    assert assert_equal_to_the_events(scoring, view.read_model) == 400


def test_foreign_documents_of_every_kind_are_counted_and_left_alone(
    scoring: Scoring, view: MongoScoreView
) -> None:
    """Whatever a unique index takes for the same: members of arrays, numbers of other types."""
    receipts = [scoring.grant(**make_grant(n, user_id="ada").model_dump()) for n in range(6)]
    foreign: list[dict[str, Any]] = [
        {"_id": {"any": "thing"}, "grantId": "grant-0"},
        {"_id": "x", "grantId": ["grant-1", "another"]},
        {"_id": float(receipts[2].position), "grantId": "theirs-2"},
        {"_id": Decimal128(str(receipts[3].position)), "grantId": {"theirs": 3}},
    ]
    view.read_model.grants.insert_many(foreign)
    ProjectionWorker(scoring, view).catch_up()
    assert view.positions.foreign_count("Scoring") == 4
    assert view.read_model.users.find_one({"_id": "ada"}, {"grantCount": 1}) == {
        "_id": "ada",
        "grantCount": 2,
    }


def test_a_failure_that_stays_is_raised_and_told_by_status(
    scoring: Scoring,
    view: MongoScoreView,
    mongo_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until some worker has come further."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.3)
    grant_some(scoring, 0, 10)
    worker = ProjectionWorker(scoring, view)
    settings = Settings(
        folder=tmp_path, mongo_uri=mongo_uri, mongo_database=view.read_model.database.name
    )
    with ScoreLedger.open(
        settings=settings, worker=False, event_store=sqlite_env(tmp_path / "events.sqlite")
    ) as ledger:
        assert ledger.status().worker_error is None
        with (
            failing(mongo_uri, "insert", errorCode=WRITE_CONFLICT, **TRANSIENT),
            pytest.raises(ReadModelUnavailable),
        ):
            worker.catch_up()
        status = ledger.status()
        assert "failpoint" in (status.worker_error or "")
        assert str(os.getpid()) in (status.worker_error or "")
        assert status.lag_events == 27
        assert 0 <= (status.lag_seconds or 0) < 60
        worker.catch_up()
        status = ledger.status()
        assert (status.worker_error, status.lag_events, status.lag_seconds) == (None, 0, 0.0)


def test_a_refusal_that_is_nobodys_fault_parks_nothing(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str
) -> None:
    """Missing rights would otherwise park every stream there is."""
    grant_some(scoring, 0, 10)
    worker = ProjectionWorker(scoring, view, on_error="park")
    with (
        failing(mongo_uri, "insert", errorCode=13),
        pytest.raises(ReadModelUnavailable, match="refused access"),
    ):
        worker.catch_up()
    assert view.parking.count() == 0
    worker.catch_up()
    assert_equal_to_the_events(scoring, view.read_model)


@pytest.mark.parametrize("command", ["insert", "commitTransaction", "find"])
def test_a_stop_is_heeded_soon_even_while_retrying(
    scoring: Scoring,
    view: MongoScoreView,
    mongo_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """The batch is not applied, and the next worker applies it."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 500.0)
    grant_some(scoring, 0, 10)
    with failing(mongo_uri, command, closeConnection=True):
        with meanwhile(ProjectionWorker(scoring, view).follow) as stop:
            time.sleep(0.5)
            asked = time.monotonic()
            stop.set()
        assert time.monotonic() - asked < 60
    ProjectionWorker(scoring, view).catch_up()
    assert assert_equal_to_the_events(scoring, view.read_model) == 10


@pytest.mark.parametrize("second_fault", [False, True], ids=["to its end", "up to a fault"])
def test_a_stop_is_heeded_while_unparking_is_retried(
    scoring: Scoring,
    view: MongoScoreView,
    mongo_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    second_fault: bool,
) -> None:
    """The stream stays parked where it was."""
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 500.0)
    receipts = [scoring.grant(**make_grant(n, user_id="bob").model_dump()) for n in range(6)]
    with damaged(tmp_path / "events.sqlite", receipts[1].position):
        ProjectionWorker(scoring, view, on_error="park").catch_up()
    parked, stop, raised = view.parking.streams(), Event(), list[BaseException]()

    def unpark() -> None:
        try:
            Unparker(scoring, view, stop=stop).run(parked)
        except ReadModelUnavailable as error:
            raised.append(error)

    with (
        damaged(tmp_path / "events.sqlite", *([receipts[5].position] if second_fault else [])),
        failing(mongo_uri, "insert", closeConnection=True),
    ):
        thread = Thread(target=unpark)
        thread.start()
        time.sleep(0.5)
        assert raised == []
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
    assert view.parking.streams() == parked


def test_a_stop_is_heeded_soon_while_the_server_is_gone(scoring: Scoring, tmp_path: Path) -> None:
    """Server selection waits for minutes here, so it is not what a worker waits in."""
    with server_of_its_own(tmp_path, "&serverSelectionTimeoutMS=500000") as (pid, view):
        with meanwhile(ProjectionWorker(scoring, view).follow) as stop:
            grant_some(scoring, 0, 100)
            view.wait("Scoring", scoring.recorder.max_notification_id(), timeout=60)
            kill(pid())
            grant_some(scoring, 100, 100)
            time.sleep(0.1)
            asked = time.monotonic()
            stop.set()
        assert time.monotonic() - asked < 60


@contextmanager
def server_of_its_own(
    folder: Path, options: str = ""
) -> Iterator[tuple[Callable[[], int], MongoScoreView]]:
    """A mongod of its own, which is started again when it dies; yields how to find its pid.

    That waits until the server answers.
    """
    with (
        open_server(
            folder / "own", extra_args=["--setParameter", "enableTestCommands=1"]
        ) as server,
        connect(server.uri + options) as client,
        closing(MongoScoreView(ReadModel(client, "own"))) as view,
    ):
        view.read_model.prepare()

        def pid() -> int:
            while True:
                with suppress(PyMongoError):
                    return int(client.admin.command("serverStatus")["pid"])

        yield pid, view


def strike_dead(pid: Callable[[], int], _: MongoScoreView) -> None:
    kill(pid())


def step_down(_: Callable[[], int], view: MongoScoreView) -> None:
    with suppress(PyMongoError):
        view.read_model.client.admin.command("replSetStepDown", 1, force=True)


@pytest.mark.parametrize("strike", [strike_dead, step_down])
def test_a_primary_that_goes_under_load_loses_and_doubles_nothing(
    scoring: Scoring, tmp_path: Path, strike: Callable[[Callable[[], int], MongoScoreView], None]
) -> None:
    """Twice, while grants are recorded and followed; the worker never gives up."""
    with server_of_its_own(tmp_path) as (pid, view):
        grant_some(scoring, 0, 5_000)
        with meanwhile(ProjectionWorker(scoring, view, batch_size=200).follow):
            for round_ in range(2):
                grant_some(scoring, 5_000 + 1000 * round_, 1000)
                time.sleep(0.2)
                strike(pid, view)
                grant_some(scoring, 10_000 + 1000 * round_, 1000)
            view.wait("Scoring", scoring.recorder.max_notification_id(), timeout=120)
        assert assert_equal_to_the_events(scoring, view.read_model) == 9_000
