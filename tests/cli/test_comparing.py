"""``score-ledger compare``: what it prints, in three forms, and how it exits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pymongo.collection import Collection

from command_line import CommandLine
from support import NOON

Document = dict[str, Any]

APP = {"category": "telemetry", "source": "app"}
LONG_KEY = "telemetry:" + "a-very-long-segment-that-must-stay-whole:" * 3 + "end"
QUICK = ("--settle", "0.1")


@pytest.fixture
def named(cli: CommandLine, old: Collection[Document]) -> tuple[str, ...]:
    """The command for a ledger that lacks one bucket and has other points in another."""
    old.insert_one(
        {
            "_id": "Zoë",
            "buckets": {
                LONG_KEY: {"points": 5, "at": NOON, **APP},
                "telemetry:activity": {"points": 12, "at": NOON, **APP},
                "telemetry:same": {"points": 3, **APP},
            },
        }
    )
    for key, points in (("telemetry:activity", "11"), ("telemetry:same", "3")):
        words = ("--key", key, "--category", "telemetry", "--source", "app", "--points", points)
        assert cli("contribute", "--user-id", "Zoë", *words).returncode == 0
    (cli.cwd / "old.toml").write_text(
        f'database = "{old.database.name}"\ncollection = "scores"\nbuckets = "buckets"\nat = "at"\n'
    )
    return ("compare", "--from-mongo", "old.toml", *QUICK)


def test_differences_are_printed_with_both_sides_and_exit_with_1(
    cli: CommandLine, named: tuple[str, ...]
) -> None:
    """At 80 columns a key is whole, in the terminal and in a pipe; nothing is projected before."""
    terminal = {"TTY_COMPATIBLE": "1", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    for done in (
        cli(*named, COLUMNS="80"),
        cli(*named, stdin=None, **{"COLUMNS": "80", **terminal}),
    ):
        assert done.returncode == 1
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        assert f"Zoë {LONG_KEY}: missing in the ledger\n" in text
        assert "old     5 points, telemetry/app, 2026-11-22 12:00:00 UTC\n" in text
        assert "ledger  nothing\n" in text
        assert "ledger  11 points, telemetry/app, 20" in text
        assert "1 different: other points" in text
        assert "differs from the old collection in 2 of 3 buckets of 1 user" in " ".join(
            text.split()
        )
        assert "--repair gives the ledger" in done.stderr


def test_repairing_says_so_and_the_same_comparison_finds_nothing(
    cli: CommandLine, named: tuple[str, ...]
) -> None:
    """Both exit with 0."""
    repaired = cli(*named, "--repair")
    assert repaired.returncode == 0, repaired.stdout
    assert repaired.stdout.count("    repaired\n") == 2
    assert "2 of them repaired" in repaired.stdout
    again = cli(*named)
    assert again.returncode == 0
    assert again.stdout == "The ledger holds what the old collection holds: 3 buckets of 1 user.\n"


def test_json_and_the_page_say_the_same(
    cli: CommandLine, named: tuple[str, ...], tmp_path: Path
) -> None:
    """With both sides in full; what is on the page cannot run."""
    done = cli(*named, "--json", "--html", "compare.html")
    assert done.returncode == 1
    value = json.loads(done.stdout)
    assert value["differences"]["by_kind"] == {"missing in the ledger": 1, "other points": 1}
    (lost,) = [each for each in value["differences"]["first"] if each["key"] == LONG_KEY]
    assert lost["old"] == {
        "points": 5, "category": "telemetry", "source": "app", "at": "2026-11-22T12:00:00.000+00:00"
    }  # fmt: skip
    assert lost["ledger"] is None
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert value["verdict"] in page
    assert LONG_KEY in page
    assert "default-src 'none'" in page


def test_a_wrong_description_is_one_sentence_or_a_usage_error(cli: CommandLine) -> None:
    """And nothing is read."""
    missing = cli("compare")
    assert missing.returncode == 2
    unreadable = cli("compare", "--from-mongo", "nowhere.toml")
    assert unreadable.returncode == 1
    assert unreadable.stderr == ("error: nowhere.toml cannot be read: No such file or directory\n")
