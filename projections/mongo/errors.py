"""What the errors of the driver and the codes of the server mean: nothing else knows them.

The adapters ask the functions here what an error means to them; what leaves the adapters goes
through ``translated`` and is an error of ours.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    InvalidOperation,
    NotPrimaryError,
    OperationFailure,
    ProtocolError,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)

from projections.errors import ReadModelUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_SECONDS: Final = 10.0
"""How long anything that is answered at once by a healthy server is waited for."""


class Code(IntEnum):
    """The server's error codes that mean something here, by the names the server gives them."""

    BAD_VALUE = 2
    HOST_UNREACHABLE = 6
    HOST_NOT_FOUND = 7
    FAILED_TO_PARSE = 9
    UNAUTHORIZED = 13
    TYPE_MISMATCH = 14
    AUTHENTICATION_FAILED = 18
    ALREADY_INITIALIZED = 23
    LOCK_TIMEOUT = 24
    NAMESPACE_NOT_FOUND = 26
    PATH_NOT_VIABLE = 28
    CONFLICTING_UPDATE_OPERATORS = 40
    CURSOR_NOT_FOUND = 43
    LOCK_BUSY = 46
    NAMESPACE_EXISTS = 48
    MAX_TIME_MS_EXPIRED = 50
    DOLLAR_PREFIXED_FIELD_NAME = 52
    EMPTY_FIELD_NAME = 56
    DOTTED_FIELD_NAME = 57
    WRITE_CONCERN_TIMEOUT = 64
    UNKNOWN_REPL_WRITE_CONCERN = 79
    NETWORK_TIMEOUT = 89
    SHUTDOWN_IN_PROGRESS = 91
    NOT_YET_INITIALIZED = 94
    UNSATISFIABLE_WRITE_CONCERN = 100
    WRITE_CONFLICT = 112
    DOCUMENT_VALIDATION_FAILURE = 121
    READ_CONCERN_MAJORITY_NOT_AVAILABLE_YET = 134
    QUERY_PLAN_KILLED = 175
    PRIMARY_STEPPED_DOWN = 189
    CURSOR_KILLED = 237
    SNAPSHOT_TOO_OLD = 239
    SNAPSHOT_UNAVAILABLE = 246
    NO_SUCH_TRANSACTION = 251
    TRANSACTION_TOO_LARGE = 257
    EXCEEDED_TIME_LIMIT = 262
    TRANSACTION_EXCEEDED_LIFETIME_LIMIT_SECONDS = 290
    API_STRICT_ERROR = 323
    COLLECTION_UUID_MISMATCH = 361
    TEMPORARILY_UNAVAILABLE = 365
    TRANSACTION_TOO_LARGE_FOR_CACHE = 388
    SOCKET_EXCEPTION = 9001
    NOT_WRITABLE_PRIMARY = 10107
    BSON_OBJECT_TOO_LARGE = 10334
    DUPLICATE_KEY = 11000
    INTERRUPTED_AT_SHUTDOWN = 11600
    INTERRUPTED = 11601
    INTERRUPTED_DUE_TO_REPL_STATE_CHANGE = 11602
    NOT_PRIMARY_NO_SECONDARY_OK = 13435
    NOT_PRIMARY_OR_SECONDARY = 13436
    KEY_TOO_LONG = 17280
    RESULTING_DOCUMENT_TOO_LARGE = 17419
    UPSERTED_DOCUMENT_TOO_LARGE = 17420


# It quotes all of a command that it does not allow; the name of it and of the collection will do.
_COMMAND: Final = re.compile(r"(?<=to execute command )\{ (\w+): (?:\"([^\"]*)\")?.*", re.DOTALL)
_NAMED: Final = r"\1 \2"

_AUTHENTICATION: Final = frozenset({Code.UNAUTHORIZED, Code.AUTHENTICATION_FAILED})

# Shutting down, stepping down, hosts and sockets lost on the way between servers, time limits: the
# retryable codes of the drivers' specification; and what is interrupted, locked or gone for now.
_TRANSIENT: Final = frozenset(
    {
        Code.HOST_UNREACHABLE,
        Code.HOST_NOT_FOUND,
        Code.LOCK_TIMEOUT,
        Code.CURSOR_NOT_FOUND,
        Code.LOCK_BUSY,
        Code.MAX_TIME_MS_EXPIRED,
        Code.WRITE_CONCERN_TIMEOUT,
        Code.NETWORK_TIMEOUT,
        Code.SHUTDOWN_IN_PROGRESS,
        Code.WRITE_CONFLICT,
        Code.READ_CONCERN_MAJORITY_NOT_AVAILABLE_YET,
        Code.QUERY_PLAN_KILLED,
        Code.PRIMARY_STEPPED_DOWN,
        Code.CURSOR_KILLED,
        Code.SNAPSHOT_TOO_OLD,
        Code.SNAPSHOT_UNAVAILABLE,
        Code.NO_SUCH_TRANSACTION,
        Code.EXCEEDED_TIME_LIMIT,
        Code.TRANSACTION_EXCEEDED_LIFETIME_LIMIT_SECONDS,
        Code.TEMPORARILY_UNAVAILABLE,
        Code.SOCKET_EXCEPTION,
        Code.NOT_WRITABLE_PRIMARY,
        Code.INTERRUPTED_AT_SHUTDOWN,
        Code.INTERRUPTED,
        Code.INTERRUPTED_DUE_TO_REPL_STATE_CHANGE,
        Code.NOT_PRIMARY_NO_SECONDARY_OK,
        Code.NOT_PRIMARY_OR_SECONDARY,
    }
)
_TRANSIENT_LABELS: Final = (
    "TransientTransactionError",
    "UnknownTransactionCommitResult",
    "RetryableWriteError",
    "SystemOverloadedError",
)

