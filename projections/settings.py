"""Where things are: settings from arguments, the environment, or nothing at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from eventsourcing.sqlite import SQLiteConnectionPool
from eventsourcing.utils import Environment
from pydantic import Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from projections.errors import ProjectionError
from projections.events.stores import POSTGRES, SQLITE, kind_of
from projections.mongo import DEFAULT_DATABASE
from projections.mongo.parking import OnError
from projections.worker.worker import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_SIZE
from scoring import Scoring

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike


class Settings(BaseSettings):
    """The settings of Score ledger; those of the event store are the library's own.

    ``MONGO_URI`` and ``MONGO_DATABASE`` are read as they are, all others under ``SCORE_LEDGER_``.
    """

    model_config = SettingsConfigDict(
        env_prefix="SCORE_LEDGER_", env_ignore_empty=True, populate_by_name=True
    )

    folder: Path = Path(".score-ledger")
    """The embedded folder (``SCORE_LEDGER_FOLDER``): events and MongoDB's data, unless others
    are named."""
    mongo_uri: str | None = Field(default=None, validation_alias="MONGO_URI")
    """URI of a replica set or sharded cluster; without it a ``mongod`` is run in the folder."""
    mongo_database: str = Field(default=DEFAULT_DATABASE, validation_alias="MONGO_DATABASE")
    """Database of the read model."""
    mongod: str | None = None
    """Path of the ``mongod`` to run in the folder (``SCORE_LEDGER_MONGOD``)."""
    batch_size: PositiveInt = DEFAULT_BATCH_SIZE
    """Grants in one transaction of the projection (``SCORE_LEDGER_BATCH_SIZE``)."""

    batch_bytes: PositiveInt = DEFAULT_BATCH_BYTES
    """Bytes of documents that are enough for a transaction, too (``SCORE_LEDGER_BATCH_BYTES``)."""
    on_error: OnError = "stop"
    """Whether an event that cannot be projected stops the worker, or parks its stream
    (``SCORE_LEDGER_ON_ERROR``)."""

    @classmethod
    def load(cls, *, folder: str | PathLike[str] | None = None) -> Settings:
        """Read the settings; an argument beats the environment.

        Raises:
            ProjectionError: naming the variable or argument that is wrong, and why.
        """
        try:
            settings = cls()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            variable = name if name.isupper() else f"SCORE_LEDGER_{name.upper()}"
            raise ProjectionError(f"{variable} is not usable: {first['msg']}") from error
        if folder is None:
            return settings
        given: object = folder
        if not isinstance(given, str | os.PathLike) or not os.fspath(given):
            # An empty path would be the current folder.
            raise ProjectionError(
                f"folder must be a path, not {folder!r}: leave it out for SCORE_LEDGER_FOLDER or "
                ".score-ledger"
            )
        return settings.model_copy(update={"folder": Path(folder)})

    @property
    def events_file(self) -> Path:
        """Where events are kept by default."""
        return self.folder / "events.sqlite"

    def event_store(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the library's variables for the event store, with our defaults filled in.

        Without ``PERSISTENCE_MODULE`` it is SQLite, and without ``SQLITE_DBNAME`` its file is
        ``events.sqlite`` in the folder. Either may carry the application's prefix ``SCORING_``.

        Args:
            environ: Variables that beat those of the process's environment.
        """
        named = Environment(Scoring.name, {**os.environ, **(environ or {})})
        module = named.get("PERSISTENCE_MODULE") or SQLITE.module
        chosen = {"PERSISTENCE_MODULE": module}
        if module == SQLITE.module and not named.get("SQLITE_DBNAME"):
            chosen["SQLITE_DBNAME"] = str(self.events_file)
        return chosen

    def sqlite_file(self, environ: Mapping[str, str] | None = None) -> Path | None:
        """Return the file of an event store in SQLite; ``None`` for others, or one in memory.

        Args:
            environ: Variables that beat those of the process's environment.
        """
        env = Environment(
            Scoring.name, {**os.environ, **(environ or {}), **self.event_store(environ)}
        )
        name = env.get("SQLITE_DBNAME")
        if kind_of(env) != SQLITE or not name:
            return None
        if SQLiteConnectionPool.detect_memory_mode(name):
            return None
        return Path(unquote(urlsplit(name).path) if name.startswith("file:") else name)

    def postgres_node(self) -> tuple[str, int] | None:
        """Return host and port of an event store in PostgreSQL; ``None`` for all others."""
        env = Environment(Scoring.name, {**os.environ, **self.event_store()})
        host, port = env.get("POSTGRES_HOST"), env.get("POSTGRES_PORT") or "5432"
        if kind_of(env) != POSTGRES or not host:
            return None
        # Sockets in the file system, several hosts and services are the driver's affair.
        return None if not port.isdecimal() or set(host) & set("/,@") else (host, int(port))
