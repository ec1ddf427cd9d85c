"""What a person at a terminal, or a program at a pipe, meets."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import pytest

from command_line import CommandLine, on_both_stores, run_python
from concurrency import lasting_at_most, until
from event_store import events_in
from projections.cli.interrupts import stop_on_signals
from projections.cli.jsonl import NotJsonLines, read_lines
from projections.cli.ledgers import await_mongo
from projections.errors import ReadModelUnavailable
from support import grant_lines

GRANT = (
    "grant", "--user-id", "ada", "--grant-id", "quiz-7", "--key", "quiz:history:7",
    "--category", "content", "--source", "quiz", "--amount", "25",
    "--granted-at", "2026-11-22T09:30:00Z",
)  # fmt: skip

LONG_ID = "long-" * 24 + "user"
LONG_KEY = "quiz:" + "k" * 200


def test_the_version_is_told(cli: CommandLine) -> None:
    """That of the distribution."""
    assert cli("--version").stdout == f"score-ledger {version('score-ledger')}\n"


@pytest.mark.parametrize(
    "command",
    [
        ("verify",), ("status",), ("leaderboard",), ("user", "ada"), ("drift",), ("rebuild",),
        ("unpark",), ("project",), ("open-balances",),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_that_looks_makes_no_ledger(cli: CommandLine, command: tuple[str, ...]) -> None:
    """It says where it looked, and what to do."""
    done = cli(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"would be in {cli.cwd.resolve()}/.score-ledger/events.sqlite" in done.stderr
    assert "--folder, SCORE_LEDGER_FOLDER" in done.stderr
    assert list(cli.cwd.iterdir()) == []


@pytest.mark.parametrize("cli", ["mongo"], indirect=True)
@pytest.mark.parametrize("command", [("verify",), ("status",), ("project",)], ids=lambda it: it[0])
def test_a_command_that_looks_makes_no_events_in_mongodb(
    cli: CommandLine, database: Any, command: tuple[str, ...]
) -> None:
    """On a server that is named, and in the folder, where no server is started for it."""
    place = f"{cli.env['MONGO_URI'].rpartition('@')[2].partition('/')[0]}/"
    done = cli(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"would be in MongoDB at {place}{database.name}; name" in done.stderr
    assert database.name not in database.client.list_database_names()
    done = cli(*command, MONGO_URI="")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"would be in the MongoDB of {cli.cwd.resolve()}/.score-ledger/mongo;" in done.stderr
    assert list(cli.cwd.iterdir()) == []


def test_what_records_beside_a_server_that_is_named_says_where_events_are(cli: CommandLine) -> None:
    """Unless that was said: the first day's file may not be meant to be the truth for ever."""
    said = f"events are in the SQLite file {cli.cwd.resolve()}/.score-ledger/events.sqlite, since"
    named = cli.env.pop("SCORE_LEDGER_EVENTS")
    for command in (GRANT, ("status",), GRANT):
        done = cli(*command)
        assert (done.returncode, done.stderr.count(said)) == (0, 1), done.stderr
        assert "SCORE_LEDGER_EVENTS=mongo" in done.stderr
    assert said not in cli("leaderboard").stderr
    assert cli(*GRANT, SCORE_LEDGER_EVENTS=named).stderr == ""
    assert cli(*GRANT, PERSISTENCE_MODULE="eventsourcing.sqlite").stderr == ""
    assert cli(*GRANT, SCORING_PERSISTENCE_MODULE="eventsourcing.sqlite").stderr == ""


def test_a_store_that_is_named_but_not_there_is_not_made_by_looking(cli: CommandLine) -> None:
    """By its name or by a URI of SQLite's."""
    for name in ("mistyped.sqlite", "file:mistyped.sqlite?mode=rwc"):
        done = cli("status", SQLITE_DBNAME=name)
        assert done.returncode == 1
        assert f"{cli.cwd.resolve()}/mistyped.sqlite" in done.stderr
    assert list(cli.cwd.iterdir()) == []


