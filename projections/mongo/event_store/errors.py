"""The driver's errors as the library's: whoever uses an event store knows those only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bson.errors import BSONError
from eventsourcing.persistence import (
    ConnectionPoolClosedError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PersistenceError,
    ProgrammingError,
)
from pymongo.errors import ConfigurationError, InvalidOperation, PyMongoError

from projections.mongo.errors import in_words, is_duplicate_key, is_transient, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator


CLOSED: Final = "the event store was closed"

# The last two are of text that is no Unicode, and of numbers beyond 64 bits.
DRIVER_ERRORS: Final = (PyMongoError, BSONError, UnicodeError, OverflowError)


def as_persistence_error(
    error: PyMongoError | BSONError | UnicodeError | OverflowError,
) -> PersistenceError | ConnectionPoolClosedError:
    """Return what the library calls an error of the driver."""
    if not isinstance(error, PyMongoError):
        return DataError(str(error))
    if isinstance(error, InvalidOperation):
        # What the driver says of a client that is closed, or of a session that ended with it.
        return ConnectionPoolClosedError(CLOSED)
    kind: type[PersistenceError]
    if is_duplicate_key(error):
        kind = IntegrityError
    elif is_transient(error):
        kind = OperationalError
    elif isinstance(error, ConfigurationError):
        kind = InterfaceError
    elif refusal(error) is not None:
        kind = DataError
    else:
        kind = ProgrammingError
    return kind(in_words(error))


@contextmanager
def persistence_errors() -> Iterator[None]:
    """Turn every error of the driver into one of the library's."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise as_persistence_error(error) from error
