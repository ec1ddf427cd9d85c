"""Servers by their nodes, databases as ours are used, and collections by their UUIDs.

A UUID says what a name does not: whether it is still the same collection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bson.codec_options import CodecOptions
from pymongo.errors import InvalidName, OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from projections.mongo.errors import is_no_collection, is_other_collection
from scoring import InvalidSetting

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

_WIRE_VERSION_OF_6_0: Final = 17


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
    """Return the nodes that a client knows, with their ports; it asks one of them first.

    All of them, for a cluster with several ``mongos`` has no single address.

    Raises:
        PyMongoError: if no server is there.
    """
    client.admin.command("ping")
    return ",".join(sorted(f"{host}:{port}" for host, port in client.nodes))


def is_older_than_6_0(client: MongoClient[Any]) -> bool:
    """Tell whether the server does not know of UUIDs that are given with names."""
    version: int = client.admin.command("hello")["maxWireVersion"]
    return version < _WIRE_VERSION_OF_6_0


def takes_uuids(client: MongoClient[Any]) -> bool:
    """Tell whether a command may give the UUID of the collection that is meant with its name."""
    api = client.options.pool_options.server_api
    return not (api is not None and api.strict) and not is_older_than_6_0(client)


def names_by_uuid(database: Database[Any]) -> dict[Any, str]:
    """Return the names of all collections, by UUID."""
    names: dict[Any, str] = {}
    # Twice, because a listing may miss a collection that is renamed meanwhile; none is renamed
    # more than once in a switch, so a second listing has it.
    for _ in range(2):
        for entry in database.list_collections():
            if "uuid" in entry["info"]:
                names[entry["info"]["uuid"]] = entry["name"]
    return names


def drop(database: Database[Any], name: str, uuid: Any) -> None:
    """Drop the collection that has this name and this UUID, if there is one."""
    try:
        database.command("drop", name, collectionUUID=uuid)
    except OperationFailure as error:
        if not (is_no_collection(error) or is_other_collection(error)):
            raise
