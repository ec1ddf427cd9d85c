"""The checker of the soak finds what it is there for: each kind of damage, planted."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pymongo.database import Database

from projections import MongoScoreView, ProjectionWorker
from scoring import Scoring
from soak.checking import (
    Ledger,
    Protocols,
    check_documents,
    check_reads,
    check_receipts,
    check_refusals,
    check_rows,
)
from soak.event_stores import Restore, SQLiteStore
from soak.writer import Protocol, new_grant
from support import NOON


class Soaked:
    """A few calls, as writers make and print them, and what they came to."""

    def __init__(self, folder: Path, scoring: Scoring, view: MongoScoreView) -> None:
        self.store = SQLiteStore(folder)
        self.database: Database[dict[str, Any]] = view.read_model.database
        self.output = folder / "writer.jsonl"
        self.protocol = Protocol(self.output)
        self._scoring = scoring
        self._worker = ProjectionWorker(scoring, view)
        self._clock = 0

    def grant(self, grant_id: str, **changes: Any) -> None:
        grant = new_grant(grant_id, Random(grant_id)).model_copy(update=changes)
        self._print(
            [self._scoring.grant(**grant.model_dump())], grants=[grant.model_dump(mode="json")]
        )

    def contribute(self, key: str, points: int) -> None:
        asked = {"user_id": "ada", "key": key, "category": "content", "source": "feed"}
        receipt = self._scoring.contribute(**asked, points=points, at=NOON)
        self._print([receipt], contribution={**asked, "points": points, "at": NOON.isoformat()})

    def _print(self, receipts: list[Any], **asked: Any) -> None:
        self._clock += 10
        self.protocol.write(call=str(self._clock), began=self._clock, **asked)
        printed = [{**asdict(receipt), "user_id": None} for receipt in receipts]
        self.protocol.write(call=str(self._clock), ended=self._clock + 5, receipts=printed)

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.store.file)) as database, database:
            assert database.execute(statement).rowcount == 1

    def deviations(self, *restores: Restore) -> list[str]:
        self._worker.catch_up()
        ledger = Ledger(self.store.rows())
        protocols = Protocols.read([self.output])
        return [
            *ledger.deviations,
            *check_rows(ledger, protocols),
            *check_receipts(ledger, protocols, restores, Counter()),
            *check_refusals(protocols, []),
            *check_reads(protocols, [], Counter()),
            *check_documents(ledger, self.database),
        ]


@pytest.fixture
def soaked(tmp_path: Path, scoring: Scoring, view: MongoScoreView) -> Soaked:
    """Every kind of answer once; position 2 is the first grant's."""
    soaked = Soaked(tmp_path, scoring, view)
    for grant_id in ("one", "two", "one", "three"):
        soaked.grant(grant_id, user_id="ada")
    soaked.grant("two", user_id="ada", amount=5000)
    for points in (5, 5, 7):
        soaked.contribute("content:feed-post:1", points)
        soaked.contribute("telemetry:1", points)
    return soaked


def test_a_ledger_without_damage_has_no_deviations(soaked: Soaked) -> None:
    assert soaked.deviations() == []


DAMAGED_DOCUMENTS: dict[str, Callable[[Database[dict[str, Any]]], Any]] = {
    "a grant is missing": lambda db: db["score_grants"].delete_one({"_id": 2}),
    "a grant is another": lambda db: db["score_grants"].update_one(
        {"_id": 2}, {"$inc": {"amount": 1}}
    ),
    "a grant is besides": lambda db: db["score_grants"].insert_one({"_id": 99, "grantId": "x"}),
    "a total is another": lambda db: db["user_scores"].update_one({}, {"$inc": {"totalScore": 1}}),
    "a label is another": lambda db: db["user_scores"].update_one(
        {}, {"$inc": {"sourceTotals.feed": 1}}
    ),
    "a user is missing": lambda db: db["user_scores"].delete_one({}),
    "a user is besides": lambda db: db["user_scores"].insert_one({"_id": "bob"}),
    "a bucket is missing": lambda db: db["score_buckets"].delete_one({}),
    "a bucket is another": lambda db: db["score_buckets"].update_one({}, {"$inc": {"points": 1}}),
    "a number of users is another": lambda db: db["score_ranks"].update_one(
        {}, {"$inc": {"users.0": 1}}
    ),
    "a number of users above is another": lambda db: db["score_ranks"].update_one(
        {"_id.total": "totalScore"}, {"$inc": {"above": 1}}
    ),
    "users are not counted": lambda db: db["score_ranks"].delete_one({}),
    "a stream is parked": lambda db: db["score_parked"].insert_one({"_id": "a stream"}),
}


