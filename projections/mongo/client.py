"""Making and closing clients, with the time limits that they work under."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo import MongoClient
from pymongo.errors import ConfigurationError

from projections.errors import ReadModelUnavailable
from projections.mongo.errors import translated
from projections.mongo.liveness import GOODBYE_SECONDS
from scoring import InvalidSetting

if TYPE_CHECKING:
    from projections.mongo.collections import Document

DEFAULT_DATABASE: Final = "score_ledger"

# The driver asks each server all the time whether it is there: a frozen one is noticed after the
# second and the third of these together, and then every other question to it is given up, too.
_TIME_LIMITS: Final[dict[str, Any]] = {
    "serverSelectionTimeoutMS": 10_000,
    "connectTimeoutMS": 2_000,
    "heartbeatFrequencyMS": 1_000,
}


def connect(uri: str) -> MongoClient[Document]:
    """Return a client for a URI; it connects when first used.

    What the URI says of time limits holds; unless it does, a server that does not answer any more
    is given up within three seconds, together with what is being asked of it.

    Raises:
        InvalidSetting: if the URI cannot be understood.
    """
    chosen = uri.lower()
    limits = {k: ms for k, ms in _TIME_LIMITS.items() if f"{k}=".lower() not in chosen}
    try:
        return MongoClient(uri, appname="score-ledger", **limits)
    except (ValueError, TypeError, ConfigurationError) as error:
        if _is_unescaped(uri):
            # Without what the driver says of it, which may quote a part of the password.
            raise InvalidSetting(
                "MONGO_URI",
                "its user or password contains '@', ':', '/' or another character that means "
                "something in a URI; percent-encode both with urllib.parse.quote_plus ('@' is %40)",
            ) from None
        # A port or an option out of range, say.
        raise InvalidSetting("MONGO_URI", str(error)) from error


def _is_unescaped(uri: str) -> bool:
    user, _, password = uri.partition("://")[2].rpartition("@")[0].partition(":")
    return re.search(r"[@:/?#\[\]]|%(?![0-9A-Fa-f]{2})", user + password) is not None


def database_in_path(client: MongoClient[Document]) -> str:
    """Return the database that the client's URI names in its path, or else the default.

    One of the server's own there says where the user is known, not where documents go.
    """
    name = client.get_default_database(DEFAULT_DATABASE).name
    return DEFAULT_DATABASE if name in {"admin", "local", "config"} else name


def check_server(client: MongoClient[Document]) -> None:
    """Check that the server can do transactions.

    Raises:
        ReadModelUnavailable: if the server is not there, or is not of a replica set.
    """
    with translated():
        reason = why_unusable(client)
    if reason is not None:
        raise ReadModelUnavailable(reason)


def why_unusable(client: MongoClient[Any]) -> str | None:
    """Return why the server cannot do transactions, in one sentence; ``None`` if it can.

    Raises:
        PyMongoError: if the server is not there.
    """
    hello = client.admin.command("hello")
    if hello.get("isreplicaset"):
        return (
            "the MongoDB server is started for a replica set that was never initiated: run "
            "rs.initiate() on it once, one node is enough"
        )
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        return (
            "the MongoDB server is a standalone one, which cannot do transactions: start "
            "it with --replSet NAME and run rs.initiate() once, one node is enough"
        )
    return None


def close(client: MongoClient[Document]) -> None:
    """Close a client; the server is told, but not waited for if it does not answer."""
    with pymongo.timeout(GOODBYE_SECONDS):
        client.close()
