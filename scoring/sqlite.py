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
from contextlib import suppress
from pathlib import Path
from threading import Condition, Lock, RLock, Semaphore, get_ident, local
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote
from uuid import UUID
from weakref import WeakSet

from eventsourcing.persistence import ConnectionPoolClosedError, InterfaceError
from eventsourcing.sqlite import (
    SQLITE3_DEFAULT_LOCK_TIMEOUT,
    SQLiteApplicationRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
)
from orjson import dumps

from scoring.errors import ScoringError
from scoring.event_store import GaplessRecorder, StoreWentBack
from scoring.forks import keep_for_ever

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.persistence import StoredEvent
    from eventsourcing.sqlite import SQLiteCursor, SQLiteDatastore

    from scoring.event_store import Foundation

PATIENCE_SECONDS: Final = 20.0
"""How long forking and closing wait for transactions of other threads: longer than these wait for
the file."""

_pools: WeakSet[PatientConnectionPool] = WeakSet()
_inherited: set[Path] = set()
"""Files that were in use when this process was forked."""

_FileId = tuple[int, int]
_FolderState = tuple[int, int, int]

_SETTLED_AFTER_NANOSECONDS: Final = 2_500_000_000
"""A folder whose time of change is older than this changes no more without a later one, on any
file system."""

_fork_lock = RLock()
_held: list[PatientConnectionPool] = []
_in_use: set[Path] = set()
"""What a fork that is under way keeps until it is over; one thread forks at a time."""


