"""The inventory: which collections were made for the read model, and whether they are whole.

A name says little: it may have been somebody else's before, or be given to another collection by a
restored backup or a mistaken hand. So the control document has the UUID of each collection that was
made, and what writes documents, renames or drops names it too: MongoDB refuses the command then if
the collection is another one, or none, instead of making one without indexes on the way.

Without a control document nothing is ours. Then a name may be taken only by an empty collection,
which another process may just have made for the same reason. Read models of releases that put no
UUIDs down are adopted once, by their names.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import CollectionInvalid, OperationFailure

from projections.errors import NameTaken, ReadModelDamaged, ReadModelGone, RebuildSuperseded
from projections.mongo.catalog import names_by_uuid, takes_uuids
from projections.mongo.collections import GENERATIONAL, INDEXES
from projections.mongo.errors import (
    ANSWER_SECONDS,
    answered,
    in_words,
    is_name_taken,
    is_other_collection,
    is_transient,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pymongo.operations import IndexModel

    from projections.mongo.collections import Collections, Document
    from projections.mongo.control import GenerationState, Uuids
    from projections.mongo.generations import Generations

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS: Final = 10.0
"""So often a worker checks them, whether it has anything to write or not."""

_INDEX_OPTIONS: Final = (
    "unique",
    "sparse",
    "partialFilterExpression",
    "collation",
    "hidden",
    "expireAfterSeconds",
)
"""What makes another index of one with the same keys."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A collection or an index that is not as it was made.

    Attributes:
        what: Which one.
        expected: What it was made as.
        found: What there is; ``None`` if there is nothing.
        name: The collection's name.
        index: The index that it is about, if it is about one.
    """

    what: str
    expected: str
    found: str | None
    name: str
    index: IndexModel | None = None

    def __str__(self) -> str:
        return f"{self.what} is {self.found or 'missing'}"


class Inventory:
    """The collections of one generation of a read model; may be shared between threads."""

    def __init__(self, collections: Collections, generations: Generations) -> None:
        """Look after these collections; nothing is sent yet."""
        self._collections = collections
        self._generations = generations
        self._guards: dict[str, Document] | None = None
        self._checked_at = float("-inf")

    def know(self) -> None:
        """Look up what is on record, unless it is known; not to be done in a transaction.

        Raises:
            ReadModelGone: if the database was dropped.
            RebuildSuperseded: if this generation is not being built any more.
        """
        if self._guards is None:
            self._guards = self._look()

    def guard(self, name: str) -> Document:
        """Return what a command says besides the name of a collection, to mean the one on record.

        Nothing, if the server cannot be told: before 6.0, and under the strict stable API. What was
        dropped is then noticed by ``check()`` only.
        """
        return (self._guards or {}).get(name, {})

    def has_changed(self) -> bool:
        """Tell whether others are on record than were known, as after a switch; know these now.

        To be asked when a command was refused because of a UUID.

        Raises:
            ReadModelDamaged: if those on record are not there.
            RebuildSuperseded: if this generation is not being built any more.
        """
        before = self._guards
        self.check()
        return self._guards != before

    def check(self, *, seconds: float = ANSWER_SECONDS) -> None:
        """Check that what is on record is there, and make again what can be.

        That is a whole live read model whose database was dropped, and single indexes.

        Args:
            seconds: How long an answer is waited for; an index takes as long as it takes.

        Raises:
            ReadModelDamaged: if something is missing that cannot be made again.
            NameTaken: if the read model has to be made, and a name is somebody else's.
            RebuildSuperseded: if this generation is not being built any more.
        """
        self._checked_at = float("-inf")
        is_live = self._collections.generation is None
        if is_live:
            with answered(seconds):
                self._make_if_missing()
            state = self._generations.await_settled()
            if state.generation not in state.collections:
                with answered(seconds):
                    self._adopt()
        damages = self.damages(seconds=seconds)
        if is_live and any(damage.index is None for damage in damages):
            with answered(seconds):
                self._adopt()  # if that is all that is wrong
            damages = self.damages(seconds=seconds)
        self._guards = self._look()
        with translated():
            lasting = [str(damage) for damage in damages if not self._is_mended(damage)]
        if lasting:
            raise ReadModelDamaged(lasting)
        self._checked_at = time.monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was wrong when it was checked, which is not long ago."""
        return time.monotonic() < self._checked_at + LOOK_EVERY_SECONDS

    @property
    def is_guarded(self) -> bool:
        """Whether MongoDB would refuse what is written into other collections than those known."""
        return bool(self._guards)

    def check_existence(self) -> None:
        """Check, without making anything, that there is a read model and nobody else's.

        Raises:
            NameTaken: if there is no read model, and a name is somebody else's.
            ReadModelGone: if there is none.
        """
        with answered():
            if self._generations.is_missing():
                for entry in self._listed(name for _, name in self._places()):
                    self._check_that_it_is_free(entry)
                raise ReadModelGone(self._collections.database.name)

    def damages(self, *, seconds: float = ANSWER_SECONDS) -> list[Damage]:
        """Return what is not as it was made; a switch under way is waited for.

        Raises:
            RebuildSuperseded: if this generation is not being built any more.
        """
        while True:
            state = self._generations.await_settled()
            with answered(seconds):
                found = list(self._damages(self._recorded(state)))
                if not found or self._generations.state() == state:
                    return found

    def create_building(self, application_name: str) -> None:
        """Create this generation's collections and position, if it is the one to build.

        Raises:
            NameTaken: if a name is somebody else's.
            RebuildSuperseded: if it is not the one to build any more.
        """
        number = self._collections.generation
        assert number is not None  # noqa: S101 - for the type checker
        generations = self._generations
        with translated():
            uuids = generations.state().collections.get(number)
            if uuids is None:
                try:
                    uuids = self._create(GENERATIONAL)
                except NameTaken:
                    # By another rebuild that shares the work, and has begun already?
                    uuids = generations.state().collections.get(number)
                    if uuids is None:
                        raise
            generations.begin_building(number, uuids, application_name)

    def create_indexes(self) -> None:
        """Create those of this generation's indexes that are not there yet.

        Raises:
            ReadModelDamaged: if a collection is gone.
            RebuildSuperseded: if this generation is not being built any more.
        """
        self.know()
        try:
            for collection in GENERATIONAL:
                name = self._collections.name_of(collection)
                self._create_indexes(name, INDEXES[collection], self.guard(name))
        except OperationFailure as error:
            if is_other_collection(error):
                self.check()  # which says why
            raise

    def _look(self) -> dict[str, Document]:
        """Return the guards for the collections on record, by name."""
        recorded = self._recorded(self._generations.await_settled())
        with answered():
            if not takes_uuids(self._collections.client):
                return {}
        return {
            self._collections.name_of(name): {"collectionUUID": uuid}
            for name, uuid in recorded.items()
        }

    def _recorded(self, state: GenerationState) -> Uuids:
        """Return the UUIDs of this generation; none if it was live before there were any."""
        building = self._collections.generation
        if building is not None and building not in {state.building} & state.collections.keys():
            raise RebuildSuperseded(building)
        return state.collections.get(building or state.generation, {})

    def _make_if_missing(self) -> None:
        generations = self._generations
        if not generations.is_missing():
            return
        try:
            uuids = self._create(self._collections.indexes)
        except NameTaken:
            # By another process that made it meanwhile, and has begun to write?
            if generations.is_missing():
                raise
        else:
            live = {name: uuids[name] for name in GENERATIONAL}
            generations.create(live)

    def _adopt(self) -> None:
        """Put the UUIDs down of a read model of which none are known.

        It was made, or rebuilt, by a release that does not put them down; or the whole database was
        restored, which gives every collection a new one.
        """
        generations = self._generations
        while True:
            state = generations.await_settled()
            names = names_by_uuid(self._collections.database)
            recorded = state.collections.get(state.generation)
            if recorded is not None and not self._is_a_copy(state, names):
                return
            if recorded is None:
                # A release of before may not have known all of them.
                missing = set(GENERATIONAL) - set(names.values())
                self._create(missing)
                names = names_by_uuid(self._collections.database)
            uuids = {name: uuid for uuid, name in names.items()}
            found = {state.generation: {name: uuids[name] for name in GENERATIONAL}}
            if recorded is not None or not state.collections:
                for number, name, uuid in generations.suffixed():
                    if uuid is not None and (number < state.generation or number == state.building):
                        found.setdefault(number, {})[name] = uuid
            generations.record(found, state)

    def _is_a_copy(self, state: GenerationState, names: dict[Any, str]) -> bool:
        """Tell whether nothing on record is there, but everything that should be, by its name."""
        recorded = [uuid for uuids in state.collections.values() for uuid in uuids.values()]
        return not any(uuid in names for uuid in recorded) and set(GENERATIONAL) <= set(
            names.values()
        )

    def _create(self, collections: Iterable[str]) -> Uuids:
        """Create empty collections with their indexes, unless they are there, and return the UUIDs.

        Raises:
            NameTaken: if a name is taken by anything else than an empty collection.
        """
        # With their indexes, because a transaction had better not wait for one.
        wanted = set(collections)
        names = {collection: name for collection, name in self._places() if collection in wanted}
        for entry in self._listed(names.values()):
            self._check_that_it_is_free(entry)
        for name in names.values():
            self._create_one(name)
        uuids = {entry["name"]: entry["info"]["uuid"] for entry in self._listed(names.values())}
        for collection, name in names.items():
            self._create_indexes(name, self._collections.indexes[collection], {})
        return {collection: uuids[name] for collection, name in names.items()}

    def _listed(self, names: Iterable[str]) -> list[Document]:
        listed = self._collections.database.list_collections(filter={"name": {"$in": [*names]}})
        return [dict(entry) for entry in listed]

    def _check_that_it_is_free(self, entry: Document) -> None:
        name = entry["name"]
        reason = None
        if entry["type"] != "collection":
            reason = f"it is a {entry['type']}"
        elif entry["options"]:
            reason = f"it was made with {', '.join(sorted(entry['options']))}"
        elif not self._is_empty(name):
            reason = "it holds documents, and no control document says that they are the ledger's"
        else:
            models = [
                model.document
                for collection, place in self._places()
                if place == name
                for model in self._collections.indexes[collection]
            ]
            for index in self._indexes(name):
                # Any other one is theirs, and does no harm: that of a shard key, perhaps.
                limits = index.get("unique") or "expireAfterSeconds" in index
                is_like_ours = _keys(index) in map(_keys, models)
                if (limits or is_like_ours) and _signature(index) not in map(_signature, models):
                    reason = f"it has an index {index['name']} {_indexed(index)}"
        if reason is not None:
            database = self._collections.database.name
            raise NameTaken(database=database, collection=name, reason=reason)

    def _is_empty(self, name: str) -> bool:
        # Whoever had a ledger open when its database was dropped may note that they are alive.
        workers = {"$nor": [{"host": {"$type": "string"}, "pid": {"$type": "number"}}]}
        query: Document = workers if name == self._collections.workers.name else {}
        return self._collections.database[name].find_one(query, {"_id": 1}) is None

    def _create_one(self, name: str) -> None:
        try:
            self._collections.database.create_collection(name)
        except CollectionInvalid:
            pass  # it was there, or another process was faster
        except OperationFailure as error:
            if not is_name_taken(error):
                raise

    def _create_indexes(self, name: str, models: list[IndexModel], guard: Document) -> None:
        if models:
            self._collections.database.command(
                {
                    "createIndexes": name,
                    "indexes": [model.document for model in models],
                    # By default all nodes have to be there, for as long as it takes.
                    "commitQuorum": "majority",
                    "writeConcern": {"w": "majority"},
                    **guard,
                }
            )

    def _indexes(self, name: str) -> list[Document]:
        found = self._collections.database[name].list_indexes()
        return [dict(index) for index in found if dict(index["key"]) != {"_id": 1}]

    def _damages(self, recorded: Uuids) -> Iterator[Damage]:
        listed = self._collections.database.list_collections()
        names = {entry["info"].get("uuid"): entry["name"] for entry in listed}
        for collection, name in self._places():
            uuid = recorded.get(collection)
            if uuid is not None and names.get(uuid) != name:
                found = "another one of that name" if name in names.values() else None
                yield Damage(f"collection {name}", "the one that was made", found, name)
                continue
            models = self._collections.indexes[collection]
            indexes = self._indexes(name) if models else []
            for model in models:
                expected = model.document
                if _signature(expected) not in map(_signature, indexes):
                    same = [index for index in indexes if index["name"] == expected["name"]]
                    found = _indexed(same[0]) if same else None
                    what = f"index {expected['name']} of {name}"
                    yield Damage(what, _indexed(expected), found, name, model)

    def _places(self) -> Iterator[tuple[str, str]]:
        """Yield the collections of this generation, and the names they have."""
        for collection in self._collections.indexes:
            if collection in GENERATIONAL:
                yield collection, self._collections.name_of(collection)
            elif self._collections.generation is None:
                yield collection, collection

    def _is_mended(self, damage: Damage) -> bool:
        """Create an index that is missing; false if that is not what it is, or cannot be done."""
        if damage.index is None or damage.found is not None:
            return False
        try:
            self._create_indexes(damage.name, [damage.index], self.guard(damage.name))
        except OperationFailure as error:
            if is_transient(error):
                raise
            logger.warning("%s, and cannot be made again: %s", damage, in_words(error))
            return False
        logger.warning("%s: it is made again", damage)
        return True


def _signature(index: Document) -> tuple[object, ...]:
    options = [index.get(name) or None for name in _INDEX_OPTIONS]
    return tuple(_keys(index)), tuple(map(str, options))


def _keys(index: Document) -> list[tuple[str, object]]:
    # Shells write 1.0 for 1.
    return [(k, int(way) if isinstance(way, float) else way) for k, way in index["key"].items()]


def _indexed(index: Document) -> str:
    keys = ", ".join(f"{field}: {way}" for field, way in _keys(index))
    options = [
        name if index[name] is True else f"{name} {index[name]}"
        for name in _INDEX_OPTIONS
        if index.get(name)
    ]
    return " ".join(["on", "{" + keys + "}", *options])
