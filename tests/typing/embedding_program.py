"""A typed program that embeds the ledger: checked against the installed wheel, and run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

from pymongo import MongoClient

from projections import (
    GrantRow,
    Leaderboard,
    LeaderboardRepository,
    LeaderboardRow,
    LedgerStatus,
    ScoreGrantRepository,
    ScoreLedger,
    Settings,
    UserScoreRepository,
    UserTotals,
    Verification,
)
from projections.embedded import open_server
from scoring import (
    BatchFailed,
    Grant,
    GrantReceipt,
    GrantStatus,
    InvalidGrant,
    Score,
    Scoring,
    UserScore,
)


class Shop:
    """Depends on ports, not on where scores are kept."""

    def __init__(self, scores: UserScoreRepository, board: LeaderboardRepository) -> None:
        self._scores = scores
        self._board = board

    def paid(self, *, order: int, customer: str, at: datetime) -> GrantReceipt:
        return self._scores.grant(
            user_id=customer,
            grant_id=f"order-{order}",
            key=f"shop:order:{order}",
            category="shop",
            source="web",
            amount=order % 7 + 1,
            granted_at=at,
        )

    def leaders(self) -> list[str]:
        return [row.user_id for row in self._board.top(3, by="ledger")]


class Forum(Scoring):
    """An application of one's own."""

    def welcome(self, user_id: str) -> None:
        score = UserScore(user_id=user_id)
        score.grant("welcome/" + user_id, "forum:welcome", "forum", "web", 1, datetime.now(UTC))
        self.save(score)


def use(ledger: ScoreLedger) -> None:
    now = datetime.now(UTC)
    receipt = ledger.grant("ada", "g-1", "quiz:1", "learning", "quiz", 5, now)
    assert_type(receipt, GrantReceipt)
    assert_type(receipt.status, GrantStatus)
    assert_type(receipt.position, int)
    assert_type(ledger.grant_many([]), list[GrantReceipt])
    assert_type(ledger.score_of("ada"), Score)
    assert_type(ledger.score_of("ada").category_totals, Mapping[str, int])
    ledger.catch_up()
    ledger.wait(receipt, timeout=10)
    assert_type(ledger.leaderboard, Leaderboard)
    assert_type(ledger.leaderboard.top(3), list[LeaderboardRow])
    assert_type(ledger.leaderboard.rank_of("ada", by="ledger"), LeaderboardRow | None)
    assert_type(ledger.history("ada", before=None, limit=3), list[GrantRow])
    assert_type(ledger.totals("ada"), UserTotals)
    assert_type(ledger.status(), LedgerStatus)
    assert_type(ledger.verify(), Verification)
    Shop(ledger, ledger.leaderboard).paid(order=4711, customer="ada", at=now)
    projected: ScoreGrantRepository = ledger
    assert_type(projected.history("ada"), list[GrantRow])


class Pages:
    """A stand-in that fits a port."""

    def history(
        self, user_id: str, *, before: int | None = None, limit: int = 100
    ) -> list[GrantRow]:
        return []

    def totals(self, user_id: str) -> UserTotals:
        return UserTotals(user_id, 0, 0, {}, {}, 0, None, 0)


def main() -> None:
    pages: ScoreGrantRepository = Pages()
    assert pages.totals("ada").total_score == 0
    scores: UserScoreRepository = Scoring()
    assert scores.score_of("ada").total_score == 0
    try:
        Grant(
            user_id="ada",
            grant_id="g",
            key="k",
            category="c",
            source="s",
            amount=0,
            granted_at=datetime.now(UTC),
        )
    except InvalidGrant as error:
        assert_type(error.field, str)
    except BatchFailed as failed:
        assert_type(failed.receipts_so_far, list[Any])
    settings = Settings(folder=Path("ledger"), batch_size=100)
    client: MongoClient[dict[str, Any]]
    with open_server(Path("mongo")) as server, MongoClient(server.uri) as client:
        with Forum() as forum:
            forum.welcome("bob")
            with ScoreLedger.open(scoring=forum, mongo=client["own"], worker=False) as ledger:
                use(ledger)
        with ScoreLedger.open(settings=settings, mongo=client, worker=False) as ledger:
            assert ledger.status().lag_events == 0
    print("typed and run")


if __name__ == "__main__":
    main()
