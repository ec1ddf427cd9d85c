"""Who is alive: workers on record while they hold a transaction, and what becomes of the dead."""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from projections.mongo.client import GOODBYE_SECONDS
from projections.mongo.collections import seconds_ago

if TYPE_CHECKING:
    from datetime import datetime

    from projections.mongo.collections import Collections, Document

logger = logging.getLogger(__name__)

SILENT_AFTER_SECONDS: Final = 5
"""A worker that has not been heard of for so long, nor for two beats after that was seen, may be
aborted by one that it holds up."""

_HEARTBEAT_SECONDS: Final = 1.0
_ASK_SECONDS: Final = 1.0


class Liveness:
    """One worker's entry in ``score_workers``, kept fresh inside a ``with`` block.

    A thread keeps it fresh, so that a transaction may take as long as it needs; between two
    transactions it sleeps, so that an idle worker writes nothing.
    """

    def __init__(self, collections: Collections, session_id: Any) -> None:
        """Stand for the worker whose transactions run on this session."""
        self._workers = collections.workers.with_options(write_concern=WriteConcern(1))
        self._client = collections.client
        self._id = session_id
        self._last = float("-inf")
        # When this one saw that another one was silent, by what that had said last.
        self._noticed: dict[tuple[Any, datetime], float] = {}
        self._busy = Event()
        self._closed = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> None:
        """Be on record before there is a transaction to be aborted."""
        self._beat_if_due()
        self._busy.set()
        if self._thread is None:
            self._thread = Thread(target=self._keep_fresh, name="score-ledger-alive", daemon=True)
            self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._busy.clear()

    def close(self) -> None:
        """Go off the record."""
        self._closed.set()
        self._busy.set()
        if self._thread is not None:
            self._thread.join()
        if self._client.topology_description.has_writable_server():
            with suppress(PyMongoError), pymongo.timeout(GOODBYE_SECONDS):
                self._workers.delete_one({"_id": self._id})

    def abort_the_dead(self) -> None:
        """Abort the transactions of workers that have fallen silent, or are known to be dead."""
        with suppress(PyMongoError), pymongo.timeout(_ASK_SECONDS):
            horizon = seconds_ago(SILENT_AFTER_SECONDS)
            others = self._workers.aggregate(
                [
                    {
                        "$match": {
                            # Nothing but sessions: what else is here was written by somebody else.
                            "_id": {"$ne": self._id, "$type": "binData"},
                            "seenAt": {"$type": "date"},
                        }
                    },
                    {"$addFields": {"silent": {"$lt": ["$seenAt", horizon]}}},
                ]
            )
            for worker in others:
                if self._stays_silent(worker) or _is_dead(worker):
                    logger.warning(
                        "worker %s on %s is gone; aborting what it left open",
                        worker.get("pid"),
                        worker.get("host"),
                    )
                    self._client.admin.command("killSessions", [{"id": worker["_id"]}])
                    self._workers.delete_one({"_id": worker["_id"]})

    def _stays_silent(self, worker: Document) -> bool:
        """Tell whether a worker is not heard of, also since we have seen that it is silent.

        Where all processes were paused with their machine, all are silent until their next beat.
        """
        if not worker["silent"]:
            return False
        now = time.monotonic()
        noticed = self._noticed.setdefault((worker["_id"], worker["seenAt"]), now)
        return now - noticed > 2 * _HEARTBEAT_SECONDS

    def _keep_fresh(self) -> None:
        while self._busy.wait() and not self._closed.wait(_HEARTBEAT_SECONDS):
            if self._busy.is_set():
                self._beat_if_due()

    def _beat_if_due(self) -> None:
        now = time.monotonic()
        # A little early rather than a whole second late: the thread wakes when it is just due.
        if now - self._last < _HEARTBEAT_SECONDS * 0.9:
            return
        with suppress(PyMongoError), pymongo.timeout(_ASK_SECONDS):
            self._workers.update_one(
                {"_id": self._id},
                {"$set": process_identity(), "$currentDate": {"seenAt": True}},
                upsert=True,
            )
            self._last = now


def process_identity() -> Document:
    """Return host and process of this worker, for its entries on record."""
    return {"host": socket.gethostname(), "processes": _process_table(), "pid": os.getpid()}


def _process_table() -> str | None:
    # Where process ids count: containers may share a host's name without sharing its processes.
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def _is_dead(worker: Document) -> bool:
    """Tell whether a worker of this very machine no longer runs."""
    here = process_identity()
    if here["processes"] is None:
        return False
    if (worker.get("host"), worker.get("processes")) != (here["host"], here["processes"]):
        return False
    try:
        # The state is the first field after the name, which stands in brackets.
        state = Path(f"/proc/{worker.get('pid')}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return True
    return state in {b"Z", b"X"}  # killed, and only its parent has not asked for it yet
