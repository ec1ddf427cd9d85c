"""Looking up many events in few queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pymongo import collection
    from pymongo.client_session import ClientSession

    from projections.mongo.event_store.documents import Document

CONDITIONS_AT_ONCE: Final = 250
"""Of one query: the server plans each one for itself, and more take longer than two queries."""


def conditions_at(places: Collection[tuple[bytes | str, int]]) -> list[Document]:
    """Return conditions, as few as may be, that events of these streams and versions meet."""
    by_version: dict[int, list[bytes | str]] = {}
    for key, version in places:
        by_version.setdefault(version, []).append(key)
    # One for many streams of one event, as claims are, or for many events of one stream.
    if len(by_version) < len({key for key, _ in places}):
        return [{"s": {"$in": some}, "v": version} for version, some in by_version.items()]
    by_stream: dict[bytes | str, list[int]] = {}
    for key, version in places:
        by_stream.setdefault(key, []).append(version)
    return [{"s": key, "v": {"$in": some}} for key, some in by_stream.items()]


def beside_any(
    events: collection.Collection[Document],
    conditions: Iterable[Document],
    session: ClientSession | None = None,
) -> list[Document]:
    """Return the documents of events that meet one of the conditions, with all their events."""
    either: list[Any] = [{"e": {"$elemMatch": condition}} for condition in conditions]
    documents: dict[int, Document] = {}
    for start in range(0, len(either), CONDITIONS_AT_ONCE):
        some = either[start : start + CONDITIONS_AT_ONCE]
        for document in events.find({"$or": some}, {"e": 1}, session=session):
            documents[document["_id"]] = document
    return list(documents.values())
