"""``MongoScoreView``: grants, totals and the position they stand for, kept together."""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Condition, Event
from typing import TYPE_CHECKING, Final

import pymongo
from eventsourcing.persistence import Tracking, TrackingRecorder, WaitInterruptedError
from pymongo.errors import PyMongoError

from projections.errors import PositionMoved, ReadModelUnavailable
from projections.events.anchor import Tracked
from projections.mongo.errors import ANSWER_SECONDS, translated
from projections.mongo.liveness import process_identity
from projections.mongo.parking import OnError, Parking
from projections.mongo.positions import Positions
from projections.mongo.transactions import find_server
from projections.mongo.writer import EventWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from projections.mongo.batches import Batch
    from projections.mongo.read_model import ReadModel
    from projections.mongo.writer import Transaction

_NOTED: Final = frozenset({"position", "reason", "pid", "host", "failedAt"})

_ASK_SECONDS: Final = 1.0
_FIRST_LOOK_SECONDS: Final = 0.001
_LONGEST_LOOK_SECONDS: Final = 0.02


class MongoScoreView(TrackingRecorder):
    """The materialised view: grants, totals and the position they stand for, kept together."""

    def __init__(self, read_model: ReadModel) -> None:
        """Use these collections; ``read_model.prepare()`` has been called."""
        self.read_model = read_model
        self.positions = Positions(read_model)
        self.parking = Parking(read_model)
        self._writer = EventWriter(read_model)
        # Waiters in this process need not ask the database to find that something was applied.
        self._applied = Condition()
        self._applied_count = 0

    def insert_tracking(self, tracking: Tracking) -> None:
        """Move the tracked position of an application forward.

        The anchor stays where it is, as nothing is known of the event but its number: it is the
        last event known at or before the position.

        Raises:
            IntegrityError: if it is there already, or further.
        """
        self.positions.insert(tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the tracked position of an application, or ``None``."""
        return self.tracked(application_name).position

    def tracked(self, application_name: str) -> Tracked:
        """Return the tracked position of an application, and its anchor."""
        return self.positions.tracked(application_name)

    def tracked_soon(self, application_name: str) -> Tracked:
        """Return what is tracked, without making a worker wait that is to stop.

        Raises:
            ReadModelUnavailable: if MongoDB does not answer within a second, among other things.
        """
        with pymongo.timeout(_ASK_SECONDS):
            return self.tracked(application_name)

    def check_collections(self) -> None:
        """Check that the read model is whole, unless it was found so a moment ago.

        What is dropped since then is noticed by the batch that would go there.

        Raises:
            ReadModelDamaged: if something is missing that cannot be made again.
            ReadModelUnavailable: if MongoDB failed, among other things.
        """
        inventory = self.read_model.inventory
        if not (inventory.is_fresh and inventory.is_guarded):
            with translated():
                find_server(self.read_model.client)
            inventory.check(seconds=_ASK_SECONDS)

    def record_failure(self, application_name: str, *, reason: str) -> None:
        """Leave a note on why a worker gave up, for ``status``; best effort."""
        with suppress(PyMongoError, ReadModelUnavailable), pymongo.timeout(ANSWER_SECONDS):
            find_server(self.read_model.client)
            self.read_model.workers.update_one(
                {"_id": _failure_id(application_name)},
                {
                    "$set": {
                        **process_identity(),
                        "position": self.max_tracking_id(application_name),
                        "reason": reason,
                    },
                    "$currentDate": {"failedAt": True},
                },
                upsert=True,
            )

    def failure(self, application_name: str) -> str | None:
        """Return why a worker gave up, if no worker has come further since."""
        with translated():
            found = self.read_model.workers.find_one({"_id": _failure_id(application_name)})
        if found is None or not found.keys() >= _NOTED:
            return None
        if found["position"] != self.max_tracking_id(application_name):
            return None
        return (
            f"{found['reason']} [process {found['pid']} on {found['host']}, "
            f"{found['failedAt']:%Y-%m-%d %H:%M:%S} UTC]"
        )

    def wait(
        self,
        application_name: str,
        notification_id: int | None,
        timeout: float = 1.0,
        interrupt: Event | None = None,
        *,
        check: Callable[[Tracked], None] | None = None,
    ) -> None:
        """Block until the tracked position has reached a notification id.

        It returns within a millisecond or so of a worker in this process, and within some twenty
        of one in another process.

        Args:
            application_name: Whose position.
            notification_id: Which one; ``None`` is reached at once.
            timeout: Seconds.
            interrupt: Ends the wait early when set.
            check: Told what is tracked, at first and until it has an anchor; may raise. What has
                the right anchor once can only be moved by batches that continue it.

        Raises:
            TimeoutError: if it is not reached by then.
            WaitInterruptedError: if ``interrupt`` was set first.
            ReadModelUnavailable: if MongoDB failed, and not just for a moment.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST_LOOK_SECONDS
        seen = Tracked()
        while True:
            # Before it is asked: a machine that was paused meanwhile looks once more.
            is_over = time.monotonic() >= deadline
            with self._applied:
                applied_before = self._applied_count
            try:
                with pymongo.timeout(max(_ASK_SECONDS, deadline - time.monotonic())):
                    tracked = self.tracked(application_name)
                if check is not None and seen.anchor is None and tracked != seen:
                    check(tracked)
                    seen = tracked
                if notification_id is None or (tracked.position or 0) >= notification_id:
                    return
            except ReadModelUnavailable as error:
                if not error.transient or is_over:
                    raise
            if interrupt is not None and interrupt.is_set():
                raise WaitInterruptedError
            if is_over:
                raise TimeoutError(
                    f"position {notification_id} of {application_name} was not projected within "
                    f"{timeout:g} s: check with score-ledger status that a worker is running"
                )
            with self._applied:
                if self._applied_count == applied_before:
                    self._applied.wait(min(pause, deadline - time.monotonic()))
            pause = min(pause * 1.5, _LONGEST_LOOK_SECONDS)

    def apply(self, batch: Batch, *, on_error: OnError = "stop", stop: Event | None = None) -> None:
        """Add a batch in one transaction: grants, buckets, totals and the position, or nothing.

        Args:
            batch: What to add.
            on_error: What becomes of the batch's faults: they park their streams in the same
                transaction, or stop the worker.
            stop: When set, what failed is not tried again.

        Raises:
            PositionMoved: if what the batch continues is not tracked; nothing was changed.
            PoisonEvent: at the first fault, if that is to stop; nothing was changed.
            BatchRefused: if MongoDB refuses something in the batch; nothing was changed.
            BatchTooSlow: if it took longer than MongoDB keeps a transaction, or is more than its
                cache can hold; nothing was changed.
            ShapeChanged: if the live documents have another shape by now.
            RebuildSuperseded: if the view's generation is not being built any more.
            ReadModelUnavailable: if MongoDB failed; the batch may be applied again.
        """

        def add(transaction: Transaction) -> None:
            # First, so that of two workers one stops before it has done the work.
            session = transaction.session
            transaction.recall(*self.positions.move(batch, session))
            events = self.parking.park_and_filter(batch, session, on_error=on_error)
            foreign = transaction.add(events, batch.writes)
            name = batch.application_name
            self.positions.count_foreign(name, foreign, session)

        try:
            self.commit(add, stop=stop)
        except PositionMoved:
            # Perhaps a switch holds it: then there is nothing to be read anew before it is over.
            self.read_model.generations.await_release(batch.application_name)
            raise

    def commit(self, body: Callable[[Transaction], None], *, stop: Event | None = None) -> None:
        """Commit a transaction that adds events; see ``EventWriter.commit``."""
        self._writer.commit(body, stop=stop)
        with self._applied:
            self._applied_count += 1
            self._applied.notify_all()

    def close(self) -> None:
        """End the session that batches were applied with; the client stays open."""
        self._writer.close()


def _failure_id(application_name: str) -> str:
    return f"failure/{application_name}"
