"""The library's stores of events and snapshots, which believe nothing because it was true before.

A store may be put back to an earlier state under a process that goes on. What the process has in
memory is then ahead of the store, and what it would write does not belong there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from eventsourcing.domain import CanSnapshotAggregate
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    EventStore,
    IntegrityError,
    Mapper,
    Notification,
    Recording,
    StoredEvent,
)
from eventsourcing.popo import POPOApplicationRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from eventsourcing.domain import DomainEventProtocol

_EVENTS_AT_ONCE = 5000

LAST_VERSION: Final = 2**63 - 1
"""Later than any that a stream can have."""

Place = tuple[UUID, int]
"""A stream and a version in it: where one event is found."""

WithPrevious = tuple[StoredEvent | None, StoredEvent | None]
"""An event, after the one that was recorded just before it; ``None`` for what is not known."""


class StoreWentBack(IntegrityError):
    """What a commit builds on is not in the event store, so nothing was committed.

    Whatever was loaded before has to be loaded again.
    """

    def __init__(self) -> None:
        super().__init__(
            "what the new events build on is not in the event store, which was put back to an "
            "earlier state or is another one: load the aggregates again"
        )


@runtime_checkable
class ManyPlacesRecorder(Protocol):
    """A recorder that looks many events up in one query; others are asked for each."""

    def select_events_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        """Return, for each place in turn, the event that is there, or ``None``."""
        ...

    def select_events_after(self, places: Sequence[Place]) -> list[list[StoredEvent]]:
        """Return, for each place in turn, the later events of its stream, by version.

        No stream is named twice.
        """
        ...


@runtime_checkable
class AdjacentEventsRecorder(Protocol):
    """A recorder whose database gives out events together with those beside them."""

    def select_events_with_previous(self, places: Sequence[Place]) -> list[WithPrevious]:
        """Return, for each place in turn, the event that is there, or ``None``.

        With each is the one of the position before it, if that costs nothing more.
        """
        ...


@runtime_checkable
class NewestEventsRecorder(Protocol):
    """A recorder that looks the newest events of many streams up in one query."""

    def select_newest_events(self, streams: Sequence[UUID]) -> list[StoredEvent | None]:
        """Return, for each stream in turn, its event of the highest version, or ``None``."""
        ...


class GaplessRecorder(ApplicationRecorder):
    """A recorder that inserts an event only after the one before it in its stream.

    Whether that one is stored is looked up in the transaction of the insert, while nobody else can
    write. So is whether the newest event that this recorder inserted or has read is there
    unchanged: if not, the store was put back, and perhaps written to since by somebody else.

    An adapter for a database is given that event with each insert, as ``newest``, and raises
    ``StoreWentBack`` in the transaction if it, or the predecessor of a new one, is missing. It says
    which events it has read of streams.
    """

    _newest: tuple[int, StoredEvent] | None = None

    def expected(self, position: int, event: StoredEvent) -> StoredEvent:
        """Insert no more unless this event, which is in the store, or a later one still is."""
        newest = self._newest
        if newest is None or newest[0] < position:
            self._newest = position, event
        return event

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Insert events, as the library does.

        Raises:
            StoreWentBack: if what they build on is not stored.
        """
        try:
            positions = super().insert_events(  # type: ignore[safe-super]
                stored_events, newest=self._newest and self._newest[1], **kwargs
            )
        except StoreWentBack:
            self._newest = None
            raise
        if positions:
            self.expected(positions[-1], stored_events[-1])
        return positions


def predecessors_of(
    events: Sequence[StoredEvent] | Sequence[DomainEventProtocol[UUID]],
) -> dict[UUID | str, int]:
    """Return, by stream, the version before its first event; streams that begin are left out.

    Raises:
        IntegrityError: if the events themselves leave a version out.
    """
    first: dict[UUID | str, int] = {}
    last: dict[UUID | str, int] = {}
    for event in events:
        version = event.originator_version
        stream = event.originator_id
        if version > 1:
            before = last.get(stream)
            if before is None:
                first[stream] = version - 1
            elif version != before + 1:
                raise IntegrityError(
                    f"stream {stream} has version {version} after version {before}"
                )
        last[stream] = version
    return first


def missing_versions(recorder: AggregateRecorder, stream: UUID) -> list[range]:
    """Return the gaps of a stream: versions that are not stored, though later ones are."""
    gaps = []
    newest = 0
    while events := recorder.select_events(stream, gt=newest, limit=_EVENTS_AT_ONCE):
        for event in events:
            if event.originator_version > newest + 1:
                gaps.append(range(newest + 1, event.originator_version))
            newest = event.originator_version
    return gaps


class RecordedEvents(NamedTuple):
    """Events of one transaction, in order.

    Attributes:
        domain_events: As they were collected.
        stored_events: As they are stored.
        positions: Their notification ids, if the recorder gives any.
    """

    domain_events: Sequence[DomainEventProtocol[UUID]]
    stored_events: Sequence[StoredEvent]
    positions: Sequence[int]

    def recordings(self) -> list[Recording[UUID]]:
        """Return them as the library tells others of them."""
        return [
            Recording(event, Notification(**vars(stored), id=position))
            for event, stored, position in zip(*self, strict=bool(self.positions))
        ]


def notices_step_back(recorder: AggregateRecorder) -> bool:
    """Tell whether no commit can follow a step back of the store without finding out."""
    # What is in memory cannot be put back under those who use it.
    return isinstance(recorder, GaplessRecorder | POPOApplicationRecorder)


