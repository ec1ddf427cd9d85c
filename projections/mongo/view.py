"""``MongoScoreView``: grants, totals and the position they stand for, kept together."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from threading import Condition, Event, Lock
from typing import TYPE_CHECKING, Final

import pymongo
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from eventsourcing.persistence import (
    IntegrityError,
    Tracking,
    TrackingRecorder,
    WaitInterruptedError,
)
from pymongo.errors import (
    BulkWriteError,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)

from projections.errors import BatchRefused, PositionMoved, ReadModelUnavailable
from projections.events.anchor import Tracked
from projections.mongo.batches import Batch, Writes, writes_of
from projections.mongo.collections import NOT_HELD, Document
from projections.mongo.errors import (
    answered,
    is_duplicate_key,
    is_other_collection,
    refusal,
    translated,
)
from projections.mongo.liveness import process_identity
from projections.mongo.parking import OnError, Parking
from projections.mongo.redelivery import unseen_events
from projections.mongo.transactions import TransactionRunner, await_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection

    from projections.events.model import ScoreEvent
    from projections.mongo.read_model import ReadModel
    from projections.patience import Patience

logger = logging.getLogger(__name__)

_ENCODING_ERRORS: Final = (BSONError, DocumentTooLarge, OverflowError, UnicodeError)
# A command is a document, so at most 16 MiB; and it has at most 100,000 statements.
_COMMAND_BYTES: Final = 12 * 1024 * 1024
_COMMAND_STATEMENTS: Final = 100_000
_ARRAY_ENTRY_BYTES: Final = 8
_ATTEMPTS_AGAINST_FOREIGN_WRITERS: Final = 5

_NOTED: Final = frozenset({"position", "reason", "pid", "host", "failedAt"})

_ASK_SECONDS: Final = 1.0
_SHORTEST_ASK_SECONDS: Final = 0.25
_FIRST_LOOK_SECONDS: Final = 0.001
_LONGEST_LOOK_SECONDS: Final = 0.02


class MongoScoreView(TrackingRecorder):
    """The materialised view: grants, totals and the position they stand for, kept together."""

    def __init__(self, read_model: ReadModel) -> None:
        """Use these collections; ``read_model.prepare()`` has been called."""
        self.read_model = read_model
        self.parking = Parking(read_model)
        self._lock = Lock()
        self._transactions: TransactionRunner | None = None
        self._expects_redelivery = False
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
        while True:
            try:
                with answered():
                    self.read_model.positions.update_one(
                        {
                            "_id": self.read_model.position_id(tracking.application_name),
                            "position": {"$not": {"$gte": tracking.notification_id}},
                            **NOT_HELD,
                        },
                        {"$set": {"position": tracking.notification_id}},
                        upsert=True,
                    )
                return
            except ReadModelUnavailable as error:
                if not isinstance(error.__cause__, DuplicateKeyError):
                    raise
                if not self.read_model.generations.await_release(tracking.application_name):
                    raise IntegrityError(
                        f"position {tracking.notification_id} of {tracking.application_name} "
                        "is tracked already"
                    ) from error

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the tracked position of an application, or ``None``."""
        return self.tracked(application_name).position

    def tracked(self, application_name: str) -> Tracked:
        """Return the tracked position of an application, and its anchor."""
        with answered():
            return Tracked.of(
                self.read_model.positions.find_one(
                    {"_id": self.read_model.position_id(application_name)}
                )
            )

    def tracked_soon(self, application_name: str, patience: Patience) -> Tracked:
        """Return what is tracked, without making a worker wait that is to stop.

        Raises:
            ReadModelUnavailable: if MongoDB does not answer within a second, among other things.
        """
        await_server(self.read_model.client, patience)
        with pymongo.timeout(_ASK_SECONDS):
            return self.tracked(application_name)

    def check_collections(self, patience: Patience) -> None:
        """Check that the read model is whole, unless it was found so a moment ago.

        What is dropped since then is noticed by the batch that would go there.

        Raises:
            ReadModelDamaged: if something is missing that cannot be made anew.
            ReadModelUnavailable: if MongoDB failed, among other things.
        """
        inventory = self.read_model.inventory
        if not (inventory.is_fresh and inventory.is_guarded):
            await_server(self.read_model.client, patience)
            inventory.check(seconds=_ASK_SECONDS)

    def record_failure(self, application_name: str, *, reason: str) -> None:
        """Leave a note on why a worker gave up, for ``status``; best effort."""
        with suppress(PyMongoError, ReadModelUnavailable), pymongo.timeout(_ASK_SECONDS):
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

    def foreign_count(self, application_name: str) -> int:
        """Return how many grants met a foreign document in their place and were not added."""
        with answered():
            document = self.read_model.positions.find_one(
                {"_id": self.read_model.position_id(application_name)}
            )
        return 0 if document is None else int(document.get("foreignGrants", 0))

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
            with self._applied:
                applied_before = self._applied_count
            try:
                with pymongo.timeout(max(_SHORTEST_ASK_SECONDS, deadline - time.monotonic())):
                    tracked = self.tracked(application_name)
                if check is not None and seen.anchor is None and tracked != seen:
                    check(tracked)
                    seen = tracked
                if notification_id is None or (tracked.position or 0) >= notification_id:
                    return
            except ReadModelUnavailable as error:
                if not error.transient or time.monotonic() >= deadline:
                    raise
            if interrupt is not None and interrupt.is_set():
                raise WaitInterruptedError
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"position {notification_id} of {application_name} was not projected within "
                    f"{timeout:g} s: check with score-ledger status that a worker is running"
                )
            with self._applied:
                if self._applied_count == applied_before:
                    self._applied.wait(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_LOOK_SECONDS)

    def apply(self, batch: Batch, *, on_error: OnError = "stop", stop: Event | None = None) -> None:
        """Add a batch in one transaction: grants, buckets, totals and the position, or nothing.

        Args:
            batch: What to add.
            on_error: What becomes of the batch's faults: they park their streams in the same
                transaction, or stop the worker.
            stop: When set, what failed is not tried again.

        Raises:
            PositionMoved: if the tracked position is not ``batch.after``; nothing was changed.
            PoisonEvent: at the first fault, if that is to stop; nothing was changed.
            BatchRefused: if MongoDB refuses something in the batch; nothing was changed.
            BatchTooSlow: if it took longer than MongoDB keeps a transaction; nothing was changed.
            ShapeChanged: if the live documents have another shape by now.
            RebuildSuperseded: if the view's generation is not being built any more.
            ReadModelUnavailable: if MongoDB failed; the batch may be applied again.
        """

        def events(session: ClientSession) -> Sequence[ScoreEvent]:
            return self.parking.park_and_filter(batch, session, on_error=on_error)

        def move(session: ClientSession, foreign: int) -> None:
            self._move_position(batch, session, foreign=foreign)

        try:
            self._add_once(events, move, writes=batch.writes, stop=stop)
        except PositionMoved:
            # Perhaps a switch holds it: then there is nothing to be read anew before it is over.
            self.read_model.generations.await_release(batch.application_name)
            raise

    def add_left_behind(
        self,
        events: Callable[[ClientSession], Sequence[ScoreEvent]],
        move: Callable[[ClientSession, int], None],
        *,
        stop: Event | None = None,
    ) -> None:
        """Add events of a parked stream in one transaction; see ``Unparker``.

        Args:
            events: Called in the transaction, returns what to add.
            move: Called in the transaction with the number of foreign grants among them, moves
                what stands for how far the stream is projected.
            stop: When set, what failed is not tried again.

        Raises:
            BatchRefused: if MongoDB refuses one of them; nothing was changed.
            BatchTooSlow: if it took longer than MongoDB keeps a transaction; nothing was changed.
            ReadModelUnavailable: if MongoDB failed; it may be tried again.
        """
        self._add_once(events, move, writes=None, stop=stop)

    def _add_once(
        self,
        events: Callable[[ClientSession], Sequence[ScoreEvent]],
        move: Callable[[ClientSession, int], None],
        *,
        writes: Writes | None,
        stop: Event | None,
    ) -> None:
        """Add events, each once whatever is there already, and move a position with them."""
        with translated(), self._lock:
            self.read_model.inventory.know()
            try:
                self._add_unseen(events, move, writes=writes, stop=stop)
            except OperationFailure as error:
                # A collection is gone, which a switch to another generation does, too.
                if not is_other_collection(error) or not self.read_model.inventory.has_changed():
                    raise
                self._add_unseen(events, move, writes=writes, stop=stop)
        with self._applied:
            self._applied_count += 1
            self._applied.notify_all()

    def _add_unseen(
        self,
        events: Callable[[ClientSession], Sequence[ScoreEvent]],
        move: Callable[[ClientSession, int], None],
        *,
        writes: Writes | None,
        stop: Event | None,
    ) -> None:
        """Add those events that are not there.

        The writes that were worked out beforehand are those of all events in question; they are
        used unless some of these are left out.
        """
        found_present = False

        def add_unseen(session: ClientSession) -> None:
            move(session, 0)
            chosen = events(session)
            if writes is not None and writes.event_count == len(chosen):
                self._add(writes, session)
            else:
                self._add(writes_of(chosen), session)

        def add_missing(session: ClientSession) -> None:
            nonlocal found_present
            unseen, foreign, seen = unseen_events(events(session), self.read_model, session)
            found_present = foreign + seen > 0
            move(session, foreign)
            self._add(writes_of(unseen), session)

        if self._transactions is None:
            self._transactions = TransactionRunner(self.read_model)
        try:
            # The fast path looks nothing up, except after a batch that was there already:
            # in a redelivery the next one will be, too.
            if self._expects_redelivery or not self._try_to_run(add_unseen, stop):
                # The duplicate key has aborted the whole transaction. Look up what is there
                # and leave it alone; a foreign writer may still slip something in between.
                for _ in range(_ATTEMPTS_AGAINST_FOREIGN_WRITERS - 1):
                    if self._try_to_run(add_missing, stop):
                        break
                else:
                    self._transactions.run(add_missing, stop=stop, divisible=True)
                self._expects_redelivery = found_present
        except _ENCODING_ERRORS as error:
            raise BatchRefused(str(error)) from error
        except OperationFailure as error:
            reason = refusal(error)
            if reason is None:
                raise
            raise BatchRefused(reason) from error

    def _try_to_run(self, work: Callable[[ClientSession], None], stop: Event | None) -> bool:
        """Run a transaction; false if it met a duplicate key."""
        assert self._transactions is not None  # noqa: S101 - for the type checker
        try:
            self._transactions.run(work, stop=stop, divisible=True)
        except BulkWriteError as error:
            if not is_duplicate_key(error):
                raise
            return False
        return True

    def close(self) -> None:
        """End the session that batches were applied with; the client stays open."""
        with self._lock:
            if self._transactions is not None:
                self._transactions.close()
                self._transactions = None

    def _move_position(self, batch: Batch, session: ClientSession, *, foreign: int) -> None:
        # First in the transaction, so that of two workers one stops before it has done the work.
        changes: Document = {"$set": batch.reaches.fields()}
        if foreign:
            changes["$inc"] = {"foreignGrants": foreign}
        try:
            result = self.read_model.positions.update_one(
                {
                    "_id": self.read_model.position_id(batch.application_name),
                    # Its anchor, too: a batch of another history never continues this one.
                    **batch.continues.matching(),
                    **self.read_model.writable,
                },
                changes,
                # Only a live position may be new: one that is gone was of a rebuild that is over.
                upsert=batch.after is None and self.read_model.generation is None,
                session=session,
            )
        except DuplicateKeyError as error:
            raise _position_moved(batch) from error
        if result.matched_count == 0 and result.upserted_id is None:
            raise _position_moved(batch)

    def hold_position(self, application_name: str, session: ClientSession) -> Tracked:
        """Return what is tracked, and keep workers from moving it until the transaction ends.

        It is held by being written, so that a worker's transaction at the same time conflicts, and
        so does a switch to another generation.

        Raises:
            PositionMoved: if a switch holds it.
        """
        held = self.read_model.positions.find_one_and_update(
            {"_id": self.read_model.position_id(application_name), **self.read_model.writable},
            {"$inc": {"unparkings": 1}},
            session=session,
        )
        if held is None:
            raise PositionMoved(f"the position of {application_name} is held by a switch")
        return Tracked.of(held)

    def count_foreign(self, application_name: str, foreign: int, session: ClientSession) -> None:
        """Count grants that met a foreign document in their place."""
        if foreign:
            self.read_model.positions.update_one(
                {"_id": self.read_model.position_id(application_name)},
                {"$inc": {"foreignGrants": foreign}},
                session=session,
            )

    def _add(self, writes: Writes, session: ClientSession) -> None:
        self._send("insert", self.read_model.grants, "documents", writes.grants, session)
        self._send("update", self.read_model.users, "updates", writes.users, session)
        self._send("update", self.read_model.buckets, "updates", writes.buckets, session)

    def _send(
        self,
        command: str,
        collection: Collection[Document],
        field: str,
        statements: list[bytes],
        session: ClientSession,
    ) -> None:
        """Send encoded statements, as few times as the size of a message allows.

        Not by the driver's bulk writes: they handle every statement in Python once more, which
        takes as long as encoding it did, and the server has nothing to do meanwhile.
        """
        for part in _parts(statements):
            answer = self.read_model.database.command(
                {
                    command: collection.name,
                    field: list(map(RawBSONDocument, part)),
                    **self.read_model.inventory.guard(collection.name),
                },
                session=session,
            )
            if answer.get("writeErrors"):
                raise BulkWriteError(answer)


def _failure_id(application_name: str) -> str:
    return f"failure/{application_name}"


def _parts(statements: list[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for statement in statements:
        size += len(statement) + _ARRAY_ENTRY_BYTES
        if size > _COMMAND_BYTES or len(part) == _COMMAND_STATEMENTS:
            yield part
            part, size = [], len(statement) + _ARRAY_ENTRY_BYTES
        part.append(statement)
    if part:
        yield part


def _position_moved(batch: Batch) -> PositionMoved:
    return PositionMoved(
        f"the tracked position of {batch.application_name} is no longer {batch.after}: "
        "another worker is at work"
    )
