"""Following: how soon grants are visible, who projects them, and what idling costs."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads

import psycopg
import pytest
from pymongo.errors import OperationFailure

from command_line import CommandLine
from concurrency import lasting_at_most, meanwhile, until
from event_store import assert_equal_to_the_events
from fail_points import transactions_of
from postgres_server import PostgresServer
from projections import MongoScoreView, ProjectionWorker, ReadModelUnavailable, ScoreLedger
from projections.events.anchor import Tracked
from projections.events.wakeups import WakeUps
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from projections.settings import Settings
from scoring import Scoring
from support import make_grant, mongo_env, sqlite_env, worker_env


@contextmanager
def follower(folder: Path, view: MongoScoreView, uri: str) -> Iterator[subprocess.Popen[bytes]]:
    """``score-ledger project --follow`` as a process of its own."""
    env = worker_env(folder, uri, view.read_model.database.name, batch_size=50)
    with CommandLine(folder, env).start("project", "--follow") as process:
        try:
            yield process
        finally:
            process.kill()


def await_visible(
    scoring: Scoring, view: MongoScoreView, number: int, *, timeout: float = 60
) -> None:
    receipt = scoring.grant(**make_grant(number).model_dump())
    view.wait("Scoring", receipt.position, timeout=timeout)


@pytest.fixture
def never_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and waiters that nobody wakes would look too late for ``await_visible``."""
    for pause in ("SHORTEST_PAUSE", "LONGEST_PAUSE_LISTENING", "LONGEST_PAUSE_LOOKING"):
        monkeypatch.setattr(f"projections.worker.worker._{pause}_SECONDS", 100.0)
    for pause in ("FIRST_LOOK", "LONGEST_LOOK"):
        monkeypatch.setattr(f"projections.mongo.view._{pause}_SECONDS", 100.0)


