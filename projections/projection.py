"""``ScoreGrantsProjection``: which events are projected, and how they become a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.projection import Projection
from eventsourcing.utils import get_topic

from projections.batches import Batch, ProjectedGrant
from projections.errors import PoisonEvent, PositionMoved
from projections.mongo import MongoScoreView
from scoring import UserScore

if TYPE_CHECKING:
    from eventsourcing.persistence import Mapper, Notification


class ScoreGrantsProjection(Projection[MongoScoreView]):
    """Projects recorded grants into the read model, with the library's runner or in batches."""

    topics = (get_topic(UserScore.GrantRecorded),)

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Move over an event that the projection does not use."""
        del domain_event
        self.view.insert_tracking(tracking)

    @process_event.register
    def _(self, domain_event: UserScore.GrantRecorded, tracking: Tracking) -> None:
        while True:
            after = self.view.max_tracking_id(tracking.application_name)
            if after is not None and after >= tracking.notification_id:
                raise IntegrityError(f"position {tracking.notification_id} is tracked already")
            batch = Batch(
                application_name=tracking.application_name,
                after=after,
                position=tracking.notification_id,
                grants=[ProjectedGrant(tracking.notification_id, domain_event)],
            )
            try:
                self.view.apply(batch)
                return
            except PositionMoved:
                # By another worker, which the next look shows, or a switch has held it.
                continue


def decoded(notification: Notification, mapper: Mapper[Any]) -> ProjectedGrant:
    """Return the grant of a notification whose topic is one of the projection's.

    Raises:
        PoisonEvent: if it cannot be decoded.
    """
    try:
        event = mapper.to_domain_event(notification)
        if not isinstance(event, UserScore.GrantRecorded):
            raise TypeError(f"its topic resolves to {type(event)!r}")
    except Exception as error:
        raise PoisonEvent(
            position=notification.id,
            stream=str(notification.originator_id),
            topic=notification.topic,
            reason=str(error),
        ) from error
    return ProjectedGrant(notification.id, event)
