"""PostgreSQL as the event store: what the library's recorder and its connections need besides.

Neither the library nor psycopg waits for an answer with a limit. A lock that an operator holds, a
process or a server that is frozen, and a network that swallows everything would all be waited for
without end. Here the client itself stops waiting, whatever the cause, and drops the connection; the
server is given limits of its own besides, so that what nobody waits for any more ends there too.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
from eventsourcing.persistence import (
    ConnectionPoolClosedError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    StoredEvent,
)
from eventsourcing.postgres import (
    ConnectionPool,
    PostgresAggregateRecorder,
    PostgresApplicationRecorder,
)
from eventsourcing.utils import retry
from psycopg import Connection
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composable, Identifier
from psycopg_pool import PoolClosed, PoolTimeout

from scoring.event_store import GaplessRecorder, StoreWentBack, predecessors_of
from scoring.retries import ATTEMPT_SECONDS, remaining_seconds

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from uuid import UUID

    from eventsourcing.postgres import PostgresDatastore
    from psycopg import Cursor
    from psycopg.sql import Composed

    from scoring.event_store import Place

_LIMIT_THE_SERVER: Final = """
SELECT set_config(name, value, false)
FROM (VALUES ('lock_timeout', %s), ('statement_timeout', '20s')) AS wanted (name, value)
WHERE current_setting(name) = '0'
"""
"""Sets what neither the role nor the database has set already."""

_NETWORK_LIMITS: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""By libpq's names, in seconds but for the last: when a silent network counts as lost."""


class NoAnswer(psycopg.DatabaseError):
    """PostgreSQL did not answer in time.

    Not an ``OperationalError``, which the library would try again ten times on its own.
    """


class BoundedConnection(Connection[DictRow]):
    """A connection that waits for no answer longer than the command has time.

    Once an answer has not come, nothing more is asked: every operation raises the same again, so
    that leaving transaction and pipeline cannot put another error in its place. The pool closes it.
    """

    _no_answer: NoAnswer | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Carry out an operation, as psycopg does.

        Raises:
            NoAnswer: if it took too long.
        """
        if self._no_answer is not None:
            raise self._no_answer
        try:
            return super().wait(self._bounded(gen), *args, **kwargs)
        except (LockNotAvailable, QueryCanceled) as error:  # the server's own limits
            raise NoAnswer(str(error)) from error
        except PoolClosed as error:
            raise ConnectionPoolClosedError(str(error)) from error

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        seconds = ends_at = 0.0
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                # Sent nothing for a tenth of a second whenever the server is silent for as long;
                # before that there is no need to look at the clock.
                if not ready:
                    if not ends_at:
                        seconds = min(ATTEMPT_SECONDS, remaining_seconds())
                        ends_at = time.monotonic() + seconds
                    elif time.monotonic() > ends_at:
                        raise self._given_up(seconds)
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value

    def _given_up(self, seconds: float) -> NoAnswer:
        self._no_answer = NoAnswer(f"PostgreSQL did not answer within {seconds:.1f} s")
        return self._no_answer

    def flush_to_the_end(self) -> None:
        """Send what is buffered, however much; psycopg's pipeline mode leaves some of it behind.

        Raises:
            NoAnswer: if it took too long.
        """
        seconds = min(ATTEMPT_SECONDS, remaining_seconds())
        ends_at = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN | select.POLLOUT)
        while self.pgconn.flush():
            for _, events in poll.poll(100):
                if events & ~select.POLLOUT:
                    # Answers must be taken meanwhile, or the server stops reading; a connection
                    # that was lost raises here.
                    self.pgconn.consume_input()
            if time.monotonic() > ends_at:
                raise self._given_up(seconds)


class BoundedConnectionPool(ConnectionPool[BoundedConnection]):
    """A pool of such connections, which are not waited for longer than the command has time.

    Once closed it says so in the library's terms: what psycopg says would be tried again.
    """

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Open the pool, as psycopg's does.

        Raises:
            ConnectionPoolClosedError: if it was closed.
        """
        try:
            super().open(*args, **kwargs)
        except PoolClosed as error:
            raise ConnectionPoolClosedError(str(error)) from error

    def getconn(self, timeout: float | None = None) -> BoundedConnection:
        """Return a connection, as psycopg's pool does.

        Raises:
            NoAnswer: if there is none in time.
            ConnectionPoolClosedError: if the pool was closed.
        """
        try:
            return super().getconn(min(timeout or self.timeout, remaining_seconds()))
        except PoolTimeout as error:
            raise NoAnswer(str(error)) from error


