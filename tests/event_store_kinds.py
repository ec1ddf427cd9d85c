"""The kinds of event stores that tests run on: one entry makes one more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from support import mongo_env, sqlite_env


def _sqlite_stores(request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: sqlite_env(folder / f"events-{uuid4().hex[:8]}.sqlite")


def _postgres_stores(request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    make: Callable[[], dict[str, str]] = request.getfixturevalue("postgres").new_env
    return make


def _mongo_stores(request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    uri: str = request.getfixturevalue("mongo_uri")
    return lambda: mongo_env(uri, f"events_{uuid4().hex[:8]}")


EVENT_STORES = {"sqlite": _sqlite_stores, "postgres": _postgres_stores, "mongo": _mongo_stores}
"""By name, what returns a maker of settings of new stores, for the test that asks."""
