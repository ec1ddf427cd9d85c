"""``ScoreGrantsProjection``: which events are projected, and how they become a batch."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.projection import Projection

from projections.errors import PositionMoved
from projections.events.anchor import Tracked
from projections.events.model import TOPICS, BucketEvent, GrantEvent, ScoreEvent
from projections.mongo import MongoScoreView
from projections.mongo.batches import Batch
from scoring import UserScore  # noqa: TC001 - the dispatcher resolves the annotations


class ScoreGrantsProjection(Projection[MongoScoreView]):
    """Projects grants and buckets into the read model, with the library's runner or in batches.

    Several runners and workers may follow one store: whoever is first moves the position, and an
    event at or before the position is moved over in silence, as it is projected already.
    """

    topics = TOPICS

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Move over an event that the projection does not use."""
        del domain_event
        with suppress(IntegrityError):  # which says that somebody else was faster
            self.view.insert_tracking(tracking)

    @process_event.register
    def _(self, domain_event: UserScore.GrantRecorded, tracking: Tracking) -> None:
        self._apply(GrantEvent.of(tracking.notification_id, domain_event), tracking)

    @process_event.register
    def _(self, domain_event: UserScore.BucketSet, tracking: Tracking) -> None:
        self._apply(BucketEvent.of(tracking.notification_id, domain_event), tracking)

    def _apply(self, event: ScoreEvent, tracking: Tracking) -> None:
        while True:
            tracked = self.view.tracked(tracking.application_name)
            if tracked.position is not None and tracked.position >= tracking.notification_id:
                return
            batch = Batch(
                application_name=tracking.application_name,
                continues=tracked,
                # What is stored of the event is not known here, so the last anchor stays.
                reaches=Tracked(tracking.notification_id),
                events=[event],
            )
            try:
                self.view.apply(batch)
                return
            except PositionMoved:
                # By another worker, which the next look shows, or a switch has held it.
                continue
