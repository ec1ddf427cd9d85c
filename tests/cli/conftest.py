"""The command on a server and in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from command_line import CommandLine
from projections.mongo import connect


@pytest.fixture
def cli(tmp_path: Path, mongo_uri: str) -> Iterator[CommandLine]:
    """The command on the shared mongod, in a database and folder of its own."""
    database = f"cli_{uuid4().hex}"
    yield CommandLine(tmp_path, {"MONGO_URI": mongo_uri, "MONGO_DATABASE": database})
    with connect(mongo_uri) as client:
        client.drop_database(database)


@pytest.fixture
def embedded_cli(tmp_path: Path) -> CommandLine:
    """The command without any configuration, in an empty folder."""
    return CommandLine(tmp_path)
