"""The library's recorders of events that have positions, and of positions, on the chain."""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final

from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    ListenNotifySubscription,
    ProcessRecorder,
    StoredEvent,
    TrackingRecorder,
)
from pymongo import DESCENDING

from projections.mongo.client import nodes_of
from projections.mongo.event_store.aggregate_recorder import MongoRecorder
from projections.mongo.event_store.chain import EventChain
from projections.mongo.event_store.commits import Commit, together
from projections.mongo.event_store.documents import (
    MAX_EVENTS,
    UNIQUE_EVENTS,
    collection_of,
    decoded,
    encoded,
    event_of,
    notifications,
    stream_key,
    transferred,
)
from projections.mongo.event_store.foundations import Foundations
from projections.mongo.event_store.listeners import Listeners
from projections.mongo.event_store.lookups import beside_any, conditions_at
from projections.mongo.sessions import in_session
from scoring.commit_queue import CommitQueue
from scoring.event_store import GaplessRecorder, predecessors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from eventsourcing.persistence import Notification, Subscription, Tracking
    from pymongo import MongoClient
    from pymongo.client_session import ClientSession

    from projections.mongo.event_store.documents import Document
    from scoring.event_store import Place, WithPrevious

_LEAST_BATCH: Final = 100


class _ChainRecorder(MongoRecorder):
    """What commits go through: one queue and one end of the chain for all threads."""

    def __init__(self, client: MongoClient[Any], database: str, prefix: str) -> None:
        """Use ``<prefix>_events`` and ``<prefix>_tracking``; nothing is sent yet."""
        self._client = client
        self._events = collection_of(client, database, f"{prefix}_events")
        self._tracking = collection_of(client, database, f"{prefix}_tracking")
        self._chain = EventChain(
            client, self._events, self._tracking, foundations=self._foundations()
        )
        self._queue: CommitQueue[Commit] = CommitQueue(self._append, max_members=MAX_EVENTS)
        self.listeners = Listeners(self._events)

    def prepare(self) -> None:
        """Create what commits need besides their collections."""
        with self._asking():
            self._chain.prepare()

    def _foundations(self) -> Foundations | None:
        return None

    def _record(self, commit: Commit) -> None:
        self._check_open()
        self._queue.join(commit)
        if not commit.is_over:  # as whoever led was interrupted
            self._queue.alone(lambda: self._append([commit]))
        if commit.error is not None:
            raise commit.error

    def _append(self, commits: Sequence[Commit]) -> None:
        for group in together(commits, most_events=MAX_EVENTS):
            self._chain.append(group)


