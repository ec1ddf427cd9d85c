"""The stores that a command opens: told at once if they are not there, named if they are new."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from projections.cli.console import err, shown
from projections.connections import Stores
from projections.errors import ProjectionError, ReadModelGone, ReadModelUnavailable
from projections.events.stores import MONGO, kind_of, place_of
from projections.ledger import ScoreLedger
from projections.settings import Settings
from scoring import Scoring
from scoring.retries import read_event_store

_REFUSED_SECONDS = 2.0
_CONNECT_SECONDS = 0.5
_PAUSE_SECONDS = 0.1


@contextmanager
def open_events(folder: Path | None) -> Iterator[Scoring]:
    """Open the event store to record in it; one that is made for it is named."""
    settings = Settings.from_environment(folder=folder)
    await_events(settings)
    note_default(settings)
    with ExitStack() as stack:
        with _named_if_new(settings):
            scoring = Stores(settings, stack).scoring()
        if kind_of(scoring.env) == MONGO and not read_event_store(
            scoring.recorder.max_notification_id
        ):
            place = shown(place_of(scoring))
            err.print(f"[yellow]note:[/] a new ledger is begun in MongoDB, at {place}")
        yield scoring


@contextmanager
def open_ledger(
    folder: Path | None = None,
    *,
    settings: Settings | None = None,
    create: bool = False,
    create_folder: bool = False,
    read_only: bool = False,
    any_shape: bool = False,
) -> Iterator[ScoreLedger]:
    """Open the ledger that is there.

    Args:
        folder: The embedded folder.
        settings: An object of settings instead.
        create: Make an event store that is not there, and name its file.
        create_folder: Make a folder for MongoDB's data, where the event store is somewhere else.
        read_only: Make do with rights to read, but in a folder, whose owner may do everything.
        any_shape: Open a read model of another release, too.

    Raises:
        ProjectionError: if it cannot be opened, in one sentence.
    """
    settings = settings or Settings.from_environment(folder=folder)
    await_events(settings)
    if settings.mongo_uri is not None:
        await_mongo(settings.mongo_uri, "MONGO_URI")
    elif not (create_folder or settings.folder.is_dir() or _is_default(settings)):
        raise ProjectionError(
            f"there is no read model yet: it would be in {settings.folder.resolve()}; name its "
            "folder (--folder, SCORE_LEDGER_FOLDER) or its server (MONGO_URI), or make it with "
            "score-ledger project"
        )
    with _named_if_new(settings):
        opened = partial(
            ScoreLedger.open, settings=settings, worker=False, create=create, any_shape=any_shape
        )
        if read_only and settings.mongo_uri is not None:
            try:
                ledger = opened(read_only=True)
            except ReadModelGone:  # nothing was projected yet, which whoever may write can see
                ledger = opened()
        else:
            ledger = opened()
    with ledger:
        yield ledger


def note_default(settings: Settings) -> None:
    """Say where events are if MongoDB is named, and nothing says that they are not there, too."""
    file = settings.sqlite_file()
    if settings.mongo_uri is not None and not settings.names_event_store() and file is not None:
        err.print(
            f"[yellow]note:[/] events are in the SQLite file {shown(str(file.resolve()))}, since "
            "nothing names an event store: SCORE_LEDGER_EVENTS=mongo would keep them in MongoDB, "
            "too, and =sqlite keeps them here and says no more"
        )


def store_files(settings: Settings) -> list[Path]:
    """Return the files of an event store in SQLite, which no output may replace."""
    file = settings.sqlite_file()
    return [] if file is None else [file, *(Path(f"{file}{end}") for end in ("-wal", "-shm"))]


def _is_default(settings: Settings) -> bool:
    """Tell whether events are in the folder too, so that opening says what is missing."""
    in_mongo = kind_of(settings.event_store()) == MONGO
    return in_mongo or settings.sqlite_file() == settings.events_file


@contextmanager
def _named_if_new(settings: Settings) -> Iterator[None]:
    file = settings.sqlite_file()
    new = file is not None and not file.exists()
    yield
    if new and file is not None and file.exists():
        err.print(f"[yellow]note:[/] a new ledger was begun in {shown(str(file.resolve()))}")


def await_events(settings: Settings, *, named_by: str | None = None) -> None:
    """Give a server that refuses connections a moment, if it has the event store.

    Args:
        settings: Where it is.
        named_by: What names the server, if it is not a variable.

    Raises:
        ProjectionError: if it still does.
    """
    node = settings.postgres_node()
    if node is not None and (refusals := _refusals([node])):
        raise ProjectionError(
            f"PostgreSQL cannot be reached ({refusals}): check that it runs and that POSTGRES_HOST "
            "and POSTGRES_PORT name it"
        )
    if kind_of(settings.event_store()) == MONGO:
        if uri := settings.mongo_of_events().get("MONGO_URI"):
            await_mongo(uri, named_by or "SCORING_MONGO_URI")
        elif settings.mongo_uri is not None:
            await_mongo(settings.mongo_uri, named_by or "MONGO_URI")


def await_mongo(uri: str, named_by: str) -> None:
    """Give a server that refuses connections a moment.

    Raises:
        ReadModelUnavailable: if it still does.
    """
    try:
        nodes = [] if uri.startswith("mongodb+srv:") else parse_uri(uri)["nodelist"]
    except (PyMongoError, ValueError, TypeError):
        return  # which opening it puts into words
    if nodes and (refusals := _refusals(nodes)):
        raise ReadModelUnavailable(
            f"MongoDB cannot be reached ({refusals}): check that it runs and that {named_by} names "
            "it",
            transient=True,
        )


def _refusals(nodes: list[tuple[str, int]]) -> str:
    """Give servers that refuse connections two seconds; their drivers would give them ten or more.

    Whatever else may be wrong, an election above all, is the driver's to sit out.

    Returns:
        What each has answered, or nothing if one of them does not refuse.
    """
    deadline = time.monotonic() + _REFUSED_SECONDS
    while all(refusals := [_refusal(*node) for node in nodes]):
        if time.monotonic() > deadline:
            return ", ".join(refusals)
        time.sleep(_PAUSE_SECONDS)
    return ""


def _refusal(host: str, port: int | None) -> str:
    if port is None:  # a socket in the file system
        return ""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return f"connection refused by {host}:{port}"
    except socket.gaierror as error:
        return f"the host name {host} cannot be resolved: {error.strerror}"
    except (OSError, OverflowError):  # slow, or a port that nobody can have
        pass
    return ""
