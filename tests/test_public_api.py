"""The public names as a whole: exported, documented, and callable without mixing things up."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import projections
import projections.embedded
import scoring
import scoring.testing

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"
MODULES = [scoring, scoring.testing, projections, projections.embedded]

EXPORTED = {getattr(module, name) for module in MODULES for name in module.__all__}
ERRORS = sorted(
    (each for each in EXPORTED if inspect.isclass(each) and issubclass(each, Exception)),
    key=lambda cls: cls.__name__,
)

COMMANDS = {"grant", "contribute", "feed_post", "award_badge"}
"""Their arguments have the order that the specification gives them, wherever they are."""


def section(module: ModuleType) -> str:
    """The part of the reference that is about one module."""
    text = REFERENCE.read_text(encoding="utf-8")
    found = re.search(
        rf"^## `{re.escape(module.__name__)}`.*?(?=^## )", text, re.MULTILINE | re.DOTALL
    )
    assert found, f"the reference has no section on {module.__name__}"
    return found[0]


def documented(module: ModuleType) -> set[str]:
    """The names in the first column of the section's table."""
    rows = re.findall(r"^\| (`.*?) \|", section(module), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_what_is_exported_is_documented_and_nothing_else(module: ModuleType) -> None:
    """The reference names every public name of a module, and none that is not there."""
    assert documented(module) == set(module.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_export_has_a_docstring(module: ModuleType) -> None:
    """And so has every public method that it defines itself."""
    for name in module.__all__:
        exported = getattr(module, name)
        if not (inspect.isclass(exported) or inspect.isfunction(exported)):
            continue
        assert inspect.getdoc(exported), name
        for method, function in vars(exported).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert inspect.getdoc(function), f"{name}.{method}"


@pytest.mark.parametrize("module", [scoring, projections], ids=lambda module: module.__name__)
def test_arguments_of_one_type_are_given_by_name(module: ModuleType) -> None:
    """Nobody can mix up two strings; the commands have an order that is given."""
    for name in module.__all__:
        exported = getattr(module, name)
        if not inspect.isclass(exported) or issubclass(exported, Exception):
            continue
        for method, function in vars(exported).items():
            if not inspect.isfunction(function) or method.startswith("_") or method in COMMANDS:
                continue
            positional = [
                str(parameter.annotation)
                for parameter in inspect.signature(function).parameters.values()
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"
            ]
            assert len(positional) == len(set(positional)), f"{name}.{method}{positional}"


def test_what_is_public_on_a_ledger_is_for_its_users() -> None:
    """All of it is named in the reference, and nothing else is."""
    row = re.search(r"^\| `ScoreLedger` \| (.*) \|$", section(projections), re.MULTILINE)
    assert row
    named = re.findall(r"`(\w+)`", row[1])
    of_class = {name for name in dir(projections.ScoreLedger) if not name.startswith("_")}
    source = inspect.getsource(projections.ScoreLedger)
    of_object = set(re.findall(r"\bself\.([a-z]\w*)(?:: [^=\n]*)? = ", source))
    assert of_object == {"leaderboard"}
    assert set(named) == of_class | of_object
    assert len(named) == len(set(named))


def test_every_error_that_is_raised_is_exported() -> None:
    """Whoever meets one can name it."""
    for package in (scoring, projections):
        errors = import_module(f"{package.__name__}.errors")
        for name, kind in vars(errors).items():
            if inspect.isclass(kind) and issubclass(kind, Exception):
                assert name in package.__all__, name


def test_all_errors_have_one_base() -> None:
    """Whoever embeds this catches one class, whatever part of it has failed."""
    for error_class in ERRORS:
        assert issubclass(error_class, scoring.LedgerError), error_class


SAMPLES = {"bool": True, "int": 7, "range": range(3, 5), "list[str]": ["a"], "object": ("a", 1)}
"""Of each kind of value that errors are made of; all others are texts or sequences."""


@pytest.mark.parametrize("error_class", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_crosses_process_borders_whole(error_class: type[scoring.LedgerError]) -> None:
    """What a pool of processes raises arrives as what it was, with its data."""
    given: list[Any] = []
    named: dict[str, Any] = {}
    made_by: Any = error_class.__init__
    if made_by is Exception.__init__:
        given.append("why")
        parameters = []
    else:
        _, *parameters = inspect.signature(made_by).parameters.values()
    for parameter in parameters:
        kind = parameter.annotation
        value = [] if kind.startswith("Sequence") else SAMPLES.get(kind, parameter.name)
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = value
        else:
            given.append(value)
    error = error_class(*given, **named)
    error.add_note("seen twice")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is error_class
        assert (str(twin), vars(twin)) == (str(error), vars(error))


def test_a_name_means_one_thing() -> None:
    """No two modules export different things under one name."""
    for first in MODULES:
        for second in MODULES:
            for name in set(first.__all__) & set(second.__all__):
                assert getattr(first, name) is getattr(second, name), name
