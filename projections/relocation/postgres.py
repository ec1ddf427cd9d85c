"""Copying an event store in PostgreSQL; needs psycopg, which is an optional dependency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsourcing.persistence import StoredEvent
from psycopg.sql import SQL, Composable, Identifier

from projections.relocation.copyable import Copyable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.persistence import Notification
    from eventsourcing.postgres import PostgresAggregateRecorder, PostgresDatastore


class CopyablePostgres(Copyable):
    """An event store in PostgreSQL."""

    @property
    def place(self) -> str:
        """Where it is: host, port, database and schema."""
        datastore: PostgresDatastore = self._recorder.datastore
        options: Any = datastore.pool.kwargs
        place = f"{options['host']}:{options['port']}/{options['dbname']}"
        return f"PostgreSQL {place}, schema {datastore.schema}"

    def identity(self) -> object:
        """Return when the server was started, and the numbers of its database and table."""
        select = (
            "SELECT pg_postmaster_start_time(), oid, %s::regclass::oid FROM pg_database"
            " WHERE datname = current_database()"
        )
        with self._recorder.datastore.transaction(commit=False) as cursor:
            cursor.execute(select, (_table(self._recorder).as_string(),))
            return tuple(cursor.fetchone().values())

    def add_events(self, events: Sequence[Notification]) -> None:
        """Insert events at the positions that they have, all or none.

        The sequence goes on behind them. That is set after they were inserted and before anybody
        else can insert the next ones, so it never goes back.
        """
        table = _table(self._recorder)
        copy = SQL(
            "COPY {} (originator_id, originator_version, topic, state, notification_id) FROM STDIN"
        ).format(table)
        go_on = SQL("SELECT setval(pg_get_serial_sequence(%s, 'notification_id'), %s)")
        with self._recorder.datastore.transaction(commit=True) as cursor:
            with cursor.copy(copy) as rows:
                for e in events:
                    rows.write_row((e.originator_id, e.originator_version, e.topic, e.state, e.id))
            cursor.execute(go_on, (table.as_string(), events[-1].id))

    def snapshots(self, after: StoredEvent | None, limit: int) -> Sequence[StoredEvent]:
        """Return snapshots ordered by stream and version: those after one, or the first."""
        # Texts in the order of the other stores, whatever the language of the database is.
        is_text = self._snapshots.datastore.originator_id_type == "text"
        stream = SQL('originator_id COLLATE "C"' if is_text else "originator_id")
        behind: Composable = SQL("")
        place: list[object] = []
        if after is not None:
            behind = SQL("WHERE ({}, originator_version) > (%s, %s)").format(stream)
            place = [after.originator_id, after.originator_version]
        select = SQL("SELECT * FROM {} {} ORDER BY {}, originator_version LIMIT %s").format(
            _table(self._snapshots), behind, stream
        )
        with self._recorder.datastore.transaction(commit=False) as cursor:
            cursor.execute(select, [*place, limit])
            return [
                StoredEvent(
                    *(row["originator_id"], row["originator_version"], row["topic"]),
                    bytes(row["state"]),
                )
                for row in cursor.fetchall()
            ]


def _table(recorder: PostgresAggregateRecorder) -> Identifier:
    return Identifier(recorder.datastore.schema, recorder.events_table_name)
