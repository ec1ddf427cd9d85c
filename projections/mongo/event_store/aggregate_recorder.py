"""The library's recorder of events without positions, as snapshots are, on MongoDB."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pymongo
from eventsourcing.persistence import AggregateRecorder, ConnectionPoolClosedError, Recorder
from pymongo import DESCENDING

from projections.mongo.event_store.documents import (
    collection_of,
    decoded,
    encoded,
    stream_key,
)
from projections.mongo.event_store.errors import CLOSED, persistence_errors
from projections.mongo.event_store.lookups import CONDITIONS_AT_ONCE
from scoring.retries import remaining_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from eventsourcing.persistence import StoredEvent
    from pymongo import MongoClient

_READ_SECONDS: Final = 10.0


class MongoRecorder(Recorder):
    """Works until it is closed, also where the client is somebody else's and stays open.

    Whatever asks the server raises ``PersistenceError`` if that failed.
    """

    _is_closed = False

    def prepare(self) -> None:
        """Create what is missing and the first write does not create."""

    def close(self) -> None:
        """Refuse what is asked from now on; what has begun ends as it would have."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConnectionPoolClosedError(CLOSED)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._check_open()
        seconds = min(_READ_SECONDS, remaining_seconds())
        with persistence_errors(), pymongo.timeout(seconds):
            yield


class MongoAggregateRecorder(MongoRecorder, AggregateRecorder):
    """Events or snapshots without positions: one document each."""

    def __init__(self, client: MongoClient[Any], database: str, name: str) -> None:
        """Keep them in the collection of this name; nothing is sent yet."""
        self._client = client
        self._collection = collection_of(client, database, name)

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Insert events, all or none.

        Raises:
            IntegrityError: if one of them is there already.
            PersistenceError: if the server failed.
        """
        del kwargs
        documents = []
        for event in stored_events:
            item = encoded(event)
            documents.append({"_id": {"s": item.pop("s"), "v": item.pop("v")}, **item})
        if not documents:
            return None
        with self._asking():
            if len(documents) == 1:
                self._collection.insert_one(documents[0])
            else:
                with self._client.start_session() as session:
                    session.with_transaction(
                        lambda own: self._collection.insert_many(documents, session=own),
                        # Named, for a session has those of its client.
                        self._collection.read_concern,
                        self._collection.write_concern,
                        self._collection.read_preference,
                    )
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return events of a stream, in the order of their versions."""
        key = stream_key(originator_id)
        bounds = {
            "$gt": {"s": key, "v": gt} if gt is not None else {"s": key},
            "$lte": {"s": key, "v": lte if lte is not None else float("inf")},
        }
        with self._asking():
            found = list(
                self._collection.find({"_id": bounds})
                .sort("_id", DESCENDING if desc else 1)
                .limit(limit or 0)
            )
        return [decoded({**document, **document["_id"]}) for document in found]

    def select_newest_events(self, streams: Sequence[UUID | str]) -> list[StoredEvent | None]:
        """Return, for each stream in turn, its event of the highest version, or ``None``."""
        keys = [stream_key(stream) for stream in streams]
        newest: dict[bytes | str, Any] = {}
        with self._asking():
            for start in range(0, len(keys), CONDITIONS_AT_ONCE):
                either = [
                    {"_id": {"$gt": {"s": key}, "$lte": {"s": key, "v": float("inf")}}}
                    for key in keys[start : start + CONDITIONS_AT_ONCE]
                ]
                # From the index alone: there may be many of one stream.
                for document in self._collection.find({"$or": either}, {"_id": 1}):
                    place = document["_id"]
                    newest[place["s"]] = max(place["v"], newest.get(place["s"], 0))
            places = [{"s": key, "v": version} for key, version in newest.items()]
            found = list(self._collection.find({"_id": {"$in": places}})) if places else []
        events = {
            document["_id"]["s"]: decoded({**document, **document["_id"]}) for document in found
        }
        return [events.get(key) for key in keys]

    def select_after(self, last: StoredEvent | None, limit: int) -> Sequence[StoredEvent]:
        """Return events ordered by stream and version: those after one, or the first."""
        wanted: dict[str, Any] = {}
        if last is not None:
            place = {"s": stream_key(last.originator_id), "v": last.originator_version}
            wanted = {"_id": {"$gt": place}}
        with self._asking():
            found = list(self._collection.find(wanted).sort("_id").limit(limit))
        return [decoded({**document, **document["_id"]}) for document in found]
