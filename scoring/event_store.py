"""The library's event store with a faster way to say what was recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventsourcing.persistence import EventStore, Notification, Recording

from scoring.frozen import made_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.domain import DomainEventProtocol


class ScoringEventStore(EventStore[UUID]):
    """Stores and retrieves domain events as the library does.

    Every commit returns a recording of each event, made here at less cost.
    """

    def put(
        self, domain_events: Sequence[DomainEventProtocol[UUID]], **kwargs: Any
    ) -> list[Recording[UUID]]:
        """Store domain events in one transaction and return their recordings."""
        stored_events = list(map(self.mapper.to_stored_event, domain_events))
        positions = self.recorder.insert_events(stored_events, **kwargs)
        if not positions:  # a recorder of snapshots has none
            return []
        return [
            made_of(
                Recording,
                {
                    "domain_event": event,
                    "notification": made_of(Notification, {**stored.__dict__, "id": position}),
                },
            )
            for event, stored, position in zip(domain_events, stored_events, positions, strict=True)
        ]
