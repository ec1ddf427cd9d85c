"""A store that fails before, during and after the commit: the answer is the truth or an error."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Timer

import pytest
from psycopg import sql
from tenacity import wait_none

import scoring.retries
from concurrency import lasting_at_most
from postgres_proxy import lossy_proxy
from postgres_server import PostgresServer, new_server
from receipts_check import check_receipts, read_ledger
from scoring import (
    BatchFailed,
    EventStoreNotOpened,
    GrantStatus,
    InvalidSetting,
    Scoring,
    ScoringError,
    UserScore,
)
from support import make_grant, sqlite_env


def later(seconds: float, action: Callable[[], object]) -> Timer:
    timer = Timer(seconds, action)
    timer.start()
    return timer


@contextmanager
def write_locked(file: Path) -> Iterator[None]:
    """Another program holds the one lock on writing that a SQLite file has."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def fail_inserts(file: Path, table: str) -> None:
    """Let the database itself refuse every insert into a table from now on."""
    with closing(sqlite3.connect(file)) as other:
        other.execute(
            f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} "
            "BEGIN SELECT RAISE(ABORT, 'refused on purpose'); END"
        )


# --- around the commit ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["lose_commits", "lose_answers"])
def test_a_connection_lost_around_the_commit_ends_in_a_truthful_receipt(
    postgres: PostgresServer, moment: str
) -> None:
    """Lost before it: committed by a retry. Lost after it: found by the token of the claim."""
    with lossy_proxy(postgres.new_env()) as (proxy, env), Scoring(env) as app:
        first = make_grant(1, user_id="jane", amount=5)
        answers = [(first, app.grant(**first.model_dump()))]
        setattr(proxy, moment, 1)
        second = make_grant(2, user_id="jane", amount=7)
        receipt = app.grant(**second.model_dump())
        answers.append((second, receipt))
        assert proxy.lost == 1
        assert receipt.status is GrantStatus.RECORDED
        assert (receipt.total_before, receipt.total_after) == (5, 12)
        third = make_grant(3, user_id="jane", amount=1)
        answers.append((third, app.grant(**third.model_dump())))
        again = app.grant(**second.model_dump())
        assert (again.status, again.total_after) == (GrantStatus.DUPLICATE, 13)
        check_receipts(read_ledger(app), answers)


@pytest.mark.parametrize("moment", ["lose_commits", "lose_answers"])
def test_a_batch_whose_connection_is_lost_is_answered_grant_by_grant(
    postgres: PostgresServer, moment: str
) -> None:
    """Repetitions, conflicts and several users; positions are found again among later ones."""
    with lossy_proxy(postgres.new_env()) as (proxy, env), Scoring(env) as app:
        app.grant(**make_grant(1).model_dump())
        batch = [
            *(make_grant(number) for number in range(40)),
            make_grant(3),
            make_grant(1, amount=999),
            make_grant(8, user_id="a stranger"),
        ]
        setattr(proxy, moment, 1)
        receipts = app.grant_many(batch)
        assert proxy.lost == 1
        statuses = [receipt.status for receipt in receipts]
        assert statuses.count(GrantStatus.RECORDED) == 39
        assert statuses[1] is GrantStatus.DUPLICATE
        assert statuses[-3:] == [GrantStatus.DUPLICATE, GrantStatus.CONFLICT, GrantStatus.CONFLICT]
        ledger = read_ledger(app)
        recorded = check_receipts(ledger, zip(batch, receipts, strict=True))
        assert ledger.events.keys() == recorded.keys() | {"grant-1"}


def test_connections_may_be_lost_again_and_again(postgres: PostgresServer) -> None:
    """Every answer to a commit and every second commit is lost for a while."""
    with lossy_proxy(postgres.new_env()) as (proxy, env), Scoring(env) as app:
        answers = []
        for number in range(12):
            proxy.lose_commits, proxy.lose_answers = number % 3, 1
            grant = make_grant(number, user_id="jane")
            answers.append((grant, app.grant(**grant.model_dump())))
        assert proxy.lost >= 12
        recorded = check_receipts(read_ledger(app), answers)
        assert recorded == {f"grant-{number}": 1 for number in range(12)}


# --- after the commit ----------------------------------------------------------------------------


