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

import json
import os
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock, RLock, get_ident
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote
from uuid import UUID
from weakref import WeakSet

from eventsourcing.persistence import (
    ConnectionNotFromPoolError,
    ConnectionPoolClosedError,
    ConnectionUnavailableError,
    InterfaceError,
    StoredEvent,
)
from eventsourcing.sqlite import (
    SQLITE3_DEFAULT_LOCK_TIMEOUT,
    SQLiteAggregateRecorder,
    SQLiteApplicationRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteDatastore,
    SQLiteTransaction,
)

from scoring.errors import ScoringError
from scoring.event_store import GaplessRecorder, StoreWentBack
from scoring.forks import keep_for_ever
from scoring.sqlite_files import OpenFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventsourcing.sqlite import SQLiteCursor

    from scoring.event_store import Place

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

_pools: WeakSet[PatientConnectionPool] = WeakSet()
_inherited: set[Path] = set()
"""Files that were in use when this process was forked."""

_fork_lock = RLock()
_held: list[PatientConnectionPool] = []
_in_use: set[Path] = set()
"""What a fork that is under way keeps until it is over; one thread forks at a time."""


class PatientDatastore(SQLiteDatastore):
    """The library's datastore with a pool that waits for its connections."""

    def __init__(self, theirs: SQLiteDatastore) -> None:
        """Open the same file in the place of another datastore, which was not used yet."""
        db_name, lock_timeout = theirs.pool.db_name, theirs.pool.lock_timeout
        super().__init__(
            db_name,
            single_row_tracking=theirs.single_row_tracking,
            originator_id_type=theirs.originator_id_type,
        )
        self.pool = PatientConnectionPool(db_name=db_name, lock_timeout=lock_timeout)

    @contextmanager
    def transaction(self, *, commit: bool) -> Iterator[SQLiteCursor]:
        """Begin and end a transaction, as the library does.

        It has three generators for this, one in the other: a tenth of reading an event.
        """
        connection = self.pool.get_connection(is_writer=commit)
        try:
            with SQLiteTransaction(connection, commit=commit) as cursor, cursor:
                yield cursor
        finally:
            self.pool.put_connection(connection)


class CheckedSQLiteRecorder(SQLiteApplicationRecorder):
    """The library's recorder, which answers for events only where they can be found again."""

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Insert events, as the library does.

        Raises:
            ScoringError: if the file is not in its place any more, and the events with it.
        """
        pool = self.datastore.pool
        # What transaction() does, but for a generator and closing the cursor.
        connection = pool.get_connection(is_writer=True)
        try:
            with SQLiteTransaction(connection, commit=True) as c:
                positions: Sequence[int] | None = self._insert_events(c, stored_events, **kwargs)
        finally:
            pool.put_connection(connection)
        # After the commit, for before it the answer could be out of date when it is needed.
        if isinstance(pool, PatientConnectionPool):
            pool.check_files()
        return positions


class GaplessSQLiteRecorder(GaplessRecorder, CheckedSQLiteRecorder):
    """The library's recorder, which inserts no event without the one before it."""

    def __init__(
        self, datastore: SQLiteDatastore, events_table_name: str = "stored_events"
    ) -> None:
        """Construct the library's recorder."""
        super().__init__(datastore, events_table_name)
        here = f"FROM {events_table_name} WHERE originator_id="
        # SQLite looks for what is built on beside the place of the new row, which costs little
        # (unlike in INSERT ... SELECT ... WHERE), and refuses '' for a row's number.
        values = (
            "(originator_id, originator_version, topic, state, rowid) VALUES (?1, ?2, ?3, ?4, CASE "
            f"WHEN (?2=1 OR EXISTS (SELECT 1 {here}?1 AND originator_version=?2 - 1))"
        )
        otherwise = "THEN NULL ELSE '' END)"
        self.insert_events_statement = f"INSERT INTO {events_table_name} {values} {otherwise}"
        self._insert_after_newest = (
            f"INSERT INTO {events_table_name} {values} AND EXISTS "
            f"(SELECT 1 {here}?5 AND originator_version=?6 AND state=?7) {otherwise}"
        )
        # CROSS JOIN, as SQLite then looks each place up in the index, whatever it knows about the
        # table. One text for all of them: there is no limit to their number, nor a new statement.
        self._select_at = (
            f"SELECT key, topic, state FROM json_each(?) CROSS JOIN {events_table_name}"  # noqa: S608 - a name of the library's
            " ON originator_id=json_extract(value, '$[0]')"
            " AND originator_version=json_extract(value, '$[1]')"
        )
        self._select_after = (
            "SELECT key, originator_version, topic, state"  # noqa: S608 - likewise
            f" FROM json_each(?) CROSS JOIN {events_table_name}"
            " ON originator_id=json_extract(value, '$[0]')"
            " AND originator_version>json_extract(value, '$[1]')"
            " ORDER BY key, originator_version"
        )

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        cursor = c.sqlite_cursor
        newest: StoredEvent | None = kwargs["newest"]
        rows = [
            (_as_text(event.originator_id), event.originator_version, event.topic, event.state)
            for event in stored_events
        ]
        try:
            if newest is not None and rows:
                own = (_as_text(newest.originator_id), newest.originator_version, newest.state)
                cursor.execute(self._insert_after_newest, rows.pop(0) + own)
            # executemany() takes two thirds of the time, and does not say what number the last got.
            cursor.executemany(self.insert_events_statement, rows[:-1])
            if rows:
                cursor.execute(self.insert_events_statement, rows[-1])
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_MISMATCH:
                raise StoreWentBack from error
            raise
        # The rows of one writer get numbers without a gap.
        last = c.lastrowid
        return range(last - len(stored_events) + 1, last + 1)

    def select_events_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        """Return, for each place in turn, the event that is there, or ``None``."""
        events: list[StoredEvent | None] = [None] * len(places)
        for number, topic, state in self._select(self._select_at, places):
            stream, version = places[number]
            events[number] = StoredEvent(stream, version, topic, state)
        return events

    def select_events_after(self, places: Sequence[Place]) -> list[list[StoredEvent]]:
        """Return, for each place in turn, the later events of its stream, by version."""
        events: list[list[StoredEvent]] = [[] for _ in places]
        for number, version, topic, state in self._select(self._select_after, places):
            events[number].append(StoredEvent(places[number][0], version, topic, state))
        return events

    def _select(self, statement: str, places: Sequence[Place]) -> Sequence[Any]:
        wanted = json.dumps([(_as_text(stream), version) for stream, version in places])
        with self.datastore.transaction(commit=False) as c:
            c.execute(statement, [wanted])
            rows: Sequence[Any] = c.fetchall()
        return rows


