"""Naming event stores on the command line, and opening them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import typer

from projections.cli.ledgers import await_events
from projections.connections import Stores
from projections.events.stores import KINDS, MONGO, SQLITE
from projections.settings import Settings
from scoring import Scoring

_PREFIX = f"{Scoring.name.upper()}_"
_EVENTS = "SCORE_LEDGER_EVENTS"
_MODULE = "PERSISTENCE_MODULE"
_PLACES = {
    *("SCORE_LEDGER_FOLDER", "MONGO_URI"),
    *(variable for kind in KINDS.values() for variable in kind.place),
}

NAMES = (
    "sqlite:PATH, mongodb://HOST/DATABASE, env:FILE (lines of NAME=VALUE, as services read), or "
    "sqlite, postgres or mongo, as the variables of the environment say"
)
"""The ways to name an event store."""


@contextmanager
def open_named(name: str, *, option: str, create: bool) -> Iterator[Scoring]:
    """Open the event store that somebody has named.

    Args:
        name: See ``NAMES``.
        option: Where it was named.
        create: Make what is missing; otherwise nothing is created.

    Raises:
        typer.BadParameter: if it is not a name of an event store.
        ValueError: if its file of variables cannot be read.
        LedgerError: if it cannot be opened.
    """
    variables = _variables(name, option)
    with ExitStack() as stack:
        with _environment(variables, alone=name.startswith("env:")):
            settings = Settings.from_environment()
            await_events(settings, named_by=None if name in KINDS else option)
            stores = Stores(settings, stack, create=create, read_only=not create)
            scoring = stores.scoring()
        yield scoring


@contextmanager
def _environment(variables: Mapping[str, str], *, alone: bool) -> Iterator[None]:
    """Have the environment say what some variables say, and perhaps nothing else of a place.

    A service that reads them from a file has no others, and what is copied has to be found by it.
    """
    names = {_EVENTS, _MODULE, *variables, *(_PLACES if alone else ())}
    before = dict(os.environ)
    try:
        for name in names:
            os.environ.pop(name, None)
            os.environ.pop(f"{_PREFIX}{name}", None)
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _variables(name: str, option: str) -> dict[str, str]:
    """Return the variables that a name stands for."""
    kind, colon, place = name.partition(":")
    if not colon and kind in KINDS:
        return {_EVENTS: kind}
    if kind == "sqlite" and place:
        return {_MODULE: SQLITE.module, "SQLITE_DBNAME": place}
    if kind in {"mongodb", "mongodb+srv"}:
        return _of_uri(name, option)
    if kind == "env" and place:
        return _of_file(Path(place), option)
    raise typer.BadParameter(f"an event store is named as {NAMES}", param_hint=option)


def _of_uri(uri: str, option: str) -> dict[str, str]:
    parts = urlsplit(uri)
    if ":" in parts.netloc.rpartition("@")[0]:
        raise typer.BadParameter(
            "everybody on this machine can read the password in a command: put MONGO_URI into a "
            "file and name env:FILE, or into the environment and name mongo",
            param_hint=option,
        )
    database = parts.path.strip("/")
    if not database:
        raise typer.BadParameter(
            "the URI has to name the database, too: mongodb://HOST/DATABASE", param_hint=option
        )
    return {_MODULE: MONGO.module, "MONGO_URI": uri, "MONGO_DATABASE": database}


def _of_file(file: Path, option: str) -> dict[str, str]:
    """Return the variables of a file, as services read it; quotes are no part of a value."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    variables = {}
    for number, text in enumerate(lines, start=1):
        line = text.strip()
        if not line or line.startswith(("#", ";")):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.isidentifier():
            # Without the line itself, which may have a password in it.
            raise typer.BadParameter(
                f"line {number} of {file} is not NAME=VALUE", param_hint=option
            )
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        variables[name] = value
    if not variables.keys() & {_EVENTS, _MODULE, f"{_PREFIX}{_MODULE}"}:
        raise typer.BadParameter(
            f"{file} sets neither {_EVENTS} nor PERSISTENCE_MODULE, which say where events are",
            param_hint=option,
        )
    return variables
