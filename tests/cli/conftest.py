"""The command on servers and in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.collection import Collection

from command_line import CommandLine


@pytest.fixture
def cli(
    request: pytest.FixtureRequest, tmp_path: Path, mongo_uri: str, database: Any
) -> CommandLine:
    """The command on the shared mongod, in a database and folder of its own.

    Events are in SQLite, or in the event store that the test names.
    """
    settings = {"MONGO_URI": mongo_uri, "MONGO_DATABASE": database.name}
    events = getattr(request, "param", "sqlite")
    return CommandLine(tmp_path, {**settings, "SCORE_LEDGER_EVENTS": events})


@pytest.fixture
def old(database: Any) -> Iterator[Collection[dict[str, Any]]]:
    """An old collection in a database of the site's own."""
    site = database.client[f"{database.name}_site"]
    yield site["scores"]
    site.client.drop_database(site)


@pytest.fixture
def embedded_cli(tmp_path: Path) -> CommandLine:
    """The command without any configuration, in an empty folder."""
    return CommandLine(tmp_path)
