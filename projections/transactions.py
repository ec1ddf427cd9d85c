"""MongoDB transactions with bounded retries, and freeing what a killed worker left locked.

A worker that is killed between two statements leaves its transaction open on the server, which
keeps it for a minute by default, and all its documents locked with it. Workers therefore say that
they are alive while they hold a transaction; see ``liveness``. Whoever is held up by a conflict
aborts the transactions of those who are gone. Doing that to a worker that was merely slow does no
harm: its transaction is aborted whole, and it tries again.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Final

import pymongo
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from projections.driver_errors import is_transient
from projections.liveness import Liveness
from projections.retrying import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.client_session import ClientSession

    from projections.read_model import ReadModel

logger = logging.getLogger(__name__)

_WRITE_CONFLICT: Final = 112
_PROBE_SECONDS: Final = 0.5
_FIRST_COMMIT_SECONDS: Final = 1.0
_LONGEST_COMMIT_SECONDS: Final = 30.0


class TransactionRunner:
    """Runs transactions on one session, which others can find if this process dies.

    Not to be shared between threads.
    """

    def __init__(self, read_model: ReadModel) -> None:
        """Start a session on the read model's client."""
        self._client = read_model.client
        self._session = self._client.start_session()
        self._liveness = Liveness(read_model, self._session.session_id["id"])

    def run(self, work: Callable[[ClientSession], None], *, stop: Event | None = None) -> None:
        """Run ``work`` in a transaction and commit it.

        Errors that may pass are tried again for ``RETRY_SECONDS``: elections, lost connections and
        write conflicts. The outcome of a commit can stay unknown when that time is over; the
        compare-and-set of the position makes it safe to try the same batch again.

        Args:
            work: Called with the session, once for every attempt.
            stop: When set, no further attempt is made.

        Raises:
            PyMongoError: what the last attempt failed with; the transaction is aborted.
        """
        patience = Patience(stop or Event())
        while True:
            try:
                with self._liveness:
                    self._session.start_transaction(
                        read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority")
                    )
                    work(self._session)
                    self._commit(patience)
                return
            except PyMongoError as error:
                self._abort()
                if not is_transient(error) or patience.is_exhausted:
                    raise
                logger.info("transaction aborted, trying again: %s", error)
                if _is_conflict(error):
                    self._liveness.abort_the_dead()
                patience.pause()
                if not await_server(self._client, patience):
                    raise
            except BaseException:
                self._abort()
                raise

    def close(self) -> None:
        """End the session and take it off the list of workers."""
        self._liveness.close()
        self._session.end_session()

    def _commit(self, patience: Patience) -> None:
        # Committing again is safe: the server knows the transaction by its number. So the first
        # attempts are short, for a server that is gone must not keep a worker from stopping.
        seconds = _FIRST_COMMIT_SECONDS
        while True:
            try:
                with pymongo.timeout(seconds):
                    self._session.commit_transaction()
                return
            except PyMongoError as error:
                unknown = error.has_error_label("UnknownTransactionCommitResult") or error.timeout
                if not unknown:
                    raise
                patience.pause()
                if patience.is_exhausted or not await_server(self._client, patience):
                    self._abandon()
                    raise
            seconds = min(seconds * 2, _LONGEST_COMMIT_SECONDS)

    def _abort(self) -> None:
        if self._session.in_transaction:
            with suppress(PyMongoError), pymongo.timeout(_PROBE_SECONDS):
                self._session.abort_transaction()

    def _abandon(self) -> None:
        # The driver does not abort what it has tried to commit; if it was not committed it would
        # stay open, with all its locks, for a minute.
        with suppress(PyMongoError), pymongo.timeout(_PROBE_SECONDS):
            self._client.admin.command("killSessions", [self._session.session_id])


def await_server(client: pymongo.MongoClient[dict[str, object]], patience: Patience) -> bool:
    """Wait until there is a server to write to; false if patience is exhausted before.

    An operation that finds no server waits for one by itself, but for many seconds and whatever
    happens in the meantime.
    """
    while not client.topology_description.has_writable_server():
        if patience.is_exhausted:
            return False
        with suppress(PyMongoError), pymongo.timeout(_PROBE_SECONDS):
            client.admin.command("ping")
    return True


def _is_conflict(error: PyMongoError) -> bool:
    if isinstance(error, OperationFailure):
        details = error.details or {}
        codes = {error.code} | {item.get("code") for item in details.get("writeErrors", ())}
        return _WRITE_CONFLICT in codes
    return False
