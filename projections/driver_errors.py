"""Where the driver's errors become ours: nothing above the adapters knows pymongo's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    InvalidName,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)

from projections.errors import ReadModelUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_AUTHENTICATION_CODES = frozenset({13, 18})

_TRANSIENT_LABELS = (
    "TransientTransactionError",
    "UnknownTransactionCommitResult",
    "RetryableWriteError",
)
# Shutting down, stepping down, hosts and sockets lost on the way between servers, time limits:
# the retryable codes of the drivers' specification.
_TRANSIENT_CODES = frozenset(
    {6, 7, 50, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}
)


def is_transient(error: PyMongoError) -> bool:
    """Tell whether an error may pass by itself, so that trying again makes sense."""
    return (
        isinstance(error, ConnectionFailure)
        or error.timeout
        or any(error.has_error_label(label) for label in _TRANSIENT_LABELS)
        or (isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES)
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn every error of the driver into ``ReadModelUnavailable`` with one sentence."""
    try:
        yield
    except (InvalidURI, ConfigurationError) as error:
        raise ReadModelUnavailable(f"MONGO_URI is not usable: {error}") from error
    except InvalidName as error:
        raise ReadModelUnavailable(
            f"MONGO_DATABASE, or the argument mongo_database, is not usable: {error}"
        ) from error
    except InvalidOperation as error:
        raise ReadModelUnavailable(
            f"MongoDB was not asked ({error}): leave a MongoClient open for as long as a ledger "
            "uses it"
        ) from error
    except ConnectionFailure as error:
        raise ReadModelUnavailable(
            f"MongoDB cannot be reached ({_first_line(error)}): check that it runs and that "
            "MONGO_URI names it",
            transient=True,
        ) from error
    except OperationFailure as error:
        if error.code in _AUTHENTICATION_CODES:
            raise ReadModelUnavailable(
                f"MongoDB refused access ({_first_line(error)}): check the user, password and "
                "roles in MONGO_URI"
            ) from error
        raise ReadModelUnavailable(
            f"MongoDB refused: {_first_line(error)}", transient=is_transient(error)
        ) from error
    except PyMongoError as error:
        raise ReadModelUnavailable(
            f"MongoDB failed: {_first_line(error)}", transient=is_transient(error)
        ) from error


def _first_line(error: Exception) -> str:
    # Server selection errors append a page of topology; the beginning says what happened.
    return str(error).partition(", Timeout:")[0].partition(", full error:")[0].strip() or repr(
        error
    )