# What the server answers when it is the document or the sum that it does not take: bad values and
# types (a sum beyond 64 bits among them), a validator, sizes. A whole transaction can be too large.
_REFUSALS: Final = frozenset(
    {
        Code.BAD_VALUE,
        Code.FAILED_TO_PARSE,
        Code.TYPE_MISMATCH,
        Code.PATH_NOT_VIABLE,
        Code.CONFLICTING_UPDATE_OPERATORS,
        Code.DOLLAR_PREFIXED_FIELD_NAME,
        Code.EMPTY_FIELD_NAME,
        Code.DOTTED_FIELD_NAME,
        Code.DOCUMENT_VALIDATION_FAILURE,
        Code.TRANSACTION_TOO_LARGE,
        Code.BSON_OBJECT_TOO_LARGE,
        Code.KEY_TOO_LONG,
        Code.RESULTING_DOCUMENT_TOO_LARGE,
        Code.UPSERTED_DOCUMENT_TOO_LARGE,
    }
)

# Too old: MongoDB keeps an instant for minSnapshotHistoryWindowInSeconds. Unavailable: it was
# before a collection got its name.
_SNAPSHOT_IS_GONE: Final = frozenset({Code.SNAPSHOT_TOO_OLD, Code.SNAPSHOT_UNAVAILABLE})

_TRANSACTION_IS_GONE: Final = frozenset(
    {Code.NO_SUCH_TRANSACTION, Code.TRANSACTION_EXCEEDED_LIFETIME_LIMIT_SECONDS}
)

_WRITE_CONCERN_CANNOT_BE_MET: Final = frozenset(
    {Code.UNKNOWN_REPL_WRITE_CONCERN, Code.UNSATISFIABLE_WRITE_CONCERN}
)


def is_transient(error: PyMongoError) -> bool:
    """Tell whether an error may pass by itself, so that trying again makes sense."""
    return (
        # The latter, an answer to what another command has asked, costs the connection, too.
        isinstance(error, ConnectionFailure | ProtocolError)
        or error.timeout
        or any(error.has_error_label(label) for label in _TRANSIENT_LABELS)
        or not _codes(error).isdisjoint(_TRANSIENT)
        or is_without_sessions(error)
    )


def is_outcome_unknown(error: PyMongoError) -> bool:
    """Tell whether what a commit was answered with leaves open whether it is committed.

    A write concern error says that it is, on the primary: whether it will last is not known yet.
    """
    if isinstance(error, WriteConcernError):
        return _codes(error).isdisjoint(_WRITE_CONCERN_CANNOT_BE_MET)
    return (
        error.has_error_label("UnknownTransactionCommitResult")
        or error.timeout
        or Code.INTERRUPTED in _codes(error)
        or is_without_sessions(error)
    )


def is_conflict(error: PyMongoError) -> bool:
    """Tell whether another transaction, perhaps one of the dead, holds what was to be written."""
    return Code.WRITE_CONFLICT in _codes(error)


def is_duplicate_key(error: PyMongoError) -> bool:
    """Tell whether an insert or an upsert met a key that is taken."""
    return Code.DUPLICATE_KEY in _codes(error)


def duplicate_key(error: PyMongoError) -> dict[str, Any] | None:
    """Return the key that is taken, by the names of its fields, if that is what an error says."""
    for item in [*_write_errors(error), getattr(error, "details", None) or {}]:
        if item.get("code") == Code.DUPLICATE_KEY:
            return dict(item["keyValue"])
    return None


def is_transaction_gone(error: PyMongoError) -> bool:
    """Tell whether the server has given up the transaction: for its age, or asked by somebody."""
    return not _codes(error).isdisjoint(_TRANSACTION_IS_GONE)


def is_too_large_for_cache(error: PyMongoError) -> bool:
    """Tell whether the server's cache cannot hold all that a transaction has written."""
    return Code.TRANSACTION_TOO_LARGE_FOR_CACHE in _codes(error)


def is_snapshot_gone(error: PyMongoError) -> bool:
    """Tell whether an instant cannot be read any more, so that another has to be taken."""
    return not _codes(error).isdisjoint(_SNAPSHOT_IS_GONE)


def is_other_collection(error: PyMongoError) -> bool:
    """Tell whether a name belongs to another collection than the UUID that was given with it."""
    return Code.COLLECTION_UUID_MISMATCH in _codes(error)


