"""From events to documents: what one batch adds to the read model, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import bson
from bson.int64 import Int64
from msgspec import Struct

from projections.events.model import BucketEvent, Fault, GrantEvent, ScoreEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from projections.events.anchor import Tracked
    from projections.mongo.collections import Document


_FIRST_VERSION: Final = 2
"""Of a user's first grant or bucket: it comes behind the event that opens the stream."""


@dataclass(slots=True)
class Writes:
    """What events come to in the read model, encoded once, and not again when it is sent again.

    Attributes:
        event_count: Of how many events.
        changes: What they add to each user's document, by user id.
        grants: Documents to insert, as BSON.
        new_users: Likewise, by user id, of users whose first events these are.
        users: Update statements of MongoDB's ``update`` command, one for each of the others.
        buckets: Likewise, one for each bucket.
    """

    event_count: int
    changes: dict[str, UserChange]
    grants: list[bytes]
    new_users: dict[str, bytes]
    users: list[bytes]
    buckets: list[bytes]


@dataclass(slots=True)
class Batch:
    """A run of the event store's one order; events that are not projected may lie in it, too.

    Attributes:
        application_name: Whose order it is.
        continues: What has to be tracked for the batch to be applied.
        reaches: What is tracked once it is; its anchor is ``None`` if no later one is known.
        events: The grants and buckets in between, in order.
        faults: The events in between that cannot be projected, in order.
        writes: What the events come to, where that was worked out beforehand.
    """

    application_name: str
    continues: Tracked
    reaches: Tracked
    events: list[ScoreEvent] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    writes: Writes | None = None

    def cut(self, at: Tracked) -> tuple[Batch, Batch]:
        """Return the batch up to a position in it, and the rest."""
        position = at.position or 0
        return (
            Batch(
                self.application_name,
                self.continues,
                at,
                [event for event in self.events if event.position <= position],
                [fault for fault in self.faults if fault.position <= position],
            ),
            Batch(
                self.application_name,
                at,
                self.reaches,
                [event for event in self.events if event.position > position],
                [fault for fault in self.faults if fault.position > position],
            ),
        )

    def with_events_at_fault(self, reason: str) -> Batch:
        """Return the batch with its events as faults."""
        faults = [*self.faults, *(Fault.of(event, reason) for event in self.events)]
        faults.sort(key=lambda fault: fault.position)
        return replace(self, events=[], faults=faults, writes=None)


class UserChange(Struct, gc=False):
    """What a batch adds to one user's document.

    Like its grants it has nothing for the garbage collector, which would walk tens of thousands.
    """

    total: int = 0
    categories: dict[str, int] = {}
    sources: dict[str, int] = {}
    grant_count: int = 0
    recomputed: int = 0
    last_grant_at: datetime | None = None
    version: int = 0
    first_version: int = 0
    first_bucket_version: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether the user had nothing before, so that there is no document yet."""
        return self.first_version == _FIRST_VERSION

    def set_bucket(self, bucket: BucketEvent) -> None:
        """Add what one bucket changes."""
        data = bucket.data
        self.recomputed += data.recomputed_change
        self._see(data.originator_version)
        if self.first_bucket_version is None:
            self.first_bucket_version = data.originator_version

    def selector(self, user_id: str) -> Document:
        """Return the MongoDB filter of the user's document, for an upsert.

        Buckets that were projected before are told by the user's version, as nothing else keeps
        track of them: the upsert then meets the document's own id, which is a duplicate key.
        """
        if self.first_bucket_version is None:
            return {"_id": user_id}
        return {"_id": user_id, "version": {"$lt": Int64(self.first_bucket_version)}}

    def add(self, grant: GrantEvent) -> None:
        """Add one grant."""
        data = grant.data
        self.total += data.amount
        self.categories[data.category] = self.categories.get(data.category, 0) + data.amount
        self.sources[data.source] = self.sources.get(data.source, 0) + data.amount
        self.grant_count += 1
        self.recomputed += data.recomputed_change
        if self.last_grant_at is None or data.granted_at > self.last_grant_at:
            self.last_grant_at = data.granted_at
        self._see(grant.originator_version)

    def _see(self, version: int) -> None:
        self.first_version = self.first_version or version
        self.version = max(self.version, version)

    def document(self, user_id: str) -> Document:
        """Return the document of a user who has nothing but this."""
        return {
            "_id": user_id,
            "totalScore": Int64(self.total),
            "categoryTotals": {label: Int64(amount) for label, amount in self.categories.items()},
            "sourceTotals": {label: Int64(amount) for label, amount in self.sources.items()},
            "grantCount": Int64(self.grant_count),
            "recomputedTotal": Int64(self.recomputed),
            "lastGrantAt": self.last_grant_at,
            "version": Int64(self.version),
        }

    def update(self) -> Document:
        """Return the change as a MongoDB update of the user's document, for an upsert."""
        increments: Document = {
            "totalScore": Int64(self.total),
            "grantCount": Int64(self.grant_count),
            "recomputedTotal": Int64(self.recomputed),
        }
        for label, amount in self.categories.items():
            increments[f"categoryTotals.{label}"] = Int64(amount)
        for label, amount in self.sources.items():
            increments[f"sourceTotals.{label}"] = Int64(amount)
        update: Document = {
            "$inc": increments,
            "$max": {"lastGrantAt": self.last_grant_at, "version": Int64(self.version)},
        }
        if not self.grant_count:
            # A user who only ever contributed has a document of the same shape, with zeros.
            update["$setOnInsert"] = {"categoryTotals": {}, "sourceTotals": {}}
        return update


