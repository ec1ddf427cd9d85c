"""Which aggregates in memory are known to be current, without a look at each one's newest event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scoring.event_store import GaplessRecorder, notices_step_back

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from eventsourcing.persistence import ApplicationRecorder, Notification

    from scoring.event_store import RecordedEvents
    from scoring.user_score import UserScore

_MAX_STREAMS: Final = 20_000


class KnownVersions:
    """Up to which versions streams go at the newest event that was seen, for one thread at a time.

    One read of what was recorded since then tells whom others have written to. If the event itself
    is not there any more, the store was put back, and nothing is known. So that no commit right
    after it hides that, the recorder is told to expect it.
    """

    def __init__(self, recorder: ApplicationRecorder) -> None:
        self._recorder = recorder
        self._versions: dict[UUID | str, int] = {}
        self.forget()

    def forget(self) -> None:
        """Know nothing any more."""
        # Position and state.
        self._seen: tuple[int, bytes] | None = None
        self._versions.clear()

    def look(self, most_events: int) -> None:
        """See what was recorded since the last look; if it is more than that, forget all."""
        found = [] if self._seen is None else self._from(self._seen[0], most_events + 1)
        if len(found) > most_events or not found or _seen(found[0]) != self._seen:
            self._versions.clear()
            found = self._from(self._recorder.max_notification_id() or 1, 1)
        for event in found[1:]:
            self._versions.pop(event.originator_id, None)
        self._seen = _seen(found[-1]) if found else None
        if found and isinstance(self._recorder, GaplessRecorder):
            self._recorder.expected(found[-1].id, found[-1])

    def covers(self, score: UserScore) -> bool:
        """Tell whether an aggregate is known to have been current at the last look."""
        return self._versions.get(score.id) == score.version

    def learn(self, scores: Iterable[UserScore]) -> None:
        """Remember aggregates that had their versions before the last look and have them still."""
        if len(self._versions) > _MAX_STREAMS:
            self._versions.clear()
        self._versions.update({score.id: score.version for score in scores})

    def follow(self, recorded: RecordedEvents, scores: Iterable[UserScore]) -> None:
        """See what this process has just recorded, and the aggregates that it made so."""
        if not notices_step_back(self._recorder):
            return
        if self._seen is not None and recorded.positions[0] == self._seen[0] + 1:
            self.learn(scores)
            self._seen = recorded.positions[-1], recorded.stored_events[-1].state

    def _from(self, position: int, limit: int) -> list[Notification]:
        return list(self._recorder.select_notifications(start=position, limit=limit))


def _seen(event: Notification) -> tuple[int, bytes]:
    return event.id, event.state
