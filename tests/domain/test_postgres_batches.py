"""Large batches on PostgreSQL."""

from __future__ import annotations

from postgres_server import PostgresServer
from scoring import GrantStatus, Scoring
from support import make_grant


def test_a_batch_larger_than_the_buffers_of_a_socket_is_recorded(postgres: PostgresServer) -> None:
    """The longest ids there are, a thousand in one commit: some megabytes in one statement."""
    grants = [
        make_grant(n, user_id=f"{'🦉' * 120}{n:08}", grant_id=f"{'🌲' * 240}{n:016}")
        for n in range(1100)
    ]
    with Scoring(postgres.new_env()) as scoring:
        receipts = scoring.grant_many(grants)
        assert {receipt.status for receipt in receipts} == {GrantStatus.RECORDED}
        again = scoring.grant_many(grants[:300])
        assert {receipt.status for receipt in again} == {GrantStatus.DUPLICATE}
