"""``ProjectionWorker``: reads the event store in batches and applies them to the view."""

from __future__ import annotations

import logging
import random
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Final

from projections.errors import (
    BatchRefused,
    BatchTooSlow,
    PoisonEvent,
    PositionMoved,
    ProjectionError,
    ReadModelUnavailable,
)
from projections.events.anchor import Tracked
from projections.events.anchored_store import AnchoredStore
from projections.events.wakeups import WakeUps
from projections.retries import retries_until
from projections.worker.batch_reader import PAGE_SIZE, BatchLimits, BatchReader, read_ahead
from scoring.errors import ScoringError
from scoring.retries import STORE_ERRORS, reads_translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from projections.mongo import MongoScoreView
    from projections.mongo.batches import Batch
    from projections.mongo.parking import OnError
    from scoring import Scoring
    from scoring.retries import Retries

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE: Final = 40_000
"""Grants in one transaction. The more there are the fewer times a user's sums are written, which
takes twice as long as inserting a grant; but it must fit MongoDB's cache, and a worker is to stop
within a second or two."""

DEFAULT_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Bytes of documents in one transaction, in which so many ordinary grants fit."""

_SHORTEST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_LOOKING_SECONDS: Final = 0.05
_LONGEST_PAUSE_LISTENING_SECONDS: Final = 0.5
_PAUSE_AFTER_LOSING_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker has come.

    Attributes:
        position: The tracked position; 0 before the first batch.
        newest: The newest position of the event store when it was last asked.
        grants: How many grants, and buckets of the old way, this worker has projected.
    """

    position: int
    newest: int
    grants: int