class MongoApplicationRecorder(_ChainRecorder, ApplicationRecorder):
    """Events with positions, in one chain of documents; see ``documents`` and ``chain``."""

    def prepare(self) -> None:
        """Create the collections and the index that makes events unique."""
        with self._asking():
            self._events.create_indexes([UNIQUE_EVENTS])
        super().prepare()

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Record events together, one position after another, and return these.

        Args:
            stored_events: In the order of their positions.
            kwargs: Among them ``tracking``, which is recorded with them.

        Raises:
            IntegrityError: if one of them, or the tracking or a later one, is there already.
            OperationalError: if the server failed and stayed so; they may be recorded.
            PersistenceError: if the server refused.
        """
        commit = self._as_commit(stored_events, **kwargs)
        if len(commit.places) < len(commit.events):
            raise IntegrityError("the same version of a stream is to be recorded twice")
        if not commit.events and commit.tracking is None:
            return []
        self._record(commit)
        self.listeners.notify()
        return list(range(commit.first, commit.first + len(commit.events)))

    def insert_notifications(self, events: Sequence[Notification]) -> None:
        """Insert events of another store at the positions that they have there.

        They become visible in order, and if this fails the first ones may be there. Positions that
        are left out stay free for ever, and so do those before the first event.

        Raises:
            IntegrityError: if an event or a position is there already.
            PersistenceError: if the server failed.
        """
        with self._asking():
            self._events.insert_many(transferred(events))
        self.listeners.notify()

    def place(self) -> str:
        """Return where the events are: the nodes of the set, database and collection."""
        return f"{nodes_of(self._client)}/{self._events.full_name}"

    def identity(self) -> tuple[str, str]:
        """Return what only a client of the same primary, or ``mongos``, says of the same events."""
        with self._asking():
            process = self._client.admin.command("hello")["topologyVersion"]["processId"]
        return str(process), self._events.full_name

    def _as_commit(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Commit:
        return Commit([encoded(event) for event in stored_events], kwargs.get("tracking"))

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return events of a stream, in the order of their versions.

        What lies between ``gt`` and ``lte`` is read and sorted here, whatever the ``limit``.
        """
        versions: dict[str, int] = {}
        if gt is not None:
            versions["$gt"] = gt
        if lte is not None:
            versions["$lte"] = lte
        key = stream_key(originator_id)
        wanted = {"s": key, **({"v": versions} if versions else {})}
        conditions: list[Any] = [{"$eq": ["$$this.s", {"$literal": key}]}]
        conditions += [{operator: ["$$this.v", bound]} for operator, bound in versions.items()]
        pipeline: list[dict[str, Any]] = [
            {"$match": {"e": {"$elemMatch": wanted}}},
            {"$project": {"e": {"$filter": {"input": "$e", "cond": {"$and": conditions}}}}},
        ]
        with self._asking():
            found = in_session(
                self._client,
                lambda session: list(self._events.aggregate(pipeline, session=session)),
            )
        events = [decoded(item) for document in self._noted(found) for item in document["e"]]
        events.sort(key=attrgetter("originator_version"), reverse=desc)
        return events[:limit]

    def select_events_at(self, places: Sequence[Place]) -> list[StoredEvent | None]:
        """Return, for each place in turn, the event that is there, or ``None``."""
        return [event for _, event in self.select_events_with_previous(places)]

    def select_events_with_previous(self, places: Sequence[Place]) -> list[WithPrevious]:
        """Return, for each place in turn, the event that is there, or ``None``.

        With each is the one of the position before it, if that is in one of their documents.
        """
        asked = [(stream_key(stream), version) for stream, version in places]
        with self._asking():
            documents = beside_any(self._events, conditions_at(asked))
        streams = {place: stream for place, (stream, _) in zip(asked, places, strict=True)}
        read = {
            position: item
            for document in self._noted(documents)
            for position, item in enumerate(document["e"], document["_id"])
        }
        found: dict[tuple[bytes | str, int], WithPrevious] = {}
        for position, item in read.items():
            if (place := (item["s"], item["v"])) in streams:
                previous = read.get(position - 1)
                before = decoded(previous) if previous else None
                found[place] = before, event_of(streams[place], item)
        return [found.get(place, (None, None)) for place in asked]

    def select_events_after(self, places: Sequence[Place]) -> list[list[StoredEvent]]:
        """Return, for each place in turn, the later events of its stream, by version."""
        wanted: dict[bytes | str, tuple[UUID, int, list[StoredEvent]]] = {}
        by_version: dict[int, list[bytes | str]] = {}
        for stream, version in places:
            key = stream_key(stream)
            wanted[key] = stream, version, []
            by_version.setdefault(version, []).append(key)
        with self._asking():
            documents = beside_any(
                self._events,
                (
                    {"s": {"$in": some}, "v": {"$gt": version}}
                    for version, some in by_version.items()
                ),
            )
        for item in (item for document in self._noted(documents) for item in document["e"]):
            if item["s"] in wanted:
                stream, version, later = wanted[item["s"]]
                if item["v"] > version:
                    later.append(event_of(stream, item))
        for *_, later in wanted.values():
            later.sort(key=attrgetter("originator_version"))
        return [later for *_, later in wanted.values()]

    def _noted(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Return documents that were read for the sake of streams."""
        return documents

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Return events with their positions, in the order of these."""
        first = max(1, (start or 1) if inclusive_of_start or start is None else start + 1)
        positions: dict[str, int] = {"$gt": first - MAX_EVENTS}
        if stop is not None:
            positions["$lte"] = stop
        wanted: dict[str, Any] = {"_id": positions, "l": {"$gte": first}}
        if topics:
            wanted["e.t"] = {"$in": list(topics)}
        found: list[Notification] = []
        with self._asking():
            # The first one may have nothing of these topics where it is begun in the middle.
            documents = self._events.find(wanted, {"c": 0}).sort("_id").limit(limit + 1)
            # Not all at once: they may have twenty events each.
            with documents.batch_size(max(_LEAST_BATCH, limit // 10)):
                for document in documents:
                    found += notifications(document, first, stop, topics)
                    if len(found) >= limit:
                        break
        return found[:limit]

    def max_notification_id(self) -> int | None:
        """Return the newest position, or ``None`` if there is none."""
        with self._asking():
            last = self._events.find_one({}, {"l": 1}, sort=[("_id", DESCENDING)])
        return None if last is None else last["l"]

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """Return an iterator over events after position ``gt``, which waits for new ones."""
        return MongoSubscription(self, gt, topics)


class GaplessMongoRecorder(GaplessRecorder, MongoApplicationRecorder):
    """Inserts no event without the one before it, nor after the store was put back."""

    def _foundations(self) -> Foundations:
        return Foundations(self._client, self._events)

    def _noted(self, documents: Sequence[Document]) -> Sequence[Document]:
        if documents:
            newest = max(documents, key=itemgetter("_id"))
            self.expected(newest["_id"], decoded(newest["e"][-1]))
        return documents

    def _as_commit(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Commit:
        commit = super()._as_commit(stored_events, **kwargs)
        commit.predecessors = predecessors_of(stored_events)
        newest: StoredEvent | None = kwargs["newest"]
        if newest is not None:
            key = stream_key(newest.originator_id)
            commit.newest = (key, newest.originator_version, newest.state)
        return commit


class MongoSubscription(ListenNotifySubscription[MongoApplicationRecorder]):
    """Yields events as they are recorded, by any process."""

    def __init__(
        self,
        recorder: MongoApplicationRecorder,
        gt: int | None = None,
        topics: Sequence[str] = (),
    ) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        recorder.listeners.add(self._has_been_notified)

    def stop(self) -> None:
        """Stop the subscription."""
        super().stop()
        self._recorder.listeners.discard(self._has_been_notified)


class MongoTrackingRecorder(_ChainRecorder, TrackingRecorder):
    """Positions of other applications, one document each."""

    def insert_tracking(self, tracking: Tracking) -> None:
        """Record a position.

        Raises:
            IntegrityError: if it or a later one is recorded.
            PersistenceError: if the server failed.
        """
        self._record(Commit([], tracking))

    def insert_tracking_with(
        self, tracking: Tracking, write: Callable[[ClientSession], object]
    ) -> None:
        """Record a position and whatever ``write`` writes, in one transaction.

        For views of an application's own: what they show and how far it goes cannot part.

        Args:
            tracking: The position.
            write: Called with the session to pass to each operation; once more if the transaction
                was aborted, so it should do nothing else.

        Raises:
            IntegrityError: if this or a later position is recorded; nothing was written.
            PersistenceError: if the server failed.
        """
        self._record(Commit([], tracking, write))

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the position of an application, or ``None`` if none was recorded."""
        with self._asking():
            found = self._tracking.find_one({"_id": application_name})
        return None if found is None else found["position"]


class MongoProcessRecorder(MongoApplicationRecorder, MongoTrackingRecorder, ProcessRecorder):
    """Events that are recorded together with the position of what they were made from."""
