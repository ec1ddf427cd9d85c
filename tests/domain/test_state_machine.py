"""``ScoringMachine`` in memory and on SQLite: the ledger equals ten lines of model.

100 examples of up to 30 steps in memory, and half as many on a file. The examples are derived from
the code of the machine (``derandomize``), so that a failure on one machine is a failure on all;
``pytest -m soak`` draws new ones, and more.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from scoring import Scoring
from scoring.testing import ScoringMachine
from support import sqlite_env

SETTINGS = settings(max_examples=100, stateful_step_count=30, derandomize=True)
SOAK = settings(max_examples=2000, stateful_step_count=60, derandomize=False)


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


@pytest.mark.timeout(900)  # a failure is shrunk, which takes long
def test_the_ledger_in_memory_equals_the_model() -> None:
    """Commands, repetitions, conflicts, reloads and snapshots in any order."""
    run_state_machine_as_test(ScoringMachine, settings=SETTINGS)


@pytest.mark.timeout(900)
def test_the_ledger_on_sqlite_equals_the_model() -> None:
    """Likewise, with every reload a new application on the same file."""
    run_state_machine_as_test(SQLiteMachine, settings=settings(SETTINGS, max_examples=50))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [ScoringMachine, SQLiteMachine])
def test_the_ledger_equals_the_model_for_long(machine: type[ScoringMachine]) -> None:
    """New examples on every run, and longer ones."""
    run_state_machine_as_test(machine, settings=SOAK)