class GaplessSQLiteRecorder(GaplessRecorder, SQLiteApplicationRecorder):
    """The library's recorder, which inserts no event without the one before it."""

    def __init__(
        self, datastore: SQLiteDatastore, events_table_name: str = "stored_events"
    ) -> None:
        """Construct the library's recorder."""
        super().__init__(datastore, events_table_name)
        table = events_table_name
        one_event = f"SELECT count(*) FROM {table} WHERE originator_id=? AND originator_version=?"  # noqa: S608 - the name is not from outside
        newest = f"({one_event} AND state=?)"
        # Most commits are of one stream, for which the list as JSON costs more than looking.
        self._look_back_at_one = f"SELECT ({one_event}), {newest}"
        self._look_back = (
            f"SELECT (SELECT count(*) FROM json_each(?) CROSS JOIN {table} "  # noqa: S608
            f"ON originator_id = key AND originator_version = value), {newest}"
        )

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        # First the insert, which waits for the one lock on writing: a transaction that has read
        # before cannot wait for it. With the bare cursor, which pays for looking back; the rows of
        # one writer get numbers without a gap.
        execute = c.sqlite_cursor.execute
        for event in stored_events:
            stream = _as_text(event.originator_id)
            execute(
                self.insert_events_statement,
                (stream, event.originator_version, event.topic, event.state),
            )
        last = c.lastrowid
        foundation: Foundation = kwargs["foundation"]
        predecessors, newest = foundation
        expected = (len(predecessors), newest is not None)
        if expected != (0, False):
            own: tuple[object, ...] = (None, None, None)
            if newest is not None:
                own = _as_text(newest.originator_id), newest.originator_version, newest.state
            streams = {_as_text(stream): version for stream, version in predecessors.items()}
            if len(streams) == 1:
                execute(self._look_back_at_one, (*next(iter(streams.items())), *own))
            else:
                execute(self._look_back, (dumps(streams).decode(), *own))
            if tuple(c.fetchone()) != expected:
                raise StoreWentBack
        return range(last - len(stored_events) + 1, last + 1)

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Insert events, as the library does.

        Raises:
            ScoringError: if the file is not in its place any more, and the events with it.
        """
        positions: Sequence[int] | None = super().insert_events(stored_events, **kwargs)
        # After the commit, for before it the answer could be out of date when it is needed.
        pool = self.datastore.pool
        if isinstance(pool, PatientConnectionPool):
            pool.check_files()
        return positions


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
        self._asking = local()
        super().__init__(db_name=_absolute(db_name), lock_timeout=lock_timeout)
        path = self.db_name
        if path.startswith("file:"):
            path = unquote(path.removeprefix("file:").partition("?")[0])
        self.file = Path(path).resolve()
        self._path, self._log_path = path, f"{self.file}-wal"
        # Device and number of the file and of its log, as long as they are open here.
        self._open_file: _FileId | None = None
        self._open_log: _FileId | None = None
        self._folder = str(self.file.parent)
        self._is_direct = os.path.realpath(path) == os.path.abspath(path)  # noqa: PTH100
        # What its folder was like when both were found in it.
        self._settled_folder: _FolderState | None = None
        # One in memory would be lost with its connections, and no other process can see it.
        if not self.is_sqlite_memory_mode:
            self._check_inheritance()
            with _fork_lock:
                _pools.add(self)

    @property
    def closed(self) -> bool:
        """Whether no connection is given out any more."""
        return self._retired

    def get_connection(
        self, timeout: float | None = None, *, is_writer: bool | None = None
    ) -> SQLiteConnection:
        """Return a connection, as the library does.

        Raises:
            ConnectionPoolClosedError: if the pool was closed, if only while this thread waited.
            ConnectionUnavailableError: if none is to be had in time.
        """
        self._asking.is_writer = is_writer
        return super().get_connection(timeout, is_writer=is_writer)

    def _get_connection(self, timeout: float = 0.0) -> SQLiteConnection:
        with self._put_condition:
            try:
                self._check_inheritance()
                if self._retired:
                    raise ConnectionPoolClosedError
                # Before anything is written, too: the log would be taken for that of the file which
                # has the name now.
                if not self._is_folder_unchanged():
                    self._check_file()
                connection = super()._get_connection(timeout)
            except BaseException:
                self._give_up_asking()
                raise
            self._users[id(connection)] = get_ident()
            return connection

    def _give_up_asking(self) -> None:
        # Which the library forgets: nobody would ever write again, or read in memory.
        is_writer, self._asking.is_writer = self._asking.is_writer, None
        if is_writer is True:
            self._num_writers -= 1
            self._writer_lock.release()
        elif is_writer is False:
            with self._no_readers:
                self._num_readers -= 1
                self._no_readers.notify_all()

    def put_connection(self, conn: SQLiteConnection) -> None:
        """Take a connection back; once the pool is closed, close it."""
        with self._put_condition:
            if self._retired:
                conn._closing.set()  # noqa: SLF001 - as the library's own timer tells the pool
            self._users.pop(id(conn), None)
            super().put_connection(conn)
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

    def begin_anew(self) -> None:
        """Forget, in a child that was forked, the parent's threads, connections and locks.

        A thread of the parent may have held any of the locks, or waited for it; here it never
        lets go.
        """
        # Closing them here could delete the log that the parent goes on writing.
        keep_for_ever([*self._pool, *self._in_use.values()])
        self._pool.clear()
        self._in_use.clear()
        self._users.clear()
        self._num_readers = self._num_writers = 0
        self._get_semaphore = Semaphore()
        self._put_condition, self._no_readers = Condition(), Condition()
        self._writer_lock = Lock()

    def _create_connection(self) -> SQLiteConnection:
        # As the library does, which however keeps one prepared statement a connection, and so
        # prepares each anew every time.
        if self.db_name == self._path and not self.is_sqlite_memory_mode:
            _make_private(self._path)
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
            if self._open_file is None:
                self._open_file = _file_id(self._path)
            self.check_files()
        opened.row_factory = sqlite3.Row
        return SQLiteConnection(opened, max_age=self.max_age)

    def check_files(self) -> None:
        """Check that what is open is what has the file's name, and the name of its log.

        Raises:
            ScoringError: if one of them was removed, renamed or replaced.
        """
        if self.is_sqlite_memory_mode or self._is_folder_unchanged():
            return
        folder = _folder_state(self._folder)
        self._check_file()
        # With the last connection, which another thread may just be closing, goes the log.
        with self._put_condition:
            log = _file_id(self._log_path)
            if self._open_log is None:
                self._open_log = log
            elif log != self._open_log and not self._retired:
                raise self._replaced(self._log_path)
        # Where links are followed, what changes may lie in another folder.
        if folder is not None and self._is_direct:
            is_settled = time.time_ns() - folder[2] > _SETTLED_AFTER_NANOSECONDS
            self._settled_folder = folder if is_settled else None

    def _is_folder_unchanged(self) -> bool:
        """Tell whether nothing was made, removed or renamed in the folder since they were there.

        Asking for the log itself, which was just written, costs a tenth of a grant.
        """
        settled = self._settled_folder
        return settled is not None and settled == _folder_state(self._folder)

    def _check_file(self) -> None:
        if self._open_file is not None and self._open_file != _file_id(self._path):
            raise self._replaced(self._path)

    def _replaced(self, path: str) -> ScoringError:
        return ScoringError(
            f"{path} was removed, renamed or replaced while it was in use, so what was recorded "
            "since then may be lost: put it back, or open the event store anew on what is there"
        )

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
            self._open_log = None  # SQLite removes it with the last connection


def _folder_state(path: str) -> _FolderState | None:
    """Return a folder's device, number and time of change, in nanoseconds."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path takes several times as long to ask
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _file_id(path: str) -> _FileId | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path takes several times as long to ask
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_private(path: str) -> None:
    """Make an empty file that nobody else may read; SQLite gives its log the same mode."""
    with suppress(OSError):  # as it is there already, or cannot be made, which SQLite says
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


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
        pool.begin_anew()
    _fork_lock.release()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