def test_a_snapshot_that_fails_fails_nobody_on_sqlite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The grants are recorded and answered; the failure is logged."""
    file = tmp_path / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        fail_inserts(file, "stored_snapshots")
        receipts = [
            app.grant(**make_grant(number, user_id="jane").model_dump()) for number in range(120)
        ]
        assert {receipt.status for receipt in receipts} == {GrantStatus.RECORDED}
        assert "a step after the commit failed" in caplog.text
        assert "refused on purpose" in caplog.text
    with Scoring(sqlite_env(file)) as app:
        assert app.score_of("jane").grant_count == 120
        snapshots = app.snapshots
        assert snapshots is not None
        assert list(snapshots.get(UserScore.create_id("jane"))) == []


def test_a_snapshot_that_fails_fails_nobody_on_postgresql(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Likewise."""
    env = postgres.new_env()
    schema = sql.Identifier(env["POSTGRES_SCHEMA"])
    with Scoring(env) as app:
        postgres.execute(
            sql.SQL(
                "CREATE FUNCTION {0}.refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'refused on purpose'; END $$;"
                "CREATE TRIGGER refuse BEFORE INSERT ON {0}.scoring_snapshots "
                "FOR EACH ROW EXECUTE FUNCTION {0}.refuse()"
            ).format(schema)
        )
        receipts = app.grant_many([make_grant(number, user_id="jane") for number in range(120)])
        assert {receipt.status for receipt in receipts} == {GrantStatus.RECORDED}
        assert "refused on purpose" in caplog.text


def test_a_log_handler_that_fails_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the line about a conflict nor the one about a lost snapshot."""

    class BrokenHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - as in the base class
            raise OSError("no space left on device")

    monkeypatch.setattr(logging.getLogger("scoring"), "handlers", [BrokenHandler()])
    file = tmp_path / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        fail_inserts(file, "stored_snapshots")
        receipts = app.grant_many([make_grant(number, user_id="jane") for number in range(120)])
        assert {receipt.status for receipt in receipts} == {GrantStatus.RECORDED}
        conflict = app.grant(**make_grant(1, user_id="carl").model_dump())
        assert conflict.status is GrantStatus.CONFLICT


def test_a_subscriber_that_fails_fails_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An embedder's hook runs after the commit, so its mistakes are logged."""

    class Embedded(Scoring):
        def _notify(self, recordings: object) -> None:  # noqa: ARG002 - as in the base class
            raise RuntimeError("the embedder's mistake")

    with Embedded(sqlite_env(tmp_path / "events.sqlite")) as app:
        assert app.grant(**make_grant().model_dump()).status is GrantStatus.RECORDED
        assert "the embedder's mistake" in caplog.text


# --- retries have a bound ------------------------------------------------------------------------


def test_a_store_that_stays_locked_ends_in_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound, without a raw database error; reads go on, and trying again is safe."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 1.5)
    file = tmp_path / "events.sqlite"
    with Scoring({**sqlite_env(file), "SQLITE_LOCK_TIMEOUT": "3"}) as app:
        app.grant(**make_grant(1, user_id="jane", amount=5).model_dump())
        second = make_grant(2, user_id="jane")
        with write_locked(file):
            sentence = r"database is locked.*which is safe"
            # And not thirty times as long as one attempt.
            with lasting_at_most(60), pytest.raises(ScoringError, match=sentence):
                app.grant(**second.model_dump())
            assert app.score_of("jane").total_score == 5
            with pytest.raises(BatchFailed, match="database is locked") as failed:
                app.grant_many([second])
            assert (failed.value.receipts_so_far, failed.value.index) == ([], 0)
        assert app.grant(**second.model_dump()).status is GrantStatus.RECORDED