class ScoringEventStore(EventStore[UUID]):
    """Stores and retrieves domain events as the library does, and on what is stored only."""

    def __init__(self, mapper: Mapper[UUID], recorder: AggregateRecorder) -> None:
        super().__init__(mapper, recorder)
        self._notices_step_back = notices_step_back(recorder)
        # Asked for once, as it takes as long as reading an event.
        self._many_places = recorder if isinstance(recorder, ManyPlacesRecorder) else None
        self._adjacent = recorder if isinstance(recorder, AdjacentEventsRecorder) else None

    def put(
        self, domain_events: Sequence[DomainEventProtocol[UUID]], **kwargs: Any
    ) -> list[Recording[UUID]]:
        """Store domain events in one transaction and return their recordings.

        Raises:
            StoreWentBack: if what they build on is not stored.
        """
        return self.record(domain_events, **kwargs).recordings()

    def record(
        self, domain_events: Sequence[DomainEventProtocol[UUID]], **kwargs: Any
    ) -> RecordedEvents:
        """Store domain events in one transaction, as ``put`` does."""
        if not self._notices_step_back:
            self._look_for(predecessors_of(domain_events))
        stored_events = list(map(self.mapper.to_stored_event, domain_events))
        positions = self.recorder.insert_events(stored_events, **kwargs)
        return RecordedEvents(domain_events, stored_events, positions or ())

    def at(self, places: Sequence[Place]) -> list[Any]:
        """Return, for each place in turn, the domain event that is there, or ``None``."""
        found = self._stored_at(places) if places else []
        return [stored and self.mapper.to_domain_event(stored) for stored in found]

    def stored_with_previous(self, places: Sequence[Place]) -> list[WithPrevious]:
        """Return, for each place in turn, the stored event that is there, or ``None``.

        With each is the one that was recorded just before it, if that was read with it.
        """
        if not places:
            return []
        if self._adjacent is None:
            return [(None, stored) for stored in self._stored_at(places)]
        return self._adjacent.select_events_with_previous(places)

    def after(self, places: Sequence[Place]) -> Iterator[Iterator[Any]]:
        """Yield, for each place in turn, the later domain events of its stream, by version.

        No stream is named twice.
        """
        if len(places) > 1 and self._many_places is not None:
            for found in self._many_places.select_events_after(places):
                yield map(self.mapper.to_domain_event, found)
        else:
            for stream, version in places:
                yield self.get(stream, gt=version)

    def _stored_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        if self._many_places is not None:
            return self._many_places.select_events_at(places)
        return [self._only_at(stream, version) for stream, version in places]

    def _only_at(self, stream: UUID | str, version: int) -> StoredEvent | None:
        found = self.recorder.select_events(stream, gt=version - 1, lte=version)
        return found[0] if found else None

    def _look_for(self, predecessors: Mapping[UUID | str, int]) -> None:
        # A recorder that somebody chose is asked before the insert: what is put back between the
        # two is not noticed.
        for stream, version in predecessors.items():
            if self._only_at(stream, version) is None:
                raise StoreWentBack


class ScoringSnapshotStore(EventStore[UUID]):
    """Stores snapshots as the library does, and returns those only whose events are stored.

    One may be ahead of the events, or of events that were lost and written again since.
    """

    def __init__(
        self, mapper: Mapper[UUID], recorder: AggregateRecorder, events: ScoringEventStore
    ) -> None:
        super().__init__(mapper, recorder)
        self._events = events

    def get(
        self,
        originator_id: UUID,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Iterator[DomainEventProtocol[UUID]]:
        """Yield snapshots, as the library does."""
        yielded = 0
        while limit is None or yielded < limit:
            snapshot: Any = next(
                super().get(originator_id, gt=gt, lte=lte, desc=desc, limit=1), None
            )
            if snapshot is None:
                return
            version = snapshot.originator_version
            event = next(self._events.get(originator_id, gt=version - 1, lte=version), None)
            if _is_of(event, snapshot):
                yielded += 1
                yield snapshot
            if desc:
                lte = snapshot.originator_version - 1
            else:
                gt = snapshot.originator_version

    def newest(self, streams: Sequence[UUID]) -> list[Any]:
        """Return, for each stream in turn, its newest snapshot that ``get`` yields, or ``None``."""
        if len(streams) < 2 or not isinstance(self.recorder, NewestEventsRecorder):  # noqa: PLR2004
            return [next(self.get(stream, desc=True, limit=1), None) for stream in streams]
        newest: dict[UUID, Any] = {
            stream: self.mapper.to_domain_event(found)
            for stream, found in zip(
                streams, self.recorder.select_newest_events(streams), strict=True
            )
            if found is not None
        }
        events = self._events.at(
            [(stream, snapshot.originator_version) for stream, snapshot in newest.items()]
        )
        for (stream, snapshot), event in zip(list(newest.items()), events, strict=True):
            if not _is_of(event, snapshot):
                newest[stream] = next(self.get(stream, desc=True, limit=1), None)
        return [newest.get(stream) for stream in streams]


def _is_of(event: Any, snapshot: Any) -> bool:
    if event is None:
        return False
    state = snapshot.state if isinstance(snapshot, CanSnapshotAggregate) else None
    if not isinstance(state, dict) or "_modified_on" not in state:
        return True  # of an aggregate that does not keep when its newest event was
    return bool(state["_modified_on"] == event.timestamp)
