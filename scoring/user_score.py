"""``UserScore``: the event-sourced aggregate behind one user's score.

``grant()`` and ``contribute()`` decide, the events' ``apply()`` only assigns: a rule that is
tightened later never runs again on what was recorded before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from os import urandom
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import UUID

from eventsourcing.domain import (
    Aggregate,
    BaseAggregate,
    CanInitAggregate,
    CanMutateAggregate,
    MutableOrImmutableAggregate,
    Snapshot,
)
from eventsourcing.utils import TopicError

from scoring.contributions import Bucket, Contribution
from scoring.errors import InvalidGrant
from scoring.frozen import made_of
from scoring.grants import Grant
from scoring.identity import claim_stream_id, is_grant_shaped, user_stream_id
from scoring.rules import MAX_TOTAL, normalised_user_id
from scoring.trace_context import current_traceparent

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class GrantClaimed:
    """Claims a grant id for ever, in the same transaction as the grant itself.

    It is the only event of the stream ``uuid5(CLAIMS_NAMESPACE, grant_id)``, at version 1, so the
    event store itself refuses a second claim on the same id. Projections only move over it.
    """

    TOPIC: ClassVar[str] = "scoring:GrantClaimed"

    originator_id: UUID
    originator_version: int
    user_id: str
    """Whose grant claimed the id."""
    version: int
    """Version of the user's stream at which that grant is found, so nothing needs scanning."""
    token: str
    """A new one for every commit, so that a caller can recognise its own after a lost answer."""


class UserScoreSnapshot(Snapshot):
    """The state of a ``UserScore`` at one version; its size does not depend on history."""

    TOPIC: ClassVar[str] = "scoring:UserScoreSnapshot"

    @classmethod
    def take(cls, aggregate: MutableOrImmutableAggregate[UUID]) -> Self:
        """Return the snapshot of an aggregate without what is pending in it."""
        snapshot = super().take(aggregate)
        del snapshot.state["_pending_grant_ids"]
        # A list, as a dictionary whose keys come from outside might look like one of the
        # transcoder's own to the one who decodes it.
        snapshot.state["buckets"] = [
            [key, *bucket] for key, bucket in snapshot.state["buckets"].items()
        ]
        return snapshot

    def mutate(self, _: None) -> BaseAggregate[UUID]:
        """Return the aggregate as it was, with nothing pending.

        Raises:
            TopicError: if it is a snapshot of something else.
        """
        if self.topic != UserScore.TOPIC:
            raise TopicError(f"the topic {self.topic!r} is not that of a UserScore")
        score = super().mutate(None)
        buckets = {key: Bucket(*values) for key, *values in score.__dict__["buckets"]}
        object.__setattr__(score, "buckets", buckets)
        object.__setattr__(score, "_pending_grant_ids", set())
        return score


