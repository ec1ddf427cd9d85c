"""PostgreSQL's pool loses no connection, wherever an exception reaches a thread that uses one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from interrupts import interrupted
from postgres_server import PostgresServer
from scoring import Scoring
from scoring.postgres_pool import BoundedConnectionPool, bounded_pool
from support import make_grant

# psycopg leaves generators behind, which fail when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def app(postgres: PostgresServer) -> Iterator[Scoring]:
    env = postgres.new_env(POSTGRES_POOL_SIZE="0", POSTGRES_MAX_OVERFLOW="2")
    with Scoring(env) as app:
        yield app
    gc.collect()  # or a later test would be told of it


def is_interrupted(place: int, call: Callable[[], object]) -> bool:
    """As by a time limit that raises in a signal handler, if there are so many places."""
    within = ("psycopg_pool/", "scoring/postgres", "eventsourcing/postgres")
    # Where it comes in a finally block, what the block needs may be missing.
    with suppress(KeyboardInterrupt, UnboundLocalError):
        interrupted(place, call, *within)
        return False
    return True


def assert_whole(pool: BoundedConnectionPool) -> None:
    """As many connections as it may have are to be had at once, and again."""
    for _ in range(2):
        with ExitStack() as stack:
            for _ in range(pool.max_size):
                stack.enter_context(pool.connection()).execute("SELECT 1")


def test_wherever_a_connection_is_opened_it_is_not_lost(app: Scoring) -> None:
    """Nor does the pool wait for one that nobody opens."""
    factory: Any = app.factory

    def use() -> None:
        with pool.connection() as connection:
            connection.execute("SELECT 1")

    for place in count(1):
        with closing(bounded_pool(factory.datastore)) as pool:
            pool.open()
            if not is_interrupted(place, use):
                break
            assert_whole(pool)
    assert place > 30


def test_a_pool_may_be_closed_by_a_worker_of_its_own(app: Scoring) -> None:
    """As where the garbage collector comes upon an application while one is at work."""
    factory: Any = app.factory
    pool: Any = bounded_pool(factory.datastore)
    pool.open()
    closed: Future[None] = Future()

    class Closing:
        def run(self) -> None:
            try:
                closed.set_result(pool.close())
            except RuntimeError as error:
                closed.set_exception(error)

    pool.run_task(Closing())
    closed.result(timeout=60)


def test_wherever_a_grant_is_interrupted_its_connection_is_not_lost(app: Scoring) -> None:
    """Nor given to others in a state in which they cannot use it."""
    factory: Any = app.factory
    for place in count(1):
        if not is_interrupted(place, partial(app.grant, **make_grant(place).model_dump())):
            break
        assert_whole(factory.datastore.pool)
    assert place > 100
