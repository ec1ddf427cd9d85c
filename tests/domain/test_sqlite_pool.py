"""``PatientConnectionPool`` gives connections out as the library's own pool does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from eventsourcing.persistence import ConnectionNotFromPoolError, ConnectionUnavailableError
from eventsourcing.sqlite import SQLiteConnectionPool

from scoring.sqlite_pool import PatientConnectionPool

KINDS = (PatientConnectionPool, SQLiteConnectionPool)


@pytest.fixture(params=KINDS)
def on_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLiteConnectionPool]:
    pool: SQLiteConnectionPool = request.param(db_name=str(tmp_path / "events.sqlite"))
    yield pool
    pool.close()


@pytest.fixture(params=KINDS)
def in_memory(request: pytest.FixtureRequest) -> Iterator[SQLiteConnectionPool]:
    pool: SQLiteConnectionPool = request.param(db_name="file:events?mode=memory&cache=shared")
    yield pool
    pool.close()


def waits(pool: SQLiteConnectionPool, *, used_for: bool | None, asked_for: bool | None) -> bool:
    """Whether one use of a connection waits for the end of another."""
    used = pool.get_connection(is_writer=used_for)
    try:
        pool.put_connection(pool.get_connection(0, is_writer=asked_for))
    except ConnectionUnavailableError:
        return True
    else:
        return False
    finally:
        pool.put_connection(used)
        # Nor does what gave up hold up anybody.
        for is_writer in (True, False):
            pool.put_connection(pool.get_connection(0, is_writer=is_writer))


@pytest.mark.parametrize("asked_for", [True, False, None])
@pytest.mark.parametrize("used_for", [True, False, None])
def test_on_a_file_a_writer_waits_for_a_writer(
    on_file: SQLiteConnectionPool, *, used_for: bool | None, asked_for: bool | None
) -> None:
    """And nobody else for anybody."""
    assert waits(on_file, used_for=used_for, asked_for=asked_for) is (
        (used_for, asked_for) == (True, True)
    )


@pytest.mark.parametrize("asked_for", [True, False, None])
@pytest.mark.parametrize("used_for", [True, False, None])
def test_in_memory_readers_and_a_writer_exclude_each_other(
    in_memory: SQLiteConnectionPool, *, used_for: bool | None, asked_for: bool | None
) -> None:
    """A table is locked there for who reads while another connection writes."""
    assert waits(in_memory, used_for=used_for, asked_for=asked_for) is (
        None not in {used_for, asked_for} and (used_for or asked_for)
    )


def test_who_waits_is_given_what_is_returned(on_file: SQLiteConnectionPool) -> None:
    """At once, whether it waited for the writer or for any connection at all."""
    most = on_file.pool_size + on_file.max_overflow
    for is_writer, number in ((True, 1), (None, most)):
        used = [on_file.get_connection(is_writer=is_writer) for _ in range(number)]
        assert on_file.num_in_use == number
        with pytest.raises(ConnectionUnavailableError):
            on_file.get_connection(0, is_writer=is_writer)
        with ThreadPoolExecutor(1) as executor:
            asking = executor.submit(on_file.get_connection, 60.0, is_writer=is_writer)
            on_file.put_connection(used.pop())
            used.append(asking.result())
        for connection in used:
            on_file.put_connection(connection)
    assert on_file.num_in_pool == on_file.pool_size


def test_a_connection_is_returned_once(on_file: SQLiteConnectionPool) -> None:
    """Else two would be given the same one."""
    connection = on_file.get_connection()
    on_file.put_connection(connection)
    with pytest.raises(ConnectionNotFromPoolError):
        on_file.put_connection(connection)


def test_a_transaction_that_was_left_open_ends_with_the_use_of_its_connection(
    tmp_path: Path,
) -> None:
    """An exception can come from a signal handler before a rollback as anywhere else."""
    pools = [
        PatientConnectionPool(db_name=str(tmp_path / "events.sqlite"), lock_timeout=1)
        for _ in range(2)
    ]
    for pool in (*pools, pools[0]):
        connection = pool.get_connection(0, is_writer=True)
        connection.cursor().execute("BEGIN IMMEDIATE")
        pool.put_connection(connection)
    for pool in pools:
        pool.close()
