"""SQLite's connections: never closed under a statement that runs, never inherited over a fork.

The library's pool, when it is closed, closes connections that other threads are using. SQLite does
not allow that: the process may crash. A pool of ours waits until they are returned.

SQLite keeps its file locks in tables of the process. A forked child inherits the tables but not the
locks, so a connection that the child opens on the same file believes in locks that nobody holds,
and the next process to close the file deletes the write-ahead log under it: grants that the child
was told are recorded would be lost (https://www.sqlite.org/howtocorrupt.html, section 2.6). Idle
connections are therefore closed for the moment of the fork; the pool opens new ones when asked.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from threading import Condition, RLock, get_ident
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote
from weakref import WeakKeyDictionary

from eventsourcing.persistence import (
    ConnectionNotFromPoolError,
    ConnectionPoolClosedError,
    ConnectionUnavailableError,
    InterfaceError,
)
from eventsourcing.sqlite import (
    SQLITE3_DEFAULT_LOCK_TIMEOUT,
    SQLiteConnection,
    SQLiteConnectionPool,
)

from scoring.errors import ScoringError
from scoring.forks import keep_for_ever
from scoring.sqlite_connection import PooledConnection, open_connections
from scoring.sqlite_files import OpenFiles

if TYPE_CHECKING:
    from collections import deque

PATIENCE_SECONDS: Final = 20.0
"""How long forking and closing wait for transactions of other threads: longer than these wait for
the file."""

_CACHE_KIBIBYTES: Final = 16_384
"""Claims lie anywhere in their index, as their ids are hashes: from a million grants on, a batch
touches some 2,500 pages of 4 kB. SQLite's default, 2 MB, has it read twice as many from the file.
"""

_LOG_PAGES: Final = 2000
"""A commit after which the log has so many copies these to the file. SQLite's default, 1,000, is no
more than a batch changes, so each batch was written twice, though the next one changes most of the
same pages. With 4,000 the slowest hundredth of single grants, which wait for it, took a third more.
"""

_pools: WeakKeyDictionary[PatientConnectionPool, None] = WeakKeyDictionary()
_inherited: set[Path] = set()
"""Files that were in use when this process was forked."""


class PatientConnectionPool(SQLiteConnectionPool):
    """A pool that waits for its connections before it is closed, and before the process forks.

    A connection that is not idle is in use, also while it is opened and taken back: wherever an
    exception from a signal handler, say, reaches the thread, none is lost.
    """

    _pool: deque[PooledConnection]  # type: ignore[assignment]
    _in_use: dict[int, PooledConnection]  # type: ignore[assignment]

    def __init__(self, *, db_name: str, lock_timeout: int | None = None) -> None:
        """Connect to a file when first asked for a connection.

        Raises:
            ScoringError: if this process itself was forked while its parent used the file.
        """
        self._retired = False
        # Who uses each connection, by the thread's number.
        self._users: dict[int, int] = {}
        # Threads that fork, until which nobody is given any.
        self._forking: set[int] = set()
        super().__init__(db_name=_absolute(db_name), lock_timeout=lock_timeout)
        self._make_locks()
        path = self.db_name
        if path.startswith("file:"):
            path = unquote(path.removeprefix("file:").partition("?")[0])
        self.file = Path(path).resolve()
        self._path, self._files = path, OpenFiles(path, self.file)
        # One in memory would be lost with its connections, and no other process can see it.
        if not self.is_sqlite_memory_mode:
            self._check_inheritance()
            _pools[self] = None

    @property
    def closed(self) -> bool:
        """Whether no connection is given out any more."""
        return self._retired

    def _make_locks(self) -> None:
        # These are entered without calling anything in Python, unlike a semaphore and a condition,
        # where an exception might come from, and know who holds them.
        self._get_semaphore: Any = RLock()
        self._lock = RLock()
        self._put_condition = Condition(self._lock)

    def get_connection(
        self,
        timeout: float | None = None,
        *,
        is_writer: bool | None = None,
        lent: list[PooledConnection] | None = None,
    ) -> PooledConnection:
        """Return a connection, as the library does, at a third of the cost.

        Args:
            timeout: Seconds to wait for one; default, the pool's.
            is_writer: Whether it is to write, which one at a time does.
            lent: Gets it before anybody else waits for it, to be taken back if an exception from
                a signal handler, say, keeps this from returning.

        Raises:
            ConnectionPoolClosedError: if the pool was closed, if only while this thread waited.
            ConnectionUnavailableError: if none is to be had in time.
        """
        patience = self.pool_timeout if timeout is None else timeout
        ends_at = time.monotonic() + patience
        lent = [] if lent is None else lent
        if self._forking and get_ident() in self._forking:
            self.release()  # for in a signal handler it would wait for itself
        try:
            # So that connections are given out in the order in which they are asked for.
            if not self._get_semaphore.acquire(timeout=patience):
                raise ConnectionUnavailableError("others wait for a connection, too")
            with self._lock:
                while (self._in_use or self._forking) and self._has_to_wait(is_writer=is_writer):
                    if not self._put_condition.wait(ends_at - time.monotonic()):
                        raise ConnectionUnavailableError("no connection was returned in time")
                self._check_inheritance()
                if self._retired:
                    raise ConnectionPoolClosedError
                # Before anything is written, too: the log would be taken for that of the file which
                # has the name now.
                self._files.check_file()
                pool = self._pool
                connection = pool[0] if pool else PooledConnection()
                number = id(connection)
                self._users[number] = get_ident()
                lent.append(connection)
                connection.is_writer = is_writer
                self._in_use[number] = connection
                if connection in pool:
                    pool.remove(connection)
                if connection.closed:
                    self._open(connection)
                return connection
        except BaseException:
            self.take_back(lent)
            raise
        finally:
            try:  # noqa: SIM105 - suppress() is in Python, where it may be interrupted
                self._get_semaphore.release()
            except RuntimeError:
                pass  # it was interrupted before it had that

    def _has_to_wait(self, *, is_writer: bool | None) -> bool:
        if self._retired:
            return False
        if self._forking:
            return True
        used_for = [connection.is_writer for connection in self._in_use.values()]
        if len(used_for) >= self.pool_size + self.max_overflow:
            return True
        if self.is_sqlite_memory_mode:  # where readers and a writer exclude each other
            return is_writer is not None and (True in used_for or (is_writer and False in used_for))
        return is_writer is True and True in used_for

    def put_connection(self, conn: SQLiteConnection) -> None:
        """Take a connection back; once the pool is closed, close it."""
        if id(conn) not in self._in_use:
            raise ConnectionNotFromPoolError("it is not in use in this pool")
        self.take_back([self._in_use[id(conn)]])

    def take_back(self, lent: list[PooledConnection]) -> None:
        """Take back what was lent, and empty the list; to be called again if it was interrupted."""
        with self._lock:
            try:
                self._take_back(lent)
            except BaseException:
                self._take_back(lent)  # before anybody else gets one of them
                raise

    def _take_back(self, lent: list[PooledConnection]) -> None:
        for connection in lent:
            if self._retired or len(self._pool) >= self.pool_size or connection.closed:
                connection.close()
            elif connection not in self._pool:
                try:
                    connection.rollback()
                    # The last one used is the next one given out: whoever writes again finds the
                    # file's pages in its cache, which every other connection's commit empties.
                    self._pool.appendleft(connection)
                except sqlite3.Error:
                    connection.close()
            number = id(connection)
            self._in_use.pop(number, None)
            self._users.pop(number, None)
        self._put_condition.notify_all()
        lent.clear()

    def close(self) -> None:
        """Close all connections, as soon as other threads have returned theirs.

        None is given out from now on. What is not returned in ``PATIENCE_SECONDS``, and what the
        calling thread itself uses, as in a signal handler, is closed when it is returned.
        """
        with self._lock:
            self._retired = True
            self._put_condition.notify_all()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self._others_use_connections() and self._put_condition.wait(
                max(0.0, deadline - time.monotonic())
            ):
                pass
            self._close_idle()

    def hold(self) -> None:
        """Close all connections, unless some stay in use, and give none out until ``release``."""
        if get_ident() in self._users.values():
            return  # for it would wait for itself
        with self._get_semaphore:  # after those who asked before
            self._forking.add(get_ident())
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._lock:
            while self._in_use:
                if not self._put_condition.wait(max(0.0, deadline - time.monotonic())):
                    return
            self._close_idle()

    def release(self) -> None:
        """End a ``hold`` of this thread, if there is one."""
        with self._lock:
            self._forking.discard(get_ident())
            self._put_condition.notify_all()

    def reset_after_fork(self) -> None:
        """Forget, in a child that was forked, the parent's threads, connections and locks.

        A thread of the parent may have held any of the locks, or waited for it; here it never
        lets go.
        """
        self._pool.clear()
        self._in_use.clear()
        self._users.clear()
        self._forking.clear()
        self._make_locks()

    def _open(self, connection: PooledConnection) -> None:
        # As the library does, which however keeps one prepared statement a connection, and so
        # prepares each anew every time.
        connection.close()  # which may have been interrupted
        if not self.is_sqlite_memory_mode:
            if self.db_name == self._path:
                self._files.make_private()
            if not self._is_open:
                self._files.log_closed()
            open_connections[connection] = self.file
        try:
            opened = connection.connect(
                self.db_name,
                uri=True,
                check_same_thread=False,
                isolation_level=None,
                timeout=self.lock_timeout or SQLITE3_DEFAULT_LOCK_TIMEOUT,
            )
        except sqlite3.Error as error:
            raise InterfaceError(error) from error
        if not self.is_sqlite_memory_mode:
            if not self.is_journal_mode_wal:
                opened.execute("PRAGMA journal_mode=WAL")
                self.is_journal_mode_wal = True
            opened.execute(f"PRAGMA cache_size=-{_CACHE_KIBIBYTES}")
            opened.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            # So that it has the log open: else the last connection of another process removes it.
            opened.execute("PRAGMA schema_version").fetchone()
            self._files.opened()
            self.check_files()
        opened.row_factory = sqlite3.Row
        connection.closed = False

    def check_files(self) -> None:
        """Check that what is open is what has the file's name, and the name of its log.

        Raises:
            ScoringError: if one of them was removed, renamed or replaced.
        """
        if not (self.is_sqlite_memory_mode or self._files.are_in_settled_folder()):
            # With the last connection, which another thread may just be closing, goes the log.
            with self._lock:
                self._files.check(log_may_be_gone=not self._is_open)

    @property
    def _is_open(self) -> bool:
        return not open_connections.keys().isdisjoint([*self._pool, *self._in_use.values()])

    def _check_inheritance(self) -> None:
        if _inherited and self.file in _inherited:
            raise ScoringError(
                f"{self.file} was in use when this process was forked, so SQLite's locks on it "
                "cannot be trusted here: fork again when no transaction is open, or start the "
                "process with multiprocessing's method spawn"
            )

    def _others_use_connections(self) -> bool:
        return any(user != get_ident() for user in self._users.values())

    def _close_idle(self) -> None:
        for connection in [*self._pool]:
            connection.close()


def _absolute(db_name: str) -> str:
    """Return a name that means the same file after the process has changed its directory."""
    if SQLiteConnectionPool.detect_memory_mode(db_name):
        return db_name
    if db_name.startswith("file:"):
        name = db_name.removeprefix("file:")
        return db_name if name.startswith("/") else f"file:{quote(str(Path.cwd()))}/{name}"
    return str(Path.cwd() / db_name)


def _before_fork() -> None:
    for pool in _live_pools():
        pool.hold()


def _after_fork_in_parent() -> None:
    for pool in _live_pools():
        pool.release()


def _after_fork_in_child() -> None:
    # Closing them here could delete the log that the parent goes on writing.
    keep_for_ever([*open_connections])
    _inherited.update(open_connections.values())
    open_connections.clear()
    for pool in _live_pools():
        pool.reset_after_fork()


def _live_pools() -> list[PatientConnectionPool]:
    return [pool for each in _pools.keyrefs() if (pool := each())]


os.register_at_fork(before=_before_fork)
for _ in range(2):  # for an exception that comes there, a signal handler's, say, ends only one
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
