"""``ScoreGrantsProjection``: which events are projected, and how they become a batch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import IntegrityError, Mapper, Tracking
from eventsourcing.projection import Projection
from eventsourcing.utils import get_topic

from projections.batches import Batch, Projected, ProjectedBucket, ProjectedGrant
from projections.errors import PoisonEvent, PositionMoved
from projections.mongo import MongoScoreView
from scoring import UserScore

if TYPE_CHECKING:
    from eventsourcing.persistence import Notification

    from projections.pages import Row

_GRANT_RECORDED: Final = get_topic(UserScore.GrantRecorded)
_TRACED_FIELDS: Final = {field.name for field in fields(UserScore.GrantRecorded)} - {
    "originator_id",
    "originator_version",
}
_FIELDS: Final = _TRACED_FIELDS - {"traceparent"}  # which is stored only where there is one


class ScoreGrantsProjection(Projection[MongoScoreView]):
    """Projects grants and buckets into the read model, with the library's runner or in batches.

    Several runners and workers may follow one store: whoever is first moves the position, and an
    event at or before the position is moved over in silence, as it is projected already.
    """

    topics = (get_topic(UserScore.GrantRecorded), get_topic(UserScore.BucketSet))

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Move over an event that the projection does not use."""
        del domain_event
        with suppress(IntegrityError):  # which says that somebody else was faster
            self.view.insert_tracking(tracking)

    @process_event.register
    def _(self, domain_event: UserScore.GrantRecorded, tracking: Tracking) -> None:
        self._apply(ProjectedGrant(tracking.notification_id, domain_event), tracking)

    @process_event.register
    def _(self, domain_event: UserScore.BucketSet, tracking: Tracking) -> None:
        self._apply(ProjectedBucket(tracking.notification_id, domain_event), tracking)

    def _apply(self, projected: Projected, tracking: Tracking) -> None:
        while True:
            after = self.view.max_tracking_id(tracking.application_name)
            if after is not None and after >= tracking.notification_id:
                return
            batch = Batch(
                application_name=tracking.application_name,
                after=after,
                position=tracking.notification_id,
                events=[projected],
            )
            try:
                self.view.apply(batch)
                return
            except PositionMoved:
                # By another worker, which the next look shows, or a switch has held it.
                continue


def decoded(notification: Notification | Row, mapper: Mapper[Any]) -> Projected:
    """Return the grant or bucket of a notification whose topic is one of the projection's.

    Raises:
        PoisonEvent: if it cannot be decoded.
    """
    try:
        event = _event(notification, mapper)
        if isinstance(event, UserScore.BucketSet):
            _check_bucket_types(event)
            return ProjectedBucket(notification.id, event)
        _check_types(event)
        return ProjectedGrant(notification.id, event)
    except Exception as error:
        raise PoisonEvent(
            position=notification.id,
            stream=str(notification.originator_id),
            topic=notification.topic,
            reason=str(error),
        ) from error


def _event(
    notification: Notification | Row, mapper: Mapper[Any]
) -> UserScore.GrantRecorded | UserScore.BucketSet:
    if type(mapper) is Mapper and notification.topic == _GRANT_RECORDED:
        # What the library's mapper does, without what it looks up anew for every event.
        state = notification.state
        if mapper.cipher is not None:
            state = mapper.cipher.decrypt(state)
        if mapper.compressor is not None:
            state = mapper.compressor.decompress(state)
        values = mapper.transcoder.decode(state)
        if values.keys() == _FIELDS or values.keys() == _TRACED_FIELDS:
            values["originator_id"] = notification.originator_id
            values["originator_version"] = notification.originator_version
            event = object.__new__(UserScore.GrantRecorded)
            object.__setattr__(event, "__dict__", values)
            return event
    # Another mapper, or an event of another version: the mapper has the last word.
    decoded_event = mapper.to_domain_event(cast("Notification", notification))
    if not isinstance(decoded_event, UserScore.GrantRecorded | UserScore.BucketSet):
        raise TypeError(f"its topic resolves to {type(decoded_event)!r}")
    return decoded_event


def _check_types(event: UserScore.GrantRecorded) -> None:
    # Not the rules of grants, which may be tightened: just what sums and comparisons need.
    if type(event.amount) is not int:
        raise TypeError(f"its amount is {event.amount!r}")
    if event.replaced_points is not None and type(event.replaced_points) is not int:
        raise TypeError(f"its replaced_points are {event.replaced_points!r}")
    if not isinstance(event.granted_at, datetime):
        raise TypeError(f"its granted_at is {event.granted_at!r}")


def _check_bucket_types(event: UserScore.BucketSet) -> None:
    for name in ("points", "replaced_points"):
        if type(getattr(event, name)) is not int:
            raise TypeError(f"its {name} are {getattr(event, name)!r}")
