"""PostgreSQL as the event store: what the library's recorders need besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    StoredEvent,
)
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresApplicationRecorder
from eventsourcing.utils import retry
from psycopg.sql import SQL, Composable, Identifier

from scoring.event_store import LAST_VERSION, GaplessRecorder, StoreWentBack, predecessors_of
from scoring.postgres_pool import BoundedConnection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventsourcing.postgres import PostgresDatastore
    from psycopg import Cursor
    from psycopg.rows import DictRow
    from psycopg.sql import Composed

    from scoring.event_store import Place


class GaplessPostgresRecorder(GaplessRecorder, PostgresApplicationRecorder):
    """The library's recorder, which inserts no event without the one before it.

    And it sends a large insert to its end before it waits for an answer. The library inserts in
    psycopg's pipeline mode, and psycopg stops sending when the last command was handed over, even
    if the socket's buffer took only a part of it. Client and server then wait for each other for
    ever. A batch of a few hundred kilobytes is enough.
    """

    def __init__(
        self, datastore: PostgresDatastore, *, events_table_name: str = "stored_events"
    ) -> None:
        super().__init__(datastore, events_table_name=events_table_name)
        table = Identifier(self.datastore.schema, self.events_table_name)
        id_type = Identifier(self.datastore.originator_id_type)
        # Composed once: psycopg would do it for every commit.
        self.lock_table_statements = [
            statement.as_string() if isinstance(statement, Composable) else statement
            for statement in self.lock_table_statements
        ]
        # All or nothing, and nothing where something is missing: the library commits whatever has
        # happened if it is Python that raises.
        insert = SQL(
            "INSERT INTO {table} AS t (originator_id, originator_version, topic, state)"
            " SELECT originator_id, originator_version, topic, state"
            " FROM unnest(%(streams)b::{id_type}[], %(versions)b::bigint[], %(topics)b::text[],"
            " %(states)b::bytea[]) AS new(originator_id, originator_version, topic, state)"
            " WHERE (%(newest_state)s::bytea IS NULL OR EXISTS (SELECT FROM {table} AS stored"
            " WHERE originator_id = %(newest_stream)s AND originator_version = %(newest_version)s"
            " AND state = %(newest_state)s)) AND "
        ).format(table=table, id_type=id_type)
        returning = SQL(" RETURNING notification_id")
        # One stream is asked for without an array: PostgreSQL keeps the plan of that, while it
        # would make the other one anew each time, which takes as long as a grant.
        self._insert_on_one = (
            insert
            + SQL(
                "(%(before)s::bigint IS NULL OR EXISTS (SELECT FROM {table} AS stored"
                " WHERE originator_id = %(continued)s AND originator_version = %(before)s))"
            ).format(table=table)
            + returning
        ).as_string()
        # Counting subqueries looks each one up in the index, however large the table is.
        self._insert_on_many = (
            insert
            + SQL(
                "(SELECT count(*) = count((SELECT 1 FROM {table} AS stored"
                " WHERE originator_id = stream AND originator_version = version))"
                " FROM unnest(%(continued)b::{id_type}[], %(before)b::bigint[])"
                " AS predecessor(stream, version))"
            ).format(table=table, id_type=id_type)
            + returning
        ).as_string()

        self._select_stream = {
            desc: SQL(
                "SELECT notification_id, originator_version, topic, state FROM {table}"
                " WHERE originator_id = %s AND originator_version > %s AND originator_version <= %s"
                " ORDER BY originator_version {order} LIMIT %s"
            ).format(table=table, order=order)
            for desc, order in ((False, SQL("ASC")), (True, SQL("DESC")))
        }
        # LIMIT keeps PostgreSQL from joining by anything but the index, whatever it knows about the
        # table.
        self._select_at = SQL(
            "SELECT number, notification_id, topic, state"
            " FROM unnest(%s::{id_type}[], %s::bigint[])"
            " WITH ORDINALITY AS wanted(stream, version, number) CROSS JOIN LATERAL"
            " (SELECT notification_id, topic, state FROM {table} AS stored"
            " WHERE originator_id = stream"
            " AND originator_version = version LIMIT 1) AS found"
        ).format(table=table, id_type=id_type)
        # So does OFFSET.
        self._select_after = SQL(
            "SELECT number, notification_id, originator_version, topic, state"
            " FROM unnest(%s::{id_type}[], %s::bigint[])"
            " WITH ORDINALITY AS wanted(stream, version, number) CROSS JOIN LATERAL"
            " (SELECT notification_id, originator_version, topic, state FROM {table} AS stored"
            " WHERE originator_id = stream AND originator_version > version OFFSET 0) AS found"
            " ORDER BY number, originator_version"
        ).format(table=table, id_type=id_type)

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Insert events, as the library does.

        Raises:
            ProgrammingError: if the next position is taken: no race was lost then, and trying
                again for half a minute would not help.
        """
        try:
            positions: Sequence[int] | None = super().insert_events(stored_events, **kwargs)
        except IntegrityError as error:
            violation = error.__cause__
            if (
                isinstance(violation, psycopg.IntegrityError)
                and violation.diag.constraint_name == self.notification_id_index_name
            ):
                raise ProgrammingError(self._sequence_is_behind()) from error
            raise
        return positions

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
            originator_id,
            -1 if gt is None else gt,
            LAST_VERSION if lte is None else lte,
            limit,
        )
        rows = _rows(self.datastore, self._select_stream[desc], wanted)
        return [self._expected(originator_id, row["originator_version"], row) for row in rows]

    def select_events_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        """Return, for each place in turn, the event that is there, or ``None``."""
        events: list[StoredEvent | None] = [None] * len(places)
        for row in _rows(self.datastore, self._select_at, _columns(places)):
            number = row["number"] - 1
            stream, version = places[number]
            events[number] = self._expected(stream, version, row)
        return events

    def select_events_after(self, places: Sequence[Place]) -> list[list[StoredEvent]]:
        """Return, for each place in turn, the later events of its stream, by version."""
        events: list[list[StoredEvent]] = [[] for _ in places]
        for row in _rows(self.datastore, self._select_after, _columns(places)):
            number = row["number"] - 1
            stream = places[number][0]
            events[number].append(self._expected(stream, row["originator_version"], row))
        return events

    def _expected(self, stream: UUID | str, version: int, row: DictRow) -> StoredEvent:
        event = StoredEvent(stream, version, row["topic"], bytes(row["state"]))
        return self.expected(row["notification_id"], event)

    def _sequence_is_behind(self) -> str:
        table = f"{self.datastore.schema}.{self.events_table_name}"
        sequence = f"pg_get_serial_sequence('{table}', 'notification_id')"
        cure = f"SELECT setval({sequence}, max(notification_id)) FROM {table}"  # noqa: S608 - a text
        return (
            "the sequence that gives positions is behind the newest event, as after a restore that "
            f"left its value out: run {cure}"
        )

    def _insert_stored_events(
        self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> None:
        self._lock_table(curs)
        self._notify_channel(curs)
        newest: StoredEvent | None = kwargs["newest"]
        predecessors = predecessors_of(stored_events)
        # Arrays in binary form: for the array of composites that the library sends, psycopg takes a
        # quarter of grant_many().
        parameters: dict[str, Any] = {
            "streams": [event.originator_id for event in stored_events],
            "versions": [event.originator_version for event in stored_events],
            "topics": [event.topic for event in stored_events],
            "states": [event.state for event in stored_events],
            "newest_stream": newest and newest.originator_id,
            "newest_version": newest and newest.originator_version,
            "newest_state": newest and newest.state,
        }
        if len(predecessors) > 1:
            parameters |= {"continued": list(predecessors), "before": list(predecessors.values())}
            curs.execute(self._insert_on_many, parameters)
        else:
            continued, before = next(iter(predecessors.items()), (None, None))
            curs.execute(
                self._insert_on_one, {**parameters, "continued": continued, "before": before}
            )
        if isinstance(curs.connection, BoundedConnection):
            curs.connection.flush_to_the_end()

    def _fetch_ids_after_insert_events(
        self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        positions = super()._fetch_ids_after_insert_events(curs, stored_events, **kwargs)
        if not positions:
            raise StoreWentBack
        return positions


class PostgresSnapshotRecorder(PostgresAggregateRecorder):
    """The library's recorder, which finds the newest snapshots of many streams in one query."""

    def select_newest_events(self, streams: Sequence[UUID]) -> list[StoredEvent | None]:
        """Return, for each stream in turn, its event of the highest version, or ``None``."""
        select = SQL(
            "SELECT number, originator_version, topic, state FROM unnest(%s::{id_type}[])"
            " WITH ORDINALITY AS wanted(stream, number) CROSS JOIN LATERAL"
            " (SELECT originator_version, topic, state FROM {table} AS stored"
            " WHERE originator_id = stream ORDER BY originator_version DESC LIMIT 1) AS found"
        ).format(
            table=Identifier(self.datastore.schema, self.events_table_name),
            id_type=Identifier(self.datastore.originator_id_type),
        )
        events: list[StoredEvent | None] = [None] * len(streams)
        for row in _rows(self.datastore, select, [list(streams)]):
            number, version = row["number"] - 1, row["originator_version"]
            events[number] = StoredEvent(
                streams[number], version, row["topic"], bytes(row["state"])
            )
        return events


@retry((InterfaceError, OperationalError), max_attempts=10, wait=0.2)
def _rows(
    datastore: PostgresDatastore, select: Composed, parameters: Sequence[object]
) -> list[DictRow]:
    with datastore.get_connection() as connection, connection.cursor() as cursor:
        cursor.execute(select, parameters, prepare=True)
        return cursor.fetchall()


def _columns(places: Sequence[Place]) -> list[list[object]]:
    return [list(column) for column in zip(*places, strict=True)]
