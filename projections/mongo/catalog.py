"""Collections by their UUIDs, which say what a name does not: whether it is still the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import OperationFailure

from projections.mongo.errors import is_no_collection, is_other_collection

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

_WIRE_VERSION_OF_6_0: Final = 17


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
