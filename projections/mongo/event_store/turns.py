"""Turns of the processes that append to one chain of events.

Where processes race for the next position, all but one ask in vain each time, and what they have
decided is out of date when they come to it. So those who have met others take turns: one goes on
for some milliseconds, before it decides what to append, and the others stand by in a line::

    {_id: "turn", holder: <8 random bytes>, begun: time, until: time, waiting: [holder, …], …}

All times are those of the server. A process that was killed, or has nothing to append, has its turn
until its time is over, and those who do not come for theirs are passed over. Turns are for speed
only: who appends without one does no harm but to the speed of whoever has it.
"""

from __future__ import annotations

import logging
import time
from os import urandom
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from projections.mongo.event_store.documents import collection_of

if TYPE_CHECKING:
    from pymongo import MongoClient

    from projections.mongo.event_store.documents import Document

logger = logging.getLogger(__name__)

_TURN_SECONDS: Final = 0.024
"""How long a process goes on beginning to commit."""

_LAST_COMMIT_SECONDS: Final = 0.008
"""How long its last commit may take until the turn is over in any case."""

_EVENT_SECONDS: Final = 0.00025
"""How much longer for each event that is to be appended first: their users may have to be read."""

_COMES_SECONDS: Final = 0.008
"""How long a turn is left to each of those in the line who are before the one who asks."""

_LOOKS_SECONDS: Final = 0.0015
"""What lies between the first looks of those who wait, when the turn should be over."""

_SOON_SECONDS: Final = 0.006
"""Who did not come back in that time after a commit leaves the turn after the next one."""

_MOST_SECONDS: Final = 2.0
"""How long a turn is waited for."""

_TURN: Final = {"_id": "turn"}
_MOST_WAITING: Final = 1000


class Turns:
    """Whose turn it is, for one process and one thread of it at a time."""

    def __init__(self, client: MongoClient[Any], name: str, database: str) -> None:
        """Take turns by a document of this collection; nothing is sent yet."""
        collection = collection_of(client, database, name)
        self._turns = collection.with_options(write_concern=WriteConcern(1))
        self._unanswered = collection.with_options(write_concern=WriteConcern(0))
        self.reset()

    def reset(self) -> None:
        """Be a process that has no turn."""
        self._holder = urandom(8)
        self._goes_on_until = self._ends_at = self._committed_at = 0.0
        self._is_busy = False
        self._others_began: object = None

    @property
    def goes_on(self) -> bool:
        """Whether it is ours, with time for one more commit."""
        return time.monotonic() < self._goes_on_until

    @property
    def is_over(self) -> bool:
        """Whether it is not ours, or not for certain."""
        return time.monotonic() > self._ends_at

    def take(self, events: int) -> bool:
        """Wait until it is our turn, or for two seconds.

        Args:
            events: How many are to be appended first.

        Returns:
            Whether others wait, too.
        """
        asked_at = now = time.monotonic()
        self._is_busy = asked_at < self._committed_at + _SOON_SECONDS
        seconds = _TURN_SECONDS + _LAST_COMMIT_SECONDS + events * _EVENT_SECONDS
        others_wait = False
        try:
            with pymongo.timeout(_MOST_SECONDS):
                while now < asked_at + _MOST_SECONDS:
                    found = self._asked(seconds)
                    if found["free"]:
                        others_wait = bool(found["waiting"])
                        break
                    age = found["age"] / 1000
                    # Those who are further back look later; nobody knows when a long turn ends.
                    pause = max(_TURN_SECONDS - age, age / 10)
                    time.sleep(pause + found["ahead"] * _LOOKS_SECONDS)
                    now = time.monotonic()
                else:
                    others_wait = True
        except PyMongoError as error:
            logger.info("appending without having a turn: %s", error)
        self._goes_on_until, self._ends_at = now + _TURN_SECONDS, now + seconds
        return others_wait

    def are_taken_by_others(self) -> bool:
        """Tell whether another process has begun one since the last call."""
        try:
            with pymongo.timeout(_MOST_SECONDS):
                found = self._turns.find_one(_TURN, {"holder": 1, "begun": 1})
        except PyMongoError:
            return False
        if found is None or found["holder"] == self._holder:
            return False
        before, self._others_began = self._others_began, found["begun"]
        return before != self._others_began

    def committed(self) -> None:
        """Leave the turn to others when it has lasted, or if we are not likely to go on."""
        self._committed_at = now = time.monotonic()
        if not self._ends_at or (self._is_busy and now < self._goes_on_until):
            return
        if now < self._ends_at:
            try:
                self._unanswered.update_one(
                    _TURN | {"holder": self._holder}, [{"$set": {"until": "$$NOW"}}]
                )
            except PyMongoError as error:
                logger.info("the turn ends by itself: %s", error)
        self._goes_on_until = self._ends_at = 0.0

    def _asked(self, seconds: float) -> Document:
        """Begin a turn if it is free for us, otherwise stand in the line; return the document."""
        us = self._holder
        # Whoever has the turn and asks for one is at the end of it.
        is_ours = {"$eq": [{"$ifNull": ["$holder", us]}, us]}
        is_new = {"$eq": ["$place", -1]}
        patience = {"$multiply": ["$ahead", int(1000 * _COMES_SECONDS)]}
        behind_us = {"$slice": ["$waiting", {"$add": ["$ahead", 1]}, _MOST_WAITING]}
        with_us = {"$cond": [is_new, {"$concatArrays": ["$waiting", [us]]}, "$waiting"]}
        until = {"$add": ["$$NOW", int(1000 * seconds)]}
        document: Document = self._turns.find_one_and_update(  # type: ignore[assignment]
            _TURN,
            [
                {"$set": {"until": {"$cond": [is_ours, "$$NOW", "$until"]}}},
                {"$set": {"waiting": {"$ifNull": ["$waiting", []]}}},
                {"$set": {"place": {"$indexOfArray": ["$waiting", us]}}},
                {"$set": {"ahead": {"$cond": [is_new, {"$size": "$waiting"}, "$place"]}}},
                {"$set": {"free": {"$gte": [{"$subtract": ["$$NOW", "$until"]}, patience]}}},
                {
                    "$set": {
                        "holder": {"$cond": ["$free", us, "$holder"]},
                        "begun": {"$cond": ["$free", "$$NOW", "$begun"]},
                        "until": {"$cond": ["$free", until, "$until"]},
                        "waiting": {"$cond": ["$free", behind_us, with_us]},
                    }
                },
                {"$set": {"age": {"$subtract": ["$$NOW", "$begun"]}}},
            ],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return document
