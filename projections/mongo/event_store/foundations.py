"""Whether what new events build on is stored.

A store may be put back to an earlier state under a process that goes on. Nobody can take events out
of the chain otherwise, so what was stored once need not be looked for again while the server has
the same primary, in the same term; the newest event is looked for now and then all the same. So is
the first one, which tells a store from another: a new one, under the name of one that was dropped,
may have the newest event by then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from pymongo import ASCENDING

from projections.mongo.event_store.documents import stream_key
from projections.mongo.event_store.lookups import beside_any, conditions_at
from scoring.event_store import StoreWentBack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo import MongoClient
    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection

    from projections.mongo.event_store.commits import Commit
    from projections.mongo.event_store.documents import Document

_LOOKS_BACK_SECONDS: Final = 1.0
_MAX_STREAMS: Final = 100_000


class Foundations:
    """What is known to be stored, for one thread at a time."""

    def __init__(self, client: MongoClient[Any], events: Collection[Document]) -> None:
        self._client, self._events = client, events
        self._term: object = None
        self._versions: dict[bytes | str, int] = {}
        self._looked_back_at = float("-inf")
        self._origin: bytes | None = None

    def fail_baseless(self, commits: Sequence[Commit], session: ClientSession) -> bool:
        """Fail the commits that build on what is not stored; tell whether there are any."""
        now = time.monotonic()
        term = self._current_term()
        if term is None or term != self._term or len(self._versions) > _MAX_STREAMS:
            self._term, self._looked_back_at = term, float("-inf")
            self._versions.clear()
        is_time = now - self._looked_back_at > _LOOKS_BACK_SECONDS
        looks_back = is_time or self._origin is None
        wanted = {
            commit: [
                (key, version, None)
                for stream, version in commit.predecessors.items()
                if self._versions.get(key := stream_key(stream), 0) < version
            ]
            + ([commit.newest] if looks_back and commit.newest is not None else [])
            for commit in commits
        }
        stored = self._stored([place for places in wanted.values() for place in places], session)
        has_failed = is_other = False
        if looks_back:
            self._looked_back_at = now
            is_other = self._has_other_origin(session)
        for commit, places in wanted.items():
            if not is_other and all(
                (key, version) in stored and state in {None, stored[key, version]}
                for key, version, state in places
            ):
                for key, version, _ in places:
                    self._versions[key] = max(version, self._versions.get(key, 0))
            else:
                has_failed = True
                commit.fail(StoreWentBack())
        if has_failed:
            self._term = None
        return has_failed

    def fail_all(self, commits: Sequence[Commit]) -> None:
        """Fail commits to a store that is not the one that was known."""
        self._term = None
        for commit in commits:
            commit.fail(StoreWentBack())

    def learn(self, commits: Sequence[Commit]) -> None:
        """Remember what was just recorded, but for streams of one event, as claims are."""
        for commit in commits:
            for item in commit.events:
                if item["v"] > 1:
                    self._versions[item["s"]] = item["v"]

    def _has_other_origin(self, session: ClientSession) -> bool:
        first = self._events.find_one({}, {"c": 1}, sort=[("_id", ASCENDING)], session=session)
        before, self._origin = self._origin, None if first is None else first["c"]
        return before not in {None, self._origin}

    def _stored(
        self, places: Sequence[tuple[bytes | str, int, bytes | None]], session: ClientSession
    ) -> dict[tuple[bytes | str, int], bytes]:
        if not places:
            return {}
        conditions = conditions_at({(key, version) for key, version, _ in places})
        documents = beside_any(self._events, conditions, session)
        return {(item["s"], item["v"]): item["d"] for each in documents for item in each["e"]}

    def _current_term(self) -> object:
        # Each election has an id, and so has each start of a server that is alone in its set.
        for server in self._client.topology_description.server_descriptions().values():
            if server.is_writable and server.election_id is not None:
                return server.address, server.election_id
        return None
