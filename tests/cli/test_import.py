"""``score-ledger import``: good lines, bad lines, again, and killed half-way."""

from __future__ import annotations

import io
import json
import signal
import sqlite3
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from subprocess import Popen
from threading import Event

import pytest

from command_line import PATIENT, CommandLine, on_both_stores
from concurrency import meanwhile, until
from event_store import events_in
from group_commit import Commit, Watched
from projections.cli.importer import Import, ImportSummary, parsed
from projections.cli.interrupts import Stop, stop_on_signals
from projections.cli.jsonl import MAX_LINE_BYTES, Line, parse_grant, read_lines
from scoring import Grant, Scoring
from scoring.event_store import RecordedEvents
from support import grant_lines, make_grant, sqlite_env


@on_both_stores
def test_importing_a_file_and_importing_it_again(cli: CommandLine, tmp_path: Path) -> None:
    """The second time everything is a duplicate and the ledger is the same."""
    (tmp_path / "grants.jsonl").write_bytes(grant_lines(*range(1500)))
    first = cli("import", "grants.jsonl", "--json")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert (summary["recorded"], summary["duplicate"]) == (1500, 0)
    again = json.loads(cli("import", "grants.jsonl", "--json").stdout)
    assert (again["recorded"], again["duplicate"]) == (0, 1500)
    assert cli("project").returncode == 0
    verified = json.loads(cli("verify", "--json").stdout)
    assert (verified["ok"], verified["grants"]) == (True, 1500)


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{nonsense\n", "not JSON"),
    "not UTF-8": (b'{"user_id": "\xff"}\n', "not UTF-8"),
    "not an object": (b"[1, 2]\n", "not a JSON object"),
    "unknown field": (grant_lines(1, colour="red"), "unknown field 'colour'"),
    "missing field": (b'{"user_id": "ada"}\n', "missing field 'grant_id'"),
    "field twice": (grant_lines(1).replace(b'"amount"', b'"amount": 1, "amount"'), "given twice"),
    "both spellings": (grant_lines(1, userId="x"), "given twice: 'user_id'"),
    "negative": (grant_lines(1, amount=-1), "amount must be an integer from 1"),
    "float": (grant_lines(1, amount=5.0), "amount must be an integer from 1"),
    "text amount": (grant_lines(1, amount="5"), "amount must be an integer from 1"),
    "true": (grant_lines(1, amount=True), "amount must be an integer from 1"),
    "not a number": (grant_lines(1).replace(b'"amount": 2', b'"amount": NaN'), "amount must be"),
    "huge number": (grant_lines(1).replace(b'"amount": 2', b'"amount": ' + b"9" * 5000), "digits"),
    "naive time": (grant_lines(1, granted_at="2026-11-22T12:00:00"), "timezone-aware"),
    "no time": (grant_lines(1, granted_at="yesterday"), "ISO 8601"),
    "surrogate": (grant_lines(1).replace(b'"user-1"', b'"\\ud800"'), "user_id must be"),
    "deep": (b"[" * 100_000 + b"\n", "nested too deeply"),
    "long": (b'"' + b"x" * (MAX_LINE_BYTES + 10) + b'"\n', "longer than"),
    "squatting": (
        grant_lines(1, grant_id="bob/award:badge:x"),
        "grant_id must be '<user_id>/<key>'",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_reported_and_does_not_stop_the_others(cli: CommandLine, name: str) -> None:
    """Number and reason on stderr, the others recorded, the line kept, and exit code 1."""
    bad, reason = BAD_LINES[name]
    done = cli("import", "-", "--reject", "rejected", stdin=grant_lines(10) + bad + grant_lines(11))
    assert done.returncode == 1
    assert "line 2:" in done.stderr
    assert reason in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("2 recorded, 0 duplicates, 0 conflicts, 1 rejected")
    if name != "long":  # of which only the beginning is kept
        assert (cli.cwd / "rejected").read_bytes() == bad


def test_a_conflict_is_reported_with_its_line(cli: CommandLine) -> None:
    """A line whose id was recorded with another payload is not in the ledger: exit code 1."""
    done = cli("import", "-", stdin=grant_lines(1, 2) + grant_lines(1, amount=99))
    assert done.returncode == 1
    assert "line 3: CONFLICT" in done.stderr
    assert done.stdout.startswith("2 recorded, 0 duplicates, 1 conflicts, 0 rejected")


def test_camel_case_blank_lines_and_a_byte_order_mark_are_taken(cli: CommandLine) -> None:
    """What other tools write."""
    camel = grant_lines(2).replace(b"user_id", b"userId").replace(b"grant_id", b"grantId")
    camel = camel.replace(b"granted_at", b"grantedAt")
    done = cli("import", "-", stdin=b"\xef\xbb\xbf" + grant_lines(1) + b"\n  \r\n" + camel.rstrip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 recorded")


def imported(scoring: Scoring, lines: list[bytes], bad: list[tuple[int, str]]) -> ImportSummary:
    """Import lines, and note the numbers of those that are not in the ledger afterwards."""

    def note(line: Line, reason: str) -> None:
        bad.append((line.number, reason))

    found = read_lines(io.BufferedReader(io.BytesIO(b"".join(lines))))
    return Import(scoring.grant_many, note).run(parsed(found, parse_grant), stop=Stop())


def test_an_import_stops_after_the_transaction_in_which_a_signal_comes(tmp_path: Path) -> None:
    """It has several in hand at that moment, and seconds to stop in, which some take each."""

    def interrupted(commit: Commit) -> RecordedEvents:
        signal.raise_signal(signal.SIGINT)
        return commit()

    lines = io.BytesIO(grant_lines(*range(3500)))
    with Watched(sqlite_env(tmp_path / "events.sqlite")) as scoring, stop_on_signals() as stop:
        scoring.instead.append(interrupted)
        entries = parsed(read_lines(io.BufferedReader(lines)), parse_grant)
        importer: Import[Line, Grant] = Import(scoring.grant_many, lambda *_: None)
        summary = importer.run(entries, stop=stop)
        assert (summary.recorded, summary.interrupted) == (1000, True)
        assert sum(scoring.score_of(f"user-{n}").grant_count for n in range(7)) == 1000


def test_a_user_who_cannot_take_a_grant_does_not_stop_the_others(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of 64-bit totals refuses one grant of a chunk; its line is the bad one."""
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", 20)
    lines = [grant_lines(n, user_id="ada" if n == 2 else "bob", amount=n * 10) for n in (1, 2, 3)]
    lines.insert(1, grant_lines(9, user_id="ada", amount=15))
    bad: list[tuple[int, str]] = []
    summary = imported(scoring, lines, bad)
    assert [number for number, _ in bad] == [3, 4]
    assert "at most 5" in bad[0][1]
    assert (summary.recorded, summary.rejected) == (2, 2)


def test_a_user_whose_stream_has_a_gap_does_not_stop_the_others(
    scoring: Scoring, tmp_path: Path
) -> None:
    """Their lines are bad ones, and every other is recorded and counted once."""
    scoring.grant_many([make_grant(number, user_id="ada") for number in range(5)])
    with closing(sqlite3.connect(tmp_path / "events.sqlite")) as other, other:
        other.execute("DELETE FROM stored_events WHERE originator_version IN (3, 4)")
    users = {8: "ada", 11: "ada"}
    lines = [grant_lines(n, user_id=users.get(n, f"user-{n % 3}")) for n in range(5, 15)]
    bad: list[tuple[int, str]] = []
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as another_process:
        summary = imported(another_process, lines, bad)
    assert [number for number, _ in bad] == [4, 7]
    assert "'ada' lacks versions 3 to 4" in bad[0][1]
    assert (summary.recorded, summary.duplicate, summary.rejected) == (8, 0, 2)


def test_a_file_that_is_not_there_is_one_sentence(cli: CommandLine) -> None:
    """No traceback, and nothing is created."""
    done = cli("import", "missing.jsonl")
    assert done.returncode == 1
    assert done.stderr == "error: missing.jsonl cannot be read: No such file or directory\n"
    assert not (cli.cwd / ".score-ledger").exists()


def feed(process: Popen[bytes], lines: bytes, _: Event) -> None:
    """Give an import all but the last byte, so that it is not done before it is ended."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(lines[:-1])


def test_an_import_killed_half_way_and_run_again_ends_the_same(cli: CommandLine) -> None:
    """``kill -9`` in the middle; the second run adds just what is missing."""
    count = 12_000
    grants = grant_lines(*range(count))
    (cli.cwd / "grants.jsonl").write_bytes(grants)
    process = cli.start("import", "-")
    events = cli.cwd / ".score-ledger" / "events.sqlite"
    with meanwhile(partial(feed, process, grants)):
        until(lambda: events_in(events))
        process.kill()
        process.wait()  # before its input is closed, at whose end it would be done
    with suppress(BrokenPipeError):
        process.communicate()
    with Scoring(sqlite_env(events)) as scoring:
        recorded = sum(scoring.score_of(f"user-{n}").grant_count for n in range(7))
        assert 0 < recorded < count
    again = json.loads(cli("import", "grants.jsonl", "--json").stdout)
    assert (again["recorded"], again["duplicate"]) == (count - recorded, recorded)
    with Scoring(sqlite_env(events)) as scoring:
        scores = [scoring.score_of(f"user-{n}") for n in range(7)]
    assert sum(score.grant_count for score in scores) == count
    assert sum(score.total_score for score in scores) == sum(
        make_grant(n).amount for n in range(count)
    )


def test_an_interrupted_import_stops_between_chunks_and_says_how_to_finish(
    cli: CommandLine,
) -> None:
    """SIGINT is answered with what was done, not with a traceback."""
    process = cli.start("import", "-", "--json", program=PATIENT)
    events = cli.cwd / ".score-ledger" / "events.sqlite"
    with meanwhile(partial(feed, process, grant_lines(*range(12_000)))):
        until(lambda: events_in(events))
        process.send_signal(signal.SIGINT)
        process.wait(timeout=90)  # or it might meet the end of its input first
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    summary = json.loads(stdout)
    assert summary["interrupted"] is True
    assert summary["recorded"] % 1000 == 0
    begun, _, rest = stderr.decode().partition("\n")
    assert begun.startswith("note: a new ledger was begun in")
    assert rest == ("interrupted: run the same import again to finish it; nothing counts twice\n")
