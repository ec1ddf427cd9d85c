"""MongoDB transactions with bounded retries, and freeing what a killed worker left locked.

A worker that is killed between two statements leaves its transaction open on the server, which
keeps it for a minute by default, and all its documents locked with it. Workers therefore register
their session and say now and then that they are alive; whoever is held up by a conflict aborts the
transactions of those who have fallen silent. Doing that to a worker that was merely slow does no
harm: its transaction is aborted whole, and it tries again.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.client_session import ClientSession

    from projections.read_model import ReadModel

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
"""How long a transaction is tried again before its error is raised."""

SILENT_AFTER_SECONDS: Final = 5
"""A worker that has not been heard of for so long may be aborted by one that it holds up."""

_HEARTBEAT_SECONDS: Final = 1.0
_WRITE_CONFLICT: Final = 112
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.5


class TransactionRunner:
    """Runs transactions on one session, which others can find if this process dies.

    Not to be shared between threads.
    """

    def __init__(self, read_model: ReadModel) -> None:
        """Start a session on the read model's client."""
        self._read_model = read_model
        self._session = read_model.client.start_session()
        self._id = self._session.session_id["id"]
        self._last_heartbeat = float("-inf")

    def run(self, work: Callable[[ClientSession], None]) -> None:
        """Run ``work`` in a transaction and commit it.

        Transient errors are tried again for ``RETRY_SECONDS``: elections, lost connections and
        write conflicts. The outcome of a commit can stay unknown when that time is over; the
        compare-and-set of the position makes it safe to try the same batch again.

        Raises:
            PyMongoError: what the last attempt failed with; the transaction is aborted.
        """
        deadline = time.monotonic() + RETRY_SECONDS
        attempt = 0
        while True:
            self._say_alive()
            try:
                self._session.start_transaction(
                    read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority")
                )
                work(self._session)
                self._commit(deadline)
                return
            except PyMongoError as error:
                self._abort()
                if not _is_transient(error) or time.monotonic() > deadline:
                    raise
                logger.info("transaction aborted, trying again: %s", error)
                if _is_conflict(error):
                    self._abort_silent_workers()
            except BaseException:
                self._abort()
                raise
            attempt += 1
            longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10))
            time.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - jitter, not a secret

    def close(self) -> None:
        """End the session and take it off the list of workers."""
        with suppress(PyMongoError):
            self._read_model.workers.delete_one({"_id": self._id})
        self._session.end_session()

    def _commit(self, deadline: float) -> None:
        while True:
            try:
                self._session.commit_transaction()
                return
            except PyMongoError as error:
                # Committing again is safe: the server knows the transaction by its number.
                unknown = error.has_error_label("UnknownTransactionCommitResult")
                if not unknown or time.monotonic() > deadline:
                    raise
                time.sleep(_FIRST_PAUSE_SECONDS)

    def _abort(self) -> None:
        if self._session.in_transaction:
            with suppress(PyMongoError):
                self._session.abort_transaction()

    def _say_alive(self) -> None:
        now = time.monotonic()
        if now - self._last_heartbeat < _HEARTBEAT_SECONDS:
            return
        with suppress(PyMongoError):
            self._read_model.workers.update_one(
                {"_id": self._id},
                {
                    "$set": {"host": socket.gethostname(), "pid": os.getpid()},
                    "$currentDate": {"seenAt": True},
                },
                upsert=True,
            )
            self._last_heartbeat = now

    def _abort_silent_workers(self) -> None:
        # By the server's clock, so that the clocks of workers need not agree.
        horizon = {"$subtract": ["$$NOW", SILENT_AFTER_SECONDS * 1000]}
        with suppress(PyMongoError):
            silent = list(
                self._read_model.workers.find(
                    {"_id": {"$ne": self._id}, "$expr": {"$lt": ["$seenAt", horizon]}}
                )
            )
            for worker in silent:
                logger.warning(
                    "worker %s on %s has fallen silent; aborting what it left open",
                    worker.get("pid"),
                    worker.get("host"),
                )
                self._read_model.client.admin.command("killSessions", [{"id": worker["_id"]}])
                self._read_model.workers.delete_one({"_id": worker["_id"]})


def _is_transient(error: PyMongoError) -> bool:
    return error.has_error_label("TransientTransactionError") or isinstance(
        error, ConnectionFailure
    )


def _is_conflict(error: PyMongoError) -> bool:
    if isinstance(error, OperationFailure):
        details = error.details or {}
        codes = {error.code} | {item.get("code") for item in details.get("writeErrors", ())}
        return _WRITE_CONFLICT in codes
    return False
