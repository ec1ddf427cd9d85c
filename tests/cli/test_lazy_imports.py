"""What is only shown needs no driver and no event store: answers come as quickly as Python does."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from projections.cli.commands import COMMANDS

_SLOW = {"eventsourcing", "projections.ledger", "pymongo", "scoring"}

# Runs the command, and ends with what it has imported.
_PROGRAM = """
import sys
from projections.cli import main
sys.argv[0] = "score-ledger"
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def _run(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """Return what a command prints, and the names of the modules that it imports."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize(
    ("option", "shown"), [("--help", "Commands:"), ("--version", "score-ledger ")]
)
def test_what_is_only_shown_imports_no_driver(option: str, shown: str) -> None:
    """By name of module, since times tell more of the machine."""
    printed, imported = _run(option)
    assert shown in printed
    assert "projections.cli.app" in imported
    assert imported & {*_SLOW, "pydantic"} == set()


def test_a_command_imports_only_what_is_its_own() -> None:
    """Files of JSON lines and descriptions of old collections are no part of a status."""
    _, imported = _run("status", "--help")
    ours = {name for name in imported if name.startswith("projections.cli.")}
    assert "projections.cli.queries" in ours
    assert not ours & {"projections.cli.importer", "projections.cli.old_collection"}


def test_completion_imports_the_command_whose_options_it_lists() -> None:
    """And none to list the commands."""
    completing = {"_SCORE_LEDGER_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    printed, imported = _run(**completing, COMP_WORDS="score-ledger ver")
    assert printed.split() == ["verify"]
    assert imported & _SLOW == set()
    printed, _ = _run(**{**completing, "COMP_CWORD": "2"}, COMP_WORDS="score-ledger grant --us")
    assert printed.split() == ["--user-id"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_what_the_help_of_a_command_begins_with(name: str) -> None:
    """Both are written down, so that one can be shown without importing the other."""
    command = COMMANDS[name].load()
    assert command.callback is not None
    assert command.name == name
    assert command.help == inspect.getdoc(command.callback)
    assert command.help is not None
    assert command.help.splitlines()[0] == COMMANDS[name].summary
