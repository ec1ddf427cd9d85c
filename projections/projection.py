"""``ScoreGrantsProjection``: which events are projected, and how they become a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.projection import Projection
from eventsourcing.utils import get_topic

from projections.batches import Batch, ProjectedBucket, ProjectedGrant
from projections.errors import PoisonEvent
from projections.mongo import MongoScoreView
from scoring import UserScore

if TYPE_CHECKING:
    from eventsourcing.persistence import Mapper, Notification


class ScoreGrantsProjection(Projection[MongoScoreView]):
    """Projects grants and buckets into the read model, with the library's runner or in batches."""

    topics = (get_topic(UserScore.GrantRecorded), get_topic(UserScore.BucketSet))

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Move over an event that the projection does not use."""
        del domain_event
        self.view.insert_tracking(tracking)

    @process_event.register
    def _(self, domain_event: UserScore.GrantRecorded, tracking: Tracking) -> None:
        self._apply(ProjectedGrant(tracking.notification_id, domain_event), tracking)

    @process_event.register
    def _(self, domain_event: UserScore.BucketSet, tracking: Tracking) -> None:
        self._apply(ProjectedBucket(tracking.notification_id, domain_event), tracking)

    def _apply(self, projected: ProjectedGrant | ProjectedBucket, tracking: Tracking) -> None:
        after = self.view.max_tracking_id(tracking.application_name)
        if after is not None and after >= tracking.notification_id:
            raise IntegrityError(f"position {tracking.notification_id} is tracked already")
        batch = Batch(tracking.application_name, after, tracking.notification_id)
        batch.add(projected)
        self.view.apply(batch)


def decoded(notification: Notification, mapper: Mapper[Any]) -> ProjectedGrant | ProjectedBucket:
    """Return the grant or bucket of a notification whose topic is one of the projection's.

    Raises:
        PoisonEvent: if it cannot be decoded.
    """
    try:
        event = mapper.to_domain_event(notification)
        if isinstance(event, UserScore.GrantRecorded):
            return ProjectedGrant(notification.id, event)
        if isinstance(event, UserScore.BucketSet):
            return ProjectedBucket(notification.id, event)
        raise TypeError(f"its topic resolves to {type(event)!r}")
    except Exception as error:
        raise PoisonEvent(
            position=notification.id,
            stream=str(notification.originator_id),
            topic=notification.topic,
            reason=str(error),
        ) from error
