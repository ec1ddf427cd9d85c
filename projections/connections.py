"""Opening the two stores of a ledger from settings, variables, or what an application has open."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from eventsourcing.persistence import InfrastructureFactoryError
from eventsourcing.utils import Environment, TopicError
from pymongo import MongoClient
from pymongo.database import Database

from projections.embedded import open_server
from projections.errors import ProjectionError, ReadModelUnavailable
from projections.events.stores import MONGO, SQLITE, kind_of
from projections.mongo import MongoFactory, check_server, close, connect, database_in_path
from projections.mongo.client import nodes_of
from projections.mongo.read_model import ReadModel
from scoring import EventStoreNotOpened, InvalidSetting, Scoring

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from projections.events.stores import EventStoreKind
    from projections.mongo.collections import Document
    from projections.settings import Settings

# The extra that installs what a persistence module or a cipher of the library imports.
_EXTRAS = {"psycopg": "postgres", "psycopg_pool": "postgres", "Crypto": "crypto"}


class MongoPlace(NamedTuple):
    """A client, and the name of the database that is used with it."""

    client: MongoClient[Document]
    database: str


class Stores:
    """Opens the stores of one ledger; a stack closes what was opened for it, and nothing else.

    The embedded server is started, or joined, by the first part that needs it.
    """

    def __init__(
        self,
        settings: Settings,
        stack: ExitStack,
        *,
        mongo: MongoClient[Any] | Database[Any] | str | None = None,
        mongo_database: str | None = None,
        create: bool = True,
        read_only: bool = False,
    ) -> None:
        """Say where they are; nothing is opened yet.

        Args:
            settings: Where they are, unless the other arguments say so.
            stack: Takes what has to be closed.
            mongo: A client, a database or a URI.
            mongo_database: Name of the database, unless ``mongo`` is one; default, the settings',
                and if these do not say either, the one in the path of the URI.
            create: Make an event store in SQLite or MongoDB, if it is not there.
            read_only: Make nothing at all: a reader need not have the rights.
        """
        self._settings = settings
        self._stack = stack
        self._mongo = mongo
        self._mongo_database = mongo_database
        self._create = create and not read_only
        self._read_only = read_only

    def scoring(self, event_store: Mapping[str, str] | None = None) -> Scoring:
        """Open the event store, as the settings and the library's variables say.

        One in MongoDB is where the read model is, unless variables that are the event store's own
        name another place: those given, and those with the application's prefix.

        Args:
            event_store: The library's variables; default, those of the environment.

        Raises:
            TypeError: if ``event_store`` does not map texts to texts.
            InvalidSetting: if the variables cannot be understood, or contradict the settings.
            ProjectionError: if it cannot be opened, in one sentence.
        """
        given = {} if event_store is None else _own_variables(event_store)
        # The library's own default is a store in memory, where nothing survives the process.
        env = {**given, **self._settings.event_store(given)}
        kind = kind_of(env)
        if kind == SQLITE:
            self._find_file(env)
        elif self._read_only:
            env["CREATE_TABLE"] = "no"
        client: MongoClient[Document] | None = None
        if kind == MONGO:
            client, env[MongoFactory.MONGO_DATABASE] = self._find_events(given)
        try:
            return self._stack.enter_context(
                Scoring(env) if client is None else _ScoringInMongo(env, client)
            )
        except InvalidSetting:
            raise
        except Exception as error:
            nodes = [] if client is None else [nodes_of(client)]
            raise _not_opened(error, kind, env, nodes) from error

    def read_model(self) -> ReadModel:
        """Open the read model.

        Raises:
            TypeError: if ``mongo`` is nothing of the kind.
            ValueError: if it is an empty text, or two databases are given.
            InvalidSetting: if the URI or the name of the database cannot be understood.
            ProjectionError: if it cannot be opened, in one sentence.
        """
        read_model = ReadModel(*self._ledgers_place)
        if self._read_only:
            read_model.check()
        else:
            read_model.prepare()
        return read_model

    def _find_file(self, env: Mapping[str, str]) -> None:
        """Check that a file of SQLite can be used, and make its folder if that is ours."""
        named = Environment(Scoring.name, {**os.environ, **env})
        if named.get("SQLITE_DBNAME") == ":memory:":
            raise InvalidSetting(
                "SQLITE_DBNAME",
                "':memory:' is a database of its own for every connection and so for every thread; "
                "name a file",
            )
        file = self._settings.sqlite_file(env)
        if not self._create and file is not None and not _has_events(file):
            raise _no_ledger(
                file.resolve(),
                "the folder of one (--folder, SCORE_LEDGER_FOLDER) or its file (SQLITE_DBNAME)",
            )
        if file == self._settings.events_file:
            _make(self._settings.folder)

    def _find_events(self, given: Mapping[str, str]) -> MongoPlace:
        """Return where events in MongoDB are, and check that they are there, or may be made."""
        named = self._settings.mongo_of_events(given)
        uri = named.get(MongoFactory.MONGO_URI)
        database = named.get(MongoFactory.MONGO_DATABASE)
        cure = "its server and database (MONGO_URI, MONGO_DATABASE, or both with SCORING_ in front)"
        if uri:
            client = connect(uri)
            self._stack.callback(close, client)
            database = database or os.environ.get(MongoFactory.MONGO_DATABASE)
            place = MongoPlace(client, database or database_in_path(client))
        else:
            folder = self._settings.folder / "mongo"
            is_embedded = self._mongo is None and self._settings.mongo_uri is None
            if is_embedded and not self._create and not folder.is_dir():
                raise _no_ledger(
                    f"the MongoDB of {folder.resolve()}",
                    f"the folder of one (--folder, SCORE_LEDGER_FOLDER) or {cure}",
                )
            client, ledgers_database = self._ledgers_place
            place = MongoPlace(client, database or ledgers_database)
        there = ReadModel(*place)  # which checks the name of the database
        env = {MongoFactory.MONGO_DATABASE: place.database}
        factory = MongoFactory(Environment(Scoring.name, env), client=place.client)
        try:
            check_server(place.client)
            is_there = self._create or factory.has_events()
        except ReadModelUnavailable as error:
            if not uri:
                raise
            # What a server says of a password does not say which server.
            raise ReadModelUnavailable(
                f"the event store in MongoDB at {there.place()} cannot be opened: {error}",
                transient=error.transient,
            ) from error
        if not is_there:
            raise _no_ledger(f"MongoDB at {there.place()}", cure)
        return place

    @cached_property
    def _ledgers_place(self) -> MongoPlace:
        mongo, database = self._mongo, self._mongo_database
        if isinstance(mongo, Database):
            if database not in {None, mongo.name}:
                raise ValueError(
                    f"two databases were given, {mongo.name!r} and {database!r}: give one"
                )
            database = mongo.name
            mongo = mongo.client
        if isinstance(mongo, MongoClient):
            client = cast("MongoClient[Document]", mongo)
        elif mongo is None or isinstance(mongo, str):
            client = self._connected(mongo)
            if database is None and "mongo_database" not in self._settings.model_fields_set:
                database = database_in_path(client)
        else:
            raise TypeError(
                f"mongo must be a MongoClient, a Database of one, or a URI, not a "
                f"{type(mongo).__name__}: for asyncio give those too, and call the ledger through "
                "asyncio.to_thread"
            )
        return MongoPlace(client, self._settings.mongo_database if database is None else database)

    def _connected(self, uri: str | None) -> MongoClient[Document]:
        if uri == "":
            # Perhaps a variable of the application's that is not set: not to be guessed at.
            raise ValueError(
                "mongo is an empty text: give a URI, or leave it out for MONGO_URI or a mongod of "
                "the folder's own"
            )
        uri = uri or self._settings.mongo_uri
        if uri is None:
            server = open_server(
                self._settings.folder / "mongo",
                mongod=self._settings.mongod,
                linger_seconds=self._settings.linger_seconds,
            )
            uri = self._stack.enter_context(server).uri
        client = connect(uri)
        self._stack.callback(close, client)
        return client


class _ScoringInMongo(Scoring):
    """Keeps events through a client that is lent to it."""

    def __init__(self, env: Mapping[str, str], client: MongoClient[Document]) -> None:
        self._client = client
        super().__init__(env)

    def construct_factory(self, env: Environment) -> MongoFactory:
        return MongoFactory(env, client=self._client)


def _has_events(file: Path) -> bool:
    """Tell whether a file has a table of events; true, too, if opening it will say why not."""
    if not file.exists():
        return False
    name = f"{file.resolve().as_uri()}?mode=ro"
    with suppress(sqlite3.Error), closing(sqlite3.connect(name, uri=True)) as database:
        tables = "SELECT 1 FROM sqlite_master WHERE name = 'stored_events'"
        return database.execute(tables).fetchone() is not None
    return True


def _no_ledger(place: object, cure: str) -> ProjectionError:
    return ProjectionError(
        f"there is no ledger yet: its events would be in {place}; name {cure}, or record a first "
        "grant with score-ledger grant or import"
    )


def _not_opened(
    error: Exception, kind: EventStoreKind, env: Mapping[str, str], nodes: Sequence[str]
) -> Exception:
    """Return what to raise instead, in one sentence."""
    extra = _missing_extra(error)
    if extra is not None:
        return ProjectionError(
            f"{kind.module} needs the extra {extra!r}: pip install 'score-ledger[{extra}]'"
        )
    located = kind.located(Environment(Scoring.name, {**os.environ, **env}))
    variables = (f"{name}={value}" for name, value in located.items())
    place = " ".join([kind.module, *nodes, *variables])
    if isinstance(error, TopicError | InfrastructureFactoryError | OSError):
        # What the library makes of a variable that it cannot use; its sentence names it.
        return InvalidSetting(f"the event store {place}", str(error))
    reason = str(error)
    if isinstance(error, EventStoreNotOpened):
        reason = f"{error.reason}; {kind.cure}"
    return ProjectionError(f"the event store cannot be opened with {place}: {reason}")


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
