"""What an event store does to be copied: gives rows in order, and takes them as they are.

The library's recorders give events out in the order of positions, but number them anew when they
take them, and give out the snapshots of one stream only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventsourcing.persistence import Notification, StoredEvent

    from scoring import Scoring


class Copyable(ABC):
    """An event store that can be copied; its methods raise what the library's recorders raise."""

    def __init__(self, scoring: Scoring) -> None:
        self._recorder: Any = scoring.recorder
        self._id_type = (scoring.env.get("ORIGINATOR_ID_TYPE") or "uuid").lower()
        self._snapshots: Any = scoring.factory.aggregate_recorder(purpose="snapshots")

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, in words."""

    def identity(self) -> object:
        """Return what a store that is reached by another name has as well, and no other store."""
        return self.place

    def takes(self, stream: UUID | str) -> bool:
        """Tell whether it gives out the ids of streams as it was given this one."""
        return isinstance(stream, str) == (self._id_type == "text")

    def newest_position(self) -> int:
        """Return the last position; 0 if there is none."""
        newest: int | None = self._recorder.max_notification_id()
        return newest or 0

    def events(
        self, after: Notification | None, limit: int, *, stop: int | None = None
    ) -> Sequence[Notification]:
        """Return events in the order of their positions: those after one, or the first."""
        page: Sequence[Notification] = self._recorder.select_notifications(
            start=after and after.id, limit=limit, stop=stop, inclusive_of_start=False
        )
        return page

    @abstractmethod
    def add_events(self, events: Sequence[Notification]) -> None:
        """Insert events at the positions that they have, all of them or the first ones."""

    @abstractmethod
    def snapshots(self, after: StoredEvent | None, limit: int) -> Sequence[StoredEvent]:
        """Return snapshots ordered by stream and version: those after one, or the first."""

    def add_snapshots(self, snapshots: Sequence[StoredEvent]) -> None:
        """Insert snapshots, all or none."""
        self._snapshots.insert_events(snapshots)
