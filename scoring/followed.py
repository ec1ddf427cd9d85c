"""What other processes have recorded, for those who have in memory what was before.

Where a store's recorder has turns, it tells with each what was recorded since the last one. Then
nobody has to be looked up: whoever is in memory is as in the store, once these events are applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scoring.event_store import TurnTakingRecorder
from scoring.user_score import UserScore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventsourcing.persistence import AggregateRecorder, StoredEvent

_MOST_EVENTS: Final = 20_000
"""How many are kept for users to whom this process does not grant."""


class FollowedEvents:
    """The events of others that are not applied yet, for one thread at a time."""

    def __init__(self, recorder: AggregateRecorder) -> None:
        """Follow the store of this recorder, if that has turns."""
        self._recorder = recorder if isinstance(recorder, TurnTakingRecorder) else None
        self.clear()

    @property
    def is_complete(self) -> bool:
        """Whether all that others record can be known."""
        return self._recorder is not None

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self._by_stream

    def clear(self) -> None:
        """Forget all of them."""
        self._count = 0
        self._by_stream: dict[UUID | str, list[StoredEvent]] = {}

    def take_turn(self, events: int) -> bool:
        """Wait for our turn to record, where there are turns.

        Returns:
            Whether what was recorded since the last one is here; else it was too much.
        """
        if self._recorder is None:
            return True
        recorded = self._recorder.take_turn(events)
        if recorded is None or self._count > _MOST_EVENTS:
            self.clear()
            return False
        for event in recorded:
            # The first one of a stream, as a claim is, is nothing new to who has the stream.
            if event.originator_version > UserScore.INITIAL_VERSION:
                self._by_stream.setdefault(event.originator_id, []).append(event)
                self._count += 1
        return True

    def pop(self, stream: UUID) -> Sequence[StoredEvent]:
        """Remove and return those of a stream, by version, perhaps with some that are known."""
        events = self._by_stream.pop(stream, ())
        self._count -= len(events)
        return events
