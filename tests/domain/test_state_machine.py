"""``ScoringMachine`` in memory and on all stores: the ledger equals ten lines of model.

100 examples of up to 30 steps in memory, and fewer on the other stores. The examples are derived
from the code of the machine (``derandomize``), so that a failure on one machine is a failure on
all; ``pytest -m soak`` draws new ones, and more.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from pymongo import MongoClient

from postgres_server import PostgresServer
from scoring import Scoring
from scoring.testing import ScoringMachine
from support import mongo_env, sqlite_env

SETTINGS = settings(stateful_step_count=30, derandomize=True)
SOAK = settings(max_examples=2000, stateful_step_count=60, derandomize=False)
EXAMPLES = {"memory": 100, "sqlite": 50, "postgres": 25, "mongo": 25}
"""On a server, each takes a third of a second."""


class SQLiteMachine(ScoringMachine):
    """The machine on a new SQLite file for each example."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp()
        super().__init__()

    def make_scoring(self) -> Scoring:
        return Scoring(sqlite_env(Path(self.folder) / "events.sqlite"))

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


class PostgresMachine(ScoringMachine):
    """The machine on one PostgreSQL schema that is emptied for each example."""

    server: ClassVar[PostgresServer]
    store: ClassVar[dict[str, str]]

    def __init__(self) -> None:
        self.server.empty(self.store)
        super().__init__()

    def make_scoring(self) -> Scoring:
        return Scoring(self.store)


class MongoMachine(ScoringMachine):
    """The machine on one database of MongoDB that is emptied for each example."""

    store: ClassVar[dict[str, str]]

    def __init__(self) -> None:
        with MongoClient[dict[str, object]](self.store["MONGO_URI"]) as client:
            for name in ("events", "snapshots"):
                client[self.store["MONGO_DATABASE"]][f"scoring_{name}"].delete_many({})
        super().__init__()

    def make_scoring(self) -> Scoring:
        return Scoring(self.store)


@pytest.fixture(params=EXAMPLES)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of store."""
    return str(request.param)


@pytest.fixture
def machine(kind: str, request: pytest.FixtureRequest) -> type[ScoringMachine]:
    """The machine, with a schema or database of its own."""
    if kind in {"memory", "sqlite"}:
        return SQLiteMachine if kind == "sqlite" else ScoringMachine
    members: dict[str, object] = {}
    if kind == "postgres":
        members["server"] = server = request.getfixturevalue("postgres")
        env = server.new_env()
    else:
        env = mongo_env(request.getfixturevalue("mongo_uri"), f"machine_{uuid4().hex[:8]}")
    Scoring(env).close()
    members["store"] = {**env, "CREATE_TABLE": "no"}
    return type("Machine", (PostgresMachine if kind == "postgres" else MongoMachine,), members)


@pytest.fixture(autouse=True)
def _quiet_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of conflicts are logged here on purpose."""
    caplog.set_level(logging.ERROR, logger="scoring")


@pytest.mark.timeout(900)  # a failure is shrunk, which takes long
def test_the_ledger_equals_the_model(kind: str, machine: type[ScoringMachine]) -> None:
    """Commands, repetitions, conflicts and snapshots in any order; a reload is a new application.

    It has new connections then.
    """
    examples = settings(SETTINGS, max_examples=EXAMPLES[kind])
    run_state_machine_as_test(machine, settings=examples)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_ledger_equals_the_model_for_long(machine: type[ScoringMachine]) -> None:
    """New examples on every run, and longer ones."""
    run_state_machine_as_test(machine, settings=SOAK)
