"""The stores that a command opens: told at once if they are not there, named if they are new."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from projections.cli.console import err, shown
from projections.errors import ReadModelGone, ReadModelUnavailable
from projections.ledger import ScoreLedger
from projections.opening import open_scoring
from projections.settings import Settings
from scoring import Scoring

_REFUSED_SECONDS = 2.0
_CONNECT_SECONDS = 0.5
_PAUSE_SECONDS = 0.1


def open_events(folder: Path | None) -> Scoring:
    """Open the event store to record in it; a file that is made for it is named."""
    settings = Settings.load(folder=folder)
    with _named_if_new(settings):
        return open_scoring(settings)


@contextmanager
def open_ledger(
    folder: Path | None = None,
    *,
    settings: Settings | None = None,
    create: bool = False,
    read_only: bool = False,
    any_shape: bool = False,
) -> Iterator[ScoreLedger]:
    """Open the ledger that is there; it is made, and named, only on request.

    With ``read_only`` rights to read are enough, but in a folder, whose owner may do everything.

    Raises:
        ProjectionError: if it cannot be opened, in one sentence.
    """
    settings = settings or Settings.load(folder=folder)
    if settings.mongo_uri is not None:
        _await_listeners(settings.mongo_uri)
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


def store_files(settings: Settings) -> list[Path]:
    """Return the files of an event store in SQLite, which no output may replace."""
    file = settings.sqlite_file()
    return [] if file is None else [file, *(Path(f"{file}{end}") for end in ("-wal", "-shm"))]


@contextmanager
def _named_if_new(settings: Settings) -> Iterator[None]:
    file = settings.sqlite_file()
    new = file is not None and not file.exists()
    yield
    if new and file is not None and file.exists():
        err.print(f"[yellow]note:[/] a new ledger was begun in {shown(str(file.resolve()))}")


def _await_listeners(uri: str) -> None:
    """Give a server that refuses connections two seconds; the driver would give it ten.

    Whatever else may be wrong with it, an election above all, is the driver's to sit out.
    """
    try:
        nodes = [] if uri.startswith("mongodb+srv:") else parse_uri(uri)["nodelist"]
    except (PyMongoError, ValueError, TypeError):
        return  # which opening it puts into words
    deadline = time.monotonic() + _REFUSED_SECONDS
    while nodes and all(_refuses(*node) for node in nodes):
        if time.monotonic() > deadline:
            names = ", ".join(f"{host}:{port}" for host, port in nodes)
            raise ReadModelUnavailable(
                f"MongoDB cannot be reached (connection refused by {names}): check that it runs "
                "and that MONGO_URI names it",
                transient=True,
            )
        time.sleep(_PAUSE_SECONDS)


def _refuses(host: str, port: int | None) -> bool:
    if port is None:  # a socket in the file system
        return False
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (ConnectionRefusedError, socket.gaierror):
        return True
    except OSError:
        pass
    return False
