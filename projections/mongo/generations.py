"""Which generation of the read model is live, and reading from one generation only.

What is known of generations is in the control document; see ``control``.
"""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Final, TypeVar

import pymongo
from pymongo.errors import DuplicateKeyError, OperationFailure

from projections.errors import (
    ReadModelDamaged,
    ReadModelUnavailable,
    RebuildSuperseded,
    ShapeChanged,
)
from projections.mongo.catalog import drop, names_by_uuid
from projections.mongo.collections import (
    CONTROL_ID,
    FIRST_SHAPE,
    GENERATIONAL,
    LOADING,
    live_name_and_generation,
    seconds_ago,
)
from projections.mongo.control import control_state
from projections.mongo.errors import ANSWER_SECONDS, answered, translated
from projections.mongo.sessions import in_session
from projections.mongo.switch import lift_silent_hold, roll_forward
from projections.mongo.transactions import in_transaction, update_one
from projections.retries import retries_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bson.binary import Binary
    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Collections, Document
    from projections.mongo.control import GenerationState, Uuids

T = TypeVar("T")

MAX_WAIT_SECONDS: Final = 30.0
"""How long a reader waits for a switch, which takes milliseconds unless something holds a lock."""

SILENT_SWITCH_SECONDS: Final = 1.0
"""A switch that has not made a step for so long is carried on by whoever waits for it."""

_LONGEST_HOLD_WAIT_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.005