class UserScore(Aggregate):
    """One user's score: sums of grants, never their ids or history, and the buckets of the old way.

    A user with a million grants therefore loads like a user with ten. It is one of the library's
    aggregates, but not to be subclassed: projections know its events by their topics.

    Both totals are kept side by side. The bucket that a reader of the old way sees under a
    grant-shaped key is in general the one its grant put there, which is not remembered here; only
    where the old way has since overwritten it, or has a bucket without a grant, is it in
    ``buckets``, with the buckets of all other keys.

    Attributes:
        user_id: Who is scored, normalised.
        total_score: Running balance in points: the sum of all grants.
        category_totals: Running balance by category.
        source_totals: Running balance by source.
        grant_count: How many grants the balance is made of.
        recomputed_total: The old total: the sum of the user's buckets.
        buckets: By key, the buckets that no grant accounts for.
    """

    TOPIC: ClassVar[str] = "scoring:UserScore"
    class_version: ClassVar[int] = 2

    Snapshot = UserScoreSnapshot

    class Created(Aggregate.Created):
        """The stream's opening event: it names the user."""

        TOPIC: ClassVar[str] = "scoring:UserScore.Created"

        user_id: str

    @dataclass(frozen=True)
    class GrantRecorded(Aggregate.Event):
        """One grant that counts. ``timestamp`` is when it was recorded."""

        TOPIC: ClassVar[str] = "scoring:UserScore.GrantRecorded"

        user_id: str
        grant_id: str
        key: str
        category: str
        source: str
        amount: int
        granted_at: datetime
        replaced_points: int | None
        """Points of the bucket that this grant replaces in the recomputed total; ``None`` when
        the grant leaves the recomputed total alone. Stored, so that replaying never depends on
        which keys count as grant-shaped today."""
        traceparent: str | None = field(default=None, init=False)
        """The span in which it was granted, if there was one. Stored only then, so events that
        were recorded without a trace, or before there was this field, read as ``None``."""

        @property
        def recomputed_change(self) -> int:
            """What the grant adds to the recomputed total, in points; may be negative."""
            return 0 if self.replaced_points is None else self.amount - self.replaced_points

        def apply(self, aggregate: UserScore) -> None:
            """Add the grant to the sums."""
            aggregate.total_score += self.amount
            aggregate.grant_count += 1
            totals = aggregate.category_totals
            totals[self.category] = totals.get(self.category, 0) + self.amount
            totals = aggregate.source_totals
            totals[self.source] = totals.get(self.source, 0) + self.amount
            aggregate.recomputed_total += self.recomputed_change
            if self.replaced_points is not None:
                aggregate.buckets.pop(self.key, None)

    class BucketSet(Aggregate.Event):
        """The old way overwrote a bucket. ``timestamp`` is when it was recorded."""

        TOPIC: ClassVar[str] = "scoring:UserScore.BucketSet"

        user_id: str
        key: str
        category: str
        source: str
        points: int
        replaced_points: int
        """Points of the bucket as it was; 0 if there was none."""
        equals_grant: bool
        """Whether the bucket is now as the grant of its key made it, and need not be kept."""

        @property
        def recomputed_change(self) -> int:
            """What it adds to the recomputed total, in points; may be negative."""
            return self.points - self.replaced_points

        def apply(self, aggregate: UserScore) -> None:
            """Overwrite the bucket."""
            if self.equals_grant:
                aggregate.buckets.pop(self.key, None)
            else:
                aggregate.buckets[self.key] = Bucket(self.points, self.category, self.source)
            aggregate.recomputed_total += self.recomputed_change

    @dataclass(frozen=True)
    class GapClosed(Aggregate.Event):
        """It stands where an event was lost, or ends the closing of a gap; it changes nothing."""

        TOPIC: ClassVar[str] = "scoring:UserScore.GapClosed"

        user_id: str

    def __init__(self, user_id: str) -> None:
        """Open the stream of a user; raises ``InvalidGrant`` for an id that breaks its rule."""
        # This body also runs on replay, so it assigns and never checks: see _create().
        self.user_id = user_id
        self.total_score = 0
        self.category_totals: dict[str, int] = {}
        self.source_totals: dict[str, int] = {}
        self.grant_count = 0
        self.recomputed_total = 0
        self.buckets: dict[str, Bucket] = {}
        self._pending_grant_ids: set[str] = set()

    @staticmethod
    def create_id(user_id: str) -> UUID:
        """Return the stream of a user: the same user always has the same one."""
        return user_stream_id(user_id)

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        """Give a snapshot from before there were contributions its buckets: none."""
        state["buckets"] = []

    @classmethod
    def _create(
        cls,
        event_class: type[CanInitAggregate[UUID]],
        *,
        id: UUID | None = None,  # noqa: A002 - the library's signature
        **kwargs: Any,
    ) -> Self:
        kwargs["user_id"] = normalised_user_id(kwargs["user_id"])
        return super()._create(event_class, id=id, **kwargs)

    def grant(
        self,
        grant_id: str,
        key: str,
        category: str,
        source: str,
        amount: int,
        granted_at: datetime,
    ) -> None:
        """Award points once; the fields are those of ``Grant``.

        A grant id that this object has pending already adds nothing. Ids recorded earlier are not
        known here, on purpose: the claim that is saved with the grant makes the event store refuse
        them, whoever they were recorded for.

        Raises:
            InvalidGrant: if a field breaks its rule; nothing is triggered.
        """
        self.record(
            Grant(
                user_id=self.user_id,
                grant_id=grant_id,
                key=key,
                category=category,
                source=source,
                amount=amount,
                granted_at=granted_at,
            ),
            traceparent=current_traceparent(),
        )

    def record(self, grant: Grant, *, traceparent: str | None = None) -> None:
        """Award a grant that was made for this user; see ``grant()``.

        Args:
            grant: What to award.
            traceparent: The span in which it was granted, perhaps by another thread.
        """
        if grant.user_id != self.user_id:
            raise InvalidGrant(field="user_id", value=grant.user_id, rule=repr(self.user_id))
        if grant.grant_id in self._pending_grant_ids:
            return
        if self.total_score + grant.amount > MAX_TOTAL:
            rule = f"at most {MAX_TOTAL - self.total_score}, so that the total stays within 2^63-1"
            raise InvalidGrant(field="amount", value=grant.amount, rule=rule)
        replaced_points = None
        if is_grant_shaped(grant.key):
            replaced = self.buckets.get(grant.key)
            replaced_points = 0 if replaced is None else replaced.points
            self._check_recomputed_total("amount", grant.amount, replaced_points)
        attributes = {
            "originator_id": self.id,
            "originator_version": self.version + 1,
            "timestamp": UserScore.GrantRecorded.create_timestamp(),
            "user_id": grant.user_id,
            "grant_id": grant.grant_id,
            "key": grant.key,
            "category": grant.category,
            "source": grant.source,
            "amount": grant.amount,
            "granted_at": grant.granted_at,
            "replaced_points": replaced_points,
        }
        if traceparent is not None:
            attributes["traceparent"] = traceparent
        self._evolve(made_of(UserScore.GrantRecorded, attributes))
        self._pending_grant_ids.add(grant.grant_id)

    def contribute(self, key: str, category: str, source: str, points: int) -> None:
        """Set the bucket of a key, as the old way does; the same again adds nothing.

        The running balance is left alone: routing a grant-shaped key through a grant is done by
        ``Scoring.contribute``, which can look the grant up.

        Raises:
            InvalidGrant: if a field breaks its rule, or if the key is grant-shaped and may have a
                grant, whose points are not known here; nothing is triggered.
        """
        contribution = Contribution(
            user_id=self.user_id, key=key, category=category, source=source, points=points
        )
        if is_grant_shaped(key) and key not in self.buckets and self._has_granted_points():
            rule = "one without a grant; Scoring.contribute() takes all grant-shaped keys"
            raise InvalidGrant(field="key", value=key, rule=rule)
        self.set_bucket(contribution, granted=None)

    def set_bucket(self, contribution: Contribution, *, granted: Bucket | None) -> None:
        """Set the bucket of a contribution that was made for this user; see ``contribute()``.

        Args:
            contribution: What to set.
            granted: The bucket that the grant of this key made; ``None`` if it has no grant.
        """
        if contribution.user_id != self.user_id:
            raise InvalidGrant(field="user_id", value=contribution.user_id, rule=repr(self.user_id))
        replaced = self.buckets.get(contribution.key, granted)
        if replaced == contribution.bucket:
            return
        replaced_points = 0 if replaced is None else replaced.points
        self._check_recomputed_total("points", contribution.points, replaced_points)
        attributes = {
            "originator_id": self.id,
            "originator_version": self.version + 1,
            "timestamp": UserScore.BucketSet.create_timestamp(),
            "user_id": self.user_id,
            "key": contribution.key,
            "category": contribution.category,
            "source": contribution.source,
            "points": contribution.points,
            "replaced_points": replaced_points,
            "equals_grant": contribution.bucket == granted,
        }
        self._evolve(made_of(UserScore.BucketSet, attributes))

    def _evolve(self, event: UserScore.GrantRecorded | UserScore.BucketSet) -> None:
        # What trigger_event() does, without looking at the class again or checking what was made.
        event.apply(self)
        self.version, self.modified_on = event.originator_version, event.timestamp
        self.pending_events.append(event)

    def _check_recomputed_total(self, field: str, points: int, replaced_points: int) -> None:
        room = MAX_TOTAL - (self.recomputed_total - replaced_points)
        if points > room:
            rule = f"at most {room}, so that the recomputed total stays within 2^63-1"
            raise InvalidGrant(field=field, value=points, rule=rule)

    def _has_granted_points(self) -> bool:
        # Grants are at least one point each, so what the buckets here do not explain is theirs.
        return self.recomputed_total != sum(bucket.points for bucket in self.buckets.values())

    def collect_events(self) -> Sequence[CanMutateAggregate[UUID]]:
        """Return the pending events, each grant followed by the claim on its id.

        The library saves what this returns in one transaction, in any application, so no grant
        can be committed without its claim.
        """
        token = urandom(8).hex()
        self._pending_grant_ids.clear()
        collected: list[Any] = []
        for event in super().collect_events():
            collected.append(event)
            if isinstance(event, UserScore.GrantRecorded):
                claim = {
                    "originator_id": claim_stream_id(event.grant_id),
                    "originator_version": self.INITIAL_VERSION,
                    "user_id": event.user_id,
                    "version": event.originator_version,
                    "token": token,
                }
                collected.append(made_of(GrantClaimed, claim))
        return collected
