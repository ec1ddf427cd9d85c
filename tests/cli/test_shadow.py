"""``score-ledger contribute`` and ``score-ledger drift``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from command_line import CommandLine

ACTIVITY = (
    "contribute", "--user-id", "Zoë", "--key", "telemetry:activity", "--category", "telemetry",
    "--source", "app",
)  # fmt: skip
POST = (
    "contribute", "--user-id", "Zoë", "--key", "content:feed-post:1", "--category", "content",
    "--source", "feed", "--at", "2026-11-22T09:30:00Z",
)  # fmt: skip


def test_contributing_sets_a_bucket(cli: CommandLine) -> None:
    """Up, the same again, and down."""
    answers = [json.loads(cli(*ACTIVITY, "--points", points, "--json").stdout) for points in "553"]
    assert [(a["status"], a["recomputed_before"], a["recomputed_after"]) for a in answers] == [
        ("RECORDED", 0, 5),
        ("DUPLICATE", 5, 5),
        ("RECORDED", 5, 3),
    ]
    assert "recomputed total 3 → 0 points" in cli(*ACTIVITY, "--points", "0").stdout


def test_a_contribution_that_the_ledger_does_not_take_exits_with_1(cli: CommandLine) -> None:
    """The bucket has it all the same, as before."""
    assert cli(*POST, "--points", "5").returncode == 0
    assert cli(*POST, "--points", "5").returncode == 0
    done = cli(*POST, "--points", "7")
    assert done.returncode == 1
    assert "5 → 7 points" in done.stdout
    assert "the ledger keeps the grant" in done.stderr


def test_a_bad_contribution_is_one_sentence(cli: CommandLine) -> None:
    """With the field, the value and the rule."""
    for words, message in (
        ((*ACTIVITY, "--points", "5.0"), "points must be an integer from 0"),
        ((*ACTIVITY, "--points", "-1"), "points must be an integer from 0"),
        ((*ACTIVITY, "--points", "5", "--at", "yesterday"), "at must be a timezone-aware"),
        ((*ACTIVITY, "--points", "5", "--at", "2026-11-22"), "at must be a timezone-aware"),
    ):
        done = cli(*words)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1


def test_drift_in_the_terminal_as_json_as_csv_and_as_a_page(
    cli: CommandLine, tmp_path: Path
) -> None:
    """One measurement, shown in four ways."""
    cli(*ACTIVITY, "--points", "40")
    cli(*POST, "--points", "5")
    behind = cli("drift", "--wait", "0")
    assert behind.returncode == 0
    assert "A flip is not safe: the read model was still 4 events behind" in behind.stdout
    cli("project")
    shown = cli("drift", "--csv", "drift.csv", "--html", "drift.html")
    assert shown.returncode == 0, shown.stderr
    assert "telemetry:activity" in shown.stdout
    assert shown.stdout.rstrip().endswith("most of it is telemetry:activity, not granted yet.")
    value = json.loads(cli("drift", "--json").stdout)
    assert value["verdict"] in shown.stdout
    assert value["points"] == {"old": 45, "new": 5, "difference": -40}
    with (tmp_path / "drift.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["user_id"], row["difference"], row["not_granted"]) == ("Zoë", "-40", "-40")
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert value["verdict"] in page
    assert page.count("<svg") == 3


def test_a_pipeline_is_told_by_the_exit_code(cli: CommandLine) -> None:
    """Whether a flip is safe, or close enough to it."""
    cli(*ACTIVITY, "--points", "4")
    cli(*POST, "--points", "100")
    cli("project")
    assert cli("drift", "--check").returncode == 1
    assert cli("drift", "--check", "--tolerance", "3.8%").returncode == 1
    close = cli("drift", "--check", "--tolerance", "4%")
    assert close.returncode == 0
    assert "A flip is safe within 4 %: 1 of 1 user would see another score" in close.stdout
    cli(*ACTIVITY, "--points", "0")
    behind = cli("drift", "--check", "--wait", "0", "--json")
    assert (behind.returncode, json.loads(behind.stdout)["lag_events"]) == (1, 1)
    cli("project")
    assert cli("drift", "--check").returncode == 0
    wrong = cli("drift", "--check", "--tolerance", "some")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == (
        "error: a tolerance is points, as 5, or percent of the old score, as 0.5%; got 'some'\n"
    )


def test_opening_balances_brings_the_totals_together(cli: CommandLine) -> None:
    """A dry run first; then once, by kind of key; then nothing is left."""
    cli(*ACTIVITY, "--points", "40")
    cli(*POST, "--points", "5")
    behind = cli("open-balances", "--wait", "0")
    assert (behind.returncode, behind.stdout) == (1, "")
    assert "events behind after 0 s, so no balance was opened" in behind.stderr
    cli("project")
    would = cli("open-balances", "--dry-run")
    assert "40 points would be granted in 1 opening balance of 1 user" in would.stdout
    other = json.loads(cli("open-balances", "--keys", "quiz:history", "--json").stdout)
    assert (other["users"], other["grants"]) == (1, 0)
    wrong = cli("open-balances", "--granted-at", "2026-11-22")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    did = cli("open-balances", "--granted-at", "2026-12-01T00:00:00Z", "--json")
    assert (did.returncode, json.loads(did.stdout)["kinds"]) == (0, {"telemetry:activity": [1, 40]})
    cli("project")
    assert cli("drift", "--check").returncode == 0
    assert json.loads(cli("open-balances", "--json").stdout)["grants"] == 0


def test_the_help_says_what_the_exit_code_means(cli: CommandLine) -> None:
    """Whatever a pipeline may go on after."""
    for command in ("contribute", "drift", "open-balances"):
        assert "exit code" in " ".join(cli(command, "--help").stdout.split())
