"""Where things are: settings from arguments, the environment, or nothing at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

from eventsourcing.sqlite import SQLiteConnectionPool
from eventsourcing.utils import Environment
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from projections.events.stores import KINDS, POSTGRES, SQLITE, Events, checked_events, kind_of
from projections.mongo import DEFAULT_DATABASE
from projections.mongo.parking import OnError
from projections.queries.leaderboard import By, ranking_field
from projections.worker.worker import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_SIZE
from scoring import InvalidSetting, Scoring

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike


class Settings(BaseModel):
    """The settings of Score ledger; those of the event store are the library's own.

    What is not given has its default, whatever the environment says; ``from_environment()`` reads
    that.
    """

    model_config = ConfigDict(extra="forbid")

    folder: Path = Path(".score-ledger")
    """The embedded folder (``SCORE_LEDGER_FOLDER``): events and MongoDB's data, unless others
    are named."""
    mongo_uri: str | None = None
    """URI of a replica set or sharded cluster (``MONGO_URI``); without it a ``mongod`` is run in
    the folder."""
    mongo_database: str = DEFAULT_DATABASE
    """Database of the read model, and of events in MongoDB (``MONGO_DATABASE``)."""
    events: Events | None = None
    """Where events are: ``"sqlite"``, ``"postgres"``, or ``"mongo"``, in the database of the read
    model (``SCORE_LEDGER_EVENTS``); ``None`` leaves it to the library's ``PERSISTENCE_MODULE``, and
    without that to SQLite."""
    mongod: str | None = None
    """Path of the ``mongod`` to run in the folder (``SCORE_LEDGER_MONGOD``)."""
    linger_seconds: Annotated[FiniteFloat, Field(ge=0)] = 30.0
    """How long that ``mongod`` is kept for the next command after its last user
    (``SCORE_LEDGER_LINGER_SECONDS``); 0 stops it at once."""
    batch_size: PositiveInt = DEFAULT_BATCH_SIZE
    """Grants in one transaction of the projection (``SCORE_LEDGER_BATCH_SIZE``)."""
    batch_bytes: PositiveInt = DEFAULT_BATCH_BYTES
    """Bytes of documents that are enough for a transaction, too (``SCORE_LEDGER_BATCH_BYTES``)."""
    on_error: OnError = "stop"
    """Whether an event that cannot be projected stops the worker, or parks its stream
    (``SCORE_LEDGER_ON_ERROR``)."""
    rank_by: By = "recomputed"
    """The total that leaderboards rank by, unless a call says which (``SCORE_LEDGER_RANK_BY``)."""

    @classmethod
    def from_environment(cls, *, folder: str | PathLike[str] | None = None) -> Settings:
        """Read the settings; an argument beats the environment, and an empty variable is none.

        Raises:
            InvalidSetting: naming the variable that is wrong, and why.
            TypeError: if ``folder`` is no path.
            ValueError: if ``folder`` is empty.
        """
        variables = {name: os.environ.get(_variable(name)) for name in cls.model_fields}
        given: dict[str, object] = {name: text for name, text in variables.items() if text}
        if folder is not None:
            given["folder"] = _checked(folder)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{first['msg']}; got {first['input']!r}"
            raise InvalidSetting(_variable(str(first["loc"][0])), reason) from error

    @property
    def events_file(self) -> Path:
        """Where events are kept by default."""
        return self.folder / "events.sqlite"

    def event_store(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the library's variables for the event store, with our defaults filled in.

        Without ``events`` and ``PERSISTENCE_MODULE`` it is SQLite, and without ``SQLITE_DBNAME``
        its file is ``events.sqlite`` in the folder. Either variable may carry the application's
        prefix ``SCORING_``.

        Args:
            environ: Variables that beat those of the process's environment.

        Raises:
            InvalidSetting: if ``events`` and ``PERSISTENCE_MODULE`` say different things.
        """
        named = self._environment(environ)
        module = named.get("PERSISTENCE_MODULE") or KINDS[self.events or "sqlite"].module
        self.check_module(module)
        chosen = {"PERSISTENCE_MODULE": module}
        if kind_of(chosen) == SQLITE and not named.get("SQLITE_DBNAME"):
            chosen["SQLITE_DBNAME"] = str(self.events_file)
        return chosen

    def names_event_store(self) -> bool:
        """Tell whether a setting or a variable says where events are, rather than the default."""
        return self.events is not None or bool(self._environment().get("PERSISTENCE_MODULE"))

    def check_module(self, module: str) -> None:
        """Check that a persistence module is the one that ``events`` means, if it is set.

        Raises:
            InvalidSetting: if it is another one.
        """
        if self.events is not None and module != KINDS[self.events].module:
            raise InvalidSetting(
                _variable("events"),
                f"{self.events!r} means the persistence module {KINDS[self.events].module}, but "
                f"{module} is named, too: name one event store",
            )

    def _environment(self, environ: Mapping[str, str] | None = None) -> Environment:
        return Environment(Scoring.name, {**os.environ, **(environ or {})})

    def sqlite_file(self, environ: Mapping[str, str] | None = None) -> Path | None:
        """Return the file of an event store in SQLite; ``None`` for others, or one in memory.

        Args:
            environ: Variables that beat those of the process's environment.
        """
        env = self._environment({**(environ or {}), **self.event_store(environ)})
        name = env.get("SQLITE_DBNAME")
        if kind_of(env) != SQLITE or not name:
            return None
        if SQLiteConnectionPool.detect_memory_mode(name):
            return None
        return Path(unquote(urlsplit(name).path) if name.startswith("file:") else name)

    def mongo_of_events(self, environ: Mapping[str, str] | None = None) -> Environment:
        """Return the variables that name a place in MongoDB which is not the read model's, too.

        Args:
            environ: Variables of the event store. Of those of the process's environment only the
                ones count that have the application's prefix.
        """
        prefix = f"{Scoring.name.upper()}_"
        own = {name: text for name, text in os.environ.items() if name.startswith(prefix)}
        return Environment(Scoring.name, {**own, **(environ or {})})

    def postgres_node(self) -> tuple[str, int] | None:
        """Return host and port of an event store in PostgreSQL; ``None`` for all others."""
        env = self._environment(self.event_store())
        host, port = env.get("POSTGRES_HOST"), env.get("POSTGRES_PORT") or "5432"
        if kind_of(env) != POSTGRES or not host:
            return None
        # Sockets in the file system, several hosts and services are the driver's affair.
        return None if not port.isdecimal() or set(host) & set("/,@") else (host, int(port))


