"""Reading the event store in batches, and reading ahead of whoever writes them."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from projections.errors import PoisonEvent
from projections.events.anchor import Tracked
from projections.events.decoder import EventDecoder
from projections.events.model import TOPICS, Fault, GrantEvent, stream_name
from projections.events.pages import read_page
from projections.mongo.batches import Batch, encoded, writes_of
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventsourcing.persistence import Notification

    from projections.events.anchored_store import AnchoredStore
    from projections.events.model import ScoreEvent
    from projections.events.pages import Row
    from scoring import Scoring

PAGE_SIZE: Final = 1000
"""Events asked of the store at once: few enough for reading to be given up quickly."""

_POSITIONS_SEARCHED_AT_ONCE: Final = 100_000
_POSITIONS_IN_A_BATCH: Final = 1_000_000
_HANDOVER_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may grow; it ends with the grant that reaches one of these.

    Attributes:
        grants: Grants, buckets, and events that cannot be projected.
        size_bytes: Bytes of encoded grant documents.
    """

    grants: int
    size_bytes: int


class BatchReader:
    """Reads, decodes and encodes one application's grants."""

    def __init__(self, scoring: Scoring, store: AnchoredStore, limits: BatchLimits) -> None:
        """Read from ``scoring``'s store, which is ``store``, too."""
        self._scoring = scoring
        self._store = store
        self._decoder = EventDecoder(scoring.mapper)
        self._limits = limits

    def shrink(self, grants: int) -> None:
        """Let no batch have more grants, of those that are not begun yet."""
        self._limits = replace(self._limits, grants=min(grants, self._limits.grants))

    def batches(
        self, after: Tracked, until: int, *, given_up: Event | None = None
    ) -> Iterator[Batch]:
        """Yield what lies after a tracked position up to another one, which is recorded.

        An event that cannot be decoded becomes a fault of its batch. Reading ends early once
        ``given_up`` is set.

        Raises:
            EventStoreReplaced: if what a batch continues is not in the store any more.
        """
        batch = _Growing(self._scoring.name, after)
        searched = after.position or 0
        while searched < until and not (given_up is not None and given_up.is_set()):
            # Only what is projected is read: claims are many, and they are moved over unseen.
            # The stretch is bounded, for a store may hold millions of other applications' events.
            # Its end is read before what it holds, and what it continues is looked for afterwards:
            # so nothing is taken for one history that is of two, whenever the store is replaced.
            end = self._store.first_from(
                min(until, searched + _POSITIONS_SEARCHED_AT_ONCE), batch.anchor
            )
            if end is None:
                break  # the store went back, if not behind what was read: its newest is another
            page = read_page(
                self._scoring.recorder,
                after=searched,
                stop=end.position,
                limit=PAGE_SIZE,
                topics=TOPICS,
            )
            if batch.anchor is not None:
                self._store.check_anchor(batch.anchor)
            readable: Notification | Row | None = None
            for notification in page:
                if self._add(notification, batch):
                    readable = notification
                if batch.has_reached(self._limits):
                    self._fasten(batch, readable)
                    yield batch.sealed(notification.id)
                    batch, readable = batch.following(notification.id), None
            self._fasten(batch, readable)
            searched = page[-1].id if len(page) == PAGE_SIZE else end.position
            if searched == end.position and not batch.is_at_fault(searched):
                batch.anchor = end
            if searched - (batch.after.position or 0) >= _POSITIONS_IN_A_BATCH:
                yield batch.sealed(searched)
                batch = batch.following(searched)
        if searched > (batch.after.position or 0):
            yield batch.sealed(searched)

    def _fasten(self, batch: _Growing, readable: Notification | Row | None) -> None:
        """Take the last event of a batch that could be read as its anchor."""
        if readable is not None:
            batch.anchor = self._store.anchor(readable, batch.anchor)

    def _add(self, notification: Notification | Row, batch: _Growing) -> bool:
        """Add an event; return whether it can be projected."""
        event = decoded(notification, self._decoder)
        if isinstance(event, Fault):
            batch.faults.append(event)
            return False
        if isinstance(event, GrantEvent):
            try:
                document = encoded(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this grant's
                batch.faults.append(Fault.of(event, str(error)))
                return False
            batch.documents.append(document)
            batch.size_bytes += len(document)
        batch.events.append(event)
        return True


def decoded(notification: Notification | Row, decoder: EventDecoder) -> ScoreEvent | Fault:
    """Return the grant or bucket of a notification, or what is wrong with it."""
    try:
        return decoder.decode(notification)
    except PoisonEvent as poison:
        return Fault(poison.position, poison.stream, poison.topic, poison.reason)


class _Growing:
    """A batch that is being read."""

    def __init__(self, application_name: str, after: Tracked) -> None:
        self.application_name = application_name
        self.after, self.anchor = after, after.anchor
        self.events: list[ScoreEvent] = []
        self.faults: list[Fault] = []
        self.documents: list[bytes] = []
        self.size_bytes = 0

    def has_reached(self, limits: BatchLimits) -> bool:
        return (
            len(self.events) + len(self.faults) >= limits.grants
            or self.size_bytes >= limits.size_bytes
        )

    def is_at_fault(self, position: int) -> bool:
        # The event at fault is no anchor: it may be mended in its place.
        return bool(self.faults) and self.faults[-1].position == position

    def following(self, position: int) -> _Growing:
        return _Growing(self.application_name, Tracked(position, self.anchor))

    def sealed(self, position: int) -> Batch:
        writes = None
        # What cannot be added up or encoded together is refused when the batch is applied, and
        # traced to its event there.
        with suppress(Exception):
            writes = writes_of(self.events, self.documents)
        reached = Tracked(position, self.anchor)
        return Batch(self.application_name, self.after, reached, self.events, self.faults, writes)


@contextmanager
def read_ahead(reader: BatchReader, after: Tracked, until: int) -> Iterator[Iterator[Batch]]:
    """Read in a thread of its own, one batch ahead of the one that is being written.

    While MongoDB works on a batch the next one is read, decoded and encoded. Two batches at most
    are in memory: one being written, and one being made or waiting. What is left when the block
    ends is thrown away.
    """
    waiting: SimpleQueue[Batch | BaseException | None] = SimpleQueue()
    taken, given_up = Event(), Event()

    def hand_over(item: Batch | BaseException | None) -> None:
        taken.clear()
        waiting.put(item)
        while not (taken.wait(_HANDOVER_SECONDS) or given_up.is_set()):
            continue

    def produce() -> None:
        try:
            for batch in reader.batches(after, until, given_up=given_up):
                hand_over(batch)
            hand_over(None)
        except BaseException as error:  # noqa: BLE001 - raised again where batches are written
            hand_over(error)

    def consume() -> Iterator[Batch]:
        while (item := waiting.get()) is not None:
            taken.set()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = Thread(target=produce, name="score-ledger-reader", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        given_up.set()
        thread.join()


def events_of_stream(
    scoring: Scoring, stream: str, after: int, until: int
) -> Iterator[ScoreEvent | Fault]:
    """Yield one stream's events after one position up to another, or what is wrong with them.

    Raises:
        ScoringError: if the event store failed, and stayed so.
    """
    decoder = EventDecoder(scoring.mapper)
    searched = after
    while searched < until:
        stretch_end = min(until, searched + _POSITIONS_SEARCHED_AT_ONCE)
        start = searched
        page = read_event_store(
            lambda after=start, stop=stretch_end: read_page(  # type: ignore[misc]
                scoring.recorder,
                after=after,
                stop=stop,
                limit=PAGE_SIZE,
                topics=TOPICS,
            )
        )
        for notification in page:
            if stream_name(notification.originator_id) == stream:
                yield decoded(notification, decoder)
        searched = page[-1].id if len(page) == PAGE_SIZE else stretch_end
