"""SQLite and ``os.fork()``: no connection to an event store may be inherited by a child.

SQLite keeps its file locks in tables of the process. A forked child inherits the tables but not the
locks, so a connection that the child opens on the same file believes in locks that nobody holds,
and the next process to close the file deletes the write-ahead log under it: grants that the child
was told are recorded would be lost (https://www.sqlite.org/howtocorrupt.html, section 2.6). Idle
connections are therefore closed for the moment of the fork; the pool opens new ones when asked.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from scoring.errors import ScoringError

if TYPE_CHECKING:
    from eventsourcing.sqlite import SQLiteConnectionPool

PATIENCE_SECONDS: Final = 20.0
"""How long a fork waits for transactions of other threads: longer than these wait for the file."""

_pools: WeakSet[SQLiteConnectionPool] = WeakSet()
_held: list[SQLiteConnectionPool] = []
_in_use: set[Path] = set()
_inherited: set[Path] = set()


def close_at_forks(pool: SQLiteConnectionPool) -> None:
    """Have the connections of a pool closed whenever this process forks.

    Raises:
        ScoringError: if this process itself was forked while its parent used the file.
    """
    if pool.is_sqlite_memory_mode:
        return  # it would be lost with its connections, and no other process can see it
    if _file(pool) in _inherited:
        raise ScoringError(
            f"{pool.db_name} was in use when this process was forked, so SQLite's locks on it "
            "cannot be trusted here: fork again when no transaction is open, or start the process "
            "with multiprocessing's method spawn"
        )
    _pools.add(pool)


def _file(pool: SQLiteConnectionPool) -> Path:
    return Path(pool.db_name.removeprefix("file:").partition("?")[0]).resolve()


def _before() -> None:
    for pool in list(_pools):
        if not _emptied(pool):
            _in_use.add(_file(pool))


def _emptied(pool: SQLiteConnectionPool) -> bool:
    """Close the idle connections and keep the pool locked; false if some stayed in use."""
    # ruff: noqa: SLF001 - the library's pool can be closed for good only
    deadline = time.monotonic() + PATIENCE_SECONDS
    if not pool._get_semaphore.acquire(timeout=PATIENCE_SECONDS):
        return False
    pool._put_condition.acquire()
    # A pool that is closed under its users closes their connections, and keeps them on its list.
    while any(not connection.closed for connection in pool._in_use.values()):
        if not pool._put_condition.wait(max(0.0, deadline - time.monotonic())):
            pool._put_condition.release()
            pool._get_semaphore.release()
            return False
    while pool._pool:
        pool._pool.popleft().close()
    _held.append(pool)
    return True


def _after() -> None:
    while _held:
        pool = _held.pop()
        pool._put_condition.release()
        pool._get_semaphore.release()


def _after_in_parent() -> None:
    _after()
    _in_use.clear()


def _after_in_child() -> None:
    _inherited.update(_in_use)
    _in_use.clear()
    _after()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