class Generations:
    """The generations of one read model; may be shared between threads."""

    def __init__(self, collections: Collections) -> None:
        """Look after this read model's generations; nothing is sent yet."""
        self._collections = collections
        self._seen: int | None = None

    def create(self, uuids: Uuids) -> None:
        """Make the control document of a new read model, unless another process was faster."""
        with suppress(DuplicateKeyError):
            self._collections.control.update_one(
                {"_id": CONTROL_ID},
                {
                    "$setOnInsert": {
                        "generation": 1,
                        "shape": self._collections.shape,
                        "collections": {"1": uuids},
                    }
                },
                upsert=True,
            )

    def is_missing(self) -> bool:
        """Tell whether there is no control document, so nothing in the database is ours."""
        with answered():
            return self._collections.control.find_one({"_id": CONTROL_ID}, {"_id": 1}) is None

    def state(self, session: ClientSession | None = None) -> GenerationState:
        """Return what the control document says.

        Raises:
            ReadModelGone: if there is none.
            ForeignDocument: if it says something else.
        """
        return control_state(self._collections, session)

    def check_shape(self) -> None:
        """Check that the live documents have the shape that this release projects.

        Raises:
            ShapeChanged: if they do not.
        """
        self._check_shape(self.await_settled())

    def consistently(
        self,
        read: Callable[[ClientSession], T],
        *,
        any_shape: bool = False,
        seconds: float | None = ANSWER_SECONDS,
    ) -> T:
        """Return what ``read`` returns, read from one generation.

        ``read`` is given the session to read with, and is called again if a switch came between.
        The generation that the last call ended with is taken as what this one begins with, so the
        usual cost is one look-up by ``_id``: the number never comes back, and a switch that has
        begun always raises it.

        Args:
            read: Reads; may be called several times.
            any_shape: Whether documents of another release's shape will do.
            seconds: How long reading may take; ``None`` for what reads everything.

        Raises:
            ShapeChanged: if they will not, and the live documents have another shape.
            ReadModelUnavailable: if MongoDB failed, or a switch did not end.
        """
        # Causally consistent, so that after a change of primary the generation is not read from
        # before what was read of the documents.

        def read_of_one(session: ClientSession) -> T:
            if self._seen is None:
                self._seen = self.await_settled(session).generation
            while True:
                failure: OperationFailure | ReadModelDamaged | None = None
                seen, result = self._seen, None
                try:
                    with pymongo.timeout(seconds):
                        result = read(session)
                # A rename ends the cursors on a collection, and may leave none under its name.
                except (OperationFailure, ReadModelDamaged) as error:
                    failure = error
                state = self.state(session)
                if not any_shape:
                    self._check_shape(state)
                if state.generation == seen and state.switching_to is None:
                    if failure is not None:
                        raise failure
                    return result  # type: ignore[return-value] # read() returned it
                self._seen = self.await_settled(session).generation

        with translated():
            return in_session(self._collections.client, read_of_one, causal_consistency=True)

    def await_settled(self, session: ClientSession | None = None) -> GenerationState:
        """Wait while a switch is under way, carry it on if it has fallen silent.

        Raises:
            ReadModelUnavailable: if MongoDB failed, or the switch did not end.
        """
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        with translated():
            while True:
                state = self.state(session)
                if state.switching_to is None:
                    return state
                if time.monotonic() > deadline:
                    raise ReadModelUnavailable(
                        f"the switch to generation {state.switching_to} of the read model has not "
                        f"ended for {MAX_WAIT_SECONDS:.0f} s: something holds one of its "
                        "collections, see db.currentOp()"
                    )
                if self._switch_is_silent():
                    roll_forward(self._collections)
                else:
                    time.sleep(_POLL_SECONDS)

    def await_release(self, application_name: str) -> bool:
        """Wait while a switch holds the position of this generation, for a second at most.

        To be called by a worker whose batch was refused because the position is not what it
        expected. What has fallen silent is lifted or carried on.

        Returns:
            Whether the position was held.

        Raises:
            ShapeChanged: if the live documents have another shape by now.
            RebuildSuperseded: if this generation is not being built any more.
        """
        position_id = self._collections.position_id(application_name)
        deadline = time.monotonic() + _LONGEST_HOLD_WAIT_SECONDS
        held = False
        with translated():
            while True:
                with answered():
                    document = self._collections.positions.find_one({"_id": position_id})
                if document is None and self._collections.generation is not None:
                    raise RebuildSuperseded(self._collections.generation)
                document = document or {"shape": self._collections.shape}
                shape = document.get("shape", FIRST_SHAPE)
                if shape not in {self._collections.shape, LOADING}:
                    raise ShapeChanged(found=shape, expected=self._collections.shape)
                if "hold" not in document or time.monotonic() > deadline:
                    return held
                held = True
                if self._switch_is_silent():
                    roll_forward(self._collections)
                elif not lift_silent_hold(self._collections, position_id):
                    time.sleep(_POLL_SECONDS)

    def begin(self, *, fresh: bool = False) -> int:
        """Return the generation to build: the one that was begun, or the next.

        Args:
            fresh: Give up what was begun and start over, as is also done if it has another shape.
        """
        while True:
            state = self.await_settled()
            if (
                state.building is not None
                and state.building_shape == self._collections.shape
                and not fresh
            ):
                return state.building
            # Behind every number in use, even if somebody else uses it: no name is taken then, and
            # none ever has two meanings.
            suffixes = [number for number, _, _ in self.suffixed()]
            chosen = max([state.generation, state.building or 0, *suffixes]) + 1
            if self._claim(state, chosen):
                if state.building is not None:
                    self._discard([state.building])
                return chosen

    def _claim(self, state: GenerationState, number: int) -> bool:
        """Put a generation down as the one that is built, if nothing has changed meanwhile."""
        building = {"generation": number, "shape": self._collections.shape}
        with translated():
            return self._update(_unchanged(state), {"$set": {"building": building}})

    def record(self, changes: dict[int, Uuids], expected: GenerationState) -> None:
        """Put down what was made for generations, unless the control document has changed."""
        unchanged = _unchanged(expected)
        for number in changes:
            known = expected.collections.get(number)
            unchanged[f"collections.{number}"] = {"$exists": False} if known is None else known
        recorded = {f"collections.{number}": uuids for number, uuids in changes.items()}
        self._update(unchanged, {"$set": recorded})

    def begin_building(self, number: int, uuids: Uuids, application_name: str) -> None:
        """Put down what was made for the generation to build, and its position.

        Raises:
            RebuildSuperseded: if it is not the one to build any more.
        """
        position_id = self._collections.position_id(application_name)
        shape = LOADING if self._collections.loads else self._collections.shape

        def begin(session: ClientSession) -> None:
            # Written even if nothing is new, so that it cannot come about beside a switch.
            begun = self._collections.control.update_one(
                {"_id": CONTROL_ID, "building.generation": number, "switching": {"$exists": False}},
                {
                    "$set": {f"collections.{number}": uuids},
                    "$currentDate": {"building.resumedAt": True},
                },
                session=session,
            )
            if not begun.matched_count:
                raise RebuildSuperseded(number)
            self._collections.positions.update_one(
                {"_id": position_id},
                {"$setOnInsert": {"generation": number, "shape": shape}},
                upsert=True,
                session=session,
            )

        in_transaction(self._collections, begin)

    def kept(self) -> list[int]:
        """Return the numbers of generations that were replaced and not dropped yet."""
        return _kept(self.state())

    def drop_kept(self) -> list[int]:
        """Drop the generations that were replaced, and return their numbers.

        Raises:
            ReadModelUnavailable: if MongoDB failed, and stayed so.
        """
        retries = retries_until(Event())
        # One look at one document, so that none can be replaced or begun meanwhile; a number below
        # the live one never becomes live again.
        kept = _kept(retries.call(self.await_settled))
        retries.call(lambda: self._discard(kept))
        return kept

    def _discard(self, generations: Collection[int]) -> None:
        with translated():
            # Positions first: a worker that still builds one of them stops there.
            ids = [document["_id"] for document in self._collections.positions.find({}, {"_id": 1})]
            gone = [id_ for id_ in ids if live_name_and_generation(str(id_))[1] in generations]
            if gone:
                in_transaction(
                    self._collections,
                    lambda session: self._collections.positions.delete_many(
                        {"_id": {"$in": gone}}, session=session
                    ),
                )
            recorded = self.state().collections
            names = names_by_uuid(self._collections.database)
            for number in generations:
                for uuid in recorded.get(number, {}).values():
                    if uuid in names:
                        drop(self._collections.database, names[uuid], uuid)
                self._forget(number, recorded.get(number, {}))

    def _forget(self, number: int, uuids: Uuids) -> None:
        field = f"collections.{number}"
        self._update({"_id": CONTROL_ID, field: uuids}, {"$unset": {field: ""}})

    def _update(self, unchanged: Document, change: Document) -> bool:
        """Change the control document in a transaction; tell whether it was still this one."""
        return update_one(self._collections, self._collections.control, unchanged, change)

    def suffixed(self) -> list[tuple[int, str, Binary | None]]:
        """Return numbers, live names and UUIDs of what has the name of a generation not live."""
        found = []
        with answered():
            for entry in self._collections.database.list_collections():
                name, number = live_name_and_generation(entry["name"])
                if number is not None and name in GENERATIONAL:
                    found.append((number, name, entry["info"].get("uuid")))
        return found

    def _check_shape(self, state: GenerationState) -> None:
        if state.shape != self._collections.shape:
            raise ShapeChanged(found=state.shape, expected=self._collections.shape)

    def _switch_is_silent(self) -> bool:
        silent = {"$lt": ["$switching.at", seconds_ago(SILENT_SWITCH_SECONDS)]}
        query: Document = {"_id": CONTROL_ID, "switching": {"$exists": True}, "$expr": silent}
        with answered():
            return self._collections.control.find_one(query, {"_id": 1}) is not None


def _unchanged(state: GenerationState) -> Document:
    """Return what the control document matches as long as it says this, and nothing is switched."""
    return {
        "_id": CONTROL_ID,
        "generation": state.generation,
        "building.generation": state.building,
        "switching": {"$exists": False},
    }


def _kept(state: GenerationState) -> list[int]:
    return sorted(number for number in state.collections if number < state.generation)
