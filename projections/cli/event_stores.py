"""Naming event stores on the command line, and opening them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import typer

from projections.cli.ledgers import await_events
from projections.connections import Stores
from projections.events.stores import KINDS, MONGO, SQLITE, checked_events
from projections.settings import Settings
from scoring import Scoring

_PREFIX = f"{Scoring.name.upper()}_"
_EVENTS = "SCORE_LEDGER_EVENTS"

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
    # As the environment may have them with a prefix, which would be looked for first.
    given = {
        f"{prefix}{variable.removeprefix(_PREFIX)}": variables[variable]
        for variable in sorted(variables, key=lambda variable: variable.startswith(_PREFIX))
        for prefix in ("", _PREFIX)
    }
    settings = Settings.from_environment(folder=variables.get("SCORE_LEDGER_FOLDER") or None)
    settings.events = None
    if kind := variables.get(_EVENTS):
        settings.events = checked_events(kind, argument=f"{_EVENTS} of {name}")
        module = KINDS[settings.events].module
        given = {"PERSISTENCE_MODULE": module, f"{_PREFIX}PERSISTENCE_MODULE": module, **given}
    await_events(settings, given, named_by=option)
    with ExitStack() as stack:
        yield Stores(settings, stack, create=create, read_only=not create).scoring(given)


def _variables(name: str, option: str) -> dict[str, str]:
    """Return the variables that a name stands for."""
    kind, colon, place = name.partition(":")
    if not colon and kind in KINDS:
        return {_EVENTS: kind}
    if kind == "sqlite" and place:
        return {"PERSISTENCE_MODULE": SQLITE.module, "SQLITE_DBNAME": place}
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
    return {"PERSISTENCE_MODULE": MONGO.module, "MONGO_URI": uri, "MONGO_DATABASE": database}


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
    if not variables.keys() & {_EVENTS, "PERSISTENCE_MODULE", f"{_PREFIX}PERSISTENCE_MODULE"}:
        raise typer.BadParameter(
            f"{file} sets neither {_EVENTS} nor PERSISTENCE_MODULE, which say where events are",
            param_hint=option,
        )
    return variables
