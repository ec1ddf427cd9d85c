"""SQLite as the event store: what the library's recorders need besides."""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import (
    SQLiteAggregateRecorder,
    SQLiteApplicationRecorder,
    SQLiteDatastore,
    SQLiteTransaction,
)

from scoring.event_store import LAST_VERSION, GaplessRecorder, StoreWentBack
from scoring.sqlite_pool import PatientConnectionPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventsourcing.sqlite import SQLiteCursor

    from scoring.event_store import Place
    from scoring.sqlite_connection import PooledConnection


class PatientDatastore(SQLiteDatastore):
    """The library's datastore with a pool that waits for its connections."""

    pool: PatientConnectionPool

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

        It has three generators for this, one in the other: a tenth of reading an event. And where
        an exception may reach the thread, as from a signal handler, it may lose a connection.
        """
        lent: list[PooledConnection] = []
        try:
            connection = self.pool.get_connection(is_writer=commit, lent=lent)
            with SQLiteTransaction(connection, commit=commit) as cursor:
                yield cursor
        finally:
            try:
                self.pool.take_back(lent)
            except BaseException:
                self.pool.take_back(lent)
                raise


class CheckedSQLiteRecorder(SQLiteApplicationRecorder):
    """The library's recorder, which answers for events only where they can be found again."""

    datastore: PatientDatastore

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Insert events, as the library does.

        Raises:
            ScoringError: if the file is not in its place any more, and the events with it.
        """
        pool = self.datastore.pool
        # What transaction() does, but for a generator.
        lent: list[PooledConnection] = []
        try:
            connection = pool.get_connection(is_writer=True, lent=lent)
            with SQLiteTransaction(connection, commit=True) as c:
                positions: Sequence[int] | None = self._insert_events(c, stored_events, **kwargs)
        finally:
            try:
                pool.take_back(lent)
            except BaseException:
                pool.take_back(lent)
                raise
        # After the commit, for before it the answer could be out of date when it is needed.
        pool.check_files()
        return positions


class GaplessSQLiteRecorder(GaplessRecorder, CheckedSQLiteRecorder):
    """The library's recorder, which inserts no event without the one before it."""

    def __init__(
        self, datastore: SQLiteDatastore, events_table_name: str = "stored_events"
    ) -> None:
        super().__init__(datastore, events_table_name)
        here = f"FROM {events_table_name} WHERE originator_id="
        # SQLite looks for what is built on beside the place of the new row, which costs little
        # (unlike in INSERT ... SELECT ... WHERE), and refuses '' for a row's number.
        # Without numbers: up to 3.12.3 Python takes ?1 for a name, and warns of each value.
        values = (
            "(originator_id, originator_version, topic, state, rowid) VALUES (?, ?, ?, ?, CASE "
            f"WHEN (?=0 OR EXISTS (SELECT 1 {here}? AND originator_version=?))"
        )
        otherwise = "THEN NULL ELSE '' END)"
        self.insert_events_statement = f"INSERT INTO {events_table_name} {values} {otherwise}"
        self._insert_after_newest = (
            f"INSERT INTO {events_table_name} {values} AND EXISTS "
            f"(SELECT 1 {here}? AND originator_version=? AND state=?) {otherwise}"
        )
        self._select_stream = {
            desc: f"SELECT rowid, originator_version, topic, state {here}? AND originator_version>?"
            f" AND originator_version<=? ORDER BY originator_version {order} LIMIT ?"
            for desc, order in ((False, "ASC"), (True, "DESC"))
        }
        # CROSS JOIN, as SQLite then looks each place up in the index, whatever it knows about the
        # table. One text for all of them: there is no limit to their number, nor a new statement.
        self._select_at = (
            "SELECT key, e.rowid, topic, state"  # noqa: S608 - a name of the library's
            f" FROM json_each(?) CROSS JOIN {events_table_name} AS e"
            " ON originator_id=json_extract(value, '$[0]')"
            " AND originator_version=json_extract(value, '$[1]')"
        )
        self._select_after = (
            "SELECT key, e.rowid, originator_version, topic, state"  # noqa: S608 - likewise
            f" FROM json_each(?) CROSS JOIN {events_table_name} AS e"
            " ON originator_id=json_extract(value, '$[0]')"
            " AND originator_version>json_extract(value, '$[1]')"
            " ORDER BY key, originator_version"
        )

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        cursor = c.sqlite_cursor
        newest: StoredEvent | None = kwargs["newest"]
        rows = []
        for event in stored_events:
            stream, version = _as_text(event.originator_id), event.originator_version
            before = version - 1
            rows.append((stream, version, event.topic, event.state, before, stream, before))
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

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return events of a stream, as the library does."""
        wanted = (
            _as_text(originator_id),
            -1 if gt is None else gt,
            LAST_VERSION if lte is None else lte,
            -1 if limit is None else limit,
        )
        with self.datastore.transaction(commit=False) as c:
            c.execute(self._select_stream[desc], wanted)
            return [
                self.expected(position, StoredEvent(originator_id, version, topic, state))
                for position, version, topic, state in c.fetchall()
            ]

    def select_events_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        """Return, for each place in turn, the event that is there, or ``None``."""
        events: list[StoredEvent | None] = [None] * len(places)
        for number, position, topic, state in self._select(self._select_at, places):
            stream, version = places[number]
            events[number] = self.expected(position, StoredEvent(stream, version, topic, state))
        return events

    def select_events_after(self, places: Sequence[Place]) -> list[list[StoredEvent]]:
        """Return, for each place in turn, the later events of its stream, by version."""
        events: list[list[StoredEvent]] = [[] for _ in places]
        for number, position, version, topic, state in self._select(self._select_after, places):
            event = StoredEvent(places[number][0], version, topic, state)
            events[number].append(self.expected(position, event))
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