def test_a_writer_waits_for_a_lock_that_is_let_go(tmp_path: Path) -> None:
    """A busy file is no error at all."""
    file = tmp_path / "events.sqlite"
    with (
        Scoring({**sqlite_env(file), "SQLITE_LOCK_TIMEOUT": "1"}) as app,
        closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        release = later(2.5, lambda: other.execute("ROLLBACK"))
        assert app.grant(**make_grant().model_dump()).status is GrantStatus.RECORDED
        release.join()


def test_races_that_are_lost_for_ever_end_in_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if somebody else always were first: the store refuses every insert as not unique."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 1.0)
    file = tmp_path / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        fail_inserts(file, "stored_events")
        with pytest.raises(ScoringError, match=r"lost the race .* \d+ times .* not recorded"):
            app.grant(**make_grant().model_dump())


def test_a_race_is_run_again_for_as_long_as_a_command_has_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it was lost: with many processes on one user that says nothing of the next."""
    monkeypatch.setattr(scoring.retries, "PACE", wait_none())
    file = tmp_path / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        fail_inserts(file, "stored_events")

        def let_it_win() -> None:
            with closing(sqlite3.connect(file, timeout=60)) as other:
                other.execute("DROP TRIGGER refuse_stored_events")

        winning = later(1.5, let_it_win)
        assert app.grant(**make_grant().model_dump()).status is GrantStatus.RECORDED
        winning.join()


def test_a_sequence_that_is_behind_after_a_restore_is_named_with_the_cure(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, not as a race that was lost; and the cure is a statement that works."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 600.0)
    env = postgres.new_env()
    with Scoring(env) as app:
        app.grant_many([make_grant(number) for number in range(20)])
        sequence = sql.Identifier(env["POSTGRES_SCHEMA"], "scoring_events_notification_id_seq")
        postgres.execute(sql.SQL("ALTER SEQUENCE {} RESTART").format(sequence))
        sentence = r"sequence .* is behind .* run SELECT"
        with lasting_at_most(60), pytest.raises(ScoringError, match=sentence) as refused:
            app.grant(**make_grant(30).model_dump())
        statement = str(refused.value).partition(" run ")[2]
        postgres.execute(sql.SQL(statement))
        assert app.grant(**make_grant(30).model_dump()).status is GrantStatus.RECORDED


def test_a_batch_that_fails_half_way_keeps_its_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails in the second chunk: the first thousand receipts are in the error."""
    file = tmp_path / "events.sqlite"

    def grants() -> Iterator[object]:
        for number in range(1500):
            if number == 1200:
                fail_inserts(file, "stored_events")
                monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 0.5)
            yield make_grant(number)

    with Scoring(sqlite_env(file)) as app:
        with pytest.raises(BatchFailed) as failed:
            app.grant_many(grants())  # type: ignore[arg-type]
        assert failed.value.index == 1000
        assert len(failed.value.receipts_so_far) == 1000
        ledger = read_ledger(app)
        assert len(ledger.events) == 1000


def test_a_server_that_is_gone_ends_in_a_clear_error_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same application carries on when PostgreSQL is started again."""
    with new_server() as server:
        env = PostgresServer(server.get_uri()).new_env(POSTGRES_CONNECT_TIMEOUT="3")
        with Scoring(env) as app:
            app.grant(**make_grant(1, user_id="jane", amount=5).model_dump())
            server.stop()
            sentence = r"unknown whether .* which is safe"
            # And not thirty times as long as one attempt.
            with lasting_at_most(60), monkeypatch.context() as patch:
                patch.setattr(scoring.retries, "MAX_SECONDS", 0.5)
                with pytest.raises(ScoringError, match=sentence):
                    app.grant(**make_grant(2, user_id="jane").model_dump())
            server.ensure_postgres_running()
            receipt = app.grant(**make_grant(2, user_id="jane").model_dump())
            assert (receipt.status, receipt.total_before) == (GrantStatus.RECORDED, 5)


def test_what_postgresql_says_on_several_lines_is_told_in_one_sentence(
    postgres: PostgresServer,
) -> None:
    """Where in the statement it was comes on lines of its own."""
    env = postgres.new_env()
    with Scoring(env) as app:
        app.grant(**make_grant(1).model_dump())
        table = sql.Identifier(env["POSTGRES_SCHEMA"], "scoring_events")
        postgres.execute(sql.SQL("DROP TABLE {}").format(table))
        for call in (
            lambda: app.grant(**make_grant(2).model_dump()),
            lambda: app.grant_many([make_grant(3)]),
            lambda: app.score_of("user-1"),
            lambda: app.close_gaps("user-1"),
        ):
            with pytest.raises(ScoringError, match="does not exist") as failed:
                call()
            assert "\n" not in str(failed.value)


# --- what is refused at start --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "SCORING_"])
def test_database_functions_are_refused_at_start(postgres: PostgresServer, prefix: str) -> None:
    """They insert without the table lock, so positions could become visible out of order."""
    env = postgres.new_env(**{f"{prefix}POSTGRES_ENABLE_DB_FUNCTIONS": "yes"})
    with pytest.raises(InvalidSetting, match=r"POSTGRES_ENABLE_DB_FUNCTIONS .* unset it"):
        Scoring(env)


def test_a_file_that_cannot_be_opened_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: no amount of trying makes the folder."""
    once = scoring.retries._COLLISIONS.copy(sleep=lambda _: pytest.fail("it is tried again"))
    monkeypatch.setattr(scoring.retries, "_COLLISIONS", once)
    with pytest.raises(EventStoreNotOpened, match="the event store cannot be opened") as refused:
        Scoring(sqlite_env(tmp_path / "nowhere" / "events.sqlite"))
    assert refused.value.reason == "unable to open database file"