class SQLiteSnapshotRecorder(SQLiteAggregateRecorder):
    """The library's recorder, which finds the newest snapshots of many streams in one query."""

    def select_newest_events(self, streams: Sequence[UUID]) -> list[StoredEvent | None]:
        """Return, for each stream in turn, its event of the highest version, or ``None``."""
        events: list[StoredEvent | None] = [None] * len(streams)
        with self.datastore.transaction(commit=False) as c:
            c.execute(self._select_newest, [json.dumps([_as_text(stream) for stream in streams])])
            for number, version, topic, state in c.fetchall():
                events[number] = StoredEvent(streams[number], version, topic, state)
        return events

    @property
    def _select_newest(self) -> str:
        table = self.events_table_name
        return (
            f"SELECT key, originator_version, topic, state FROM json_each(?) CROSS JOIN {table}"  # noqa: S608 - a name of the library's
            " ON originator_id=value AND originator_version="
            f"(SELECT max(originator_version) FROM {table} WHERE originator_id=value)"
        )


def _as_text(stream: UUID | str) -> str:
    return stream.hex if isinstance(stream, UUID) else stream


class PatientConnectionPool(SQLiteConnectionPool):
    """A pool that waits for its connections before it is closed, and before the process forks."""

    def __init__(self, *, db_name: str, lock_timeout: int | None = None) -> None:
        """Connect to a file when first asked for a connection.

        Raises:
            ScoringError: if this process itself was forked while its parent used the file.
        """
        self._retired = False
        # Who uses each connection, by the thread's number.
        self._users: dict[int, int] = {}
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
            with _fork_lock:
                _pools.add(self)

    @property
    def closed(self) -> bool:
        """Whether no connection is given out any more."""
        return self._retired

    def _make_locks(self) -> None:
        # These are entered without calling anything in Python, unlike a semaphore and a condition.
        self._get_semaphore: Any = Lock()
        self._lock = RLock()
        self._put_condition = Condition(self._lock)

    def get_connection(
        self, timeout: float | None = None, *, is_writer: bool | None = None
    ) -> SQLiteConnection:
        """Return a connection, as the library does, at a third of the cost.

        Raises:
            ConnectionPoolClosedError: if the pool was closed, if only while this thread waited.
            ConnectionUnavailableError: if none is to be had in time.
        """
        patience = self.pool_timeout if timeout is None else timeout
        ends_at = time.monotonic() + patience
        # So that connections are given out in the order in which they are asked for.
        if not self._get_semaphore.acquire(timeout=patience):
            raise ConnectionUnavailableError("others wait for a connection, too")
        try:
            with self._lock:
                while self._in_use and self._has_to_wait(is_writer=is_writer):
                    if not self._put_condition.wait(ends_at - time.monotonic()):
                        raise ConnectionUnavailableError("no connection was returned in time")
                self._check_inheritance()
                if self._retired:
                    raise ConnectionPoolClosedError
                # Before anything is written, too: the log would be taken for that of the file which
                # has the name now.
                self._files.check_file()
                connection = self._pool.popleft() if self._pool else self._create_connection()
                connection.is_writer = is_writer
                self._in_use[id(connection)] = connection
                self._users[id(connection)] = get_ident()
                return connection
        finally:
            self._get_semaphore.release()

    def _has_to_wait(self, *, is_writer: bool | None) -> bool:
        if self._retired:
            return False
        used_for = [connection.is_writer for connection in self._in_use.values()]
        if len(used_for) >= self.pool_size + self.max_overflow:
            return True
        if self.is_sqlite_memory_mode:  # where readers and a writer exclude each other
            return is_writer is not None and (True in used_for or (is_writer and False in used_for))
        return is_writer is True and True in used_for

    def put_connection(self, conn: SQLiteConnection) -> None:
        """Take a connection back; once the pool is closed, close it."""
        with self._lock:
            if self._in_use.pop(id(conn), None) is None:
                raise ConnectionNotFromPoolError("it is not in use in this pool")
            del self._users[id(conn)]
            if self._retired or len(self._pool) >= self.pool_size:
                conn.close()
            elif not conn.closed:
                # What an exception from a signal handler, say, has left open would keep all other
                # processes from writing, and this one from beginning anything.
                conn.rollback()
                # The last one used is the next one given out: whoever writes again finds the file's
                # pages in its cache, which every other connection's commit empties.
                self._pool.appendleft(conn)
            self._put_condition.notify_all()

    def close(self) -> None:
        """Close all connections, as soon as other threads have returned theirs.

        None is given out from now on. What is not returned in ``PATIENCE_SECONDS``, and what the
        calling thread itself uses, as in a signal handler, is closed when it is returned.
        """
        with self._put_condition:
            self._retired = True
            self._put_condition.notify_all()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self._others_use_connections() and self._put_condition.wait(
                max(0.0, deadline - time.monotonic())
            ):
                pass
            self._close_idle()

    def hold(self) -> bool:
        """Close all connections and keep others from opening any; false if some stay in use."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        if get_ident() in self._users.values():
            return False  # for it would wait for itself
        if not self._get_semaphore.acquire(timeout=PATIENCE_SECONDS):
            return False
        self._put_condition.acquire()
        is_empty = False
        try:
            while self._in_use:
                if not self._put_condition.wait(max(0.0, deadline - time.monotonic())):
                    return False
            self._close_idle()
            is_empty = True
        finally:
            if not is_empty:  # nor when Ctrl-C ends the waiting
                self.release()
        return True

    def release(self) -> None:
        """End a ``hold``."""
        try:
            self._put_condition.release()
        finally:
            self._get_semaphore.release()

    def reset_after_fork(self) -> None:
        """Forget, in a child that was forked, the parent's threads, connections and locks.

        A thread of the parent may have held any of the locks, or waited for it; here it never
        lets go.
        """
        # Closing them here could delete the log that the parent goes on writing.
        keep_for_ever([*self._pool, *self._in_use.values()])
        self._pool.clear()
        self._in_use.clear()
        self._users.clear()
        self._make_locks()

    def _create_connection(self) -> SQLiteConnection:
        # As the library does, which however keeps one prepared statement a connection, and so
        # prepares each anew every time.
        if self.db_name == self._path and not self.is_sqlite_memory_mode:
            self._files.make_private()
        try:
            opened = sqlite3.connect(
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
        return SQLiteConnection(opened, max_age=self.max_age)

    def check_files(self) -> None:
        """Check that what is open is what has the file's name, and the name of its log.

        Raises:
            ScoringError: if one of them was removed, renamed or replaced.
        """
        if not (self.is_sqlite_memory_mode or self._files.are_in_settled_folder()):
            # With the last connection, which another thread may just be closing, goes the log.
            with self._put_condition:
                self._files.check(log_may_be_gone=self._retired)

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
        while self._pool:
            self._pool.popleft().close()
        if not self._in_use:
            self._files.log_closed()


def _absolute(db_name: str) -> str:
    """Return a name that means the same file after the process has changed its directory."""
    if SQLiteConnectionPool.detect_memory_mode(db_name):
        return db_name
    if db_name.startswith("file:"):
        name = db_name.removeprefix("file:")
        return db_name if name.startswith("/") else f"file:{quote(str(Path.cwd()))}/{name}"
    return str(Path.cwd() / db_name)


def _before() -> None:
    _fork_lock.acquire()
    pools = list(_pools)
    try:
        for pool in pools:
            if pool.hold():
                _held.append(pool)  # noqa: PERF401 - is to be there if the next one raises
    finally:
        _in_use.update(pool.file for pool in pools if pool not in _held)


def _after_in_parent() -> None:
    try:
        while _held:
            _held.pop().release()
        _in_use.clear()
    finally:
        _fork_lock.release()


def _after_in_child() -> None:
    _inherited.update(_in_use)
    _in_use.clear()
    _held.clear()
    for pool in list(_pools):
        pool.reset_after_fork()
    _fork_lock.release()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