@pytest.mark.parametrize("damage", DAMAGED_DOCUMENTS.values(), ids=DAMAGED_DOCUMENTS)
def test_a_damaged_document_is_found(
    damage: Callable[[Database[dict[str, Any]]], Any], soaked: Soaked
) -> None:
    assert soaked.deviations() == []
    damage(soaked.database)
    assert soaked.deviations()


DAMAGED_ROWS = {
    "an event is missing": "DELETE FROM stored_events WHERE rowid = 2",
    "a claim is missing": "DELETE FROM stored_events WHERE rowid = 3",
    "an event is another": "UPDATE stored_events SET state = replace(state, 'one', 'won')"
    " WHERE rowid = 2",
    "an event is elsewhere": "UPDATE stored_events SET rowid = 99 WHERE rowid = 2",
}


@pytest.mark.parametrize("damage", DAMAGED_ROWS.values(), ids=DAMAGED_ROWS)
def test_a_damaged_row_is_found(damage: str, soaked: Soaked) -> None:
    assert soaked.deviations() == []
    soaked.sql(damage)
    assert soaked.deviations()


LIES: dict[str, dict[str, Any]] = {
    "recorded at another position": {"status": "RECORDED", "position": 4},
    "another total": {"status": "RECORDED", "position": 2, "total_after": 1},
    "a conflict with itself": {"status": "CONFLICT", "position": 99, "total_after": 0},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_untrue_receipt_is_found(lie: dict[str, Any], soaked: Soaked) -> None:
    grant = new_grant("one", Random("one")).model_copy(update={"user_id": "ada"})
    truth = {"total_before": 0, "total_after": grant.amount}
    soaked.protocol.write(call="x", began=1, grants=[grant.model_dump(mode="json")])
    soaked.protocol.write(call="x", ended=2, receipts=[{**truth, **lie}])
    assert len(soaked.deviations()) == 1


def test_a_receipt_for_what_is_lost_is_true_only_if_a_restore_has_taken_it_back(
    soaked: Soaked,
) -> None:
    """Of a call that ended before the restore began, or was under way."""
    grant = new_grant("lost", Random("lost"))
    soaked.protocol.write(call="x", began=1000, grants=[grant.model_dump(mode="json")])
    receipt = {"status": "RECORDED", "position": 50, "total_before": 0, "total_after": 1}
    soaked.protocol.write(call="x", ended=1005, receipts=[receipt])
    newest = soaked.store.newest()
    assert soaked.deviations(Restore(newest, 1006, 1009)) == []
    assert soaked.deviations(Restore(newest, 1001, 1003)) == []
    assert soaked.deviations(Restore(newest, 990, 999))
    assert soaked.deviations(Restore(50, 1006, 1009))


def test_a_refusal_and_a_blind_read_are_found(soaked: Soaked) -> None:
    soaked.protocol.write(call="x", began=1000, grants=[])
    soaked.protocol.write(call="x", ended=1005, error="refused")
    assert len(soaked.deviations()) == 1
    soaked.protocol.write(read="x", ended=1006, found=False, total=None, at_least=1)
    assert len(soaked.deviations()) == 2
