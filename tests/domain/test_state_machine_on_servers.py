"""``ScoringMachine`` on PostgreSQL and MongoDB; see test_state_machine.py for the other stores."""

from __future__ import annotations

import logging
from typing import ClassVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from pymongo import MongoClient

from postgres_server import PostgresServer
from scoring import Scoring
from scoring.testing import ScoringMachine
from support import mongo_env

# Fewer than on the other stores, since each of them takes a third of a second.
SETTINGS = settings(max_examples=25, stateful_step_count=30, derandomize=True)
SOAK = settings(max_examples=2000, stateful_step_count=60, derandomize=False)


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


@pytest.fixture(autouse=True)
def _quiet_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of conflicts are logged here on purpose."""
    caplog.set_level(logging.ERROR, logger="scoring")


def _postgres_machine(request: pytest.FixtureRequest) -> type[ScoringMachine]:
    server: PostgresServer = request.getfixturevalue("postgres")
    env = server.new_env()
    Scoring(env).close()
    store = {**env, "CREATE_TABLE": "no"}
    return type("Machine", (PostgresMachine,), {"server": server, "store": store})


def _mongo_machine(request: pytest.FixtureRequest) -> type[ScoringMachine]:
    env = mongo_env(request.getfixturevalue("mongo_uri"), f"machine_{uuid4().hex[:8]}")
    Scoring(env).close()
    return type("Machine", (MongoMachine,), {"store": {**env, "CREATE_TABLE": "no"}})


@pytest.fixture(params=[_postgres_machine, _mongo_machine], ids=["postgres", "mongo"])
def machine(request: pytest.FixtureRequest) -> type[ScoringMachine]:
    """The machine, with a schema or database of its own."""
    made: type[ScoringMachine] = request.param(request)
    return made


@pytest.mark.timeout(900)  # a failure is shrunk, which takes long
def test_the_ledger_on_a_server_equals_the_model(machine: type[ScoringMachine]) -> None:
    """Every reload is a new application with new connections."""
    run_state_machine_as_test(machine, settings=SETTINGS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_ledger_on_a_server_equals_the_model_for_long(machine: type[ScoringMachine]) -> None:
    """New examples on every run, and longer ones."""
    run_state_machine_as_test(machine, settings=SOAK)
