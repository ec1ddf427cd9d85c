"""Freeing what a writer that was killed has left locked.

A writer that dies inside a transaction leaves it open on the server, for a minute by default, and
with it the position that comes next. A writer sends its transactions without a pause: one that has
been idle for longer is that of a dead or frozen process, and is aborted. To a frozen one that does
no harm: it tries again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo import IndexModel
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from projections.mongo.client import database_of
from projections.mongo.event_store.documents import collection_of

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.client_session import ClientSession

_IDLE_MICROSECONDS: Final = 2_000_000
_SECONDS: Final = 2.0
_ANNOUNCED_SECONDS: Final = 600.0
_FORGOTTEN_SECONDS: Final = 3600


class Writers:
    """The sessions of those who write transactions to one chain of events."""

    def __init__(self, client: MongoClient[Any], name: str, database: str) -> None:
        """Keep them in the collection of this name; nothing is sent yet."""
        # Nothing but this may be asked of what a server does at the moment.
        local = ReadConcern("local")
        self._admin = database_of(client, "admin").with_options(read_concern=local)
        self._sessions = collection_of(client, database, name)
        self._announced: dict[bytes, float] = {}

    def prepare(self) -> None:
        """Have those forgotten that were not heard of for long."""
        self._sessions.create_indexes([IndexModel("at", expireAfterSeconds=_FORGOTTEN_SECONDS)])

    def announce(self, session: ClientSession) -> None:
        """Tell others, now and then, that a session is one of these."""
        id_, now = bytes(session.session_id["id"]), time.monotonic()
        if now - self._announced.get(id_, float("-inf")) < _ANNOUNCED_SECONDS:
            return
        self._sessions.update_one(
            {"_id": session.session_id["id"]}, {"$set": {"at": datetime.now(UTC)}}, upsert=True
        )
        self._announced = {id_: now}

    def abort_the_dead(self) -> None:
        """Abort the transactions of those that have sent nothing for long, as far as possible."""
        with suppress(PyMongoError), pymongo.timeout(_SECONDS):
            known = [document["_id"] for document in self._sessions.find({}, {"_id": 1})]
            idle = self._admin.aggregate(
                [
                    {"$currentOp": {"idleSessions": True, "allUsers": False}},
                    {
                        "$match": {
                            "lsid.id": {"$in": known},
                            "transaction.timeInactiveMicros": {"$gt": _IDLE_MICROSECONDS},
                        }
                    },
                ]
            )
            sessions = [{"id": operation["lsid"]["id"]} for operation in idle]
            if sessions:
                self._admin.command("killSessions", sessions)
