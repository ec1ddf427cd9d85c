"""The command on servers and in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from command_line import CommandLine
from projections.mongo import connect


@pytest.fixture
def cli(request: pytest.FixtureRequest, tmp_path: Path, mongo_uri: str) -> Iterator[CommandLine]:
    """The command on the shared mongod, in a database and folder of its own.

    Events are in SQLite, or in the event store that the test names.
    """
    database = f"cli_{uuid4().hex}"
    settings = {"MONGO_URI": mongo_uri, "MONGO_DATABASE": database}
    events = getattr(request, "param", "sqlite")
    yield CommandLine(tmp_path, {**settings, "SCORE_LEDGER_EVENTS": events})
    with connect(mongo_uri) as client:
        client.drop_database(database)


@pytest.fixture
def embedded_cli(tmp_path: Path) -> CommandLine:
    """The command without any configuration, in an empty folder."""
    return CommandLine(tmp_path)
