"""What tests of the write side begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from group_commit import Watched
from support import sqlite_env


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """The write side on a SQLite file, with commits that a test may have go wrong."""
    with Watched(sqlite_env(tmp_path / "events.sqlite")) as app:
        yield app


@pytest.fixture
def env(new_env: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The settings of a new event store, of each kind in turn."""
    return new_env()
