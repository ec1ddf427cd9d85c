"""``ScoreLedger``: what it opens and closes, threads, asyncio, and what a fork does to it."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from eventsourcing.utils import Environment
from pymongo import AsyncMongoClient

from command_line import run_python
from concurrency import at_once, lasting_at_most, until
from forks import in_child
from postgres_server import PostgresServer
from projections import LedgerNotOpen, ScoreLedger, Settings
from projections.mongo.read_model import ReadModel
from scoring import Contribution, GrantReceipt, GrantStatus, InvalidSetting, Scoring, ScoringError
from support import NOON, make_grant, mongo_env, sqlite_env


@pytest.fixture
def event_store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """In SQLite, or in MongoDB beside the read model where a test asks for that as well."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return sqlite_env(tmp_path / "events.sqlite")
    name = request.getfixturevalue("database").name
    return mongo_env(request.getfixturevalue("mongo_uri"), name)


on_both = pytest.mark.parametrize("event_store", ["sqlite", "mongo"], indirect=True)


def grant(ledger: ScoreLedger, number: int, **changes: object) -> GrantReceipt:
    return ledger.grant(**make_grant(number, **changes).model_dump())


@on_both
def test_many_contributions_are_projected_like_single_ones(
    database: Any, event_store: dict[str, str]
) -> None:
    """A badge among them is a grant; waiting for the newest receipt shows all of them."""
    batch = [
        Contribution(
            user_id="ada", key=key, category="award", source="badge", points=points, at=NOON
        )
        for key, points in (("award:badge:1", 5), ("streak", 9), ("award:badge:1", 7))
    ]
    with ScoreLedger.open(event_store=event_store, mongo=database) as ledger:
        receipts = ledger.contribute_many(batch)
        assert [receipt.status for receipt in receipts] == ["RECORDED", "RECORDED", "CONFLICT"]
        ledger.wait(max(receipts, key=lambda receipt: receipt.position), timeout=60)
        totals = ledger.totals("ada")
        assert totals is not None
        assert (totals.total_score, totals.recomputed_total) == (5, 16)
        assert ledger.verify().ok


def test_a_client_of_the_application_is_used_and_left_open(
    database: Any, event_store: dict[str, str]
) -> None:
    """Its database is chosen by name, and the client answers after the ledger is closed."""
    client = database.client
    with ScoreLedger.open(
        mongo=client, mongo_database=database.name, event_store=event_store
    ) as ledger:
        ledger.wait(grant(ledger, 1), timeout=60)
    assert database["score_grants"].count_documents({}) == 1


def test_a_database_of_the_application_is_used(database: Any, event_store: dict[str, str]) -> None:
    """Its name is the read model's; naming another one too is refused."""
    with ScoreLedger.open(mongo=database, event_store=event_store) as ledger:
        ledger.wait(grant(ledger, 1), timeout=60)
        assert ledger.status().read_model.endswith(database.name)
    assert database["user_scores"].count_documents({}) == 1
    with pytest.raises(ValueError, match="two databases"):
        ScoreLedger.open(mongo=database, mongo_database="other", event_store=event_store)


@on_both
def test_a_uri_and_settings_objects_are_taken(
    mongo_uri: str, database: Any, event_store: dict[str, str]
) -> None:
    """Explicit arguments, without any variable of the environment."""
    with ScoreLedger.open(
        mongo=mongo_uri, mongo_database=database.name, event_store=event_store, worker=False
    ) as ledger:
        grant(ledger, 1)
    settings = Settings(mongo_uri=mongo_uri, mongo_database=database.name)
    with ScoreLedger.open(settings=settings, event_store=event_store, worker=False) as ledger:
        assert ledger.catch_up() == 3


def test_an_asynchronous_client_is_refused_with_the_cure(event_store: dict[str, str]) -> None:
    """The ledger blocks; from asyncio it is called in a thread."""
    client: Any = AsyncMongoClient("mongodb://localhost:1", connect=False)
    with pytest.raises(TypeError, match=r"asyncio\.to_thread"):
        ScoreLedger.open(mongo=client, event_store=event_store)


def test_an_application_s_environment_is_taken_with_its_prefix(
    tmp_path: Path, database: Any
) -> None:
    """The event store is where the application's own prefixed variables say."""
    file = tmp_path / "shop.sqlite"
    env = Environment(
        "Shop", {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SHOP_SQLITE_DBNAME": str(file)}
    )
    with ScoreLedger.open(mongo=database, event_store=env, worker=False) as ledger:
        grant(ledger, 1)
        assert ledger.status().events == str(file)
    assert file.exists()


def test_an_application_of_one_s_own_is_used_and_left_open(scoring: Scoring, database: Any) -> None:
    """It goes on granting after the ledger is closed."""
    with ScoreLedger.open(scoring=scoring, mongo=database) as ledger:
        ledger.wait(grant(ledger, 1), timeout=60)
    assert scoring.grant(**make_grant(2).model_dump()).status == "RECORDED"
    with pytest.raises(ValueError, match="give one"):
        ScoreLedger.open(scoring=scoring, event_store={}, mongo=database)


def test_what_was_opened_is_closed_when_a_later_part_cannot_be_opened(
    event_store: dict[str, str],
) -> None:
    """No write-ahead log of an open SQLite connection stays behind."""
    with pytest.raises(InvalidSetting, match="not usable"):
        ScoreLedger.open(mongo="http://127.0.0.1", event_store=event_store)
    file = Path(event_store["SQLITE_DBNAME"])
    assert file.exists()
    assert not file.with_name(f"{file.name}-wal").exists()


def test_a_closed_ledger_says_so(database: Any, event_store: dict[str, str]) -> None:
    """Whichever way it is used; closing it again does nothing."""
    ledger = ScoreLedger.open(mongo=database, event_store=event_store)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerNotOpen, match="the ledger is closed"):
        grant(ledger, 1)
    with pytest.raises(LedgerNotOpen, match="the ledger is closed"):
        ledger.leaderboard.top(1)
    with pytest.raises(LedgerNotOpen, match="the ledger is closed"), ledger:
        pass


