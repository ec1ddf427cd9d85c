"""The control document of a read model: which generation is live, and what is under way.

A rebuild makes the next generation's collections beside the live ones, under names with a suffix.
Then it renames: the live ones away, the new ones in their place. MongoDB renames one collection at
a time and not in transactions, so the document ``read-model`` of ``score_control`` says which
generation is live and whether a switch is under way:

    {_id: "read-model", generation: 1, shape: 1,
     collections: {"1": {score_grants: UUID, ...}, "2": {...}},
     building: {generation: 2, shape: 1},
     switching: {to: 2, application: "Scoring", at: ..., collections: [...]}}

``switching`` is set before the first rename, and taken away in the same transaction that raises
``generation`` after the last one. A reader who finds the generation unchanged after it has read has
therefore seen one generation only.

``collections`` has what was made for each generation that was not dropped; see ``inventory``. Those
below the live one were replaced, whatever their names are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from projections.errors import ForeignDocument, ReadModelGone
from projections.mongo.collections import CONTROL_ID
from projections.mongo.errors import answered

if TYPE_CHECKING:
    from bson.binary import Binary
    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Collections, Document

Uuids = dict[str, "Binary"]
"""Collections of one generation: the UUIDs by the names that they have when it is live."""


@dataclass(frozen=True, slots=True)
class GenerationState:
    """What the control document says.

    Attributes:
        generation: The live one; the first is 1.
        shape: Version of the shape of its documents.
        collections: What was made for each generation that is there, by its number.
        building: The generation that a rebuild is making, or left when it was interrupted.
        building_shape: Version of the shape of that one.
        switching_to: The generation that is taking over at this moment.
    """

    generation: int
    shape: int
    collections: dict[int, Uuids]
    building: int | None = None
    building_shape: int | None = None
    switching_to: int | None = None


def control_state(
    collections: Collections, session: ClientSession | None = None
) -> GenerationState:
    """Return what the control document says.

    Raises:
        ReadModelGone: if there is none.
        ForeignDocument: if it says something else.
    """
    with answered():
        document = collections.control.find_one({"_id": CONTROL_ID}, session=session)
    if document is None:
        raise ReadModelGone(collections.database.name)
    try:
        return _state(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ForeignDocument(
            collection=collections.control.name, document_id=CONTROL_ID
        ) from error


def _state(document: Document) -> GenerationState:
    building = document.get("building") or {}
    return GenerationState(
        generation=int(document["generation"]),
        shape=int(document["shape"]),
        collections={
            int(number): dict(uuids) for number, uuids in document.get("collections", {}).items()
        },
        building=building.get("generation"),
        building_shape=building.get("shape"),
        switching_to=(document.get("switching") or {}).get("to"),
    )