def bounded_pool(datastore: PostgresDatastore) -> BoundedConnectionPool:
    """Return a pool to take the place of a datastore's own, which was not used yet."""
    theirs = datastore.pool
    assert isinstance(theirs.kwargs, dict)  # noqa: S101 - for the type checker
    configured = datastore.after_connect_func()

    def configure(connection: BoundedConnection) -> None:
        configured(connection)
        connection.execute(_LIMIT_THE_SERVER, (f"{datastore.lock_timeout}s",))

    return BoundedConnectionPool(
        get_password_func=theirs.get_password_func,
        connection_class=BoundedConnection,
        kwargs={**theirs.kwargs, **_NETWORK_LIMITS, "connect_timeout": int(theirs.timeout)},
        min_size=theirs.min_size,
        max_size=theirs.max_size,
        open=False,
        configure=configure,
        check=ConnectionPool.check_connection if datastore.pre_ping else None,
        timeout=theirs.timeout,
        max_waiting=theirs.max_waiting,
        max_lifetime=theirs.max_lifetime,
        # By default it pauses longer and longer, up to minutes after the server is back.
        reconnect_timeout=theirs.timeout,
    )


class FlushingApplicationRecorder(GaplessRecorder, PostgresApplicationRecorder):
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

        # LIMIT keeps PostgreSQL from joining by anything but the index, whatever it knows about the
        # table.
        self._select_at = SQL(
            "SELECT number, topic, state FROM unnest(%s::{id_type}[], %s::bigint[])"
            " WITH ORDINALITY AS wanted(stream, version, number) CROSS JOIN LATERAL"
            " (SELECT topic, state FROM {table} AS stored WHERE originator_id = stream"
            " AND originator_version = version LIMIT 1) AS found"
        ).format(table=table, id_type=id_type)
        # So does OFFSET.
        self._select_after = SQL(
            "SELECT number, originator_version, topic, state"
            " FROM unnest(%s::{id_type}[], %s::bigint[])"
            " WITH ORDINALITY AS wanted(stream, version, number) CROSS JOIN LATERAL"
            " (SELECT originator_version, topic, state FROM {table} AS stored"
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

    def select_events_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        """Return, for each place in turn, the event that is there, or ``None``."""
        events: list[StoredEvent | None] = [None] * len(places)
        for row in _rows(self.datastore, self._select_at, *zip(*places, strict=True)):
            number = row["number"] - 1
            stream, version = places[number]
            events[number] = StoredEvent(stream, version, row["topic"], bytes(row["state"]))
        return events

    def select_events_after(self, places: Sequence[Place]) -> list[list[StoredEvent]]:
        """Return, for each place in turn, the later events of its stream, by version."""
        events: list[list[StoredEvent]] = [[] for _ in places]
        for row in _rows(self.datastore, self._select_after, *zip(*places, strict=True)):
            number, version = row["number"] - 1, row["originator_version"]
            events[number].append(
                StoredEvent(places[number][0], version, row["topic"], bytes(row["state"]))
            )
        return events

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
        for row in _rows(self.datastore, select, streams):
            number, version = row["number"] - 1, row["originator_version"]
            events[number] = StoredEvent(
                streams[number], version, row["topic"], bytes(row["state"])
            )
        return events


@retry((InterfaceError, OperationalError), max_attempts=10, wait=0.2)
def _rows(
    datastore: PostgresDatastore, select: Composed, *arrays: Sequence[object]
) -> list[DictRow]:
    with datastore.get_connection() as connection, connection.cursor() as cursor:
        cursor.execute(select, [list(array) for array in arrays], prepare=True)
        return cursor.fetchall()
