"""Appending to the chain of events: one document after another, without gaps, in one order for all.

An attempt at a position follows a majority-committed document that ends just before it, and one
document only can have that position. So a successor is inserted after its predecessor was
majority-committed, and every majority read sees a beginning of the chain. Who loses the position to
another one reads the new end and tries again.

An attempt whose answer is lost may have been recorded. It is sent again as it was: the events are
unique, so it cannot be recorded twice, and if it is refused, the token in the document that holds
the first event tells whose that is.

Every attempt names the collection that it means by its UUID. Otherwise one that was dropped would
be made again by an insert, without what makes events unique.

Nobody pauses after losing: the end is read when the winner is acknowledged, and at that moment all
have the same chance again, whoever won.
"""

from __future__ import annotations

import logging
import random
import time
from os import urandom
from typing import TYPE_CHECKING, Any, Final

import pymongo
from eventsourcing.persistence import (
    ConnectionPoolClosedError,
    IntegrityError,
    OperationalError,
    PersistenceError,
)
from pymongo import DESCENDING
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from projections.mongo.catalog import takes_uuids
from projections.mongo.errors import (
    duplicate_key,
    in_words,
    is_access_refused,
    is_duplicate_key,
    is_other_collection,
    is_transient,
)
from projections.mongo.event_store.documents import MAX_EVENTS, UNIQUE_EVENTS, chained
from projections.mongo.event_store.errors import DRIVER_ERRORS, as_persistence_error
from projections.mongo.event_store.writers import Writers
from projections.mongo.sessions import discarding
from scoring.forks import call_in_child
from scoring.retries import remaining_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pymongo import MongoClient
    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection

    from projections.mongo.event_store.commits import Commit
    from projections.mongo.event_store.documents import Document
    from projections.mongo.event_store.foundations import Foundations

logger = logging.getLogger(__name__)

_MAX_SECONDS: Final = 25.0
"""How long a commit is tried: less than a command of the write side has; or what that has left."""

_DOCUMENT_SECONDS: Final = 3.0
_TRANSACTION_SECONDS: Final = 10.0
"""How long one attempt may take before somebody dead is looked for who holds it up."""
_LEAST_SECONDS: Final = 1.0
"""How long it may take in any case."""

_FIRST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.25


class _Refused(Exception):
    """What goes with a position cannot be written: it, a later one or a key of a view is there."""


