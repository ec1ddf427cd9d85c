"""Adding events to the collections, each once, in a transaction with what moves over them."""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final

from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure

from projections.errors import BatchRefused
from projections.mongo.batches import writes_of
from projections.mongo.collections import LOADING
from projections.mongo.committed import Committed, Known
from projections.mongo.errors import is_duplicate_key, is_other_collection, refusal, translated
from projections.mongo.ranks import RANKED, RankCounts
from projections.mongo.redelivery import unseen_events
from projections.mongo.transactions import TransactionRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from threading import Event

    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection

    from projections.events.model import ScoreEvent
    from projections.mongo.batches import UserChange, Writes
    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

_ENCODING_ERRORS: Final = (BSONError, DocumentTooLarge, OverflowError, UnicodeError)
# A command is a document, so at most 16 MiB; and it has at most 100,000 statements.
_COMMAND_BYTES: Final = 12 * 1024 * 1024
_COMMAND_STATEMENTS: Final = 100_000
_ARRAY_ENTRY_BYTES: Final = 8
_LOOKUP_SIZE: Final = 10_000
_MAX_ATTEMPTS: Final = 6  # the first of which looks nothing up


class Transaction:
    """One attempt at adding events.

    Attributes:
        session: The driver's session, for what else belongs into the transaction.
        known: What need not be read; nothing unless ``recall`` was called.
        left: What the transaction leaves.
        has_met: Whether something was there already, or in the place of an event.
    """

    def __init__(
        self,
        read_model: ReadModel,
        session: ClientSession,
        *,
        looks_up: bool,
        last: Committed | None = None,
    ) -> None:
        """Add to these collections, looking up first what is there already, or hoping not.

        ``last`` is what the transaction before this one has left.
        """
        self.session = session
        self.known = Known()
        self.left = Known()
        self._read_model = read_model
        self._looks_up = looks_up
        self._last = last
        self._position: Document | None = None
        self._counts = True
        self.has_met = False

    def committed(self) -> Committed | None:
        """Return what is known once it is committed, if anything."""
        if self._position is None:
            return None
        self.known.learn(self.left)
        return Committed(self._position, self.known)

    def recall(self, before: Document, after: Document) -> None:
        """Begin with what is known, if the document of the position is as it was left.

        Args:
            before: What was found of it.
            after: What the transaction leaves.
        """
        last = self._last
        self.known = last.known if last is not None and last.position == before else Known()
        self.left = Known()
        self._position = after
        self._counts = before["shape"] != LOADING

    def add(self, events: Sequence[ScoreEvent], writes: Writes | None = None) -> int:
        """Add those events that are not there, and return how many of the others are foreign.

        Args:
            events: What to add, in order.
            writes: What they come to, if that was worked out beforehand, and perhaps of more.
        """
        foreign = 0
        if self._looks_up:
            events, foreign, redelivered = unseen_events(events, self._read_model, self.session)
            self.has_met = foreign + redelivered > 0
        if writes is None or writes.event_count != len(events) or self._looks_up:
            writes = writes_of(events, inserts_users=not self._looks_up)
        self.send(writes)
        return foreign

    def send(self, writes: Writes) -> None:
        """Send what events come to; once only."""
        self._send("insert", self._read_model.grants, "documents", writes.grants)
        there = [user for user in writes.changes if user not in writes.new_users]
        before = self._totals(there) if self._counts else {}
        self._send("insert", self._read_model.users, "documents", [*writes.new_users.values()])
        self._send("update", self._read_model.users, "updates", writes.users)
        self._send("update", self._read_model.buckets, "updates", writes.buckets)
        if self._counts:
            self._count(writes.changes, before)

    def _totals(self, user_ids: list[str]) -> dict[str, dict[str, int]]:
        """Return the totals of those users who have some, before they change."""
        totals: dict[str, dict[str, int]] = {}
        for total in RANKED:
            known = self.known.totals.get(total, {})
            totals[total] = {user_id: known[user_id] for user_id in user_ids if user_id in known}
        unknown = [user_id for user_id in user_ids if user_id not in totals[RANKED[0]]]
        for start in range(0, len(unknown), _LOOKUP_SIZE):
            for user in self._read_model.database.cursor_command(
                {
                    "find": self._read_model.users.name,
                    "filter": {"_id": {"$in": unknown[start : start + _LOOKUP_SIZE]}},
                    "projection": dict.fromkeys(RANKED, 1),
                    "batchSize": _LOOKUP_SIZE,
                    **self._read_model.inventory.guard(self._read_model.users.name),
                },
                session=self.session,
            ):
                for total in RANKED:
                    score = user.get(total)
                    if isinstance(score, int):  # as in all that the projection has made
                        totals[total][user["_id"]] = score
        return totals

    def _count(self, changes: dict[str, UserChange], before: dict[str, dict[str, int]]) -> None:
        """Count the users whose totals have changed where they rank now."""
        counts = RankCounts(self._read_model, self.session, self.known.pages)
        for total in RANKED:
            gone, come = [], []
            after = self.left.totals[total] = {}
            for user_id, change in changes.items():
                more = change.total if total == "totalScore" else change.recomputed
                score = before[total].get(user_id)
                after[user_id] = (score or 0) + more
                if score is None:
                    come.append(more)
                elif more:
                    gone.append(score)
                    come.append(score + more)
            counts.move(total, gone, come)
        self.left.pages = counts.pages
        self._send("update", self._read_model.ranks, "updates", counts.updates)
        self._send("delete", self._read_model.ranks, "deletes", counts.deletes)

    def _send(
        self, command: str, collection: Collection[Document], field: str, statements: list[bytes]
    ) -> None:
        """Send encoded statements, as few times as the size of a message allows.

        Not by the driver's bulk writes: they handle every statement in Python once more, which
        takes as long as encoding it did, and the server has nothing to do meanwhile.
        """
        for part in _parts(statements):
            answer = self._read_model.database.command(
                {
                    command: collection.name,
                    field: list(map(RawBSONDocument, part)),
                    **self._read_model.inventory.guard(collection.name),
                },
                session=self.session,
            )
            if answer.get("writeErrors"):
                raise BulkWriteError(answer)


