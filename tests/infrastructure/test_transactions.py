"""Transactions: what every statement in one carries, and what becomes of those that fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import ServerSelectionTimeoutError

from concurrency import until
from event_store import assert_equal_to_the_events, damaged, grants_of
from fail_points import failing, transactions_of
from heard_commands import HeardCommands
from killing import open_transactions
from projections import MongoScoreView, ProjectionWorker, ReadModelUnavailable
from projections.errors import BatchTooSlow
from projections.mongo.batches import Batch, Writes
from projections.mongo.collections import GENERATIONAL
from projections.mongo.read_model import ReadModel
from projections.mongo.transactions import find_server, in_transaction
from projections.mongo.writer import Transaction
from projections.retries import retries_until
from projections.worker.rebuild import Rebuild
from projections.worker.unparker import Unparker
from scoring import Scoring
from support import make_grant, worker_maker

ON_RECORD = "score_workers"
"""Who is alive is said outside of the transactions that it is about."""

WRITES = {"insert", "update", "delete", "findAndModify"}
READS = {"find", "aggregate", "getMore"}


@contextmanager
def listening(uri: str, database: str) -> Iterator[tuple[ReadModel, HeardCommands]]:
    listener = HeardCommands()
    with MongoClient[Any](uri, event_listeners=[listener]) as client:
        yield ReadModel(client, database), listener


def assert_whole(commands: list[dict[str, Any]]) -> list[list[str]]:
    """Every write, and all between a transaction's first statement and its end, is part of it.

    Returns what each transaction did.
    """
    transactions: list[list[str]] = []
    current: dict[str, Any] | None = None
    for command in commands:
        name, target = next(iter(command.items()))
        if name not in {*WRITES, *READS, "commitTransaction", "abortTransaction"}:
            continue
        if target == ON_RECORD:
            assert "autocommit" not in command
            continue
        if command.get("startTransaction"):
            assert current is None, command
            assert command["readConcern"]["level"] == "snapshot"
            current = {key: command[key] for key in ("lsid", "txnNumber")}
            transactions.append([])
        if current is None:
            assert name not in WRITES, f"a write outside of any transaction: {command}"
            continue
        assert command["autocommit"] is False, command
        assert {key: command.get(key) for key in current} == current, command
        assert "writeConcern" not in command or name.endswith("Transaction"), command
        transactions[-1].append(f"{name} {target}")
        if name.endswith("Transaction"):
            assert command["writeConcern"] == {"w": "majority"}
            current = None
    assert current is None
    return transactions


def test_every_statement_of_a_transaction_carries_its_session_and_its_concerns(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, tmp_path: Path
) -> None:
    """A batch with a fault, a redelivery, unparking in chunks, and every step of a rebuild."""
    scoring.grant_many([make_grant(number, user_id="ada") for number in range(10)])
    scoring.contribute("ada", "telemetry:activity", "telemetry", "app", 12)
    database = view.read_model.database.name
    with listening(mongo_uri, database) as (read_model, listener):
        with closing(MongoScoreView(read_model)) as listened:
            fifth = list(grants_of(scoring))[4].id
            with damaged(tmp_path / "events.sqlite", fifth):
                ProjectionWorker(scoring, listened, on_error="park").catch_up()
            batch = assert_whole(listener.sent)
            assert len(batch) == 1
            assert batch[0][0] == "findAndModify score_positions"
            done = {"update score_parked", "insert score_grants", "insert user_scores"}
            assert done < {*batch[0]}

            listener.sent.clear()
            Unparker(scoring, listened).run(listened.parking.streams())
            unparked = assert_whole(listener.sent)
            assert "delete score_parked" in unparked[-1]
            assert any(statement.startswith("findAndModify") for statement in unparked[-1])
            assert "update score_buckets" in unparked[-1]

            listener.sent.clear()
            read_model.positions.update_one({"_id": "Scoring"}, {"$set": {"position": 2}})
            listener.sent.clear()
            ProjectionWorker(scoring, listened).catch_up()
            redelivered = assert_whole(listener.sent)
            assert "find score_grants" in redelivered[-1]

        listener.sent.clear()
        assert Rebuild(scoring, read_model, worker_maker(scoring)).run().live
        # The new generation's position, before there is anybody to be held up by it.
        made = next(c for c in listener.sent if c.get("update") == "score_positions")
        steps = assert_whole([c for c in listener.sent if c is not made])
        flat = {statement for step in steps for statement in step}
        assert {"update score_control", "delete score_positions"} <= flat
        renames = [command for command in listener.sent if "renameCollection" in command]
        assert len(renames) > len(GENERATIONAL)
        assert all({"collectionUUID", "maxTimeMS"} <= rename.keys() for rename in renames)
    assert_equal_to_the_events(scoring, view.read_model)


def until_given_up(read_model: ReadModel) -> None:
    """Wait until the server, which looks now and then, has aborted what is open for too long."""
    until(lambda: not open_transactions(read_model), every_seconds=0.02)


def test_a_batch_whose_transaction_the_server_does_not_have_is_sent_again_whole(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committing again would not help, and it did not take too long: nothing is divided."""
    monkeypatch.setattr("projections.mongo.transactions._SLOW_SECONDS", 600.0)
    scoring.grant_many([make_grant(number) for number in range(20)])
    sizes: list[int] = []

    send = Transaction.send

    def counted(transaction: Transaction, writes: Writes) -> None:
        sizes.append(writes.event_count)
        send(transaction, writes)

    monkeypatch.setattr(Transaction, "send", counted)
    gone = {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}
    with (
        failing(mongo_uri, "commitTransaction", mode={"times": 1}, **gone),
        closing(MongoScoreView(view.read_model)) as own,
    ):
        ProjectionWorker(scoring, own).catch_up()
        transactions = own._writer._transactions
    assert sizes == [20, 20]
    assert assert_equal_to_the_events(scoring, view.read_model) == 20
    assert transactions is not None
    assert transactions.session.has_ended


