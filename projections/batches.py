"""From events to documents: what one batch adds to the read model, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from bson.int64 import Int64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from projections.read_model import Document
    from scoring import UserScore

    _Setting = tuple[int, UserScore.GrantRecorded | UserScore.BucketSet, int]


@dataclass(frozen=True, slots=True)
class ProjectedGrant:
    """A grant event and the position at which it was found."""

    position: int
    event: UserScore.GrantRecorded


@dataclass(frozen=True, slots=True)
class ProjectedBucket:
    """A bucket's event and the position at which it was found."""

    position: int
    event: UserScore.BucketSet


@dataclass(slots=True)
class Batch:
    """A run of the event store's one order, from just after ``after`` up to ``position``.

    Attributes:
        application_name: Whose order it is.
        after: The tracked position that the batch continues; ``None`` before the first.
        position: The tracked position once the batch is applied; events that the projection does
            not use may lie before it.
        grants: The grants in between, in order.
        buckets: The buckets set in between, in order.
    """

    application_name: str
    after: int | None
    position: int
    grants: list[ProjectedGrant] = field(default_factory=list)
    buckets: list[ProjectedBucket] = field(default_factory=list)

    def add(self, projected: ProjectedGrant | ProjectedBucket) -> None:
        """Add what comes next in the order."""
        if isinstance(projected, ProjectedGrant):
            self.grants.append(projected)
        else:
            self.buckets.append(projected)

    @property
    def last_position(self) -> int | None:
        """The position of the last grant or bucket; ``None`` if there is neither."""
        last = [events[-1].position for events in (self.grants, self.buckets) if events]
        return max(last, default=None)


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

    def set_bucket(self, event: UserScore.BucketSet) -> None:
        """Add what one bucket changes."""
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

    def add(self, event: UserScore.GrantRecorded) -> None:
        """Add one grant."""
        self.total += event.amount
        self.categories[event.category] = self.categories.get(event.category, 0) + event.amount
        self.sources[event.source] = self.sources.get(event.source, 0) + event.amount
        self.grant_count += 1
        self.recomputed += event.recomputed_change
        if self.last_grant_at is None or event.granted_at > self.last_grant_at:
            self.last_grant_at = event.granted_at
        self.version = max(self.version, event.originator_version)

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


def grant_document(grant: ProjectedGrant) -> Document:
    """Return the ``score_grants`` document of a grant."""
    event = grant.event
    return {
        "_id": Int64(grant.position),
        "grantId": event.grant_id,
        "userId": event.user_id,
        "key": event.key,
        "category": event.category,
        "source": event.source,
        "amount": Int64(event.amount),
        "grantedAt": event.granted_at,
        # When the event was recorded, never when it was projected: a replay changes nothing.
        "recordedAt": event.timestamp,
        "position": Int64(grant.position),
    }


def user_changes(
    grants: Iterable[ProjectedGrant], buckets: Iterable[ProjectedBucket] = ()
) -> dict[str, UserChange]:
    """Return what these grants and buckets add to each user's document, by user id."""
    changes: dict[str, UserChange] = {}
    for grant in grants:
        change = changes.get(grant.event.user_id)
        if change is None:
            change = changes[grant.event.user_id] = UserChange()
        change.add(grant.event)
    for bucket in buckets:
        changes.setdefault(bucket.event.user_id, UserChange()).set_bucket(bucket.event)
    return changes


def bucket_documents(
    grants: Iterable[ProjectedGrant], buckets: Iterable[ProjectedBucket] = ()
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the buckets as these events leave them, by user id and key; the last one wins."""
    granted: Iterator[_Setting] = (
        (grant.position, grant.event, grant.event.amount)
        for grant in grants
        if grant.event.replaced_points is not None
    )
    contributed: Iterator[_Setting] = (
        (bucket.position, bucket.event, bucket.event.points) for bucket in buckets
    )
    in_order = merge(granted, contributed, key=itemgetter(0))
    return {
        (event.user_id, event.key): {
            "category": event.category,
            "source": event.source,
            "points": Int64(points),
        }
        for _, event, points in in_order
    }
