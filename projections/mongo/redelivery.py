"""What of a batch is there already: delivered before, or with something foreign in its place.

Looked up only after a duplicate key has aborted a batch's transaction, in the one that tries again.
"""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from bson.decimal128 import Decimal128

from projections.events.model import BucketEvent, GrantEvent, ScoreEvent
from projections.mongo.batches import grant_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

logger = logging.getLogger(__name__)

_LOOKUP_SIZE: Final = 1000


def unseen_events(
    events: Sequence[ScoreEvent], read_model: ReadModel, session: ClientSession
) -> tuple[list[ScoreEvent], int, int]:
    """Return the events that are not there, and how many are foreign and redelivered."""
    grants = [event for event in events if isinstance(event, GrantEvent)]
    buckets = [event for event in events if isinstance(event, BucketEvent)]
    unseen: list[ScoreEvent] = _unseen_buckets(buckets, read_model, session)
    foreign = 0
    redelivered = len(buckets) - len(unseen)
    for start in range(0, len(grants), _LOOKUP_SIZE):
        window = grants[start : start + _LOOKUP_SIZE]
        in_place, seen = _documents_in_place_of(window, read_model, session)
        for grant in window:
            if grant.data.grant_id in seen:
                redelivered += 1
            elif grant.data.grant_id in in_place or grant.position in in_place:
                foreign += 1
                logger.warning(
                    "a foreign document is in the place of grant %r at position %d",
                    grant.data.grant_id,
                    grant.position,
                )
            else:
                unseen.append(grant)
    unseen.sort(key=lambda event: event.position)
    return unseen, foreign, redelivered


def _unseen_buckets(
    buckets: Sequence[BucketEvent], read_model: ReadModel, session: ClientSession
) -> list[ScoreEvent]:
    """Return those that come after the versions to which their users were projected."""
    versions: dict[str, int] = {}
    user_ids = sorted({bucket.data.user_id for bucket in buckets})
    for start in range(0, len(user_ids), _LOOKUP_SIZE):
        window = user_ids[start : start + _LOOKUP_SIZE]
        found = read_model.users.find({"_id": {"$in": window}}, {"version": 1}, session=session)
        versions |= {document["_id"]: document["version"] for document in found}
    return [
        bucket
        for bucket in buckets
        if bucket.originator_version > versions.get(bucket.data.user_id, 0)
    ]


def _documents_in_place_of(
    grants: Sequence[GrantEvent], read_model: ReadModel, session: ClientSession
) -> tuple[set[Any], set[str]]:
    """Return the ids and positions that are taken, and the grant ids that are redelivered."""
    expected = {grant.data.grant_id: grant_document(grant) for grant in grants}
    in_place: set[Any] = set()
    seen: set[str] = set()
    found = read_model.grants.find(
        {
            "$or": [
                {"grantId": {"$in": list(expected)}},
                {"_id": {"$in": [grant.position for grant in grants]}},
            ]
        },
        session=session,
    )
    for document in found:
        grant_id = document.get("grantId")
        if isinstance(grant_id, str) and _is_same_grant(document, expected.get(grant_id)):
            seen.add(grant_id)
        else:
            in_place.update(_keys_taken_by(document))
    return in_place, seen


def _keys_taken_by(document: Document) -> Iterable[Any]:
    """Yield the id and grant ids that a document takes, as values equal to a grant's own.

    A foreign document may hold anything: an array takes each of its members, and numbers of all
    types are one to the unique index.
    """
    grant_ids = document.get("grantId")
    for value in (document["_id"], *(grant_ids if isinstance(grant_ids, list) else [grant_ids])):
        if isinstance(value, Decimal128):
            yield value.to_decimal()
        elif isinstance(value, str | int | float | Decimal):
            yield value


def _is_same_grant(document: Document, expected: Document | None) -> bool:
    if expected is None:
        return False
    # The time of recording is stored in milliseconds but carried in microseconds by the event.
    return all(
        document.get(name) == value for name, value in expected.items() if name != "recordedAt"
    )
