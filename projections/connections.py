"""Opening the two stores of a ledger from settings, variables, or what an application has open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from eventsourcing.persistence import InfrastructureFactoryError
from eventsourcing.utils import Environment, TopicError
from pymongo import MongoClient
from pymongo.database import Database

from projections.embedded import open_server
from projections.errors import ProjectionError
from projections.events.stores import SQLITE, kind_of
from projections.mongo import close, connect, database_in_path
from projections.mongo.read_model import ReadModel
from scoring import EventStoreNotOpened, InvalidSetting, Scoring

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from projections.mongo.collections import Document
    from projections.settings import Settings

# The extra that installs what a persistence module or a cipher of the library imports.
_EXTRAS = {"psycopg": "postgres", "psycopg_pool": "postgres", "Crypto": "crypto"}


def open_scoring(
    settings: Settings,
    *,
    event_store: Mapping[str, str] | None = None,
    create: bool = True,
    read_only: bool = False,
) -> Scoring:
    """Open the event store alone, as the settings and the library's variables say.

    Args:
        settings: Where the default store is.
        event_store: The library's variables; default, those of the environment.
        create: Make the file of a store in SQLite, if it is not there.
        read_only: Make neither a file nor tables: a reader need not have the rights.

    Raises:
        TypeError: if ``event_store`` does not map texts to texts.
        InvalidSetting: if the variables cannot be understood.
        ProjectionError: if it cannot be opened, in one sentence.
    """
    given = {} if event_store is None else _own_variables(event_store)
    # The library's own default is a store in memory, where nothing survives the process.
    env = {**given, **settings.event_store(given)}
    kind = kind_of(env)
    if read_only and kind != SQLITE:
        env["CREATE_TABLE"] = "no"
    if kind == SQLITE and env.get("SQLITE_DBNAME") == ":memory:":
        raise InvalidSetting(
            "SQLITE_DBNAME",
            "':memory:' is a database of its own for every connection and so for every thread; "
            "name a file",
        )
    file = settings.sqlite_file(env)
    if (read_only or not create) and file is not None and not file.exists():
        raise ProjectionError(
            f"there is no ledger yet: its events would be in {file.resolve()}; name the folder of "
            "one (--folder, SCORE_LEDGER_FOLDER) or its file (SQLITE_DBNAME), or record a first "
            "grant with score-ledger grant or import"
        )
    if file == settings.events_file:
        _make(settings.folder)
    try:
        return Scoring(env)
    except InvalidSetting:
        raise
    except Exception as error:
        extra = _missing_extra(error)
        if extra is not None:
            raise ProjectionError(
                f"{kind.module} needs the extra {extra!r}: pip install 'score-ledger[{extra}]'"
            ) from error
        located = kind.located(Environment(Scoring.name, {**os.environ, **env}))
        place = " ".join([kind.module, *(f"{name}={value}" for name, value in located.items())])
        if isinstance(error, TopicError | InfrastructureFactoryError | OSError):
            # What the library makes of a variable that it cannot use; its sentence names it.
            raise InvalidSetting(f"the event store {place}", str(error)) from error
        reason = str(error)
        if isinstance(error, EventStoreNotOpened):
            reason = f"{error.reason}; {kind.cure}"
        raise ProjectionError(f"the event store cannot be opened with {place}: {reason}") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ProjectionError(
            f"the folder {folder} cannot be made ({error.strerror}): name one that this process "
            "may write to, by the argument folder or SCORE_LEDGER_FOLDER"
        ) from error


def _missing_extra(error: BaseException | None) -> str | None:
    """Return the extra that would have brought the module which could not be imported."""
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return _EXTRAS.get(error.name.partition(".")[0])
        error = error.__cause__ or error.__context__
    return None


def _own_variables(event_store: Mapping[str, str]) -> dict[str, str]:
    given: object = event_store
    if not isinstance(given, Mapping) or not all(
        isinstance(text, str) for item in given.items() for text in item
    ):
        raise TypeError(
            "event_store must map names of variables to texts, as in "
            f'{{"PERSISTENCE_MODULE": "{SQLITE.module}", "SQLITE_DBNAME": "events.sqlite"}}'
        )
    env = dict(event_store)
    # The environment of another application may carry that application's prefix.
    if isinstance(event_store, Environment) and event_store.name:
        prefix = f"{event_store.name.upper()}_"
        env |= {k.removeprefix(prefix): v for k, v in env.items() if k.startswith(prefix)}
    return env


def open_read_model(
    settings: Settings,
    stack: ExitStack,
    *,
    mongo: MongoClient[Any] | Database[Any] | str | None = None,
    mongo_database: str | None = None,
    read_only: bool = False,
) -> ReadModel:
    """Open the read model alone; what is opened for it is closed by ``stack``, a client given not.

    Args:
        settings: Where MongoDB is, unless ``mongo`` says so.
        stack: Takes what has to be closed.
        mongo: A client, a database or a URI.
        mongo_database: Name of the database, unless ``mongo`` is one; default, the settings', and
            if these do not say either, the one in the path of the URI.
        read_only: Create nothing.

    Raises:
        TypeError: if ``mongo`` is nothing of the kind.
        ValueError: if it is an empty text, or two databases are given.
        InvalidSetting: if the URI or the name of the database cannot be understood.
        ProjectionError: if it cannot be opened, in one sentence.
    """
    if isinstance(mongo, Database):
        if mongo_database not in {None, mongo.name}:
            raise ValueError(
                f"two databases were given, {mongo.name!r} and {mongo_database!r}: give one"
            )
        mongo_database = mongo.name
        mongo = mongo.client
    if isinstance(mongo, MongoClient):
        client = cast("MongoClient[Document]", mongo)
    elif mongo is None or isinstance(mongo, str):
        if mongo == "":
            # Perhaps a variable of the application's that is not set: not to be guessed at.
            raise ValueError(
                "mongo is an empty text: give a URI, or leave it out for MONGO_URI or a mongod of "
                "the folder's own"
            )
        uri = mongo or settings.mongo_uri
        if uri is None:
            server = open_server(settings.folder / "mongo", mongod=settings.mongod)
            uri = stack.enter_context(server).uri
        client = connect(uri)
        stack.callback(close, client)
        if mongo_database is None and "mongo_database" not in settings.model_fields_set:
            mongo_database = database_in_path(client)
    else:
        raise TypeError(
            f"mongo must be a MongoClient, a Database of one, or a URI, not a "
            f"{type(mongo).__name__}: for asyncio give those too, and call the ledger through "
            "asyncio.to_thread"
        )
    read_model = ReadModel(
        client, settings.mongo_database if mongo_database is None else mongo_database
    )
    if read_only:
        read_model.check()
    else:
        read_model.prepare()
    return read_model