@on_both
def test_closing_ends_a_wait_of_another_thread(database: Any, event_store: dict[str, str]) -> None:
    """At once, and with the sentence of a closed ledger."""
    ledger = ScoreLedger.open(mongo=database, event_store=event_store, worker=False)
    receipt = grant(ledger, 1)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(ledger.wait, receipt, timeout=100)
        time.sleep(0.2)
        ledger.close()
        assert isinstance(waiting.exception(60), LedgerNotOpen)


@on_both
def test_closing_under_load_loses_nothing(
    database: Any, event_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread that grants is told in words, and all that was answered is in the store."""
    ledger = ScoreLedger.open(mongo=database, event_store=event_store)
    answered: list[int] = []

    def work(thread: int) -> None:
        for number in count(thread * 1_000_000):
            grant(ledger, number, user_id="ada", amount=1)
            answered.append(number)

    with ThreadPoolExecutor(4) as threads:
        granting = [threads.submit(work, thread) for thread in range(4)]
        time.sleep(0.3)
        ledger.close()
        raised = [each.exception(60) for each in granting]
    assert all(isinstance(error, LedgerNotOpen | ScoringError) for error in raised), raised
    # No connection counts as in use, which a fork would wait for.
    monkeypatch.setattr("scoring.sqlite_pool.PATIENCE_SECONDS", 500.0)
    with lasting_at_most(60):
        assert in_child(lambda: "forked") == "forked"
    with Scoring(event_store) as scoring:
        for number in answered:
            assert (
                scoring.grant(**make_grant(number, user_id="ada", amount=1).model_dump()).status
                == "DUPLICATE"
            )


@on_both
def test_threads_share_a_ledger(database: Any, event_store: dict[str, str]) -> None:
    """Eight threads grant, wait and read at once; every point is counted once."""
    with ScoreLedger.open(mongo=database, event_store=event_store) as ledger:

        def work(thread: int) -> None:
            for number in range(15):
                receipt = grant(ledger, 100 * thread + number, user_id="ada", amount=1)
                ledger.history("ada", limit=3)
            ledger.wait(receipt, timeout=60)
            assert ledger.leaderboard.top(1, by="ledger")[0].user_id == "ada"

        at_once(8, work)
        assert ledger.totals("ada").total_score == ledger.score_of("ada").total_score == 8 * 15


@on_both
def test_a_user_who_has_nothing_has_zeros_wherever_it_is_asked(
    database: Any, event_store: dict[str, str]
) -> None:
    """The projected totals say what the event store says, name for name."""
    with ScoreLedger.open(mongo=database, event_store=event_store, worker=False) as ledger:
        recorded, projected = ledger.score_of("nobody"), ledger.totals("nobody")
        for field in dataclasses.fields(recorded):
            assert getattr(projected, field.name) == getattr(recorded, field.name), field.name
        assert (projected.total_score, projected.last_grant_at) == (0, None)


def test_asyncio_goes_on_while_a_thread_waits_for_the_ledger(
    database: Any, event_store: dict[str, str]
) -> None:
    """``asyncio.to_thread`` is the documented way: the loop never stands still."""
    with ScoreLedger.open(mongo=database, event_store=event_store, worker=False) as ledger:

        async def main() -> None:
            receipt = await asyncio.to_thread(grant, ledger, 1)
            waiting = asyncio.create_task(asyncio.to_thread(ledger.wait, receipt, timeout=60))
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert not waiting.done()  # nothing projects until now
            await asyncio.to_thread(ledger.catch_up)
            await waiting

        asyncio.run(main())


def arguments(method: Callable[..., object]) -> dict[str, object]:
    """Something for each parameter that has no default."""
    known: dict[str, object] = {
        **make_grant(1).model_dump(),
        "grants": [make_grant(1)],
        "receipt": GrantReceipt(GrantStatus.RECORDED, 1, 0, 0, "ada"),
        "stop": Event(),
        "points": 1,
        "at": NOON,
        "post_id": "1",
        "badge_id": "1",
    }
    return {
        name: known.get(name)
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is parameter.empty
    }


def test_every_use_of_an_inherited_ledger_raises_one_clear_sentence(
    database: Any, event_store: dict[str, str]
) -> None:
    """All public methods, the leaderboard in somebody's hands included; closing does nothing."""
    with ScoreLedger.open(mongo=database, event_store=event_store) as ledger:
        board = ledger.leaderboard
        methods = {
            name: getattr(ledger, name)
            for name, _ in inspect.getmembers(ScoreLedger, inspect.isfunction)
            if not name.startswith("_") and name not in {"close", "leave_to_parent"}
        }
        methods |= {"top": board.top, "rank_of": board.rank_of}
        assert {"grant", "history", "status", "wait", "verify", "catch_up"} <= methods.keys()
        for name, method in methods.items():
            said = in_child(lambda method=method: method(**arguments(method)))  # type: ignore[misc]
            assert said == (
                f"LedgerNotOpen: the ledger was opened by process {os.getpid()}, which forked this "
                "one: open a new one with ScoreLedger.open()"
            ), name
        assert in_child(ledger.close) == "None"
        ledger.wait(grant(ledger, 1), timeout=60)  # the parent's goes on


@on_both
def test_of_a_forked_child_and_its_parent_nobody_loses_a_grant(
    mongo_uri: str, database: Any, event_store: dict[str, str], tmp_path: Path
) -> None:
    """SQLite: the child's grants survive the parent's closing of the file, which deletes its log.

    Without closing connections before a fork, the last grant here is acknowledged and lost.
    """
    closed = tmp_path / "closed"
    ledger = ScoreLedger.open(mongo=database, event_store=event_store)
    grant(ledger, 1)

    def work() -> str:
        with ScoreLedger.open(
            mongo=mongo_uri, mongo_database=database.name, event_store=event_store
        ) as own:
            first = grant(own, 2)
            (tmp_path / "granted").touch()
            until(closed.exists)
            return f"{first.status} {grant(own, 3).status}"

    def close() -> None:
        until((tmp_path / "granted").exists)
        ledger.close()
        closed.touch()

    closer = Thread(target=close)
    closer.start()
    assert in_child(work) == "RECORDED RECORDED"
    closer.join()
    with closing(Scoring(event_store)) as after:
        kept = [after.score_of(make_grant(number).user_id).grant_count for number in (1, 2, 3)]
    assert kept == [1, 1, 1]


_FORKING = """
import gc, os, sys
from datetime import UTC, datetime
from projections import ScoreLedger

def grant(ledger, number):
    return ledger.grant(
        user_id="ada", grant_id=f"g{number}", key=f"quiz:{number}", category="learning",
        source="quiz", amount=1, granted_at=datetime(2026, 11, 22, tzinfo=UTC),
    )

def backends():
    # One process of PostgreSQL for each connection that is open here.
    if not (name := os.environ.get("PGAPPNAME")):
        return set()
    import psycopg
    with psycopg.connect(sys.argv[3], autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE application_name = %s AND pid <> pg_backend_pid()", [name]
        )
        return {pid for pid, in rows}

# Without a worker: the frames of its thread would keep everything alive in the child.
ledger = ScoreLedger.open(mongo_database=sys.argv[1], worker=False)
grant(ledger, 1)
before = backends()
if os.fork() == 0:
    if sys.argv[2] == "new":
        with ScoreLedger.open(mongo_database=sys.argv[1]) as own:
            own.wait(grant(own, 2), timeout=60)
    del ledger  # its finalisers, if any, run now and at the end of the interpreter
    gc.collect()
    sys.exit(0)
_, code = os.wait()
assert before <= backends(), "the child closed connections of its parent"
for number in range(3, 30):
    receipt = grant(ledger, number)
ledger.catch_up()
print(code, ledger.score_of("ada").grant_count, ledger.totals("ada").grant_count)
ledger.close()
"""


@pytest.mark.parametrize("child", ["new", "none"])
@pytest.mark.parametrize("store", ["sqlite", "postgres", "mongo"])
def test_a_child_that_ends_does_not_disturb_its_parent(
    store: str,
    child: str,
    mongo_uri: str,
    postgres: PostgresServer,
    database: Any,
    event_store: dict[str, str],
) -> None:
    """Its garbage collector closes nothing of the parent's, with a ledger of its own or without."""
    name = f"{database.name}_{store}"
    env: dict[str, Any] = {
        "sqlite": event_store,
        "postgres": postgres.new_env(POSTGRES_POOL_SIZE="5", PGAPPNAME=name),
        "mongo": {"SCORE_LEDGER_EVENTS": store},
    }[store]
    program = ("-X", "dev", "-c", _FORKING)
    done = run_python(*program, name, child, postgres.uri, **env, MONGO_URI=mongo_uri)
    database.client.drop_database(name)
    expected = 29 if child == "new" else 28
    assert done.stdout == f"0 {expected} {expected}\n", done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_without_open_ledgers_forks_without_a_trace(
    database: Any, event_store: dict[str, str], read_model: ReadModel
) -> None:
    """A closed ledger is not looked at again, and is free to be collected."""
    del read_model
    ScoreLedger.open(mongo=database, event_store=event_store).close()
    gc.collect()
    assert in_child(lambda: "fine") == "fine"
