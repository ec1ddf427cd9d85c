"""The switch: the generation that was built takes the live names.

1. *Hold.* The live position is held: no worker can commit a batch any more, because each compares
   and sets that document first in its transaction, so none can straddle the renames either. What
   was under way is committed or aborted before the hold is written. Held, the live generation
   stands still, and the rebuild brings the new one up to it. A hold that falls silent is lifted by
   whoever it holds up, and nothing has happened.
2. *Commit.* One transaction checks that the hold is still there and the new generation far enough,
   seals both positions, and writes down which collections take part, by their UUIDs. From here on
   the switch only goes forward, and whoever comes along can carry it on, without the event store.
3. *Renames.* The live collections are put away, the new ones get the live names. Each rename names
   the UUID it means, and a collection never gets a name again that it had before: it is built under
   one, live under the next and put away under a third. So a rename that is sent twice, or arrives
   from a process that was frozen while others went on, is refused by the server, however many
   switches there were since. Nothing is dropped that holds a document.
4. *Finish.* One transaction makes the new generation the live one, with its position.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from bson.binary import Binary
from pymongo.errors import DuplicateKeyError, OperationFailure

from projections.errors import ProjectionError, ReadModelUnavailable
from projections.mongo.catalog import drop, is_older_than_6_0, names_by_uuid
from projections.mongo.collections import (
    CONTROL_ID,
    GENERATIONAL,
    NOT_HELD,
    put_away,
    seconds_ago,
)
from projections.mongo.control import control_state
from projections.mongo.errors import (
    answered,
    is_name_taken,
    is_no_collection,
    is_other_collection,
    is_out_of_time,
    translated,
)
from projections.mongo.transactions import in_transaction, update_one

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Collections, Document
    from projections.mongo.control import GenerationState

T = TypeVar("T")

SILENT_HOLD_SECONDS: Final = 5.0
"""A hold that has not been renewed for so long is lifted by a worker that it holds up."""

_RENAME_MILLISECONDS: Final = 10_000


class Switch:
    """Puts one generation, of which a rebuild has caught up, in the place of the live one."""

    def __init__(self, live: Collections, building: Collections, application_name: str) -> None:
        self._live = live
        self._building = building
        self._application_name = application_name
        self._live_id = live.position_id(application_name)
        self._building_id = building.position_id(application_name)
        self._token = uuid4().hex

    def check_server(self) -> None:
        """Check that the server can guard a rename by a UUID, before there is work to lose.

        Raises:
            ReadModelUnavailable: if it cannot.
        """
        nothing = self._live.database[f"{self._building.name_of(GENERATIONAL[0])}_none"]
        with answered():
            try:
                nothing.rename(f"{nothing.name}_at_all", collectionUUID=Binary.from_uuid(uuid4()))
            except OperationFailure as error:
                if is_other_collection(error):
                    return
                if not is_older_than_6_0(self._live.client):
                    raise
                raise ReadModelUnavailable(
                    "the MongoDB server is older than 6.0, whose renames can name the collection "
                    "that they mean: a rebuild needs that, so that its switch survives being "
                    "killed; upgrade it"
                ) from error

    def hold(self) -> bool:
        """Hold the live position, unless somebody else does; return whether it is held.

        Raises:
            ReadModelGone: if the database was dropped.
        """
        self._token = uuid4().hex

        def hold(session: ClientSession) -> None:
            control_state(self._live, session)  # a database that was dropped stays empty
            self._live.positions.update_one(
                {"_id": self._live_id, **NOT_HELD},
                {
                    "$set": {"hold.token": self._token},
                    "$currentDate": {"hold.at": True},
                    "$setOnInsert": {"shape": self._live.shape},
                },
                upsert=True,
                session=session,
            )

        with translated():
            try:
                # In a transaction, so that a killed worker's open one is found and aborted.
                in_transaction(self._live, hold)
            except DuplicateKeyError:
                return False
        return True

    def renew(self) -> None:
        """Say that the hold is still wanted."""
        with answered():
            self._live.positions.update_one(
                {"_id": self._live_id, "hold.token": self._token},
                {"$currentDate": {"hold.at": True}},
            )

    def release(self) -> None:
        """Lift the hold, if it is still there and the switch is not committed."""
        held = {"_id": self._live_id, "hold.token": self._token, "hold.sealed": None}
        with translated():
            if self._live.positions.find_one(held, {"_id": 1}) is not None:
                update_one(self._live, self._live.positions, held, {"$unset": {"hold": ""}})

    def commit(self, *, at_least: int) -> bool:
        """Commit to the switch if the hold is there and the new generation is at ``at_least``.

        Returns:
            Whether it is committed; if not, nothing has changed.

        Raises:
            ProjectionError: if there are collections in the way.
        """
        with translated():
            state = control_state(self._live)
            if state.building is None or state.building != self._building.generation:
                return False
            try:
                collections = self._taking_part(state)
            except ProjectionError:
                if control_state(self._live) != state:
                    return False  # others have switched, or given it up, since the hold fell silent
                raise
        sealed: Document = {"token": self._token, "sealed": True}

        def commit(session: ClientSession) -> bool:
            control = self._live.control.find_one({"_id": CONTROL_ID}, session=session) or {}
            position = self._live.positions.find_one({"_id": self._building_id}, session=session)
            if (
                control.get("building", {}).get("generation") != self._building.generation
                or "switching" in control
                or position is None
                or position.get("shape") != self._building.shape  # still loading
                or (position.get("position") or 0) < at_least
            ):
                return False
            held = self._live.positions.update_one(
                {"_id": self._live_id, "hold.token": self._token},
                {"$set": {"hold": sealed}},
                session=session,
            )
            if not held.matched_count:
                return False
            self._live.positions.update_one(
                {"_id": self._building_id}, {"$set": {"hold": sealed}}, session=session
            )
            self._live.control.update_one(
                {"_id": CONTROL_ID},
                {
                    "$set": {
                        "switching.to": self._building.generation,
                        "switching.application": self._application_name,
                        "switching.collections": collections,
                    },
                    "$currentDate": {"switching.at": True},
                },
                session=session,
            )
            return True

        with translated():
            return in_transaction(self._live, commit)

    def _taking_part(self, state: GenerationState) -> list[Document]:
        """Return the collections that the switch renames, by UUID.

        Raises:
            ProjectionError: if one of them is missing, or a name that is needed is taken.
        """
        names = names_by_uuid(self._live.database)
        taken = set(names.values())
        collections = []
        for name in GENERATIONAL:
            old = state.collections.get(state.generation, {}).get(name)
            new = state.collections.get(state.building or 0, {}).get(name)
            old_name, new_name = put_away(name, state.generation), self._building.name_of(name)
            if names.get(new) != new_name:
                raise ProjectionError(
                    f"the collection {new_name} of the rebuild has vanished: run score-ledger "
                    "rebuild --fresh"
                )
            if old_name in taken:
                raise _in_the_way(old_name)
            if names.get(old) != name:
                # Somebody has dropped it, or renamed it: there is nothing to put away then.
                old = None
                _clear(self._live, name)
            collections.append(
                {"name": name, "oldName": old_name, "newName": new_name, "old": old, "new": new}
            )
        return collections


def roll_forward(collections: Collections) -> None:
    """Carry on a switch that is committed, to its end.

    Any number of processes may do so at once.

    Raises:
        ProjectionError: if somebody else's collection is in the way.
        ReadModelUnavailable: if MongoDB failed; the next one to come along carries on.
    """
    with translated():
        while (step := next_step(collections)) is not None:
            step()


def next_step(collections: Collections) -> Callable[[], None] | None:
    """Return the next step of the switch that is under way, decided from which names exist.

    ``None`` if there is no switch, or none any more.
    """
    control = collections.control.find_one({"_id": CONTROL_ID}) or {}
    switching = control.get("switching")
    if switching is None:
        return None
    names = names_by_uuid(collections.database)
    for which, source, target in (("old", "name", "oldName"), ("new", "newName", "name")):
        for each in switching["collections"]:
            if names.get(each[which]) == each[source]:
                return partial(_rename, collections, each[which], each[source], each[target])
    return partial(_finish, collections, switching)


def lift_silent_hold(collections: Collections, position_id: str) -> bool:
    """Lift a hold whose rebuild has fallen silent, unless its switch is committed."""
    silent: Document = {
        "_id": position_id,
        "hold.at": {"$exists": True},
        "hold.sealed": None,
        "$expr": {"$lt": ["$hold.at", seconds_ago(SILENT_HOLD_SECONDS)]},
    }
    if collections.positions.find_one(silent, {"_id": 1}) is None:
        return False
    update_one(collections, collections.positions, silent, {"$unset": {"hold": ""}})
    return True


def _rename(collections: Collections, uuid: Any, source: str, target: str) -> None:
    """Rename the collection that has this UUID, or none."""
    try:
        collections.database[source].rename(
            target, collectionUUID=uuid, maxTimeMS=_RENAME_MILLISECONDS
        )
    except OperationFailure as error:
        if is_name_taken(error):
            _clear(collections, target)
        # Somebody else has done it: the collection has another name by now, or its old name was
        # given to another. Out of time: somebody reads it in a transaction; the next step asks
        # again.
        elif not (is_no_collection(error) or is_other_collection(error) or is_out_of_time(error)):
            raise


def _clear(collections: Collections, name: str) -> None:
    """Drop an empty collection that somebody else made under a name that is needed.

    Raises:
        ProjectionError: if it is not an empty collection.
    """
    for entry in collections.database.list_collections(filter={"name": name}):
        uuid = entry["info"].get("uuid")
        # Looked up after the UUID: what is not on record then is nobody's who comes later, either.
        if uuid in _on_record(collections):
            return
        if uuid is None or collections.database[name].find_one({}, {"_id": 1}) is not None:
            raise _in_the_way(name)
        drop(collections.database, name, uuid)


def _on_record(collections: Collections) -> list[Any]:
    """Return the UUIDs of all collections that were made for the read model."""
    control = collections.control.find_one({"_id": CONTROL_ID}) or {}
    recorded = [uuid for of in control.get("collections", {}).values() for uuid in of.values()]
    switching = control.get("switching", {}).get("collections", ())
    return [*recorded, *(collection[role] for collection in switching for role in ("old", "new"))]


def _in_the_way(name: str) -> ProjectionError:
    return ProjectionError(
        f"the collection {name} is in the way of the switch to a rebuilt read model, and is not of "
        "Score ledger: rename or drop it, and run score-ledger rebuild again"
    )


def _finish(collections: Collections, switching: Document) -> None:
    # Whoever carries the switch on may be at work on the generation that is switched to.
    live_id = collections.of_generation(None).position_id(switching["application"])
    building_id = collections.of_generation(switching["to"]).position_id(switching["application"])

    def finish(session: ClientSession) -> None:
        finished = collections.control.update_one(
            {"_id": CONTROL_ID, "switching.to": switching["to"]},
            [
                {"$set": {"generation": switching["to"], "shape": "$building.shape"}},
                {"$unset": ["switching", "building"]},
            ],
            session=session,
        )
        if not finished.matched_count:
            return
        position = collections.positions.find_one({"_id": building_id}, session=session) or {}
        position.pop("hold", None)
        collections.positions.replace_one(
            {"_id": live_id}, {**position, "_id": live_id}, upsert=True, session=session
        )
        collections.positions.delete_one({"_id": building_id}, session=session)

    in_transaction(collections, finish)