def chosen_settings(
    settings: Settings | None,
    *,
    folder: str | PathLike[str] | None,
    rank_by: By | None,
    events: Events | None,
) -> Settings:
    """Return the settings of a ledger; the other arguments of ``ScoreLedger.open()`` beat them."""
    if settings is not None and folder is not None:
        raise ValueError(
            "settings and folder were given, which both say where the folder is: give one"
        )
    if settings is None:
        settings = Settings.from_environment(folder=folder)
    elif not isinstance(settings, Settings):
        raise TypeError(
            f"settings must be a Settings object, not a {type(settings).__name__}: make one "
            "with projections.Settings(...)"
        )
    changes: dict[str, str] = {}
    if rank_by is not None:
        ranking_field(rank_by, argument="rank_by")  # which checks it
        changes["rank_by"] = rank_by
    if events is not None:
        changes["events"] = checked_events(events, argument="events")
    return settings.model_copy(update=changes)


def _variable(name: str) -> str:
    """Return the variable of a setting; MongoDB's are named as everybody names them."""
    return (
        name.upper() if name in {"mongo_uri", "mongo_database"} else f"SCORE_LEDGER_{name.upper()}"
    )


def _checked(folder: object) -> Path:
    cure = "leave it out for SCORE_LEDGER_FOLDER or .score-ledger"
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, not {folder!r}: {cure}")
    if not os.fspath(folder):
        raise ValueError(f"folder must be a path, not an empty text, which would be here: {cure}")
    return Path(folder)
