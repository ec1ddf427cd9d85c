"""Poison events on the command line: found, parked, seen, mended, unparked."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager

from command_line import CommandLine, on_both_stores
from event_store import damaged, damaged_in_mongo
from support import grant_lines


def poisoned(cli: CommandLine, position: int) -> AbstractContextManager[None]:
    if cli.env["SCORE_LEDGER_EVENTS"] == "mongo":
        return damaged_in_mongo(cli.env["MONGO_URI"], cli.env["MONGO_DATABASE"], position)
    return damaged(cli.cwd / ".score-ledger" / "events.sqlite", position)


@on_both_stores
def test_from_a_poison_event_to_its_stream_unparked(cli: CommandLine) -> None:
    """What somebody does who finds it in the morning."""
    cli("import", "-", stdin=grant_lines(1, 2, 3, user_id="bob") + grant_lines(4, 5, user_id="ada"))
    with poisoned(cli, 4):  # bob's second grant: the claim on the first is at 3
        stopped = cli("project")
        assert stopped.returncode == 1
        assert "the event at position 4" in stopped.stderr
        assert "go on with SCORE_LEDGER_ON_ERROR=park" in stopped.stderr
        shown = cli("status").stdout
        assert re.search(r"worker error .* UTC\]$", shown, re.MULTILINE)
        assert re.search(r"lag seconds +[\d,]+\.\d$", shown, re.MULTILINE)
        assert "Traceback" not in stopped.stderr
        status = json.loads(cli("status", "--json").stdout)
        assert "the event at position 4" in status["worker_error"]
        assert (status["parked_count"], status["grants"]) == (0, 1)
        assert status["lag_seconds"] > 0
        parked = cli("project", "--on-error", "park")
        assert parked.returncode == 0
        assert "1 parked stream:" in parked.stderr
        status = json.loads(cli("status", "--json").stdout)
        assert (status["parked_count"], status["lag_events"], status["grants"]) == (1, 0, 3)
        assert status["parked_streams"][0]["position"] == 4
        assert status["worker_error"] is None
        assert "at position 4 (scoring:UserScore.GrantRecorded)" in cli("status").stdout
        verified = cli("verify")
        assert verified.returncode == 1
        assert "1 parked stream:" in verified.stderr
        still = cli("unpark")
        assert still.returncode == 1
        assert still.stdout.startswith("unparked 0 streams with 0 grants\nstill parked")
    stream = status["parked_streams"][0]["stream"]
    assert json.loads(cli("unpark", stream, "--json").stdout) == {
        "streams": 1,
        "grants": 2,
        "still_parked": [],
    }
    assert cli("verify").returncode == 0
    assert json.loads(cli("user", "bob", "--json").stdout)["totals"]["grant_count"] == 3


def test_the_setting_parks_too(cli: CommandLine) -> None:
    """For workers that run under a supervisor."""
    cli("import", "-", stdin=grant_lines(1, user_id="bob"))
    with poisoned(cli, 2):
        assert cli("project", SCORE_LEDGER_ON_ERROR="park").returncode == 0
        wrong = cli("project", SCORE_LEDGER_ON_ERROR="ignore")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: SCORE_LEDGER_ON_ERROR is not usable")
    assert wrong.stderr.endswith("got 'ignore'\n")
