"""The documents of an event store in MongoDB.

Events, one document for up to twenty that were committed together, in a chain without gaps::

    {_id: 17, l: 18, c: <8 random bytes>, e: [{s: stream, v: 3, t: topic, d: state}, …]}

``_id`` is the position of the first event, ``l`` that of the last; ``c`` tells an attempt to commit
from all others. A unique index on stream and version goes across documents. Snapshots and positions
of other applications::

    {_id: {s: stream, v: 3}, t: topic, d: state}
    {_id: application, position: 17, c: <8 random bytes>}

Where events were copied from another store, positions that it had left out are left out here, too:
a document then begins further on than the one before it ends. Nobody asks for that place.

A stream is 16 plain bytes if its id is a UUID, else text.
"""

from __future__ import annotations

from functools import lru_cache
from os import urandom
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from eventsourcing.persistence import Notification, StoredEvent
from pymongo import ASCENDING, IndexModel

from projections.mongo.client import database_of
from scoring.frozen import made_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo import MongoClient
    from pymongo.collection import Collection

Document = dict[str, Any]

MAX_EVENTS: Final = 20
"""Of one document: whoever loads a user reads whole documents, and there may be one per event."""

_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of one document, unless it is one event: MongoDB takes twice as many, and names go along."""

UNIQUE_EVENTS: Final = IndexModel([("e.s", ASCENDING), ("e.v", ASCENDING)], unique=True)


def collection_of(client: MongoClient[Any], database: str, name: str) -> Collection[Document]:
    """Return a collection with the concerns that events need, whatever the client's own are.

    Raises:
        InvalidSetting: if it can be in no database of this name.
    """
    return database_of(client, database)[name]


def stream_key(stream: UUID | str) -> bytes | str:
    """Return what a stream is stored under: plain bytes cost half of what a UUID of BSON does."""
    return stream.bytes if isinstance(stream, UUID) else stream


def encoded(event: StoredEvent) -> Document:
    """Return what is stored of an event."""
    return {
        "s": stream_key(event.originator_id),
        "v": event.originator_version,
        "t": event.topic,
        "d": event.state,
    }


def chained(items: Sequence[Document], first: int, token: bytes) -> list[Document]:
    """Return the documents of a commit whose first event has this position."""
    documents: list[Document] = []
    held: list[Document] = []
    size = 0
    for position, item in enumerate(items, first):
        size += len(item["d"])
        if not held or len(held) == MAX_EVENTS or size > _MAX_BYTES:
            held, size = [], len(item["d"])
            documents.append({"_id": position, "l": position, "c": token, "e": held})
        held.append(item)
        documents[-1]["l"] = position
    return documents


def transferred(events: Sequence[Notification]) -> list[Document]:
    """Return the documents of events that have positions already; a gap begins a new document."""
    documents: list[Document] = []
    runs: list[list[Notification]] = []
    for event in events:
        if not runs or event.id != runs[-1][-1].id + 1:
            runs.append([])
        runs[-1].append(event)
    for run in runs:
        documents += chained([encoded(event) for event in run], run[0].id, urandom(8))
    return documents


def decoded(item: Document) -> StoredEvent:
    """Return an event that was stored."""
    return event_of(stream_of(item["s"]), item)


def event_of(stream: Any, item: Document) -> StoredEvent:
    """Return an event that was stored in this stream."""
    return made_of(
        StoredEvent,
        {
            "originator_id": stream,
            "originator_version": item["v"],
            "topic": item["t"],
            "state": item["d"],
        },
    )


def notifications(
    document: Document, first: int, last: int | None, topics: Sequence[str]
) -> list[Notification]:
    """Return a document's events from one position to another, of these topics or all."""
    return [
        made_of(
            Notification,
            {
                "originator_id": stream_of(item["s"]),
                "originator_version": item["v"],
                "topic": item["t"],
                "state": item["d"],
                "id": position,
            },
        )
        for position, item in enumerate(document["e"], document["_id"])
        if position >= first
        and (last is None or position <= last)
        and (not topics or item["t"] in topics)
    ]


def stream_of(key: bytes | str) -> Any:
    """Return the id of the stream that is stored under a key, a UUID or text."""
    return _uuid(key) if isinstance(key, bytes) else key


@lru_cache(maxsize=10_000)  # whoever reads events meets the same streams again and again
def _uuid(key: bytes) -> UUID:
    return UUID(bytes=key)
