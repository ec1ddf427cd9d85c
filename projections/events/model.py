"""What the projection uses of the event store: grants and buckets, and what cannot be used."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal, Self
from uuid import UUID

from eventsourcing.utils import get_topic
from msgspec import Meta, Struct, field

from scoring import UserScore

_MAX_INT64: Final = 2**63 - 1
Int64 = Annotated[int, Meta(ge=-_MAX_INT64 - 1, le=_MAX_INT64)]
"""An integer that MongoDB can keep."""


class StoredDatetime(Struct, gc=False, frozen=True, forbid_unknown_fields=True):
    """A datetime in the JSON of the ``eventsourcing`` library."""

    tag: Literal["datetime_iso"] = field(name="_type_")
    value: Annotated[datetime, Meta(tz=True)] = field(name="_data_")


class GrantState(Struct, gc=False, frozen=True, forbid_unknown_fields=True):
    """What is stored of a ``UserScore.GrantRecorded``, under the names it is stored with.

    JSON is decoded straight into it, and its types are checked on the way. A batch has tens of
    thousands of these, so the garbage collector is told that there is nothing for it in them.
    """

    stored_timestamp: StoredDatetime = field(name="timestamp")
    user_id: str
    grant_id: str
    key: str
    category: str
    source: str
    amount: Int64
    stored_granted_at: StoredDatetime = field(name="granted_at")
    replaced_points: Int64 | None
    traceparent: str | None = None

    @classmethod
    def of(cls, event: UserScore.GrantRecorded) -> Self:
        """Return the state of an event.

        Raises:
            TypeError: if a value is not of its type.
        """
        # Not the rules of grants, which may be tightened: just what documents and sums need.
        _check(event, str, "user_id", "grant_id", "key", "category", "source")
        _check(event, int, "amount")
        _check(event, datetime, "timestamp", "granted_at")
        _check(event, (int, type(None)), "replaced_points")
        _check(event, (str, type(None)), "traceparent")
        return cls(
            StoredDatetime("datetime_iso", event.timestamp),
            event.user_id,
            event.grant_id,
            event.key,
            event.category,
            event.source,
            event.amount,
            StoredDatetime("datetime_iso", event.granted_at),
            event.replaced_points,
            event.traceparent,
        )

    @property
    def timestamp(self) -> datetime:
        """When the event was recorded."""
        return self.stored_timestamp.value

    @property
    def granted_at(self) -> datetime:
        """When the points were earned."""
        return self.stored_granted_at.value

    @property
    def recomputed_change(self) -> int:
        """What the grant adds to the recomputed total, in points; may be negative."""
        return 0 if self.replaced_points is None else self.amount - self.replaced_points


class GrantEvent(Struct, gc=False, frozen=True):
    """A grant event and where it was found.

    Attributes:
        position: Its notification id.
        originator_id: The stream that it is in.
        originator_version: Its version in there.
        data: What it says.
    """

    TOPIC: ClassVar[str] = get_topic(UserScore.GrantRecorded)

    position: int
    originator_id: UUID | str
    originator_version: int
    data: GrantState

    @classmethod
    def of(cls, position: int, event: UserScore.GrantRecorded) -> Self:
        """Return the grant of an event of the library's; raises ``TypeError`` as its state does."""
        return cls(position, event.originator_id, event.originator_version, GrantState.of(event))

    @property
    def stream(self) -> str:
        """The stream that the event is in, as faults and parked streams name it."""
        return stream_name(self.originator_id)


@dataclass(frozen=True, slots=True)
class BucketEvent:
    """A bucket's event and the position at which it was found."""

    TOPIC: ClassVar[str] = get_topic(UserScore.BucketSet)

    position: int
    data: UserScore.BucketSet

    @classmethod
    def of(cls, position: int, event: UserScore.BucketSet) -> Self:
        """Return the bucket of an event; raises ``TypeError`` if a value is not of its type."""
        _check(event, str, "user_id", "key", "category", "source")
        _check(event, int, "points", "replaced_points")
        return cls(position, event)

    @property
    def originator_version(self) -> int:
        """The event's version in its stream."""
        return self.data.originator_version

    @property
    def stream(self) -> str:
        """The stream that the event is in, as faults and parked streams name it."""
        return stream_name(self.data.originator_id)


ScoreEvent = GrantEvent | BucketEvent
"""What the projection uses."""


TOPICS: Final = (GrantEvent.TOPIC, BucketEvent.TOPIC)
"""What the projection reads of the event store; it moves over everything else."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An event that cannot be projected.

    Attributes:
        position: Its notification id.
        stream: Its originator id, which even an event that cannot be decoded has.
        topic: The topic it was stored under.
        reason: What is wrong with it, in words.
    """

    position: int
    stream: str
    topic: str
    reason: str

    @classmethod
    def of(cls, event: ScoreEvent, reason: str) -> Self:
        """Return the fault of an event that was read but cannot be projected."""
        return cls(event.position, event.stream, event.TOPIC, reason)


def stream_name(originator_id: UUID | str) -> str:
    """Return the name of a stream; stores may hold its id as text, with hyphens or without."""
    if isinstance(originator_id, UUID):
        return str(originator_id)
    with suppress(ValueError):
        return str(UUID(originator_id))
    return originator_id


def _check(event: object, types: type | tuple[type, ...], *names: str) -> None:
    for name in names:
        value = getattr(event, name)
        is_other = not isinstance(value, types) or isinstance(value, bool)
        is_naive = isinstance(value, datetime) and value.tzinfo is None
        is_huge = isinstance(value, int) and not -_MAX_INT64 - 1 <= value <= _MAX_INT64
        if is_other or is_naive or is_huge:
            raise TypeError(f"its {name} cannot be {value!r}")
