"""The event stores that can be copied, by their kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from uuid import UUID

from eventsourcing.persistence import StoredEvent

from projections.errors import ProjectionError
from projections.events.stores import MONGO, POSTGRES, SQLITE, kind_of
from projections.relocation.copyable import Copyable
from scoring.sqlite_pool import PatientConnectionPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.persistence import Notification
    from eventsourcing.sqlite import SQLiteApplicationRecorder

    from projections.mongo.event_store import MongoAggregateRecorder, MongoApplicationRecorder
    from scoring import Scoring


class _SQLite(Copyable):
    @property
    def place(self) -> str:
        pool = self._recorder.datastore.pool
        return f"SQLite {pool.file if isinstance(pool, PatientConnectionPool) else pool.db_name}"

    def add_events(self, events: Sequence[Notification]) -> None:
        recorder: SQLiteApplicationRecorder = self._recorder
        statement = (
            f"INSERT INTO {recorder.events_table_name} "  # noqa: S608 - a name of the library's
            "(rowid, originator_id, originator_version, topic, state) VALUES (?, ?, ?, ?, ?)"
        )
        with recorder.datastore.transaction(commit=True) as cursor:
            cursor.executemany(
                statement,
                [
                    (e.id, _as_text(e.originator_id), e.originator_version, e.topic, e.state)
                    for e in events
                ],
            )

    def snapshots(self, after: StoredEvent | None, limit: int) -> Sequence[StoredEvent]:
        recorder = self._snapshots
        behind, place = "", []
        if after is not None:
            behind = "WHERE (originator_id, originator_version) > (?, ?)"
            place = [_as_text(after.originator_id), after.originator_version]
        with recorder.datastore.transaction(commit=False) as cursor:
            cursor.execute(
                f"SELECT * FROM {recorder.events_table_name} {behind} "  # noqa: S608
                "ORDER BY originator_id, originator_version LIMIT ?",
                [*place, limit],
            )
            return [
                StoredEvent(recorder.convert_originator_id(stream), version, topic, state)
                for stream, version, topic, state in cursor.fetchall()
            ]


class _Mongo(Copyable):
    @property
    def place(self) -> str:
        return f"MongoDB {self._events.place()}"

    def identity(self) -> object:
        return self._events.identity()

    def takes(self, stream: UUID | str) -> bool:
        del stream
        return True

    def add_events(self, events: Sequence[Notification]) -> None:
        self._events.insert_notifications(events)

    def snapshots(self, after: StoredEvent | None, limit: int) -> Sequence[StoredEvent]:
        return cast("MongoAggregateRecorder", self._snapshots).select_after(after, limit)

    @property
    def _events(self) -> MongoApplicationRecorder:
        return cast("MongoApplicationRecorder", self._recorder)


def copyable(scoring: Scoring) -> Copyable:
    """Return what copies the event store of an application.

    Raises:
        ProjectionError: if its kind is none that can be copied.
    """
    kind = kind_of(scoring.env)
    if kind == SQLITE:
        return _SQLite(scoring)
    if kind == MONGO:
        return _Mongo(scoring)
    if kind == POSTGRES:
        from projections.relocation.postgres import CopyablePostgres  # noqa: PLC0415 - optional

        return CopyablePostgres(scoring)
    raise ProjectionError(
        f"an event store of {kind.module or 'the library in memory'} cannot be copied: name one in "
        "SQLite, PostgreSQL or MongoDB"
    )


def _as_text(stream: UUID | str) -> str:
    return stream.hex if isinstance(stream, UUID) else stream
