"""The two event stores of the soak: read by plain drivers, backed up and put back while in use."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from postgres_server import PostgresServer
from support import sqlite_env

_LOCK_SECONDS = 2


@dataclass(frozen=True)
class Row:
    """A stored event; ``state`` is its JSON as it is."""

    position: int
    stream: UUID
    version: int
    topic: str
    state: dict[str, Any]


@dataclass(frozen=True)
class Backup:
    """What a store held at one moment: everything up to a position, and nothing after it."""

    newest: int
    place: str


@dataclass(frozen=True)
class Restore:
    """A backup was put back.

    Attributes:
        newest: The newest position that it held.
        began: Nanoseconds of the monotonic clock, which all processes share.
        ended: Likewise. What was committed before ``began`` beyond ``newest`` is lost, what was
            committed after ``ended`` is not; in between, nobody knows.
    """

    newest: int
    began: int
    ended: int


class StoreInUse(Exception):
    """Somebody holds a lock, so nothing was put back: try again later."""


class SoakedStore(Protocol):
    """An event store that the soak can look into and put back."""

    env: dict[str, str]

    def rows(self) -> Iterator[Row]: ...

    def newest(self) -> int: ...

    def back_up(self) -> Backup: ...

    def restore(self, backup: Backup) -> Restore:
        """Put a backup back while the store may be in use; raises ``StoreInUse``."""
        ...

    def restore_unused(self, backup: Backup) -> Restore:
        """Put a backup back while no process uses the store, as the documentation says."""
        ...


@dataclass
class SQLiteStore:
    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = sqlite_env(self.file)

    @property
    def file(self) -> Path:
        return self.folder / "events.sqlite"

    def rows(self) -> Iterator[Row]:
        with closing(sqlite3.connect(self.file, timeout=_LOCK_SECONDS)) as database:
            for position, stream, version, topic, state in database.execute(
                "SELECT rowid, originator_id, originator_version, topic, state"
                " FROM stored_events ORDER BY rowid"
            ):
                yield Row(position, UUID(stream), version, topic, json.loads(state))

    def newest(self) -> int:
        with closing(sqlite3.connect(self.file, timeout=_LOCK_SECONDS)) as database:
            return _newest(database)

    def back_up(self) -> Backup:
        copy = self.folder / f"backup-{uuid4().hex}.sqlite"
        with (
            closing(sqlite3.connect(self.file)) as live,
            closing(sqlite3.connect(copy)) as database,
        ):
            live.backup(database)
            return Backup(_newest(database), str(copy))

    def restore(self, backup: Backup) -> Restore:
        with (
            closing(sqlite3.connect(backup.place)) as copy,
            closing(sqlite3.connect(self.file, timeout=_LOCK_SECONDS)) as live,
        ):
            began = time.monotonic_ns()
            copy.backup(live)
            return Restore(backup.newest, began, time.monotonic_ns())

    def restore_unused(self, backup: Backup) -> Restore:
        began = time.monotonic_ns()
        for suffix in ("-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
        self.file.write_bytes(Path(backup.place).read_bytes())
        return Restore(backup.newest, began, time.monotonic_ns())


def _newest(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT max(rowid) FROM stored_events").fetchone()[0] or 0)


@dataclass
class PostgresStore:
    server: PostgresServer
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = self.server.new_env(POSTGRES_POOL_SIZE="5")

    def _table(self, name: str, schema: str | None = None) -> sql.Identifier:
        return sql.Identifier(schema or self.env["POSTGRES_SCHEMA"], f"scoring_{name}")

    def rows(self) -> Iterator[Row]:
        statement = sql.SQL(
            "SELECT notification_id, originator_id, originator_version, topic, state"
            " FROM {} ORDER BY notification_id"
        ).format(self._table("events"))
        with psycopg.connect(self.server.uri) as connection, connection.cursor("rows") as cursor:
            for position, stream, version, topic, state in cursor.execute(statement):
                yield Row(position, stream, version, topic, json.loads(bytes(state)))

    def newest(self) -> int:
        statement = sql.SQL("SELECT coalesce(max(notification_id), 0) FROM {}")
        with psycopg.connect(self.server.uri) as connection:
            row = connection.execute(statement.format(self._table("events"))).fetchone()
        return int(row[0]) if row else 0

    def back_up(self) -> Backup:
        schema = f"backup_{uuid4().hex}"
        with psycopg.connect(self.server.uri) as connection:
            # One snapshot for both tables.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            for name in ("events", "snapshots"):
                connection.execute(
                    sql.SQL("CREATE TABLE {} AS TABLE {}").format(
                        self._table(name, schema), self._table(name)
                    )
                )
            newest = connection.execute(
                sql.SQL("SELECT coalesce(max(notification_id), 0) FROM {}").format(
                    self._table("events", schema)
                )
            ).fetchone()
        assert newest is not None
        return Backup(newest[0], schema)

    def restore(self, backup: Backup) -> Restore:
        events, snapshots = self._table("events"), self._table("snapshots")
        with psycopg.connect(self.server.uri) as connection:
            connection.execute(f"SET lock_timeout = '{_LOCK_SECONDS}s'")
            try:
                connection.execute(
                    sql.SQL("LOCK TABLE {}, {} IN ACCESS EXCLUSIVE MODE").format(events, snapshots)
                )
            except psycopg.errors.LockNotAvailable as error:
                raise StoreInUse from error
            began = time.monotonic_ns()
            for name, table in (("events", events), ("snapshots", snapshots)):
                connection.execute(sql.SQL("TRUNCATE {}").format(table))
                connection.execute(
                    sql.SQL("INSERT INTO {} SELECT * FROM {}").format(
                        table, self._table(name, backup.place)
                    )
                )
            # As pg_dump keeps it.
            connection.execute(
                "SELECT setval(pg_get_serial_sequence(%s, 'notification_id'), %s, %s)",
                (events.as_string(connection), max(1, backup.newest), backup.newest > 0),
            )
        return Restore(backup.newest, began, time.monotonic_ns())

    def restore_unused(self, backup: Backup) -> Restore:
        return self.restore(backup)