def test_a_read_model_is_not_made_by_looking(embedded_cli: CommandLine) -> None:
    """Where the events are somewhere else."""
    cli = CommandLine(embedded_cli.cwd, {"SQLITE_DBNAME": "events.sqlite"})
    cli(*GRANT)
    done = cli("leaderboard")
    assert (done.returncode, done.stdout) == (1, "")
    assert "make it with score-ledger project" in done.stderr
    assert not (cli.cwd / ".score-ledger").exists()


@on_both_stores
def test_a_ledger_that_is_made_is_named_once(cli: CommandLine) -> None:
    """And none is made for a grant that is refused."""
    refused = cli(*[word.replace("25", "0") if word == "25" else word for word in GRANT])
    assert refused.returncode == 1
    assert list(cli.cwd.iterdir()) == []
    made = f"note: a new ledger was begun in {cli.cwd.resolve()}/.score-ledger/events.sqlite\n"
    if cli.env["SCORE_LEDGER_EVENTS"] == "mongo":
        address = cli.env["MONGO_URI"].partition("@")[2].partition("/")[0]
        place = f"{address}/{cli.env['MONGO_DATABASE']}.scoring_events"
        made = f"note: a new ledger is begun in MongoDB, at {place}\n"
    assert cli(*GRANT).stderr == made
    assert cli(*GRANT).stderr == ""


# The first moments are the interpreter's own: a signal that it meets there is not ours.
TELLING_WHEN_IT_BEGINS = """
import os, sys
from projections.cli import main

def tell(event, arguments):
    if event == "import" and arguments[0] == "projections.cli.app":
        os.write(2, b"begun\\n")

sys.addaudithook(tell)
main()
"""


