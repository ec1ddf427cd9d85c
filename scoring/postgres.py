"""PostgreSQL as the event store: what the library's recorder needs besides."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

from eventsourcing.postgres import PostgresApplicationRecorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.persistence import StoredEvent
    from psycopg import Connection, Cursor
    from psycopg.rows import DictRow


class FlushingApplicationRecorder(PostgresApplicationRecorder):
    """The library's recorder, which sends a large insert to its end before it waits for an answer.

    The library inserts in psycopg's pipeline mode, and psycopg stops sending when the last command
    was handed over, even if the socket's buffer took only a part of it. Client and server then wait
    for each other for ever. A batch of a few hundred kilobytes is enough.
    """

    def _insert_stored_events(
        self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> None:
        super()._insert_stored_events(curs, stored_events, **kwargs)
        _send_to_the_end(curs.connection)


def _send_to_the_end(connection: Connection[Any]) -> None:
    pgconn = connection.pgconn
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    while pgconn.flush():
        for _, events in poll.poll():
            if events & ~select.POLLOUT:
                # Answers must be taken meanwhile, or the server stops reading; a connection that
                # was lost raises here.
                pgconn.consume_input()
