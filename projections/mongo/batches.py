"""From events to documents: what one batch adds to the read model, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bson
from bson.int64 import Int64

from projections.events.anchor import Tracked
from projections.events.model import Fault, Projected, ProjectedBucket, ProjectedGrant, at_fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from projections.events.anchor import Anchor
    from projections.mongo.collections import Document


@dataclass(slots=True)
class Writes:
    """What events come to in the read model, encoded once, and not again when it is sent again.

    Attributes:
        event_count: Of how many events.
        grants: Documents to insert, as BSON.
        users: Update statements of MongoDB's ``update`` command, one for each user.
        buckets: Likewise, one for each bucket.
    """

    event_count: int
    grants: list[bytes]
    users: list[bytes]
    buckets: list[bytes]


@dataclass(slots=True)
class Batch:
    """A run of the event store's one order, from just after ``after`` up to ``position``.

    Attributes:
        application_name: Whose order it is.
        after: The tracked position that the batch continues; ``None`` before the first.
        position: The tracked position once the batch is applied; events that the projection does
            not use may lie before it.
        events: The grants and buckets in between, in order.
        faults: The events in between that cannot be projected, in order.
        writes: What the events come to, where that was worked out beforehand.
        after_anchor: The last event known at or before ``after``; see ``Tracked``.
        anchor: The last event known at or before ``position``, if that is a later one.
    """

    application_name: str
    after: int | None
    position: int
    events: list[Projected] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    writes: Writes | None = None
    after_anchor: Anchor | None = None
    anchor: Anchor | None = None

    @property
    def continues(self) -> Tracked:
        """What has to be tracked for the batch to be applied."""
        return Tracked(self.after, self.after_anchor)

    @property
    def reaches(self) -> Tracked:
        """What is tracked once it is."""
        return Tracked(self.position, self.anchor)

    def cut(self, position: int, anchor: Anchor | None) -> tuple[Batch, Batch]:
        """Return the batch up to a position in it, and the rest.

        ``anchor`` is of the last event known at or before that position.
        """
        first = Batch(
            self.application_name,
            self.after,
            position,
            [event for event in self.events if event.position <= position],
            [fault for fault in self.faults if fault.position <= position],
            after_anchor=self.after_anchor,
            anchor=anchor,
        )
        rest = Batch(
            self.application_name,
            position,
            self.position,
            [event for event in self.events if event.position > position],
            [fault for fault in self.faults if fault.position > position],
            after_anchor=anchor,
            anchor=self.anchor,
        )
        return first, rest

    def with_events_at_fault(self, reason: str) -> Batch:
        """Return the batch with its events as faults."""
        faults = [*self.faults, *(at_fault(event, reason) for event in self.events)]
        faults.sort(key=lambda fault: fault.position)
        return Batch(
            self.application_name,
            self.after,
            self.position,
            [],
            faults,
            after_anchor=self.after_anchor,
            anchor=self.anchor,
        )


@dataclass(slots=True)
class UserChange:
    """What a batch adds to one user's document."""

    total: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    grant_count: int = 0
    recomputed: int = 0
    last_grant_at: datetime | None = None
    version: int = 0
    first_bucket_version: int | None = None

    def set_bucket(self, bucket: ProjectedBucket) -> None:
        """Add what one bucket changes."""
        event = bucket.event
        self.recomputed += event.recomputed_change
        self.version = max(self.version, event.originator_version)
        if self.first_bucket_version is None:
            self.first_bucket_version = event.originator_version

    def selector(self, user_id: str) -> Document:
        """Return the MongoDB filter of the user's document, for an upsert.

        Buckets that were projected before are told by the user's version, as nothing else keeps
        track of them: the upsert then meets the document's own id, which is a duplicate key.
        """
        if self.first_bucket_version is None:
            return {"_id": user_id}
        return {"_id": user_id, "version": {"$lt": Int64(self.first_bucket_version)}}

    def add(self, grant: ProjectedGrant) -> None:
        """Add one grant."""
        event = grant.event
        self.total += event.amount
        self.categories[event.category] = self.categories.get(event.category, 0) + event.amount
        self.sources[event.source] = self.sources.get(event.source, 0) + event.amount
        self.grant_count += 1
        self.recomputed += event.recomputed_change
        if self.last_grant_at is None or event.granted_at > self.last_grant_at:
            self.last_grant_at = event.granted_at
        self.version = max(self.version, grant.originator_version)

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


def encoded(grant: ProjectedGrant) -> bytes:
    """Return the ``score_grants`` document of a grant as it is sent.

    Raises:
        Exception: whatever the encoder raises for values that MongoDB cannot keep.
    """
    return bson.encode(grant_document(grant))


def writes_of(events: Sequence[Projected], documents: list[bytes] | None = None) -> Writes:
    """Return what events come to; ``documents`` are of the grants, if they are encoded already."""
    if documents is None:
        documents = [encoded(event) for event in events if isinstance(event, ProjectedGrant)]
    return Writes(
        len(events),
        documents,
        [
            _upsert(change.selector(user_id), change.update())
            for user_id, change in user_changes(events).items()
        ],
        [
            _upsert({"_id": {"userId": user_id, "key": key}}, {"$set": bucket})
            for (user_id, key), bucket in bucket_documents(events).items()
        ],
    )


def _upsert(selector: Document, update: Document) -> bytes:
    return bson.encode({"q": selector, "u": update, "upsert": True})


def grant_document(grant: ProjectedGrant) -> Document:
    """Return the ``score_grants`` document of a grant."""
    event = grant.event
    position = Int64(grant.position)
    return {
        "_id": position,
        "grantId": event.grant_id,
        "userId": event.user_id,
        "key": event.key,
        "category": event.category,
        "source": event.source,
        "amount": Int64(event.amount),
        "grantedAt": event.granted_at,
        # When the event was recorded, never when it was projected: a replay changes nothing.
        "recordedAt": event.timestamp,
        "position": position,
    }


def user_changes(events: Iterable[Projected]) -> dict[str, UserChange]:
    """Return what these events add to each user's document, by user id."""
    changes: dict[str, UserChange] = {}
    for projected in events:
        change = changes.get(projected.event.user_id)
        if change is None:
            change = changes[projected.event.user_id] = UserChange()
        if isinstance(projected, ProjectedGrant):
            change.add(projected)
        else:
            change.set_bucket(projected)
    return changes


def bucket_documents(events: Iterable[Projected]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the buckets as these events leave them, by user id and key; the last one wins."""
    documents = {}
    for projected in events:
        if isinstance(projected, ProjectedGrant):
            if projected.event.replaced_points is None:
                continue
            points = projected.event.amount
        else:
            points = projected.event.points
        event = projected.event
        documents[event.user_id, event.key] = {
            "category": event.category,
            "source": event.source,
            "points": Int64(points),
        }
    return documents
