"""A mongod that is frozen: it keeps its connections and answers nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.monitoring import CommandStartedEvent

from command_line import COMMAND, CommandLine
from concurrency import lasting_at_most, until
from event_store import assert_equal_to_the_events, damaged
from heard_commands import HeardCommands
from processes import frozen
from projections import MongoScoreView, ProjectionWorker, ReadModelUnavailable, ScoreLedger
from projections.embedded import open_server
from projections.mongo import connect
from projections.mongo.client import _TIME_LIMITS
from projections.mongo.read_model import ReadModel
from projections.settings import Settings
from projections.worker.rebuild import Rebuild
from scoring import Scoring
from support import make_grant, sqlite_env, worker_env, worker_maker

DATABASE = "frozen"
SOON_SECONDS = 50  # seven, or ten for who reads, and more for a busy machine
PAUSED_COMMAND = str(Path(__file__).parents[1] / "paused_command.py")


@dataclass
class Server:
    """A mongod that can be frozen; thawed at the end, whatever happens."""

    uri: str
    pid: int

    def frozen(self) -> AbstractContextManager[None]:
        return frozen(self.pid)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with open_server(tmp_path / "mongo") as opened, connect(opened.uri) as client:
        ReadModel(client, DATABASE).prepare()
        yield Server(opened.uri, int(client.admin.command("serverStatus")["pid"]))


def environment(server: Server, folder: Path, database: str = DATABASE) -> dict[str, str]:
    return worker_env(folder, server.uri, database, batch_size=20)


@contextmanager
def command(env: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_position(server: Server, at_least: int) -> None:
    with connect(server.uri) as client:
        view = MongoScoreView(ReadModel(client, DATABASE))
        until(lambda: (view.max_tracking_id("Scoring") or 0) >= at_least)


def test_a_worker_that_is_told_to_stop_stops_within_seconds(
    server: Server, scoring: Scoring, tmp_path: Path
) -> None:
    """In the middle of a transaction, with exit code 0; the next one goes on."""
    scoring.grant_many([make_grant(number) for number in range(3000)])
    with command(environment(server, tmp_path), COMMAND, "project", "--follow") as worker:
        await_position(server, 100)
        with server.frozen():
            time.sleep(0.2)
            worker.send_signal(signal.SIGTERM)
            with lasting_at_most(SOON_SECONDS):
                assert worker.wait(60) == 0, worker.communicate()
    with connect(server.uri) as client:
        read_model = ReadModel(client, DATABASE)
        with closing(MongoScoreView(read_model)) as view:
            ProjectionWorker(scoring, view).catch_up()
        assert assert_equal_to_the_events(scoring, read_model) == 3000


def test_a_worker_that_hangs_when_it_is_told_to_stop_is_interrupted(
    server: Server, scoring: Scoring, tmp_path: Path
) -> None:
    """Inside a transaction, of which nothing stays; it has ended well all the same."""
    scoring.grant_many([make_grant(number) for number in range(50)])
    env = environment(server, tmp_path)
    with command(env, PAUSED_COMMAND, "'insert'", "2", "project", "--follow") as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"paused\n", worker.communicate()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(100) == 0, worker.communicate()
    assert CommandLine(tmp_path, env)("project").returncode == 0
    assert CommandLine(tmp_path, env)("verify").returncode == 0


# A command, and before what it asks of MongoDB the server freezes: a text in it, for the n-th time.
MOMENTS: dict[str, tuple[str, str, int]] = {
    "projecting": ("project", "'insert'", 2),
    "unparking": ("unpark", "'insert'", 1),
    "claiming a generation": ("rebuild", "'commitTransaction'", 1),
    "making its indexes": ("rebuild", "'createIndexes'", 1),
    "filling it": ("rebuild", "'insert'", 2),
    "holding the live one": ("rebuild", "'hold.token'", 1),
    "committing to the switch": ("rebuild", "'sealed': True", 1),
    "renaming": ("rebuild", "_old'", 1),
    "ending the switch": ("rebuild", "'$building.shape'", 1),
}


def test_a_command_that_is_told_to_stop_stops_within_seconds(
    server: Server, scoring: Scoring, tmp_path: Path
) -> None:
    """Wherever it is; then it is run again to the end."""
    scoring.grant_many([make_grant(number, user_id="ada") for number in range(50)])
    commands: dict[str, subprocess.Popen[bytes]] = {}
    env: dict[str, dict[str, str]] = {}
    with connect(server.uri) as client, ExitStack() as stack:
        for number, (moment, (name, text, nth)) in enumerate(MOMENTS.items()):
            read_model = ReadModel(client, f"{DATABASE}_{number}")
            read_model.prepare()
            with closing(MongoScoreView(read_model)) as view:
                if name == "unpark":
                    with damaged(tmp_path / "events.sqlite", 2):
                        ProjectionWorker(scoring, view, on_error="park").catch_up()
                elif name == "rebuild":
                    ProjectionWorker(scoring, view).catch_up()
            env[moment] = environment(server, tmp_path, read_model.database.name)
            paused = command(env[moment], PAUSED_COMMAND, text, str(nth), name)
            commands[moment] = stack.enter_context(paused)
        for process in commands.values():
            assert process.stdout is not None
            assert process.stdout.readline() == b"paused\n", process.communicate()
        with server.frozen(), lasting_at_most(SOON_SECONDS):
            for process in commands.values():
                process.send_signal(signal.SIGTERM)
                assert process.stdin is not None
                process.stdin.close()
            for process in commands.values():
                assert process.wait(120) != 0
        for moment, (name, _, _) in MOMENTS.items():
            again = CommandLine(tmp_path, env[moment])(name)
            assert again.returncode == 0, (moment, again)


class Moment(HeardCommands):
    """Has something done before a client sends a command with some text in it."""

    def __init__(self, text: str, do: Callable[[], object]) -> None:
        super().__init__()
        self._text, self._do = text, do

    def started(self, event: CommandStartedEvent) -> None:
        if self._text in str(event.command):
            self._do()


@pytest.mark.parametrize("moment", ["claiming a generation", "holding the live one"])
def test_whoever_stops_a_rebuild_is_not_kept_by_what_it_tries_again(
    server: Server, scoring: Scoring, moment: str
) -> None:
    """In a process that has other things to do; the next call carries on."""
    scoring.grant_many([make_grant(number) for number in range(50)])
    stop = Event()
    with ExitStack() as stack, connect(server.uri) as healthy:

        def freeze() -> None:
            if not stop.is_set():
                stack.enter_context(server.frozen())
                stop.set()

        heard = Moment(MOMENTS[moment][1], freeze)
        client = MongoClient[Any](server.uri, event_listeners=[heard], **_TIME_LIMITS)
        stack.callback(client.close)
        with lasting_at_most(SOON_SECONDS), suppress(ReadModelUnavailable):
            stopped = Rebuild(scoring, ReadModel(client, DATABASE), worker_maker(scoring))
            assert not stopped.run(stop=stop).live
        assert stop.is_set()
        stack.close()
        again = Rebuild(scoring, ReadModel(healthy, DATABASE), worker_maker(scoring))
        assert again.run().live


def test_a_reader_is_told_within_seconds(server: Server, scoring: Scoring, tmp_path: Path) -> None:
    """With an error that says it may pass; afterwards the same ledger reads on."""
    settings = Settings(folder=tmp_path, mongo_uri=server.uri, mongo_database=DATABASE)
    event_store = sqlite_env(tmp_path / "events.sqlite")
    with ScoreLedger.open(settings=settings, worker=False, event_store=event_store) as ledger:
        ledger.grant(**make_grant(1, user_id="ada").model_dump())
        ledger.catch_up()
        ledger.leaderboard.top(1)
        reads: list[Callable[[], object]] = [
            lambda: ledger.leaderboard.top(1),
            lambda: ledger.totals("ada"),
            ledger.status,
        ]
        with (
            server.frozen(),
            lasting_at_most(SOON_SECONDS),
            ThreadPoolExecutor(len(reads)) as together,
        ):
            told = [future.exception() for future in [together.submit(r) for r in reads]]
        for error in told:
            assert isinstance(error, ReadModelUnavailable)
            assert error.transient
        assert ledger.leaderboard.top(1)
