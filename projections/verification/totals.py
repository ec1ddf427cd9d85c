"""Verifying the read model against itself: every user against their grants and buckets.

``verify_events`` compares it with the event store, which finds more; this reads MongoDB only.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from bson.max_key import MaxKey

from projections.mongo.sessions import in_snapshot
from projections.verification.collections import verify_collections
from projections.verification.ranks import verify_ranks
from projections.verification.report import (
    DOCUMENT,
    Difference,
    Verification,
    VerificationProgress,
    compare_fields,
    flat,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

_USERS_PER_PAGE: Final = 2000
_NOT_A_STRING: Final[Document] = {"$not": {"$type": "string"}}


def verify_totals(
    read_model: ReadModel, *, on_progress: Callable[[VerificationProgress], None] | None = None
) -> Verification:
    """Compare every user's document with the sums of their grants and of their buckets.

    And how many users there are with how many points with what is counted of them.

    Users are read in pages, each page with its grants and buckets as they were at one instant, so
    workers may go on and memory does not grow with history.

    Raises:
        ShapeChanged: if the documents are of another release's shape.
        ReadModelUnavailable: if MongoDB failed.
    """

    def verified(_: ClientSession) -> Verification:
        outcome = verify_collections(read_model)
        outcome.add(_verified(read_model, on_progress))
        return outcome

    return read_model.generations.consistently(verified, seconds=None)


def _verified(
    read_model: ReadModel, on_progress: Callable[[VerificationProgress], None] | None
) -> Verification:
    outcome = Verification()
    total = read_model.users.estimated_document_count()
    after: str | None = None
    while True:
        # One instant a page: MongoDB keeps an instant readable for a few minutes only.
        with read_model.client.start_session(snapshot=True) as session:
            after = _verify_page(read_model, session, after, outcome)
        if on_progress is not None:
            on_progress(VerificationProgress("users", outcome.users, max(total, outcome.users)))
        if after is None:
            break
    _report_strangers(read_model, outcome)
    if not outcome.difference_count:
        ranks = in_snapshot(read_model.client, lambda session: verify_ranks(read_model, session))
        outcome.add(ranks)
    return outcome


def _verify_page(
    read_model: ReadModel, session: ClientSession, after: str | None, outcome: Verification
) -> str | None:
    """Verify the users behind ``after``; return the last one, or ``None`` if there are no more."""
    ids: Document = {"$type": "string"} if after is None else {"$gt": after}
    found = read_model.users.find({"_id": ids}, session=session).sort("_id", 1)
    documents = {document["_id"]: flat(document) for document in found.limit(_USERS_PER_PAGE)}
    last = max(documents) if len(documents) == _USERS_PER_PAGE else None
    if last is not None:
        ids = {**ids, "$lte": last}
    expected = _sums_of_grants(read_model, session, ids)
    for user_id, points in _sums_of_buckets(read_model, session, after, last):
        expected.setdefault(user_id, _nothing())["recomputedTotal"] = points
    for user_id in sorted(documents.keys() | expected.keys()):
        outcome.users += 1
        outcome.grants += expected.get(user_id, {}).get("grantCount", 0)
        _compare_user(user_id, expected.get(user_id), documents.get(user_id), outcome)
    return last


def _compare_user(
    user_id: str,
    expected: dict[str, Any] | None,
    found: dict[str, Any] | None,
    outcome: Verification,
) -> None:
    if expected is None or found is None:
        outcome.report(Difference(user_id, DOCUMENT, expected, found))
        return
    # Grants do not say at which version of the stream they were recorded, but each is an event,
    # behind the one that opened the stream.
    version = found.get("version")
    grants = min(expected["grantCount"], found.get("grantCount") or 0)
    least = grants + 1 if grants else 0
    sane = isinstance(version, int) and version >= least
    expected = {**expected, "version": version if sane else least}
    compare_fields(outcome, expected, found, user_id=user_id)


def _nothing() -> dict[str, Any]:
    return {"totalScore": 0, "grantCount": 0, "recomputedTotal": 0, "lastGrantAt": None}


def _sums_of_grants(
    read_model: ReadModel, session: ClientSession, ids: Document
) -> dict[str, dict[str, Any]]:
    """Return what the documents of these users should say, as far as grants tell."""
    cells: Iterable[Document] = read_model.grants.aggregate(
        [
            {"$match": {"userId": ids}},
            {
                "$group": {
                    "_id": {"u": "$userId", "c": "$category", "s": "$source"},
                    "amount": {"$sum": "$amount"},
                    "count": {"$sum": 1},
                    "last": {"$max": "$grantedAt"},
                }
            },
            {"$sort": {"_id.u": 1}},
        ],
        allowDiskUse=True,
        session=session,
    )
    sums = {}
    for user_id, group in groupby(cells, key=lambda cell: cell["_id"]["u"]):
        fields = sums[user_id] = _nothing()
        for cell in group:
            fields["totalScore"] += cell["amount"]
            fields["grantCount"] += cell["count"]
            latest = [fields["lastGrantAt"], cell["last"]]
            fields["lastGrantAt"] = max((time for time in latest if time is not None), default=None)
            for name in (
                f"categoryTotals.{cell['_id'].get('c')}",
                f"sourceTotals.{cell['_id'].get('s')}",
            ):
                fields[name] = fields.get(name, 0) + cell["amount"]
    return sums


def _sums_of_buckets(
    read_model: ReadModel, session: ClientSession, after: str | None, last: str | None
) -> Iterator[tuple[str, int]]:
    """Yield the sum of each user's buckets, of users behind ``after`` up to ``last``."""
    # By ranges of _id, which has the only index; a document behind another one's last key.
    ids: Document = {"$type": "object"}
    if after is not None:
        ids["$gt"] = {"userId": after, "key": MaxKey()}
    if last is not None:
        ids["$lte"] = {"userId": last, "key": MaxKey()}
    sums = read_model.buckets.aggregate(
        [
            {"$match": {"_id": ids, "_id.userId": {"$type": "string"}}},
            {"$group": {"_id": "$_id.userId", "points": {"$sum": "$points"}}},
        ],
        allowDiskUse=True,
        session=session,
    )
    for document in sums:
        yield document["_id"], document["points"]


def _report_strangers(read_model: ReadModel, outcome: Verification) -> None:
    """Report documents that belong to no user, which only a foreign hand can have written."""
    for collection, field in (
        (read_model.users, "_id"),
        (read_model.grants, "userId"),
        (read_model.buckets, "_id.userId"),
    ):
        for document in collection.find({field: _NOT_A_STRING}):
            outcome.report(Difference(None, DOCUMENT, None, document))