def is_access_refused(error: PyMongoError) -> bool:
    """Tell whether the user may not do this, or is none."""
    return not _codes(error).isdisjoint(_AUTHENTICATION)


def is_no_collection(error: PyMongoError) -> bool:
    """Tell whether there is no collection of a name that was given without a UUID."""
    return Code.NAMESPACE_NOT_FOUND in _codes(error)


def is_name_taken(error: PyMongoError) -> bool:
    """Tell whether there is a collection already of a name that was to be given to one."""
    return Code.NAMESPACE_EXISTS in _codes(error)


def is_out_of_time(error: PyMongoError) -> bool:
    """Tell whether the server ended a command because of the time that it was given."""
    return Code.MAX_TIME_MS_EXPIRED in _codes(error)


def is_without_sessions(error: BaseException) -> bool:
    """Tell whether the connection was made to a server that was no member in use at that moment.

    The driver asks once, when it connects; for the connection the answer stays; see ``sessions``.
    An error of ours that was made of the driver's tells it, too.
    """
    return any(
        isinstance(each, ConfigurationError) and "Sessions are not supported" in str(each)
        for each in (error, error.__cause__)
    )


def refusal(error: PyMongoError) -> str | None:
    """Return why the server refuses what is in a write, if that is what it does."""
    codes = {item["code"] for item in _write_errors(error)} or _codes(error)
    if not codes or not codes <= _REFUSALS:
        return None
    return _reason(error)


def _codes(error: PyMongoError) -> set[int]:
    """Return all codes in an error: its own, of the single writes in it, of their replication."""
    codes = {item["code"] for item in [*_write_errors(error), *_concern_errors(error)]}
    if isinstance(error, OperationFailure) and error.code is not None:
        codes.add(error.code)
    return codes


def _write_errors(error: PyMongoError) -> list[dict[str, Any]]:
    return _items(error, "writeErrors")


def _concern_errors(error: PyMongoError) -> list[dict[str, Any]]:
    return _items(error, "writeConcernErrors")


def _items(error: PyMongoError, name: str) -> list[dict[str, Any]]:
    details = error.details if isinstance(error, OperationFailure) else None
    return list((details or {}).get(name) or ())


@contextmanager
def answered(seconds: float = ANSWER_SECONDS) -> Iterator[None]:
    """Translate errors as ``translated`` does, and wait so long at most for what is in the block.

    For what a healthy server answers at once: one that hangs would keep its caller for as long as
    the driver takes to find out.
    """
    with translated(), pymongo.timeout(seconds):
        yield


@contextmanager
def translated() -> Iterator[None]:
    """Turn every error of the driver into ``ReadModelUnavailable`` with one sentence."""
    try:
        yield
    except PyMongoError as error:
        raise ReadModelUnavailable(in_words(error), transient=is_transient(error)) from error


def in_words(error: PyMongoError) -> str:
    """Return one sentence, with the cure where there is one."""
    said = _reason(error)
    if is_without_sessions(error):
        sentence = (
            "MongoDB cannot be used over a connection that was made while the server was starting, "
            "rolling back or in maintenance: ask again, and if that does not help make a new "
            "MongoClient"
        )
    elif isinstance(error, ConfigurationError):
        sentence = f"MONGO_URI is not usable: {error}"
    elif isinstance(error, InvalidOperation):
        sentence = (
            f"MongoDB was not asked ({error}): leave a MongoClient open for as long as a ledger "
            "uses it"
        )
    elif isinstance(error, NotPrimaryError):
        sentence = (
            f"MongoDB has no primary where it was asked ({said}): wait until one is elected, and "
            "let MONGO_URI name the replica set rather than one member with directConnection"
        )
    elif isinstance(error, ServerSelectionTimeoutError) and said.startswith("No servers match"):
        sentence = (
            f"MongoDB has no primary ({said}): wait until one is elected, see that a majority of "
            "the replica set runs, and initiate a new one once, by rs.initiate()"
        )
    elif isinstance(error, ConnectionFailure):
        sentence = (
            f"MongoDB cannot be reached ({said}): check that it runs and that MONGO_URI names it"
        )
    elif is_access_refused(error):
        sentence = (
            f"MongoDB refused access ({_COMMAND.sub(_NAMED, said)}): check the user, password and "
            "roles in MONGO_URI"
        )
    elif Code.API_STRICT_ERROR in _codes(error):
        sentence = (
            f"MongoDB was asked for more than the stable API has ({said}): give the MongoClient a "
            "ServerApi without strict=True"
        )
    else:
        did = "refused" if isinstance(error, OperationFailure) else "failed"
        sentence = f"MongoDB {did}: {said}"
    return sentence


def _reason(error: PyMongoError) -> str:
    # Of writes that were sent together the driver says only that there were errors.
    for item in [*_write_errors(error), *_concern_errors(error)]:
        return str(item["errmsg"])
    # It appends a page of topology, or the whole answer; the beginning says what happened.
    said = str(error)
    for end in (", Timeout:", ", full error:", " (configured timeouts:"):
        said = said.partition(end)[0]
    return said.strip() or repr(error)
