"""``ScoringMachine`` on PostgreSQL; see test_state_machine.py for the other stores."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from postgres_server import PostgresServer
from scoring import Scoring
from scoring.testing import ScoringMachine

# Fewer than on the other stores, since each of them takes a third of a second.
SETTINGS = settings(max_examples=25, stateful_step_count=30, deadline=None, derandomize=True)
SOAK = settings(max_examples=2000, stateful_step_count=60, deadline=None, derandomize=False)


class PostgresMachine(ScoringMachine):
    """The machine on one PostgreSQL schema that is emptied for each example."""

    server: ClassVar[PostgresServer]
    store: ClassVar[dict[str, str]]

    def __init__(self) -> None:
        self.server.empty(self.store)
        super().__init__()

    def make_scoring(self) -> Scoring:
        return Scoring(self.store)


@pytest.fixture(autouse=True)
def _quiet_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of conflicts are logged here on purpose."""
    caplog.set_level(logging.ERROR, logger="scoring")


@pytest.fixture
def postgres_machine(postgres: PostgresServer) -> type[ScoringMachine]:
    """The machine, with a schema of its own."""
    env = postgres.new_env()
    Scoring(env).close()
    store = {**env, "CREATE_TABLE": "no"}
    return type("Machine", (PostgresMachine,), {"server": postgres, "store": store})


@pytest.mark.timeout(900)  # a failure is shrunk, which takes long
def test_the_ledger_on_postgresql_equals_the_model(postgres_machine: type[ScoringMachine]) -> None:
    """Every reload is a new application with a new pool of connections."""
    run_state_machine_as_test(postgres_machine, settings=SETTINGS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_ledger_on_postgresql_equals_the_model_for_long(
    postgres_machine: type[ScoringMachine],
) -> None:
    """New examples on every run, and longer ones."""
    run_state_machine_as_test(postgres_machine, settings=SOAK)