def encoded(grant: GrantEvent) -> bytes:
    """Return the ``score_grants`` document of a grant as it is sent.

    Raises:
        Exception: whatever the encoder raises for values that MongoDB cannot keep.
    """
    return bson.encode(grant_document(grant))


def writes_of(
    events: Sequence[ScoreEvent],
    documents: list[bytes] | None = None,
    *,
    inserts_users: bool = True,
) -> Writes:
    """Return what events come to.

    Args:
        events: Some, in order.
        documents: Of the grants among them, if they are encoded already.
        inserts_users: Whether the first events of a user make a new document, which takes MongoDB
            a third of the time of an upsert; it must not be there yet.
    """
    if documents is None:
        documents = [encoded(event) for event in events if isinstance(event, GrantEvent)]
    # In the order of the index by which MongoDB finds them: in any other it takes a quarter longer.
    changes = dict(sorted(user_changes(events).items(), key=itemgetter(0)))
    new = {
        user_id: bson.encode(change.document(user_id))
        for user_id, change in changes.items()
        if inserts_users and change.is_first
    }
    return Writes(
        len(events),
        changes,
        documents,
        new,
        [
            _upsert(change.selector(user_id), change.update())
            for user_id, change in changes.items()
            if user_id not in new
        ],
        [
            _upsert({"_id": {"userId": user_id, "key": key}}, {"$set": bucket})
            for (user_id, key), bucket in bucket_documents(events).items()
        ],
    )


def _upsert(selector: Document, update: Document) -> bytes:
    return bson.encode({"q": selector, "u": update, "upsert": True})


def grant_document(grant: GrantEvent) -> Document:
    """Return the ``score_grants`` document of a grant."""
    data = grant.data
    position = Int64(grant.position)
    return {
        "_id": position,
        "grantId": data.grant_id,
        "userId": data.user_id,
        "key": data.key,
        "category": data.category,
        "source": data.source,
        "amount": Int64(data.amount),
        "grantedAt": data.granted_at,
        # When the event was recorded, never when it was projected: a replay changes nothing.
        "recordedAt": data.timestamp,
        "position": position,
    }


def user_changes(events: Iterable[ScoreEvent]) -> dict[str, UserChange]:
    """Return what these events add to each user's document, by user id."""
    changes: dict[str, UserChange] = {}
    for event in events:
        change = changes.get(event.data.user_id)
        if change is None:
            change = changes[event.data.user_id] = UserChange()
        if isinstance(event, GrantEvent):
            change.add(event)
        else:
            change.set_bucket(event)
    return changes


def bucket_documents(events: Iterable[ScoreEvent]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the buckets as these events leave them, by user id and key; the last one wins."""
    documents = {}
    for event in events:
        if isinstance(event, GrantEvent):
            if event.data.replaced_points is None:
                continue
            points = event.data.amount
        else:
            points = event.data.points
        data = event.data
        documents[data.user_id, data.key] = {
            "category": data.category,
            "source": data.source,
            "points": Int64(points),
        }
    return documents
