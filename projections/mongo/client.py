"""Making, using and closing clients: their time limits, servers, and databases as ours are used."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pymongo
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidName
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from projections.errors import ReadModelUnavailable
from projections.mongo.errors import translated
from scoring import InvalidSetting

if TYPE_CHECKING:
    from pymongo.database import Database


DEFAULT_DATABASE: Final = "score_ledger"

GOODBYE_SECONDS: Final = 0.25
"""How long a server is waited for by somebody who is leaving it."""

# The driver asks each server all the time whether it is there: a frozen one is noticed after the
# second and the third of these together, and then every other question to it is given up, too.
_TIME_LIMITS: Final[dict[str, Any]] = {
    "serverSelectionTimeoutMS": 10_000,
    "connectTimeoutMS": 2_000,
    "heartbeatFrequencyMS": 1_000,
}


def connect(uri: str) -> MongoClient[Any]:
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


def database_in_path(client: MongoClient[Any]) -> str:
    """Return the database that the client's URI names in its path, or else the default.

    One of the server's own there says where the user is known, not where documents go.
    """
    name = client.get_default_database(DEFAULT_DATABASE).name
    return DEFAULT_DATABASE if name in {"admin", "local", "config"} else name


def database_of(client: MongoClient[Any], name: str) -> Database[Any]:
    """Return a database that is used as ours are, whatever the options of its client say.

    A majority has what was read and what was written, the primary is asked, and documents are
    decoded without what an application has registered for its own.

    Raises:
        InvalidSetting: if no database can have this name, or MongoDB keeps data of its own there.
    """
    setting = "MONGO_DATABASE, or the argument mongo_database,"
    if name in {"config", "local"}:
        raise InvalidSetting(
            setting,
            f"MongoDB keeps data of its own in {name!r}, without transactions or without copies on "
            "other nodes: name another database",
        )
    try:
        return client.get_database(
            name,
            codec_options=CodecOptions(tz_aware=True),
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority"),
        )
    except InvalidName as error:
        raise InvalidSetting(setting, str(error)) from error


def nodes_of(client: MongoClient[Any]) -> str:
    """Return the nodes of a client's set or cluster with their ports, those that are down, too.

    All of them, for a cluster with several ``mongos`` has no single address. Before the client has
    asked a server anything they are those that its URI names.
    """
    nodes = client.topology_description.server_descriptions()
    return ",".join(sorted(f"{host}:{port}" for host, port in nodes))


def check_server(client: MongoClient[Any]) -> None:
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


def close(client: MongoClient[Any]) -> None:
    """Close a client; the server is told, but not waited for if it does not answer."""
    with pymongo.timeout(GOODBYE_SECONDS):
        client.close()