def test_what_cannot_be_divided_is_tried_again_when_it_has_taken_too_long(
    read_model: ReadModel,
) -> None:
    """The step of a switch, say, beside something that made the server slow for once."""
    attempts: list[None] = []

    def once_slow(session: ClientSession) -> None:
        attempts.append(None)
        change = {"$set": {"attempts": len(attempts)}}
        read_model.control.update_one({"_id": "read-model"}, change, session=session)
        if len(attempts) == 1:
            until_given_up(read_model)
            read_model.control.find_one(session=session)

    with transactions_of(1, read_model.client):
        in_transaction(read_model, once_slow)
    assert (read_model.control.find_one() or {})["attempts"] == len(attempts) > 1


def test_waiting_for_a_server_that_does_not_come_ends_and_takes_no_processor_time() -> None:
    """For whoever is to stop meanwhile."""
    stop = Event()
    with MongoClient[Any]("mongodb://127.0.0.1:1/?replicaSet=nobody") as client:
        Timer(1, stop.set).start()
        used = time.process_time()
        retries = retries_until(stop, may_pass=lambda _: True)
        with pytest.raises(ServerSelectionTimeoutError):
            retries.call(lambda: find_server(client))
        assert stop.is_set()
        assert time.process_time() - used < 0.5


def test_a_batch_that_outlasts_the_servers_limit_is_halved(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is quick enough: the same size would be aborted for ever."""
    scoring.grant_many([make_grant(number) for number in range(40)])
    sizes: list[int] = []

    send = Transaction.send

    def slow(transaction: Transaction, writes: Writes) -> None:
        """As on a slow server: it takes longer the more there is."""
        sizes.append(writes.event_count)
        if writes.event_count > 20:
            until_given_up(view.read_model)
        send(transaction, writes)

    monkeypatch.setattr(Transaction, "send", slow)
    with transactions_of(1, view.read_model.client):
        ProjectionWorker(scoring, view).catch_up()
    assert sizes[:2] == [40, 20]
    assert sizes.count(40) == 1
    assert assert_equal_to_the_events(scoring, view.read_model) == 40


def test_batches_stay_small_once_one_did_not_fit_the_servers_cache(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str
) -> None:
    """It is halved until it fits, and the next ones are made no larger."""
    scoring.grant_many([make_grant(number) for number in range(100)])
    sizes: list[int] = []

    def note(batch: Batch) -> AbstractContextManager[None]:
        sizes.append(len(batch.events))
        return nullcontext()

    too_large = {"errorCode": 388, "namespace": view.read_model.grants.full_name}
    with failing(mongo_uri, "insert", mode={"times": 2}, **too_large):
        ProjectionWorker(scoring, view, batch_size=40, around_batch=note).catch_up()
    assert [size for size in sizes if size] == [40, 20, 10, 10, 20, *[10] * 6]
    assert assert_equal_to_the_events(scoring, view.read_model) == 100


def test_a_stream_whose_grant_outlasts_the_servers_limit_stays_parked_as_it_was(
    scoring: Scoring,
    view: MongoScoreView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is nothing to be halved, and its event is not at fault."""
    receipt = scoring.grant(**make_grant(1).model_dump())
    with damaged(tmp_path / "events.sqlite", receipt.position):
        ProjectionWorker(scoring, view, on_error="park").catch_up()
    parked, send = view.parking.streams(), Transaction.send

    def slow(transaction: Transaction, writes: Writes) -> None:
        if writes.event_count:
            until_given_up(view.read_model)
        send(transaction, writes)

    monkeypatch.setattr(Transaction, "send", slow)
    with transactions_of(1, view.read_model.client), pytest.raises(BatchTooSlow):
        Unparker(scoring, view).run(parked)
    assert view.parking.streams() == parked


@pytest.mark.parametrize("code", [11601, 64, 91])
def test_a_commit_whose_answer_is_a_write_concern_error_is_asked_for_again(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, code: int
) -> None:
    """It may be committed or not, and nothing counts twice either way."""
    scoring.grant_many([make_grant(number) for number in range(10)])
    refused = {"writeConcernError": {"code": code, "errmsg": "interrupted"}}
    with failing(mongo_uri, "commitTransaction", mode={"times": 3}, **refused):
        ProjectionWorker(scoring, view).catch_up()
    assert assert_equal_to_the_events(scoring, view.read_model) == 10


def test_a_commit_that_stays_unknown_is_raised_and_leaves_no_transaction_open(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is killed, or its locks would hold everybody up for a minute."""
    scoring.grant_many([make_grant(number) for number in range(10)])
    monkeypatch.setattr("projections.retries.RETRY_SECONDS", 0.2)
    # For a server that is healthy, and perhaps busy.
    monkeypatch.setattr("projections.mongo.transactions._PROBE_SECONDS", 60.0)
    before = open_transactions(view.read_model)
    lost = {"errorCode": 64, "errorLabels": ["UnknownTransactionCommitResult"]}
    with failing(mongo_uri, "commitTransaction", **lost):
        with pytest.raises(ReadModelUnavailable) as unknown:
            ProjectionWorker(scoring, view).catch_up()
        assert unknown.value.transient
        assert open_transactions(view.read_model) <= before  # those of others may end
    assert view.max_tracking_id("Scoring") is None
    ProjectionWorker(scoring, view).catch_up()
    assert assert_equal_to_the_events(scoring, view.read_model) == 10
