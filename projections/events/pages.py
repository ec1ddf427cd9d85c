"""Pages of stored grants, read the quick way where a store has one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventsourcing.sqlite import SQLiteApplicationRecorder

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from eventsourcing.persistence import ApplicationRecorder, Notification


class Row(NamedTuple):
    """A notification as a tuple: the library's frozen dataclass takes longer to make than to read.

    It has the attributes of ``Notification``.
    """

    id: int
    originator_id: UUID
    originator_version: int
    topic: str
    state: bytes


_uuid = lru_cache(maxsize=10_000)(UUID)  # a batch names the same users again and again


def read_page(
    recorder: ApplicationRecorder, *, after: int, stop: int, limit: int, topics: Sequence[str]
) -> Sequence[Notification | Row]:
    """Return the first events of these topics after one position and up to another.

    From a SQLite recorder they are read with the statement that the library's
    ``select_notifications`` makes, in a third of the time.
    """
    # Without it a catch-up takes 14 % more of the processor's time.
    select = SQLiteApplicationRecorder.select_notifications
    if (
        isinstance(recorder, SQLiteApplicationRecorder)
        and type(recorder).select_notifications is select
    ):
        datastore = recorder.datastore
        if datastore.originator_id_type == "uuid":
            marks = ",".join("?" * len(topics))
            with datastore.transaction(commit=False) as transaction:
                cursor = transaction.sqlite_cursor
                cursor.row_factory = _row
                cursor.execute(
                    "SELECT rowid, originator_id, originator_version, topic, state "  # noqa: S608
                    f"FROM {recorder.events_table_name} "
                    f"WHERE rowid>? AND rowid<=? AND topic IN ({marks}) ORDER BY rowid LIMIT ?",
                    (after, stop, *topics, limit),
                )
                rows: list[Row] = cursor.fetchall()
                return rows
    return recorder.select_notifications(
        start=after, limit=limit, stop=stop, topics=topics, inclusive_of_start=False
    )


def _row(_: sqlite3.Cursor, values: tuple[Any, ...]) -> Row:
    position, stream, version, topic, state = values
    return Row(position, _uuid(stream), version, topic, state)
