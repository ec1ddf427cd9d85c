"""The ledger's recomputed side: every user's buckets and recomputed total, as projected."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from bson.max_key import MaxKey
from bson.min_key import MinKey

from projections.joins import outer_join
from scoring.contributions import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

# The driver holds one answer of the server at a time, which might be 16 MB.
_BATCH_SIZE: Final = 5000
_MAX_READS: Final = 20


Buckets = dict[str, tuple[int, str, str]]


class LedgerUser(NamedTuple):
    """One user of the ledger.

    Attributes:
        total: The recomputed total, in points.
        buckets: By key: points, category and source.
    """

    total: int
    buckets: Buckets

    def sum(self) -> int:
        """Return what the total should be."""
        return sum(bucket[0] for bucket in self.buckets.values())


class LedgerScores:
    """Reads them, in a session of ``Generations.consistently()``."""

    def __init__(self, read_model: ReadModel, session: ClientSession) -> None:
        self._read_model = read_model
        self._session = session

    def users(self) -> Iterator[tuple[str, LedgerUser]]:
        """Yield everybody, sorted by user id, in memory for one user."""
        found = self._read_model.users.find(
            {}, {"recomputedTotal": 1}, batch_size=_BATCH_SIZE, session=self._session
        )
        totals = ((user["_id"], user["recomputedTotal"]) for user in found.sort("_id", 1))
        buckets = self._read_model.buckets.find(batch_size=_BATCH_SIZE, session=self._session)
        for user_id, total, theirs in outer_join(totals, _by_user(buckets.sort("_id", 1))):
            # Whoever has buckets has a document, written in the same transaction.
            if total is not None:
                yield user_id, LedgerUser(total, theirs or {})

    def totals(self, user_ids: Iterable[str]) -> dict[str, LedgerUser]:
        """Return some users with all of their buckets, as of one moment each."""
        return {user_id: self._user(user_id) for user_id in user_ids}

    def _user(self, user_id: str) -> LedgerUser:
        total = self._total(user_id)
        theirs: Buckets = {}
        for _ in range(_MAX_READS):
            ids = {"userId": user_id}
            bounds = {"$gt": {**ids, "key": MinKey()}, "$lt": {**ids, "key": MaxKey()}}
            buckets = self._read_model.buckets.find({"_id": bounds}, session=self._session)
            theirs = dict(_by_user(buckets)).get(user_id, {})
            before, total = total, self._total(user_id)
            # Else something was projected between the two reads, perhaps as much at every look.
            if total == before:
                break
        return LedgerUser(total, theirs)

    def _total(self, user_id: str) -> int:
        user = self._read_model.users.find_one({"_id": user_id}, session=self._session)
        return int((user or {}).get("recomputedTotal", 0))

    def buckets(self, user_keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Bucket]:
        """Return some buckets, by user id and key."""
        ids = [{"userId": user_id, "key": key} for user_id, key in user_keys]
        found = self._read_model.buckets.find({"_id": {"$in": ids}}, session=self._session)
        return {
            (d["_id"]["userId"], d["_id"]["key"]): Bucket(d["points"], d["category"], d["source"])
            for d in found
        }


def _by_user(documents: Iterable[Document]) -> Iterator[tuple[str, Buckets]]:
    """Yield each user's buckets; documents are sorted by user."""
    for user_id, theirs in groupby(documents, key=lambda bucket: bucket["_id"]["userId"]):
        yield user_id, {b["_id"]["key"]: (b["points"], b["category"], b["source"]) for b in theirs}
