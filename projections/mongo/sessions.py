"""Sessions of the driver, and getting rid of pooled connections that cannot carry one.

When it connects, the driver asks the server once whether it is in use as a primary or a secondary.
A server that is starting, rolling back or in maintenance says no, as a primary does that was frozen
and is waking up. The connection then refuses sessions for as long as it lives, though the server
may be the primary a second later, and the pool hands it out again and again.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bson.errors import InvalidDocument
from pymongo.errors import PyMongoError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_incrementing

from projections.errors import ReadModelUnavailable
from projections.mongo.errors import is_snapshot_gone, is_without_sessions
from scoring.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo import MongoClient
    from pymongo.client_session import ClientSession

T = TypeVar("T")

_MAX_CONNECTIONS: Final = 100  # of a pool, unless its owner says otherwise

INSTANTS: Final = Retrying(
    retry=retry_if_exception(lambda e: isinstance(e, PyMongoError) and is_snapshot_gone(e)),
    stop=stop_after_attempt(5),
    wait=wait_incrementing(start=0.05, increment=0.05),
    reraise=True,
)
"""For an instant that cannot be read any more, or not yet, as while a collection is made."""


def in_session(client: MongoClient[Any], work: Callable[[ClientSession], T], **options: Any) -> T:
    """Return what ``work`` returns, called with a session.

    It is called again if it met a connection that cannot carry a session, so it should only read.
    """
    for _ in range(_MAX_CONNECTIONS):
        try:
            with discarding(client), client.start_session(**options) as session:
                return work(session)
        except (PyMongoError, ReadModelUnavailable) as error:
            if not is_without_sessions(error):
                raise
    with client.start_session(**options) as session:
        return work(session)


def in_snapshot(client: MongoClient[Any], read: Callable[[ClientSession], T]) -> T:
    """Return what ``read`` returns, called with a session that reads one instant.

    It is called again, for a later instant, if that one cannot be read any more.

    Raises:
        OperationFailure: if one after the other cannot; see ``is_snapshot_gone``.
    """

    def read_one_instant() -> T:
        with client.start_session(snapshot=True) as session:
            return read(session)

    return Retries(INSTANTS).call(read_one_instant)


@contextmanager
def discarding(client: MongoClient[Any]) -> Iterator[None]:
    """Close the connection that the block met, if that cannot carry sessions."""
    try:
        yield
    except (PyMongoError, ReadModelUnavailable) as error:
        if is_without_sessions(error):
            _discard_connection(client)
        raise


def _discard_connection(client: MongoClient[Any]) -> None:
    # The driver has no call for it, but it closes a connection on which sending has failed, and it
    # takes the one that was given back last: most likely the one that was just met. If it is
    # another one, that is made anew when it is needed.
    with suppress(InvalidDocument, PyMongoError):
        client.admin.command({"ping": object()})
