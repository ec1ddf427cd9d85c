"""One PostgreSQL for the tests that need a store with ``subscribe()``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from postgres_server import PostgresServer, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real server that serves the whole run."""
    with running_postgres() as server:
        yield server