def test_ctrl_c_at_any_moment_is_one_line_and_130(cli: CommandLine) -> None:
    """While modules are imported, stores opened, and results printed."""
    cli(*GRANT)
    started = time.monotonic()
    cli("project")
    whole = time.monotonic() - started
    moments = random.Random(7)
    outcomes = []
    for moment in (0.0, *(moments.uniform(0, whole) for _ in range(5))):
        process = subprocess.Popen(
            [sys.executable, "-c", TELLING_WHEN_IT_BEGINS, "verify"],
            cwd=cli.cwd,
            env={**os.environ, **cli.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        assert process.stderr.readline() == b"begun\n"
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=90)
        outcomes.append((process.returncode, stderr))
    assert set(outcomes) <= {(130, b"interrupted\n"), (0, b"")}
    assert (130, b"interrupted\n") in outcomes


INTERRUPTED = {
    "a finaliser": "def __del__(self): press()",
    "what is half made": "def __init__(self): press(); self.whole = True\n"
    "    def __del__(self): assert self.whole",
    "the making of a class": "def __set_name__(self, *_): press()",
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_ctrl_c_is_heard_where_it_does_not_come_out_as_such(cli: CommandLine, where: str) -> None:
    """Python ignores it, says more about it, or turns it into another error."""
    code = (
        "import signal, time\n"
        "from projections.cli import app, main\n"
        "press = lambda: signal.raise_signal(signal.SIGINT)\n"
        f"class Interrupted:\n    {INTERRUPTED[where]}\n"
        "def run():\n"
        "    class Made: field = Interrupted()\n"
        "    del Made.field\n"
        "    time.sleep(600)\n"
        "app.run = run\n"
        "main()"
    )
    done = run_python("-c", code, cwd=cli.cwd)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_is_one_line_between_the_end_of_the_work_and_that_of_the_command(
    cli: CommandLine,
) -> None:
    """There is nothing left to interrupt, and no traceback either."""
    code = (
        "import signal, sys\n"
        "from projections.cli import app, main\n"
        "def press(frame, event, _):\n"
        "    if frame.f_back and frame.f_back.f_code is main.__code__ and event == 'call':\n"
        "        sys.setprofile(None)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "def run():\n"
        "    sys.setprofile(press)\n"
        "    return 0\n"
        "app.run = run\n"
        "main()"
    )
    done = run_python("-c", code, cwd=cli.cwd)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_signal_that_comes_as_the_work_ends_leaves_no_alarm_behind() -> None:
    """Which would kill, seconds later, a command that is about to tell what it has done."""

    def press(_: object, event: str, called: object) -> None:
        if event == "c_return" and called is signal.setitimer:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with stop_on_signals():
            sys.setprofile(press)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        sys.setprofile(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_ends_an_import_that_waits_for_its_input(cli: CommandLine) -> None:
    """At once, and nothing was half done."""
    process = cli.start("import", "-")
    assert process.stdin is not None
    process.stdin.write(grant_lines(*range(5000)))  # more than is read at once
    process.stdin.flush()
    until(lambda: events_in(cli.cwd / ".score-ledger" / "events.sqlite"))
    process.send_signal(signal.SIGINT)
    process.wait(timeout=90)
    assert process.stderr is not None
    assert process.returncode == 130
    assert b"interrupted: run the same import again" in process.stderr.read()
    process.communicate()


def test_a_refused_connection_is_told_after_two_seconds(cli: CommandLine) -> None:
    """With the address; an election is sat out as before, since somebody listens then."""
    cli(*GRANT)
    # The drivers have two minutes.
    mongo = "mongodb://127.0.0.1:{}/?directConnection=true&serverSelectionTimeoutMS=120000"
    postgres = {"SCORE_LEDGER_EVENTS": "postgres", "POSTGRES_DBNAME": "scores"}
    postgres |= {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_CONNECT_TIMEOUT": "120"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        port = taken.getsockname()[1]
        for name, env in (
            ("MongoDB", {"MONGO_URI": mongo.format(port)}),
            ("PostgreSQL", {**postgres, "POSTGRES_PORT": str(port)}),
        ):
            refused = CommandLine(cli.cwd, {**cli.env, **env})
            with lasting_at_most(60):
                done = refused("status")
            assert done.returncode == 1
            assert done.stderr.startswith(
                f"error: {name} cannot be reached (connection refused by 127.0.0.1:{port})"
            )


def test_a_path_that_cannot_be_used_is_named_in_a_sentence(cli: CommandLine) -> None:
    folder = "f" * 300
    done = cli("status", "--folder", folder)
    assert done.returncode == 1
    assert re.match(rf"error: {folder}\S* cannot be used \(File name too long\): ", done.stderr)


def test_a_host_that_nobody_knows_is_not_said_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads it at night looks for a typing error, not for a server that is down."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ReadModelUnavailable, match=r"the host name m1\.example cannot be"):
        await_mongo("mongodb://m1.example/", "MONGO_URI")


NOT_LINES: dict[str, tuple[bytes, str]] = {
    "UTF-16": (grant_lines(1).decode().encode("utf-16"), "UTF-16: iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without a mark": (grant_lines(1).decode().encode("utf-16-le"), "iconv -f UTF-16"),
    "CSV": (b"user_id,grant_id,amount\nada,one,5\n", "lines of CSV"),
    "array": (b"[" + grant_lines(1) + b"]", "an array: jq -c '.[]'"),
    "pretty": (
        json.dumps(json.loads(grant_lines(1)), indent=2).encode(),
        "over several lines: jq -c .",
    ),
    "zip": (b"PK\x03\x04 and so on", "a zip archive"),
    "gzip of CSV": (gzip.compress(b"a,b\n1,2\n"), "lines of CSV"),
    "gzip twice": (gzip.compress(gzip.compress(grant_lines(1))), "compressed twice"),
    "half a gzip": (gzip.compress(grant_lines(*range(50)))[:-20], "a damaged gzip file"),
}


@pytest.mark.parametrize("name", NOT_LINES)
def test_what_is_not_json_lines_is_recognised(name: str) -> None:
    """With what makes lines of it."""
    content, message = NOT_LINES[name]
    with pytest.raises(NotJsonLines) as error:
        list(read_lines(io.BufferedReader(io.BytesIO(content))))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_input_that_is_not_json_lines_is_one_sentence_and_no_grant(cli: CommandLine) -> None:
    """Not one for each of its lines."""
    cli(*GRANT)
    done = cli("import", "-", stdin=NOT_LINES["gzip of CSV"][0])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the input is not one JSON object a line but lines of CSV")
    assert done.stderr.count("\n") == 1


def test_gzip_is_read(cli: CommandLine) -> None:
    """From a file and from the standard input."""
    (cli.cwd / "grants.jsonl.gz").write_bytes(gzip.compress(grant_lines(*range(20))))
    assert cli("import", "grants.jsonl.gz").stdout.startswith("20 recorded")
    assert cli("import", "-", stdin=gzip.compress(grant_lines(*range(21)))).stdout.startswith(
        "1 recorded, 20 duplicates"
    )


def test_a_reason_that_repeats_is_counted_after_ten_lines(cli: CommandLine) -> None:
    """Each kind for itself, so that a rare one is not lost among many."""
    bad = b"".join(b"{nonsense %d\n" % number for number in range(500))
    other = b'{"user_id": "ada"}\n'
    done = cli("import", "-", "--json", "--reject", "rejected", stdin=grant_lines(1) + bad + other)
    told = done.stderr.splitlines()[1:]
    assert [line.partition(":")[0] for line in told[:11]] == [
        *(f"line {number}" for number in range(2, 12)),
        "line 502",
    ]
    assert told[11] == "and 490 more as line 2"
    assert len(told) == 13
    assert json.loads(done.stdout)["rejected"] == 501
    assert (cli.cwd / "rejected").read_bytes() == bad + other


@pytest.mark.parametrize(
    ("missing", "env", "extra"),
    [
        ("psycopg", {"PERSISTENCE_MODULE": "eventsourcing.postgres"}, "postgres"),
        (
            "Crypto",
            {"CIPHER_TOPIC": "eventsourcing.cipher:AESCipher", "CIPHER_KEY": "eA=="},
            "crypto",
        ),
    ],
)
def test_what_needs_an_extra_names_it(
    cli: CommandLine, missing: str, env: dict[str, str], extra: str
) -> None:
    """As a command that can be pasted."""
    code = f"import sys; sys.modules['{missing}'] = None; from projections.cli import main; main()"
    done = run_python("-c", code, *GRANT, cwd=cli.cwd, **env)
    assert done.returncode == 1
    assert f"pip install 'score-ledger[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bad_date_shows_a_good_one(cli: CommandLine) -> None:
    """That works when it is copied."""
    for moment in ("yesterday", "2026-11-22"):
        done = cli(*GRANT[:-1], moment)
        assert "in ISO 8601 as 2026-11-22T09:30:00Z" in done.stderr
    assert cli(*GRANT[:-1], "2026-11-22T09:30:00Z").returncode == 0


def test_a_user_who_has_nothing_is_an_error(cli: CommandLine) -> None:
    """One sentence, and exit code 1."""
    cli(*GRANT)
    cli("project")
    done = cli("user", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no user 'nobody' has got anything")
    machine = cli("user", "nobody", "--json")
    printed = json.loads(machine.stdout)
    assert (machine.returncode, printed["rank"], printed["grants"]) == (1, None, [])
    assert printed["totals"]["total_score"] == 0


def test_a_terminal_that_has_few_characters_gets_those(cli: CommandLine) -> None:
    """Latin-1, ASCII and a dumb terminal: no command dies of an arrow or a name."""
    for encoding in ("latin-1", "ascii"):
        poor = CommandLine(cli.cwd, {**cli.env, "PYTHONIOENCODING": encoding, "TERM": "dumb"})
        done = poor(*GRANT, "--user-id", "Zoë 🦊", "--grant-id", f"for {encoding}")
        assert done.returncode == 0, done.stderr
        assert "->" in done.stdout
    cli("project")
    for command in (("leaderboard",), ("user", "Zoë 🦊"), ("status",), ("drift",)):
        assert poor(*command).returncode == 0
    assert json.loads(poor("leaderboard", "--json").stdout)[0]["user_id"] == "Zoë 🦊"


def test_a_rebuild_says_that_it_is_indexing(cli: CommandLine) -> None:
    """When all grants are there, and the bar therefore stands still."""
    assert cli(*GRANT).returncode == 0
    cli("project")
    terminal = CommandLine(cli.cwd, {**cli.env, "COLUMNS": "80", "TTY_COMPATIBLE": "1"})
    done = terminal("rebuild")
    assert done.returncode == 0
    assert "indexing" in done.stderr


def test_a_table_in_a_pipe_has_ids_as_a_whole(cli: CommandLine) -> None:
    """However narrow a terminal would be."""
    words = [*GRANT, "--user-id", LONG_ID, "--key", LONG_KEY]
    assert cli(*words).returncode == 0
    cli("project")
    board = cli("leaderboard", "--by", "ledger", COLUMNS="80")
    assert any(LONG_ID in line for line in board.stdout.splitlines())
    page = cli("user", LONG_ID, COLUMNS="80")
    assert any(LONG_KEY in line for line in page.stdout.splitlines())


def test_a_narrow_terminal_keeps_keys_whole_and_breaks_no_word(cli: CommandLine) -> None:
    """What is to be read goes on in the next line; what is to be copied does not."""
    for number, points in enumerate((1_234_567, 7_654_321)):
        key = f"learning:path-{'ab'[number]}:{number}"
        for command, option in (("contribute", "--points"), ("grant", "--amount")):
            cli(
                *(command, "--user-id", f"some.body-{number}", "--key", key),
                *("--category", "learning", "--source", "quiz", option, str(points)),
                *(("--grant-id", f"g{number}") if command == "grant" else ()),
            )
        cli(
            *("contribute", "--user-id", f"some.body-{number}", "--key", key),
            *("--category", "learning", "--source", "quiz", "--points", "5"),
        )
    cli("project")
    # The last of these has the command started anew, so that it looks at the terminal.
    terminal = {"TTY_COMPATIBLE": "1", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    narrow = CommandLine(cli.cwd, {**cli.env, "COLUMNS": "80", **terminal})
    for words in (["drift"], ["user", "some.body-0"]):
        lines = re.sub(r"\x1b\[[0-9;]*m", "", narrow(*words).stdout).splitlines()
        assert max(map(len, lines)) <= 80
        shown = {word for line in lines for word in line.split() if set(word) != {"─"}}
        in_a_pipe = set(cli(*words).stdout.split())
        # A note says what is left out, which has words of its own.
        assert shown - in_a_pipe <= {"--json", "and", "--html", "have", "the", "category"}
        row = next(line for line in lines if "learning:path-a:" in line)
        assert row.split()[-1] in {"+1,234,562", "1,234,567"}


def test_a_store_that_fails_half_way_names_the_lines_and_sums_up(cli: CommandLine) -> None:
    """A disk that is full: what is recorded stays, and the import can be run again."""
    (cli.cwd / "grants.jsonl").write_bytes(grant_lines(*range(3000)))
    limit = 1_500_000
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from projections.cli import main; main()"
    )
    done = run_python("-c", code, "import", "grants.jsonl", "--json", cwd=cli.cwd, **cli.env)
    assert done.returncode == 1
    recorded = json.loads(done.stdout)["recorded"]
    assert 0 < recorded < 3000
    assert f"line {recorded + 1:,} to line {recorded + 1000:,} were not imported" in done.stderr
    assert "run the same import again" in done.stderr
    again = json.loads(cli("import", "grants.jsonl", "--json").stdout)
    assert (again["recorded"], again["duplicate"]) == (3000 - recorded, recorded)