class EventChain:
    """The end of the chain, for one thread at a time."""

    def __init__(
        self,
        client: MongoClient[Any],
        events: Collection[Document],
        tracking: Collection[Document],
        *,
        foundations: Foundations | None = None,
    ) -> None:
        """Append to these events; nothing is sent yet.

        Args:
            client: To begin sessions with.
            events: The chain.
            tracking: The positions of other applications.
            foundations: Checks what new events build on, if somebody is to.
        """
        self._client, self._events, self._tracking = client, events, tracking
        self._foundations = foundations
        self._writers = Writers(client, f"{events.name}_writers", events.database.name)
        self.reset_after_fork()
        call_in_child(self, EventChain.reset_after_fork)

    def prepare(self) -> None:
        """Create what the chain needs besides its events."""
        self._writers.prepare()

    def reset_after_fork(self) -> None:
        """Forget the session, which in a child that was forked is the parent's."""
        self._session: ClientSession | None = None
        # The last position of our own last commit, unless somebody was met who has followed.
        self._end: int | None = None
        # What names the collection, once it is known.
        self._guard: Document | None = None

    def append(self, commits: Sequence[Commit]) -> None:
        """Record commits in one document or transaction; each is told how it went."""
        token = urandom(8)
        until = time.monotonic() + min(_MAX_SECONDS, remaining_seconds())
        pause = _FIRST_PAUSE_SECONDS
        events = sum(len(commit.events) for commit in commits)
        seconds = _DOCUMENT_SECONDS if events <= MAX_EVENTS else _TRANSACTION_SECONDS
        # A leader that was interrupted may have recorded them.
        has_failed = any(commit.is_unknown for commit in commits)
        while waiting := [commit for commit in commits if not commit.is_over]:
            left = max(_LEAST_SECONDS, until - time.monotonic())
            try:
                with discarding(self._client), pymongo.timeout(min(seconds, left)):
                    if has_failed:
                        self._recognise(waiting)
                        has_failed = False
                        continue
                    for commit in waiting:
                        commit.tokens.add(token)
                    self._attempt(waiting, token)
                if self._end is None and time.monotonic() > until:
                    _fail(waiting, OperationalError("others were faster each time"))
                continue
            except DRIVER_ERRORS as error:
                self._end = None
                has_failed = isinstance(error, PyMongoError) and is_transient(error)
                if not has_failed and len(waiting) > 1:
                    # Which may be for what one of them wants recorded.
                    for commit in waiting:
                        self.append([commit])
                    return
                for commit in waiting:
                    commit.is_unknown |= has_failed
                if not has_failed or time.monotonic() > until:
                    _fail(waiting, as_persistence_error(error), error)
                    return
                self._writers.abort_the_dead()
                logger.info("trying again to append events: %s", as_persistence_error(error))
            except BaseException:
                for commit in waiting:
                    commit.is_unknown = True
                self.reset_after_fork()
                raise
            time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _attempt(self, commits: Sequence[Commit], token: bytes) -> None:
        session = self._session_in_use()
        if self._guard is None:
            self._guard = self._guard_of_collection(session)
        if self._foundations is not None and self._foundations.fail_baseless(commits, session):
            self._forget_collection()
            return
        try:
            first = self._insert(commits, token, session)
        except _Refused as refused:
            self._recognise(commits)
            for commit in commits:
                if not commit.is_over:
                    commit.fail(IntegrityError(str(refused)))
            return
        except PyMongoError as error:
            self._learn_from(error, commits)
            return
        for commit in commits:
            commit.succeed(first)
            first += len(commit.events)
        if self._foundations is not None:
            self._foundations.learn(commits)

    def _learn_from(self, error: PyMongoError, commits: Sequence[Commit]) -> None:
        key = duplicate_key(error)
        if is_other_collection(error):
            self._forget_collection()
            if self._foundations is not None:
                self._foundations.fail_all(commits)
        elif key is None:
            raise error
        elif "_id" in key:
            self._end = None  # another one was faster
        else:
            self._refuse(commits, key["e.s"], key["e.v"])

    def _guard_of_collection(self, session: ClientSession) -> Document:
        if not takes_uuids(self._client):
            return {}
        database = self._events.database
        try:
            found = list(database.list_collections(session, filter={"name": self._events.name}))
        except OperationFailure as error:
            if is_access_refused(error):
                return {}
            raise
        return {"collectionUUID": found[0]["info"]["uuid"]} if found else {}

    def _forget_collection(self) -> None:
        self._end = self._guard = None
        # If it was dropped, and made again by an insert, it is without this.
        self._events.create_indexes([UNIQUE_EVENTS])

    def _insert(self, commits: Sequence[Commit], token: bytes, session: ClientSession) -> int:
        items = [item for commit in commits for item in commit.events]
        tracked = [commit for commit in commits if commit.tracking is not None]
        if not items:
            if any(commit.write for commit in tracked):
                self._insert_all([], tracked, token, session)
            else:
                self._track(tracked, token, session)
            return 0
        if self._end is None:
            self._end = self._last_position(session)
        first = self._end + 1
        documents = chained(items, first, token)
        if len(documents) == 1 and not tracked:
            self._insert_one(documents[0], session)
        else:
            self._insert_all(documents, tracked, token, session)
        self._end = documents[-1]["l"]
        return first

    def _insert_all(
        self,
        documents: Sequence[Document],
        tracked: Sequence[Commit],
        token: bytes,
        session: ClientSession,
    ) -> None:
        self._writers.announce(session)
        try:
            session.start_transaction(
                ReadConcern("majority"), WriteConcern("majority"), ReadPreference.PRIMARY
            )
            if documents:
                self._insert_one(documents[0], session)
            if documents[1:]:
                self._events.insert_many(documents[1:], session=session)
            self._track(tracked, token, session)
            session.commit_transaction()
        except BaseException:
            # It aborts what is still open.
            session.end_session()
            self._session = None
            raise

    def _insert_one(self, document: Document, session: ClientSession) -> None:
        command = {"insert": self._events.name, "documents": [document], **(self._guard or {})}
        if not session.in_transaction:
            command["writeConcern"] = self._events.write_concern.document
        answer = self._events.database.command(command, session=session)
        if answer.get("writeErrors"):
            raise BulkWriteError(answer)
        if failure := answer.get("writeConcernError"):
            raise WriteConcernError(failure["errmsg"], failure["code"], answer)

    def _track(self, commits: Iterable[Commit], token: bytes, session: ClientSession) -> None:
        for commit in commits:
            tracking = commit.tracking
            if tracking is None:
                continue
            position = tracking.notification_id
            try:
                self._tracking.update_one(
                    {"_id": tracking.application_name, "position": {"$lt": position}},
                    {"$set": {"position": position, "c": token}},
                    upsert=True,
                    session=session,
                )
            except DuplicateKeyError as error:
                raise _Refused(f"{tracking} or a later one is recorded") from error
            if commit.write is not None:
                try:
                    commit.write(session)
                except PyMongoError as error:
                    if is_duplicate_key(error):
                        raise _Refused(in_words(error)) from error
                    raise

    def _recognise(self, commits: Sequence[Commit]) -> None:
        """Find out which commits an earlier attempt of ours has recorded."""
        session = self._session_in_use()
        for commit in commits:
            if commit.events:
                first = commit.events[0]
                found = self._holder(first["s"], first["v"])
            elif commit.tracking is not None:
                name = commit.tracking.application_name
                found = self._tracking.find_one({"_id": name}, session=session)
            else:
                continue
            if found is not None and found.get("c") in commit.tokens:
                commit.succeed(_position_in(found, commit))

    def _refuse(self, commits: Sequence[Commit], stream: bytes | str, version: int) -> None:
        """Fail whoever wants an event that is there already, unless it is its own."""
        for commit in commits:
            if not any((item["s"], item["v"]) == (stream, version) for item in commit.events):
                continue
            if commit.is_unknown:
                self._recognise([commit])
            if not commit.is_over:
                commit.fail(IntegrityError(f"version {version} of a stream is recorded already"))

    def _holder(self, stream: bytes | str, version: int) -> Document | None:
        # Later than the answer that it is there, and for good.
        return self._events.find_one(
            {"e": {"$elemMatch": {"s": stream, "v": version}}},
            {"c": 1, "e.s": 1, "e.v": 1},
            session=self._session_in_use(),
        )

    def _last_position(self, session: ClientSession) -> int:
        last = self._events.find_one({}, {"l": 1}, sort=[("_id", DESCENDING)], session=session)
        return 0 if last is None else last["l"]

    def _session_in_use(self) -> ClientSession:
        if self._session is None:
            self._session = self._client.start_session(causal_consistency=True)
        return self._session


def _position_in(document: Document, commit: Commit) -> int:
    if not commit.events:
        return 0
    first = commit.events[0]
    places = [(item["s"], item["v"]) for item in document["e"]]
    position: int = document["_id"] + places.index((first["s"], first["v"]))
    return position


def _fail(
    commits: Sequence[Commit],
    reason: PersistenceError | ConnectionPoolClosedError,
    cause: BaseException | None = None,
) -> None:
    for commit in commits:
        if commit.is_over:
            continue
        # Whatever the last attempt met, an earlier one may have done it.
        error = (
            OperationalError(f"{reason}; the events may be recorded")
            if commit.is_unknown and isinstance(reason, PersistenceError)
            else type(reason)(str(reason))
        )
        error.__cause__ = cause
        commit.fail(error)