class EventWriter:
    """Commits transactions that add events; threads that share one take turns."""

    def __init__(self, read_model: ReadModel) -> None:
        self._read_model = read_model
        self._lock = Lock()
        self._transactions: TransactionRunner | None = None
        # Nothing is looked up, except after what was there already: in a redelivery, what follows
        # will be there, too.
        self._looks_up = False
        self._last: Committed | None = None

    def commit(self, body: Callable[[Transaction], None], *, stop: Event | None = None) -> None:
        """Run ``body`` in a transaction and commit it, again and again if need be.

        Args:
            body: Called once for each attempt, adds events and moves what stands for how far they
                are projected.
            stop: When set, what failed is not tried again.

        Raises:
            BatchRefused: if MongoDB refuses something in it; nothing was changed.
            BatchTooSlow: if it took longer than MongoDB keeps a transaction, or is more than its
                cache can hold; nothing was changed.
            ReadModelUnavailable: if MongoDB failed; it may be tried again.
        """
        with translated(), self._lock:
            self._read_model.inventory.know()
            try:
                self._commit(body, stop)
            except OperationFailure as error:
                # A collection is gone, which a switch to another generation does, too.
                if not is_other_collection(error) or not self._read_model.inventory.has_changed():
                    raise
                self._commit(body, stop)

    def _commit(self, body: Callable[[Transaction], None], stop: Event | None) -> None:
        if self._transactions is None:
            self._transactions = TransactionRunner(self._read_model)
        last, self._last = self._last, None
        for attempts_left in reversed(range(_MAX_ATTEMPTS)):
            transaction = Transaction(
                self._read_model, self._transactions.session, looks_up=self._looks_up, last=last
            )
            try:
                self._transactions.run(partial(body, transaction), stop=stop, divisible=True)
            except _ENCODING_ERRORS as error:
                raise BatchRefused(str(error)) from error
            except OperationFailure as error:
                reason = refusal(error)
                if reason is not None:
                    raise BatchRefused(reason) from error
                if not (isinstance(error, BulkWriteError) and is_duplicate_key(error)):
                    raise
                if not attempts_left:
                    raise
                # It has aborted the whole transaction. Look up what is there and leave it alone; a
                # foreign writer may still slip something in between.
                self._looks_up = True
            else:
                self._looks_up = transaction.has_met
                self._last = transaction.committed()
                return

    def close(self) -> None:
        """End the session that transactions ran on; the client stays open."""
        with self._lock:
            if self._transactions is not None:
                self._transactions.close()
                self._transactions = None


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
