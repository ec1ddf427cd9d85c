"""``score-ledger rebuild`` and ``score-ledger verify --repair``."""

from __future__ import annotations

import json
from typing import Any

from command_line import CommandLine, on_both_stores
from support import grant_lines


@on_both_stores
def test_a_rebuild_replaces_the_read_model_and_keeps_the_old_one(cli: CommandLine) -> None:
    """Until it is dropped; status says what there is."""
    assert cli("import", "-", stdin=grant_lines(*range(20))).returncode == 0
    cli("project")
    done = cli("rebuild")
    assert (done.returncode, done.stdout.startswith("generation 2 is live")) == (0, True)
    assert "generation 1 kept on disk: score-ledger rebuild --drop-old" in done.stderr
    status = json.loads(cli("status", "--json").stdout)
    assert (status["generation"], status["kept_generations"], status["grants"]) == (2, [1], 20)
    assert "kept generations" in cli("status").stdout
    assert json.loads(cli("rebuild", "--drop-old", "--json").stdout) == {"dropped": [1]}
    assert cli("rebuild", "--drop-old").stdout == "there was nothing to drop\n"
    assert json.loads(cli("verify", "--json").stdout)["ok"] is True


def test_repairing_is_a_rebuild(cli: CommandLine, database: Any) -> None:
    """What was wrong is printed, and the exit code says how it ended."""
    cli("import", "-", stdin=grant_lines(1))
    cli("project")
    database["score_grants"].update_one({}, {"$set": {"amount": 99}})
    database["score_grants"].insert_one({"_id": "x", "grantId": "odd\x1b[31m"})
    done = cli("verify")
    assert done.returncode == 1
    assert "user-1 position 2 grant grant-1 amount: expected 2, found 99" in done.stdout
    assert r"grant odd\x1b[31m is foreign, there is no event for it" in done.stdout
    assert "2 differences" in done.stderr
    assert cli("verify", "--no-events").returncode == 1
    machine = json.loads(cli("verify", "--json").stdout)
    assert (machine["ok"], machine["difference_count"]) == (False, 2)
    assert machine["differences"][0]["found"] == 99
    done = cli("verify", "--repair")
    assert done.returncode == 0
    assert "found 99" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ok")
    assert cli("verify", "--no-events").returncode == 0
    assert json.loads(cli("status", "--json").stdout)["generation"] == 2
