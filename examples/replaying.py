"""Replaying and rebuilding, step by step, on a ledger of its own in a temporary folder.

    python examples/replaying.py

The events are the truth; what MongoDB shows can be made from them at any time. This walks through
the three ways: from a position that was lost, beside the live read model, and after damage.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from projections import ScoreLedger
from projections.embedded import open_server
from scoring import Grant, make_grant_id


def lessons(count: int) -> list[Grant]:
    """Grants of three users; the same count makes the same grants."""
    began = datetime(2026, 11, 1, 9, tzinfo=UTC)
    return [
        Grant(
            user_id=("ada", "grace", "linus")[number % 3],
            grant_id=make_grant_id("lesson", number),
            key=f"school:lesson:{number}",
            category="learning",
            source="school",
            amount=number % 5 + 1,
            granted_at=began + timedelta(minutes=number),
        )
        for number in range(count)
    ]


def replay(folder: Path) -> None:
    """Walk through it."""
    store = {
        "PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "SQLITE_DBNAME": str(folder / "events.sqlite"),
    }
    with open_server(folder / "mongo") as server:
        client: MongoClient[dict[str, Any]] = MongoClient(server.uri)
        database = client["school"]
        with ScoreLedger.open(mongo=database, event_store=store, worker=False) as ledger:
            ledger.grant_many(lessons(3000))
            ledger.catch_up()
            board = ledger.leaderboard.top(3, by="ledger")
            print("1. projected:", *(f"{row.user_id} {row.score}" for row in board))

            # A position that was lost, as by restoring a backup in parts: every event comes again.
            # A grant that is there already adds nothing, so the totals stay as they are.
            database["score_positions"].delete_many({})
            ledger.catch_up()
            assert ledger.leaderboard.top(3, by="ledger") == board
            print("2. replayed from the first event: nothing counts twice")

            # Beside the live read model, which readers go on reading; then a switch.
            outcome = ledger.rebuild()
            assert ledger.leaderboard.top(3, by="ledger") == board
            print("3. rebuilt beside the live one, and switched:", outcome)

            # Damage: somebody "corrects" a total by hand. Verifying finds it, rebuilding mends it.
            database["user_scores"].update_one({"_id": "ada"}, {"$inc": {"totalScore": 1000}})
            differences = ledger.verify().differences
            print("4. verify finds:", *(f"{d.user_id} {d.what}" for d in differences))
            assert [(d.user_id, d.what) for d in differences] == [("ada", "totalScore")]
            ledger.rebuild()
            assert ledger.verify().ok
            assert ledger.leaderboard.top(3, by="ledger") == board

            # What was replaced is kept until it is dropped on request.
            print("5. rebuilt and verified; dropped generations:", ledger.drop_kept_generations())
        client.close()


def main() -> None:
    """Run it in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="score-ledger-replaying-") as folder:
        replay(Path(folder))


if __name__ == "__main__":
    main()
