"""Event stores of each kind that are put back to an earlier state, also under a process at work."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from psycopg import sql
from pymongo.database import Database

from postgres_server import PostgresServer
from projections.mongo import connect
from support import sqlite_env

TABLES = ("events", "snapshots")


class SQLiteStore:
    """A file, put back by SQLite's backup API."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.file = folder / "events.sqlite"
        self.env = {**sqlite_env(self.file), **variables}
        self._backup = folder / "backup.sqlite"

    def back_up(self) -> None:
        self.save(self._backup)

    def put_back(self) -> None:
        self.load(self._backup)

    def empty(self) -> None:
        self._execute("DELETE FROM stored_events")

    def delete(self, *, stream: str, version: int) -> None:
        self._execute(
            "DELETE FROM stored_events WHERE originator_id = ? AND originator_version = ?",
            stream,
            version,
        )

    def save(self, file: Path) -> None:
        self._copy(self.file, file)

    def load(self, file: Path) -> None:
        self._copy(file, self.file)

    def _execute(self, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.file)) as other, other:
            other.execute(statement, values)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)


class SQLiteFile(SQLiteStore):
    """Put back as a file, while nobody uses it."""

    def put_back(self) -> None:
        self.empty()
        shutil.copy(self._backup, self.file)

    def empty(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)


class PostgresStore:
    """A schema, put back by copying its tables."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.env = server.new_env()

    def back_up(self) -> None:
        for table in TABLES:
            self._execute(
                f"DROP TABLE IF EXISTS {{s}}.kept_{table}; "
                f"CREATE TABLE {{s}}.kept_{table} AS TABLE {{s}}.scoring_{table}"
            )

    def put_back(self) -> None:
        for table in TABLES:
            self._execute(
                f"DELETE FROM {{s}}.scoring_{table}; "
                f"INSERT INTO {{s}}.scoring_{table} TABLE {{s}}.kept_{table}"
            )
        self._execute(
            "SELECT setval('{s}.scoring_events_notification_id_seq'::regclass,"
            " (SELECT max(notification_id) FROM {s}.scoring_events))"
        )

    def empty(self) -> None:
        self._server.empty(self.env)

    def delete(self, *, stream: str, version: int) -> None:
        self._execute(
            "DELETE FROM {s}.scoring_events WHERE originator_id = '"
            f"{stream}' AND originator_version = {version}"
        )

    def _execute(self, statement: str) -> None:
        text = statement.replace("{s}", self.env["POSTGRES_SCHEMA"])
        self._server.execute(sql.SQL(text))


class MongoStore:
    """A database, put back by deleting what came later and writing the other documents again."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self._kept: dict[str, list[dict[str, Any]]] = {}

    def back_up(self) -> None:
        with self._database() as database:
            self._kept = {name: list(database[f"scoring_{name}"].find()) for name in TABLES}

    def put_back(self) -> None:
        with self._database() as database:
            for name, documents in self._kept.items():
                collection = database[f"scoring_{name}"]
                collection.delete_many({"_id": {"$nin": [each["_id"] for each in documents]}})
                for each in documents:
                    collection.replace_one({"_id": each["_id"]}, each, upsert=True)

    def empty(self) -> None:
        with self._database() as database:
            database["scoring_events"].delete_many({})

    def delete(self, *, stream: str, version: int) -> None:
        """Give the event to another stream, as positions have no gaps."""
        with self._database() as database:
            database["scoring_events"].update_one(
                {"e": {"$elemMatch": {"s": UUID(stream).bytes, "v": version}}},
                {"$set": {"e.$.s": uuid4().bytes, "e.$.t": "elsewhere:Lost"}},
            )

    @contextmanager
    def _database(self) -> Iterator[Database[dict[str, Any]]]:
        with connect(self.env["MONGO_URI"]) as client:
            yield client[self.env["MONGO_DATABASE"]]


Store = SQLiteStore | PostgresStore | MongoStore