class ProjectionWorker:
    """Projects an application's grants, one transaction per batch.

    Several workers may run at once: each batch compares and sets the tracked position in its
    transaction, so one of them wins; the others stand by and take over when it stops.
    """

    def __init__(
        self,
        scoring: Scoring,
        view: MongoScoreView,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        on_error: OnError = "stop",
        on_progress: Callable[[Progress], None] | None = None,
        around_batch: Callable[[Batch], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Project ``scoring`` into ``view``.

        Args:
            scoring: Whose grants.
            view: Where they go.
            batch_size: Most grants in a transaction.
            batch_bytes: So many bytes of documents are enough for a transaction, too.
            on_error: An event that cannot be projected stops the worker, or parks its stream.
            on_progress: Called after every batch and every look at an idle store.
            around_batch: Returns a context to apply a batch in, as for tracing.
        """
        self._scoring = scoring
        self._view = view
        self._store = AnchoredStore(scoring, view.read_model)
        limits = BatchLimits(grants=batch_size, size_bytes=batch_bytes)
        self._reader = BatchReader(scoring, self._store, limits)
        self._on_error: OnError = on_error
        self._on_progress = on_progress
        self._around_batch = around_batch
        self._grants = 0

    def catch_up(self, *, stop: Event | None = None) -> int:
        """Project everything recorded up to now and return the tracked position.

        Args:
            stop: When set, stop at the next boundary between batches.

        Raises:
            EventStoreReplaced: if the store is not the one that was projected so far, or went back.
            PoisonEvent: at an event that cannot be projected; everything before it is.
            ReadModelUnavailable: if MongoDB failed, and stayed so.
            ScoringError: if the event store failed, and stayed so.
        """
        return self._run(stop or Event(), wake_ups=None)

    def follow(self, stop: Event) -> None:
        """Project what is recorded, as it is recorded, until ``stop`` is set.

        Raises:
            EventStoreReplaced: if the store is not the one that was projected so far, or went back.
            PoisonEvent: at an event that cannot be projected; everything before it is.
            ReadModelUnavailable: if MongoDB failed, and stayed so.
            ScoringError: if the event store failed, and stayed so.
        """
        with WakeUps(self._scoring) as wake_ups:
            self._run(stop, wake_ups=wake_ups)

    def _run(self, stop: Event, *, wake_ups: WakeUps | None) -> int:
        """Project until ``stop`` is set or, without wake-ups, all that is recorded by now."""
        until: int | None = None
        tracked = Tracked()
        position_is_known = has_lost = False
        pause = _SHORTEST_PAUSE_SECONDS
        retries = retries_until(stop)
        with self._failure_on_record():
            while not stop.is_set():
                try:
                    if until is None or wake_ups is not None:
                        until = self._scoring.recorder.max_notification_id() or 0
                    if has_lost:
                        self._stand_by(until, stop, retries)
                        has_lost = False
                    if not position_is_known:
                        self._view.check_collections()
                        tracked = self._view.tracked_soon(self._scoring.name)
                        self._store.check(tracked)
                        position_is_known = True
                    position = tracked.position or 0
                    if position < until:
                        tracked = self._advance(tracked, until, stop, retries)
                        if (tracked.position or 0) < until:
                            until = None  # it is gone: the store went back meanwhile
                        pause = _SHORTEST_PAUSE_SECONDS
                        continue
                    if position > until:
                        # Recorded since it was asked for the newest, or the store went back.
                        self._store.check(tracked)
                    retries.reset()
                    self._report(position, max(until, position))
                    if wake_ups is None:
                        break
                    pause = _idle(wake_ups, pause)
                    # Now and then, for nothing else tells that the database was dropped.
                    position_is_known = self._view.read_model.inventory.is_fresh
                except PositionMoved as moved:
                    logger.info("%s", moved)
                    retries.reset()  # for MongoDB has answered
                    has_lost = True
                    position_is_known = False
                except (ReadModelUnavailable, *STORE_ERRORS) as error:
                    position_is_known = False
                    if not stop.is_set():
                        retries.back_off(error)
        return tracked.position or 0

    def _advance(self, tracked: Tracked, until: int, stop: Event, retries: Retries) -> Tracked:
        """Apply batches from just after ``tracked`` up to ``until``, which is recorded."""
        with self._batches(tracked, until) as batches:
            for batch in batches:
                if stop.is_set():
                    break
                self._apply(batch, stop)
                tracked = batch.reaches
                self._grants += len(batch.events)
                retries.reset()
                self._report(tracked.position or 0, until)
        return tracked

    def _batches(self, tracked: Tracked, until: int) -> AbstractContextManager[Iterator[Batch]]:
        # A thread pays where there is much to read; a few new grants are faster without.
        if until - (tracked.position or 0) > PAGE_SIZE:
            return read_ahead(self._reader, tracked, until)
        return nullcontext(self._reader.batches(tracked, until))

    def _apply(self, batch: Batch, stop: Event) -> None:
        """Apply a batch; if something in it cannot be, then what lies before that, and so on."""
        try:
            with self._around_batch(batch):
                self._view.apply(batch, on_error=self._on_error, stop=stop)
        except PoisonEvent as poison:
            if poison.position - 1 > (batch.continues.position or 0):
                before, _ = self._cut(batch, poison.position - 1)
                self._apply(before, stop)
            raise
        except (BatchRefused, BatchTooSlow) as error:
            if isinstance(error, BatchTooSlow):
                # It would be so again with all that are yet to be read.
                self._reader.shrink(max(1, len(batch.events) // 2))
            if len(batch.events) > 1:
                # Halved until it is quick enough, or the culprit stands alone; the order is kept.
                middle = batch.events[len(batch.events) // 2 - 1].position
                for half in self._cut(batch, middle):
                    self._apply(half, stop)
            elif batch.events and isinstance(error, BatchRefused):
                self._apply(batch.with_events_at_fault(str(error)), stop)
            else:
                raise

    def _cut(self, batch: Batch, position: int) -> tuple[Batch, Batch]:
        """Cut a batch at a position, with the last event of the first part as an anchor there."""
        last = max((e.position for e in batch.events if e.position <= position), default=None)
        if last is None:
            return batch.cut(Tracked(position, batch.continues.anchor))
        anchor = self._store.first_from(last, batch.continues.anchor)
        # Looked for afterwards, so that the anchor is of the history that was read.
        self._store.check(batch.reaches)
        return batch.cut(Tracked(position, anchor))

    def _stand_by(self, until: int, stop: Event, retries: Retries) -> None:
        """Wait while another worker moves the position; return when it has stopped doing so.

        Competing with it would cost both: the loser has read a batch for nothing, and its
        transaction holds up the winner's.
        """
        last = -1
        while not stop.wait(_PAUSE_AFTER_LOSING_SECONDS * random.uniform(0.5, 1)):  # noqa: S311
            position = self._view.tracked_soon(self._scoring.name).position or 0
            retries.reset()
            if position in {last, until} or position > until:
                return
            last = position

    @contextmanager
    def _failure_on_record(self) -> Iterator[None]:
        try:
            with reads_translated():
                yield
        except (ProjectionError, ScoringError) as error:
            self._view.record_failure(self._scoring.name, reason=str(error))
            raise

    def _report(self, position: int, newest: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(position, newest, self._grants))


def _idle(wake_ups: WakeUps, pause: float) -> float:
    """Wait for something to be recorded, and return how long to wait the next time."""
    if wake_ups.wait(pause):
        return _SHORTEST_PAUSE_SECONDS
    longest = (
        _LONGEST_PAUSE_LISTENING_SECONDS
        if wake_ups.covers_all_writers
        else _LONGEST_PAUSE_LOOKING_SECONDS
    )
    return min(pause * 1.5, longest)
