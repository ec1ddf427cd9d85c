"""The event store as seen from a read model: whether it has the history that was projected.

Whoever finds the event of an anchor in its place has that history, since an event that was appended
once never changes. What was read before it is found is therefore of that history, too.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Protocol

from projections.errors import EventStoreReplaced
from projections.events.anchor import Anchor
from projections.events.model import stream_name
from projections.events.stores import kind_of, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.persistence import Notification

    from projections.events.anchor import Tracked
    from projections.events.pages import Row
    from scoring import Scoring

_HASH_BYTES: Final = 16


class _Place(Protocol):
    def place(self) -> str: ...


class AnchoredStore:
    """An application's event store, as seen from a read model.

    Its methods raise what the store raises, and ``EventStoreReplaced``.
    """

    def __init__(self, scoring: Scoring, read_model: _Place) -> None:
        """Compare the store of ``scoring`` with what ``read_model`` was projected from."""
        self._scoring = scoring
        self._read_model = read_model

    def check(self, tracked: Tracked) -> None:
        """Check that the store has the history that was projected up to a tracked position.

        Costs one read of one event where the anchor is at the position itself, as it usually is.

        Raises:
            EventStoreReplaced: if it does not.
        """
        if tracked.anchor is not None:
            self.check_anchor(tracked.anchor)
            if tracked.anchor.position == tracked.position:
                return
        if tracked.position:
            newest = self._scoring.recorder.max_notification_id() or 0
            if newest < tracked.position:
                raise self._replaced(
                    f"an event at position {tracked.position} or behind it",
                    f"{newest} as the newest position",
                )

    def check_anchor(self, anchor: Anchor) -> None:
        """Check that an event is in its place.

        Raises:
            EventStoreReplaced: if it is not.
        """
        found = self._select(anchor.position, stop=anchor.position)
        if not found or _hash(found[0]) != anchor.hash:
            raise self._replaced(str(anchor), self._found_instead_of(anchor, found))

    def anchor(self, event: Notification | Row, known: Anchor | None) -> Anchor:
        """Return the anchor of an event, in the store that a known one is of."""
        return Anchor(
            identity=self._identity() if known is None else known.identity,
            position=event.id,
            stream=stream_name(event.originator_id),
            version=event.originator_version,
            hash=_hash(event),
        )

    def first_from(self, position: int, known: Anchor | None) -> Anchor | None:
        """Return the anchor of the first event at or behind a position, if there is one."""
        found = self._select(position)
        return self.anchor(found[0], known) if found else None

    def _replaced(self, expected: str, found: str) -> EventStoreReplaced:
        """Return the error that says what was expected and found."""
        return EventStoreReplaced(
            event_store=f"{kind_of(self._scoring.env).module} {place_of(self._scoring)}",
            read_model=self._read_model.place(),
            expected=expected,
            found=found,
        )

    def _found_instead_of(self, anchor: Anchor, found: Sequence[Notification]) -> str:
        identity = self._identity()
        if not identity:
            return "no event at all"
        whose = "another state of the same store"
        if identity != anchor.identity:
            whose = "another store, which begins with another event"
        if found:
            return f"{self.anchor(found[0], anchor)} in {whose}"
        newest = self._scoring.recorder.max_notification_id() or 0
        return f"{newest} as the newest position of {whose}"

    def _identity(self) -> str:
        first = self._select(1)
        return _hash(first[0]) if first else ""

    def _select(self, start: int, stop: int | None = None) -> Sequence[Notification]:
        return self._scoring.recorder.select_notifications(start=start, limit=1, stop=stop)


def _hash(event: Notification | Row) -> str:
    named = (event.id, stream_name(event.originator_id), event.originator_version, event.topic)
    digest = blake2b(repr(named).encode(), digest_size=_HASH_BYTES)
    state: object = event.state
    # What was damaged by hand may be stored as a text.
    digest.update(state if isinstance(state, bytes) else repr(state).encode())
    return digest.hexdigest()
