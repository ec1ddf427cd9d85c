"""``ProjectionWorker``: reads the event store in batches and applies them to the view."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from projections.batches import Batch
from projections.errors import PoisonEvent, PositionMoved
from projections.projection import ScoreGrantsProjection, decoded

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from projections.mongo import MongoScoreView
    from scoring import Scoring

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE: Final = 5000
"""Grants in one transaction: large enough to be fast, small enough to stop within a second."""

_SHORTEST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5
_PAUSE_AFTER_LOSING_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker has come.

    Attributes:
        position: The tracked position; 0 before the first batch.
        newest: The newest position of the event store when it was last asked.
        grants: How many grants this worker has projected.
    """

    position: int
    newest: int
    grants: int


class ProjectionWorker:
    """Projects an application's grants, one transaction per batch.

    Several workers may run at once: each batch compares and sets the tracked position in its
    transaction, so one of them wins and the others read the position anew.
    """

    def __init__(
        self,
        app: Scoring,
        view: MongoScoreView,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Project ``app`` into ``view``, ``batch_size`` grants to a transaction."""
        self._app = app
        self._view = view
        self._batch_size = batch_size
        self._on_progress = on_progress
        self._grants = 0

    def catch_up(self, *, stop: Event | None = None) -> int:
        """Project everything recorded up to now and return the tracked position.

        Args:
            stop: When set, stop at the next boundary between batches.

        Raises:
            PoisonEvent: at an event that cannot be projected; everything before it is.
            ReadModelUnavailable: if MongoDB failed.
        """
        until = self._app.recorder.max_notification_id() or 0
        while True:
            position = self._view.max_tracking_id(self._app.name)
            if (position or 0) >= until or (stop is not None and stop.is_set()):
                self._report(position or 0, max(until, position or 0))
                return position or 0
            try:
                self._run_from(position, until, stop)
            except PositionMoved as moved:
                logger.info("%s", moved)

    def follow(self, stop: Event) -> None:
        """Project what is recorded, as it is recorded, until ``stop`` is set.

        Raises:
            PoisonEvent: at an event that cannot be projected; everything before it is.
            ReadModelUnavailable: if MongoDB failed.
        """
        pause = _SHORTEST_PAUSE_SECONDS
        position = self._view.max_tracking_id(self._app.name)
        while not stop.is_set():
            newest = self._app.recorder.max_notification_id() or 0
            if newest > (position or 0):
                try:
                    position = self._run_from(position, newest, stop)
                    pause = _SHORTEST_PAUSE_SECONDS
                except PositionMoved as moved:
                    logger.info("%s", moved)
                    stop.wait(_PAUSE_AFTER_LOSING_SECONDS)
                    position = self._view.max_tracking_id(self._app.name)
            else:
                self._report(position or 0, newest)
                stop.wait(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _run_from(self, position: int | None, until: int, stop: Event | None) -> int | None:
        """Apply batches from just after ``position`` up to ``until``, which is recorded."""
        while (position or 0) < until and not (stop is not None and stop.is_set()):
            batch = self._read(position, until)
            self._view.apply(batch)
            position = batch.position
            self._grants += len(batch.grants)
            self._report(position, until)
        return position

    def _read(self, after: int | None, until: int) -> Batch:
        # Only what is projected is read: claims are many, and they are moved over unseen.
        notifications = self._app.recorder.select_notifications(
            start=after,
            limit=self._batch_size,
            stop=until,
            topics=ScoreGrantsProjection.topics,
            inclusive_of_start=False,
        )
        full = len(notifications) == self._batch_size
        batch = Batch(self._app.name, after, notifications[-1].id if full else until)
        for notification in notifications:
            try:
                batch.add(decoded(notification, self._app.mapper))
            except PoisonEvent:
                # What lies before the poison is applied first; the next read starts with it.
                if batch.last_position is None:
                    raise
                batch.position = batch.last_position
                break
        return batch

    def _report(self, position: int, newest: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(position, newest, self._grants))