@pytest.mark.usefixtures("never_looking")
def test_a_grant_wakes_the_worker_of_its_process_and_that_whoever_waits(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is visible within milliseconds."""
    monkeypatch.setattr("projections.events.wakeups._stamps", lambda _: [])
    with meanwhile(ProjectionWorker(scoring, view).follow) as stop:
        for number in range(20):
            await_visible(scoring, view, number)
        stop.set()
        scoring.grant(**make_grant(20).model_dump())


@pytest.mark.usefixtures("never_looking", "answers_awaited")
def test_a_grant_of_another_process_wakes_a_worker_by_the_files_of_sqlite(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path
) -> None:
    """SQLite tells nobody, so the worker glances at its files sixty times a second."""
    with (
        meanwhile(ProjectionWorker(scoring, view).follow) as stop,
        Scoring(sqlite_env(tmp_path / "events.sqlite")) as other,
    ):
        numbers = count()

        def comes_soon() -> bool:
            with suppress(TimeoutError):
                await_visible(other, view, next(numbers), timeout=1)
                return True
            return False

        for _ in range(20):
            # A glance may come while a commit is on its way to the disk, so that it cannot be read
            # yet. In practice the worker looks again a millisecond later; here the next one helps.
            until(comes_soon)
        stop.set()
        scoring.grant(**make_grant(next(numbers)).model_dump())


def test_what_other_processes_write_to_a_sqlite_file_is_seen(tmp_path: Path) -> None:
    """At the first commit, and when the log has been checkpointed and begins again; not before."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as mine, Scoring(env) as theirs, WakeUps(mine) as wake_ups:
        for number in range(3):
            wake_ups.wait(0.05)
            assert not wake_ups.wait(0.1)
            theirs.grant(**make_grant(number).model_dump())
            assert wake_ups.wait(60)
            with closing(sqlite3.connect(tmp_path / "events.sqlite")) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_what_a_glance_at_the_files_misses_is_found_by_looking(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a second, as when two commits fall into one tick of the clock."""
    monkeypatch.setattr("projections.events.wakeups._stamps", lambda _: [])
    with (
        meanwhile(ProjectionWorker(scoring, view).follow),
        Scoring(sqlite_env(tmp_path / "events.sqlite")) as other,
    ):
        await_visible(scoring, view, 0)
        time.sleep(1.5)  # until it looks as seldom as it ever does
        await_visible(other, view, 1)


def test_a_pool_of_one_connection_is_enough(
    postgres: PostgresServer, read_model: ReadModel, mongo_uri: str
) -> None:
    """A worker that listened on it would leave none to read or write with."""
    env = postgres.new_env(POSTGRES_POOL_SIZE="1", POSTGRES_MAX_OVERFLOW="0")
    with ScoreLedger.open(
        event_store=env, mongo=mongo_uri, mongo_database=read_model.database.name
    ) as ledger:
        for number in range(3):
            ledger.wait(ledger.grant(**make_grant(number).model_dump()), timeout=60)


def test_a_worker_is_told_by_postgres_what_other_processes_record(
    postgres: PostgresServer, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it need not look often; it listens again when the connection is lost."""
    monkeypatch.setattr("projections.events.wakeups._PAUSE_AFTER_ERROR_SECONDS", 0.1)
    begun: list[str] = []
    listen = WakeUps._listen_on_a_connection

    def listen_and_tell(wake_ups: WakeUps, channel: str) -> None:
        begun.append(channel)
        listen(wake_ups, channel)

    monkeypatch.setattr(WakeUps, "_listen_on_a_connection", listen_and_tell)
    env = postgres.new_env(POSTGRES_POOL_SIZE="5")
    with Scoring(env) as mine, Scoring(env) as theirs, WakeUps(mine) as wake_ups:
        await_listening(wake_ups)
        assert not wake_ups.wait(0.1)
        theirs.grant(**make_grant(1).model_dump())
        assert wake_ups.wait(60)
        with psycopg.connect(postgres.uri, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )
        until(lambda: len(begun) > 1)  # only then does it not listen, or listens again
        await_listening(wake_ups)
        theirs.grant(**make_grant(2).model_dump())
        assert wake_ups.wait(60)
        with meanwhile(ProjectionWorker(mine, view).follow):
            for number in range(3, 13):
                await_visible(theirs, view, number)
        assert assert_equal_to_the_events(mine, view.read_model) == 12


@pytest.mark.usefixtures("never_looking")
def test_a_worker_is_told_by_mongodb_what_other_processes_record(
    mongo_uri: str, view: MongoScoreView
) -> None:
    """By a change stream, which is open only while somebody waits."""
    env = mongo_env(mongo_uri, view.read_model.database.name)
    with Scoring(env) as mine, Scoring(env) as theirs:
        with WakeUps(mine) as wake_ups:
            while wake_ups.wait(0.5):
                pass
            theirs.grant(**make_grant(1).model_dump())
            assert wake_ups.wait(60)
        with meanwhile(ProjectionWorker(mine, view).follow) as stop:
            for number in range(2, 13):
                await_visible(theirs, view, number)
            assert assert_equal_to_the_events(mine, view.read_model) == 12
            stop.set()
            theirs.grant(**make_grant(13).model_dump())
        until(lambda: not any(thread.name == "event-watch" for thread in enumerate_threads()))


def await_listening(wake_ups: WakeUps) -> None:
    until(lambda: wake_ups.covers_all_writers)
    assert wake_ups.wait(60)  # for what was recorded before


def test_an_idle_worker_costs_next_to_nothing(scoring: Scoring, view: MongoScoreView) -> None:
    """It looks at the event store now and then, and leaves MongoDB alone for seconds."""
    seconds = 2.0
    with meanwhile(ProjectionWorker(scoring, view).follow):
        await_visible(scoring, view, 1)
        sent, deadline = -1, time.monotonic() + 60
        while sent != (sent := commands_sent(view)):
            assert time.monotonic() < deadline
            used = time.process_time()
            time.sleep(seconds)
            used = time.process_time() - used
    assert used / seconds < 0.1


def commands_sent(view: MongoScoreView) -> int:
    top = view.read_model.client.admin.command("top")["totals"]
    name = view.read_model.database.name
    return sum(
        counts["commands"]["count"] + counts["queries"]["count"] + counts["update"]["count"]
        for collection, counts in top.items()
        if collection.startswith(f"{name}.")
    )


def test_of_two_followers_one_takes_over_when_the_other_is_killed(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, tmp_path: Path
) -> None:
    """Within seconds, though the server would keep a killed worker's transaction for long."""
    numbers = iter(range(100_000))

    def record(amount: int) -> int:
        scoring.grant_many([make_grant(next(numbers)) for _ in range(amount)])
        return scoring.recorder.max_notification_id() or 0

    with (
        transactions_of(500, view.read_model.client),
        follower(tmp_path, view, mongo_uri) as first,
        follower(tmp_path, view, mongo_uri) as second,
    ):
        view.wait("Scoring", record(100), timeout=100)
        for victim in (first, second):
            record(3000)
            time.sleep(0.2)
            victim.send_signal(signal.SIGKILL)
            if victim is first:
                view.wait("Scoring", record(100), timeout=100)
    ProjectionWorker(scoring, view).catch_up()
    assert assert_equal_to_the_events(scoring, view.read_model) == 6200


def test_a_worker_that_was_paused_with_its_machine_may_first_say_that_it_is_there(
    scoring: Scoring, view: MongoScoreView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was paused, too, finds everybody silent; what they have open is left alone."""
    monkeypatch.setattr("projections.mongo.liveness._HEARTBEAT_SECONDS", 30.0)
    scoring.grant(**make_grant(1).model_dump())
    ProjectionWorker(scoring, view).catch_up()
    scoring.grant(**make_grant(2).model_dump())
    read_model = view.read_model
    with read_model.client.start_session() as session, ThreadPoolExecutor(1) as other:
        entry = {"_id": session.session_id["id"]}
        read_model.workers.insert_one({**entry, "seenAt": datetime.now(UTC) - timedelta(minutes=1)})
        with session.start_transaction():
            read_model.positions.update_many({}, {"$set": {"x": 1}}, session=session)
            catching_up = other.submit(ProjectionWorker(scoring, view).catch_up)
            time.sleep(2)
            read_model.workers.update_one(entry, {"$currentDate": {"seenAt": True}})
            time.sleep(1)
            assert not catching_up.done()
    assert read_model.positions.count_documents({"x": 1})
    assert catching_up.result() == scoring.recorder.max_notification_id()


def test_a_transaction_left_open_by_the_dead_is_aborted_at_once(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than when the server does it; a slow one of the living is left alone."""
    monkeypatch.setattr("projections.mongo.liveness.SILENT_AFTER_SECONDS", 2)
    scoring.grant_many([make_grant(number) for number in range(10)])
    ProjectionWorker(scoring, view).catch_up()
    hold = (
        "import sys, time\n"
        "from projections.events.anchor import Tracked\n"
        "from projections.mongo import MongoScoreView, connect\n"
        "from projections.mongo.batches import Batch\n"
        "from projections.mongo.read_model import ReadModel\n"
        "from projections.mongo.writer import Transaction\n"
        "view = MongoScoreView(ReadModel(connect(sys.argv[1]), sys.argv[2]))\n"
        "def hang(*_):\n"
        "    print('open', flush=True)\n"
        "    time.sleep(60)\n"
        "Transaction.send = hang\n"
        "at = view.tracked('Scoring')\n"
        "view.apply(Batch('Scoring', at, Tracked(at.position + 1)))\n"
    )
    position = view.max_tracking_id("Scoring")
    with (
        transactions_of(500, view.read_model.client),
        subprocess.Popen(
            [sys.executable, "-c", hold, mongo_uri, view.read_model.database.name],
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        scoring.grant(**make_grant(11).model_dump())
        catching_up = Thread(target=ProjectionWorker(scoring, view).catch_up)
        catching_up.start()
        time.sleep(6)  # longer than a worker may be silent: this one is alive, and says so
        assert view.max_tracking_id("Scoring") == position
        process.kill()
        catching_up.join(100)
        assert not catching_up.is_alive()
    assert view.max_tracking_id("Scoring") == scoring.recorder.max_notification_id()


def test_a_ledger_in_use_projects_in_the_background(
    mongo_uri: str, read_model: ReadModel, tmp_path: Path
) -> None:
    """Opened, granted, waited for, read."""
    settings = Settings(
        folder=tmp_path, mongo_uri=mongo_uri, mongo_database=read_model.database.name
    )
    event_store = sqlite_env(tmp_path / "events.sqlite")
    with ScoreLedger.open(settings=settings, event_store=event_store) as ledger:
        for number in range(10):
            receipt = ledger.grant(**make_grant(number, user_id="ada").model_dump())
            ledger.wait(receipt, timeout=60)
            assert len(ledger.history("ada")) == number + 1
        with lasting_at_most(60):
            ledger.close()


@pytest.mark.usefixtures("answers_awaited")
def test_waiting_ends_when_it_was_to_end(view: MongoScoreView) -> None:
    """With a sentence that says what to look at."""
    started = time.monotonic()
    with lasting_at_most(60), pytest.raises(TimeoutError, match="score-ledger status"):
        view.wait("Scoring", 1, timeout=0.3)
    assert time.monotonic() - started > 0.25


@pytest.mark.parametrize(
    "error",
    [None, ReadModelUnavailable("no answer", transient=True)],
    ids=["not there yet", "no answer"],
)
def test_waiting_looks_once_more_if_its_time_was_over_during_a_look(
    scoring: Scoring,
    view: MongoScoreView,
    monkeypatch: pytest.MonkeyPatch,
    error: ReadModelUnavailable | None,
) -> None:
    """As when the machine was paused: nothing is known then of what is projected."""
    receipt = scoring.grant(**make_grant(1).model_dump())
    look = view.tracked

    def late_look(application_name: str) -> Tracked:
        found = look(application_name)
        if found.position is None:
            with closing(MongoScoreView(view.read_model)) as other:
                ProjectionWorker(scoring, other).catch_up()
            time.sleep(0.1)
            if error is not None:
                raise error
        return found

    monkeypatch.setattr(view, "tracked", late_look)
    view.wait("Scoring", receipt.position, timeout=0.1)


def test_waiting_goes_on_through_a_lost_connection(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str
) -> None:
    """It is the worker's business that counts, not the waiter's connection."""
    receipt = scoring.grant(**make_grant(1).model_dump())

    def has_stepped_down() -> bool:
        with suppress(OperationFailure):  # a busy server does not get to it within that second
            view.read_model.client.admin.command("replSetStepDown", 1, force=True)
            return True
        return False

    with (
        connect(mongo_uri) as client,
        closing(MongoScoreView(ReadModel(client, view.read_model.database.name))) as waiting,
    ):
        thread = Thread(
            target=waiting.wait, args=("Scoring", receipt.position), kwargs={"timeout": 60}
        )
        thread.start()
        time.sleep(0.1)
        until(has_stepped_down)
        ProjectionWorker(scoring, view).catch_up()
        thread.join(90)
        assert not thread.is_alive()
