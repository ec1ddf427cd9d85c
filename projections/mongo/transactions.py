"""MongoDB transactions with bounded retries, and freeing what a killed worker left locked.

A worker that is killed between two statements leaves its transaction open on the server, which
keeps it for a minute by default, and all its documents locked with it. Workers therefore say that
they are alive while they hold a transaction; see ``liveness``. Whoever is held up by a conflict
aborts the transactions of those who are gone. Doing that to a worker that was merely slow does no
harm: its transaction is aborted whole, and it tries again.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from threading import Event
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pymongo
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from projections.errors import BatchTooSlow
from projections.mongo.errors import (
    in_words,
    is_conflict,
    is_outcome_unknown,
    is_too_large_for_cache,
    is_transaction_gone,
    is_transient,
)
from projections.mongo.liveness import Liveness
from projections.mongo.sessions import discarding
from projections.retries import retries_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection

    from projections.mongo.collections import Collections, Document
    from scoring.retries import Retries

T = TypeVar("T")

_PROBE_SECONDS: Final = 0.5
_FIRST_COMMIT_SECONDS: Final = 1.0
_LONGEST_COMMIT_SECONDS: Final = 30.0
# What the server gives a transaction (transactionLifetimeLimitSeconds), unless it was told else.
_LONGEST_ATTEMPT_SECONDS: Final = 60.0
_SLOW_SECONDS: Final = 1.0


class TransactionRunner:
    """Runs transactions on one session, which others can find if this process dies.

    Not to be shared between threads.

    Attributes:
        session: The driver's session.
    """

    def __init__(self, collections: Collections) -> None:
        self._client = collections.client
        self.session = self._client.start_session()
        self._liveness = Liveness(collections, self.session.session_id["id"])

    def run(
        self, work: Callable[[], object], *, stop: Event | None = None, divisible: bool = False
    ) -> None:
        """Run ``work`` in a transaction and commit it.

        Errors that may pass are tried again for ``RETRY_SECONDS``: elections, lost connections and
        write conflicts. The outcome of a commit can stay unknown when that time is over; the
        compare-and-set of the position makes it safe to try the same batch again.

        Args:
            work: Called once for every attempt, uses ``session``.
            stop: When set, no further attempt is made.
            divisible: Whether the caller can do with less at once, if it takes too long.

        Raises:
            BatchTooSlow: if it is divisible, and the server gave the transaction up for its age or
                its size.
            PyMongoError: what the last attempt failed with; the transaction is aborted.
        """
        retries = retries_until(stop or Event(), may_pass=_may_pass, in_words=in_words)
        while True:
            began = time.monotonic()
            try:
                find_server(self._client)
                with self._liveness, discarding(self._client):
                    # Named, whatever the client's own are: a transaction needs just these.
                    self.session.start_transaction(
                        read_concern=ReadConcern("snapshot"),
                        write_concern=WriteConcern("majority"),
                        read_preference=ReadPreference.PRIMARY,
                    )
                    with pymongo.timeout(_LONGEST_ATTEMPT_SECONDS):
                        work()
                    self._commit(retries)
                return
            except PyMongoError as error:
                self._abort()
                if divisible and is_too_large_for_cache(error):
                    raise BatchTooSlow(
                        "a transaction wrote more than MongoDB's cache can hold of it "
                        "(wiredTigerCacheSizeGB)"
                    ) from error
                if divisible and _is_too_slow(error, time.monotonic() - began):
                    raise BatchTooSlow(
                        "a transaction took longer than MongoDB keeps one open "
                        "(transactionLifetimeLimitSeconds)"
                    ) from error
                retries.back_off(error)
                if is_conflict(error):
                    self._liveness.abort_the_dead()
            except BaseException:
                self._abort()
                raise

    def close(self) -> None:
        """End the session and take it off the list of workers."""
        self._liveness.close()
        self.session.end_session()

    def _commit(self, retries: Retries) -> None:
        # Committing again is safe: the server knows the transaction by its number. So the first
        # attempts are short, for a server that is gone must not keep a worker from stopping.
        seconds = _FIRST_COMMIT_SECONDS
        while True:
            try:
                find_server(self._client)
                with discarding(self._client), pymongo.timeout(seconds):
                    self.session.commit_transaction()
                return
            except PyMongoError as error:
                if not is_outcome_unknown(error):
                    raise
                try:
                    retries.back_off(error)
                except PyMongoError:
                    self._abandon()
                    raise
            seconds = min(seconds * 2, _LONGEST_COMMIT_SECONDS)

    def _abort(self) -> None:
        if self.session.in_transaction:
            with suppress(PyMongoError), pymongo.timeout(_PROBE_SECONDS):
                self.session.abort_transaction()

    def _abandon(self) -> None:
        # The driver does not abort what it has tried to commit; if it was not committed it would
        # stay open, with all its locks, for a minute.
        with suppress(PyMongoError), pymongo.timeout(_PROBE_SECONDS):
            self._client.admin.command("killSessions", [self.session.session_id])


def in_transaction(collections: Collections, work: Callable[[ClientSession], T]) -> T:
    """Return what ``work`` returns, done in a transaction of its own.

    Whatever writes to positions or to the control document does, because what a killed process has
    left open on them is found and aborted by a transaction only; another write would wait for as
    long as the server keeps it, which is a minute.
    """
    results: list[T] = []  # of each attempt
    with closing(TransactionRunner(collections)) as transactions:
        transactions.run(lambda: results.append(work(transactions.session)), stop=collections.stop)
    return results[-1]


def update_one(
    collections: Collections, of: Collection[Document], where: Document, change: Document
) -> bool:
    """Change one document in a transaction of its own; tell whether it was there."""
    return in_transaction(
        collections, lambda session: of.update_one(where, change, session=session).matched_count > 0
    )


def find_server(client: pymongo.MongoClient[Any]) -> None:
    """Raise the driver's error unless there is a server to write to within half a second.

    An operation that finds no server waits for one by itself, but for many seconds and whatever
    happens in the meantime.
    """
    # As far as the driver knows; nothing is sent for it.
    if not client.topology_description.has_writable_server():
        with pymongo.timeout(_PROBE_SECONDS):
            client.admin.command("ping")


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, PyMongoError) and (is_transient(error) or is_outcome_unknown(error))


def _is_too_slow(error: PyMongoError, seconds: float) -> bool:
    """Tell whether an attempt failed because it took so long, as far as that can be known.

    The server may have been told to keep transactions for less than a minute, and says of one that
    it does not have it any more, whatever became of it.
    """
    if is_transaction_gone(error):
        return seconds > _SLOW_SECONDS
    return error.timeout and seconds >= _LONGEST_ATTEMPT_SECONDS
