"""Copying an event store in PostgreSQL; needs psycopg, which is an optional dependency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsourcing.persistence import StoredEvent
from psycopg.sql import SQL, Identifier

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
        behind, place = SQL(""), []
        if after is not None:
            behind = SQL("WHERE (originator_id, originator_version) > (%s, %s)")
            place = [after.originator_id, after.originator_version]
        select = SQL("SELECT * FROM {} {} ORDER BY originator_id, originator_version LIMIT %s")
        with self._recorder.datastore.transaction(commit=False) as cursor:
            cursor.execute(select.format(_table(self._snapshots), behind), [*place, limit])
            return [
                StoredEvent(
                    *(row["originator_id"], row["originator_version"], row["topic"]),
                    bytes(row["state"]),
                )
                for row in cursor.fetchall()
            ]


def _table(recorder: PostgresAggregateRecorder) -> Identifier:
    return Identifier(recorder.datastore.schema, recorder.events_table_name)
