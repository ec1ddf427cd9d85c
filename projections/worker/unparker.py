"""Projecting what was left behind of a parked stream, in order and exactly once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Final

from projections.errors import BatchRefused, BatchTooSlow, PositionMoved
from projections.events.anchored_store import AnchoredStore
from projections.events.model import Fault, ScoreEvent
from projections.worker.batch_reader import events_of_stream
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from projections.events.anchor import Tracked
    from projections.mongo import MongoScoreView
    from projections.mongo.parking import ParkedStream
    from projections.mongo.writer import Transaction
    from scoring import Scoring

logger = logging.getLogger(__name__)

_CHUNK: Final = 1000
"""Grants in one transaction, so that a stream of any length is unparked in bounded memory."""


@dataclass(slots=True)
class Unparked:
    """What became of the parked streams.

    Attributes:
        streams: How many are not parked any more.
        grants: How many grants were projected.
        still_parked: Those with an event that still cannot be projected.
    """

    streams: int = 0
    grants: int = 0
    still_parked: list[ParkedStream] = field(default_factory=list)


class Unparker:
    """Retries parked streams; workers may go on meanwhile.

    A long stream is projected in chunks. Each moves the place where the stream is parked, in its
    own transaction; the last one takes the stream off the list. That one writes the document of the
    tracked position, too: a worker that passes an event of the stream at this moment conflicts with
    it, and reads the list again.
    """

    def __init__(
        self,
        scoring: Scoring,
        view: MongoScoreView,
        *,
        stop: Event | None = None,
        on_grants: Callable[[int], None] | None = None,
    ) -> None:
        """Read from ``scoring`` and project into ``view``.

        Args:
            scoring: Whose streams.
            view: Where they are parked; the live one, for one that is loading counts no ranks yet.
            stop: When set, stop after the next transaction.
            on_grants: Told how many grants each transaction has projected.
        """
        self._scoring = scoring
        self._view = view
        self._store = AnchoredStore(scoring, view.read_model)
        self._stop = stop or Event()
        self._on_grants = on_grants
        self._outcome = Unparked()

    def run(self, parked: Sequence[ParkedStream]) -> Unparked:
        """Retry these streams.

        Raises:
            EventStoreReplaced: if the store is not the one that was projected so far, or went back.
            ReadModelUnavailable: if MongoDB failed; what was projected until then stays.
            ScoringError: if the event store failed.
        """
        for stream in parked:
            if self._stop.is_set():
                self._outcome.still_parked.append(stream)
                continue
            left = self._retry(stream)
            if left is None:
                self._outcome.streams += 1
            else:
                self._outcome.still_parked.append(left)
        return self._outcome

    def _retry(self, parked: ParkedStream) -> ParkedStream | None:
        """Project a stream as far as possible; return where it is parked now, if it still is."""
        chunk = _CHUNK
        while not self._stop.is_set():
            until = self._view.max_tracking_id(self._scoring.name) or 0
            grants, end = self._read(parked, until, chunk)
            try:
                if end is None:
                    self._finish(parked, grants, until)
                    return None
                # Even if it stays where it is: what is wrong there may be something else by now.
                self._proceed(parked, grants, end)
                if isinstance(end, Fault):
                    return self._view.parking.find(parked.stream)
            except (BatchRefused, BatchTooSlow) as error:
                if len(grants) > 1:
                    # Chunks shrink until they are quick enough, or the culprit stands alone, with
                    # what is before it done.
                    chunk = len(grants) // 2
                    continue
                if not grants or isinstance(error, BatchTooSlow):
                    raise
                self._proceed(parked, [], Fault.of(grants[0], str(error)))
                return self._view.parking.find(parked.stream)
            except PositionMoved as moved:
                logger.info("%s", moved)
                self._view.read_model.generations.await_release(self._scoring.name)
            found = self._view.parking.find(parked.stream)
            if found is None:  # somebody else has unparked it
                return None
            parked = found
        return parked

    def _read(
        self, parked: ParkedStream, until: int, limit: int
    ) -> tuple[list[ScoreEvent], ScoreEvent | Fault | None]:
        """Return a stream's next grants, and the fault or the event at which they end."""
        grants: list[ScoreEvent] = []
        for event in events_of_stream(self._scoring, parked.stream, parked.position - 1, until):
            if isinstance(event, Fault) or len(grants) == limit:
                return grants, event
            grants.append(event)
        return grants, None

    def _proceed(
        self, parked: ParkedStream, grants: list[ScoreEvent], to: ScoreEvent | Fault
    ) -> None:
        def add(transaction: Transaction) -> None:
            # Also what keeps this transaction from straddling a switch.
            self._check(self._view.positions.hold(self._scoring.name, transaction.session))
            if not self._view.parking.move(parked, to, transaction.session):
                raise _changed(parked)
            self._add(grants, transaction)

        self._view.commit(add, stop=self._stop)
        self._count(len(grants))

    def _finish(self, parked: ParkedStream, grants: list[ScoreEvent], until: int) -> None:
        everything: list[ScoreEvent] = []

        def add(transaction: Transaction) -> None:
            # Workers are held up from here to the commit, so nothing can slip through between.
            held = self._view.positions.hold(self._scoring.name, transaction.session)
            everything[:] = grants
            for event in events_of_stream(self._scoring, parked.stream, until, held.position or 0):
                if isinstance(event, Fault):
                    raise _changed(parked)
                everything.append(event)
            self._check(held)
            if not self._view.parking.remove(parked, transaction.session):
                raise _changed(parked)
            self._add(everything, transaction)

        self._view.commit(add, stop=self._stop)
        self._count(len(everything))

    def _add(self, grants: list[ScoreEvent], transaction: Transaction) -> None:
        foreign = transaction.add(grants)
        self._view.positions.count_foreign(self._scoring.name, foreign, transaction.session)

    def _check(self, tracked: Tracked) -> None:
        # After the events were read, so that they are of the history that was projected.
        read_event_store(lambda: self._store.check(tracked))

    def _count(self, grants: int) -> None:
        self._outcome.grants += grants
        if self._on_grants is not None:
            self._on_grants(grants)


def _changed(parked: ParkedStream) -> PositionMoved:
    return PositionMoved(f"stream {parked.stream} is not as it was found: reading it again")
