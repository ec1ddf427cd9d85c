"""PostgreSQL that does not answer: no call waits without end, and each says what is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

import scoring.postgres_pool
import scoring.retries
from concurrency import lasting_at_most, until
from group_commit import commit_under_way
from postgres_proxy import lossy_proxy
from postgres_server import PostgresServer, new_server
from processes import frozen
from scoring import EventStoreNotOpened, GrantReceipt, GrantStatus, Scoring, ScoringError
from support import make_grant

ONE_CONNECTION = {"POSTGRES_MAX_OVERFLOW": "0"}
"""At a time: a busy pool may open another one meanwhile, which nobody has frozen."""

UNKNOWN = r"unknown whether the grants are recorded: .* which is safe"


@contextmanager
def soon_given_up() -> Iterator[None]:
    """Nobody waits for long inside the block, and only there: a busy server may take its time."""
    with lasting_at_most(60), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring.retries, "MAX_SECONDS", 3.0)
        patch.setattr(scoring.postgres_pool, "ATTEMPT_SECONDS", 0.7)
        yield


@contextmanager
def locked(server: PostgresServer, env: dict[str, str]) -> Iterator[None]:
    """An operator's transaction that was left open."""
    events = sql.Identifier(env["POSTGRES_SCHEMA"], "scoring_events")
    with psycopg.connect(server.uri) as operator:
        operator.execute(sql.SQL("LOCK TABLE {}").format(events))
        yield
        operator.rollback()


def backends(app: Scoring) -> list[int]:
    """The server's processes that serve an application; those of others may just be ending."""
    datastore: Any = app.factory
    return [connection.info.backend_pid for connection in datastore.datastore.pool._pool]


def granted_again(app: Scoring) -> GrantReceipt:
    """Try until the server is there again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return app.grant(**make_grant(2, user_id="jane").model_dump())
        except ScoringError:
            assert time.monotonic() < deadline


def test_a_lock_that_an_operator_holds_is_not_waited_for_without_end(
    postgres: PostgresServer,
) -> None:
    env = postgres.new_env(POSTGRES_LOCK_TIMEOUT="1")
    grant = make_grant(2, user_id="jane")
    with Scoring(env) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        with locked(postgres, env):
            with soon_given_up(), pytest.raises(ScoringError, match=UNKNOWN):
                app.grant(**grant.model_dump())
            with soon_given_up(), pytest.raises(ScoringError, match="cannot be read"):
                app.score_of("jane")
        assert app.grant(**grant.model_dump()).status is GrantStatus.RECORDED


def test_what_nobody_waits_for_any_more_ends_on_the_server_too(postgres: PostgresServer) -> None:
    """Otherwise each attempt would leave a process there that waits for the lock."""
    env = postgres.new_env(POSTGRES_LOCK_TIMEOUT="1")
    with Scoring(env) as app, locked(postgres, env):
        with soon_given_up(), pytest.raises(ScoringError):
            app.score_of("jane")
        waiting = sql.SQL("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        until(lambda: not postgres.execute(waiting), every_seconds=0.05)


def test_a_call_of_another_thread_is_not_waited_for_without_end(postgres: PostgresServer) -> None:
    """Whoever commits holds up all others of the process."""
    with Scoring(postgres.new_env()) as app:
        with (
            commit_under_way(app),
            soon_given_up(),
            pytest.raises(ScoringError, match="another command of this process"),
        ):
            app.grant(**make_grant(1).model_dump())
        assert app.grant(**make_grant(1).model_dump()).status is GrantStatus.RECORDED


def test_a_process_of_the_server_that_is_frozen_is_done_without(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt takes another connection, and the grant is recorded once."""
    monkeypatch.setattr(scoring.postgres_pool, "ATTEMPT_SECONDS", 0.7)
    with Scoring(postgres.new_env(**ONE_CONNECTION)) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        with frozen(*backends(app)):
            receipt = app.grant(**make_grant(2, user_id="jane").model_dump())
            assert receipt.status is GrantStatus.RECORDED
        assert app.score_of("jane").grant_count == 2


def test_a_store_without_a_connection_says_why(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Psycopg's pool only logs it, and says itself how long it has waited."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 1.0)
    env = postgres.new_env(POSTGRES_DBNAME="nowhere", POSTGRES_CONNECT_TIMEOUT="1")

    def reason() -> str:
        with pytest.raises(EventStoreNotOpened) as refused:
            Scoring(env)
        return refused.value.reason

    # A busy server may not have answered within that second.
    until(lambda: 'database "nowhere" does not exist' in reason())


def test_a_network_that_swallows_everything_ends_in_a_clear_error(postgres: PostgresServer) -> None:
    with lossy_proxy(postgres.new_env()) as (proxy, through_it), Scoring(through_it) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        proxy.passing.clear()
        with soon_given_up(), pytest.raises(ScoringError, match=UNKNOWN):
            app.grant(**make_grant(2, user_id="jane").model_dump())
        proxy.passing.set()
        receipt = granted_again(app)
        assert receipt.total_after == app.score_of("jane").total_score


def test_a_server_that_is_frozen_ends_in_a_clear_error_and_goes_on_when_it_wakes() -> None:
    with new_server() as server:
        running = PostgresServer(server.get_uri())
        with Scoring(running.new_env(**ONE_CONNECTION)) as app:
            app.grant(**make_grant(1, user_id="jane").model_dump())
            postmaster = server.get_pid()
            assert postmaster is not None
            with (
                frozen(postmaster, *backends(app)),
                soon_given_up(),
                pytest.raises(ScoringError, match=UNKNOWN),
            ):
                app.grant(**make_grant(2, user_id="jane").model_dump())
            assert granted_again(app).status in {GrantStatus.RECORDED, GrantStatus.DUPLICATE}
            assert app.score_of("jane").grant_count == 2
