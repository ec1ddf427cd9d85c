"""Users written as a projection writes them, counts included, and ranks from their definition."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import bson
from bson.int64 import Int64

from projections import LeaderboardRow
from projections.mongo import ranks
from projections.mongo.batches import UserChange, Writes
from projections.mongo.read_model import ReadModel
from projections.mongo.writer import EventWriter


def insert_users(read_model: ReadModel, documents: Iterable[dict[str, Any]]) -> None:
    """Insert documents of users who have none yet."""
    users = list(documents)
    changes = {
        user["_id"]: UserChange(total=user["totalScore"], recomputed=user["recomputedTotal"])
        for user in users
    }
    encoded = {user["_id"]: bson.encode(user) for user in users}
    _write(read_model, Writes(0, changes, [], encoded, [], []))


def fill_users(read_model: ReadModel, documents: Iterable[dict[str, Any]]) -> None:
    """Insert documents of very many users, not in one transaction, and count all there are."""
    stream = iter(documents)
    while chunk := list(islice(stream, 20_000)):
        read_model.users.insert_many(chunk, ordered=False)
    count_users(read_model)


def count_users(read_model: ReadModel) -> None:
    """Count all users anew, as when a generation was loaded."""
    read_model.ranks.delete_many({})
    with read_model.client.start_session() as session:
        pages = [
            ranks.page_document(total, page)
            for total in ranks.RANKED
            for page in ranks.first_pages(ranks.scores_of(read_model, total, session, way=1))
        ]
    if pages:
        read_model.ranks.insert_many(pages)


def add_to_users(read_model: ReadModel, changes: dict[str, tuple[int, int]]) -> None:
    """Add to the balance and to the recomputed total of some users, of new ones, too."""
    increments = [
        {
            "q": {"_id": user_id},
            "u": {"$inc": {"totalScore": Int64(total), "recomputedTotal": Int64(recomputed)}},
            "upsert": True,
        }
        for user_id, (total, recomputed) in changes.items()
    ]
    more = {user_id: UserChange(total=t, recomputed=r) for user_id, (t, r) in changes.items()}
    _write(read_model, Writes(0, more, [], {}, list(map(bson.encode, increments)), []))


def _write(read_model: ReadModel, writes: Writes) -> None:
    writer = EventWriter(read_model)
    writer.commit(lambda transaction: transaction.send(writes))
    writer.close()


def ranked(totals: dict[str, int]) -> list[LeaderboardRow]:
    """The whole leaderboard, from its definition."""
    return [
        LeaderboardRow(1 + sum(other > total for other in totals.values()), user_id, total)
        for user_id, total in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    ]


def assert_counts_are_true(read_model: ReadModel) -> int:
    """Compare the counts of both totals with the users; return the number of documents."""
    documents = list(read_model.ranks.find().sort("_id", 1))
    for total in ("totalScore", "recomputedTotal"):
        scores = [user[total] for user in read_model.users.find({total: {"$exists": True}})]
        pages = [document for document in documents if document["_id"]["total"] == total]
        low = -(2**63)
        for page in pages:
            assert page["from"] == low
            assert page["tops"] == sorted(set(page["tops"]))
            assert page["_id"]["to"] == page["tops"][-1]
            assert page["above"] == sum(score > page["tops"][-1] for score in scores)
            found = []
            for top in page["tops"]:
                assert low <= top
                found.append(sum(low <= score <= top for score in scores))
                assert found[-1] <= ranks.MAX_USERS or low == top
                low = top + 1
            assert page["users"] == found
        assert low == 2**63 or not scores
    return len(documents)
