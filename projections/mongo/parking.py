"""Parked streams: those with an event that cannot be projected, left behind so that others go on.

One document in ``score_parked`` for each, written in the transaction that moves the position over
the event and deleted in the one that projects what was left behind. Every transaction of a worker
reads the list, and whoever takes a stream off it writes the document of the position too; so the
two cannot pass each other unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from projections.errors import ForeignDocument, PoisonEvent, TooManyParked
from projections.events.model import Fault
from projections.mongo.errors import answered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pymongo.client_session import ClientSession

    from projections.events.model import ScoreEvent
    from projections.mongo.batches import Batch
    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

OnError = Literal["stop", "park"]
"""What becomes of an event that cannot be projected: it stops the worker, or parks its stream."""

MAX_PARKED: Final = 1000
"""More streams than this are never parked: by then something else than single events is wrong."""

_BEING_UNPARKED: Final = "it is being unparked"


@dataclass(frozen=True, slots=True)
class ParkedStream:
    """A stream that is not projected from some event on.

    Attributes:
        stream: Its originator id.
        position: The position of the event it is parked at; everything before it is projected.
        topic: The topic of that event.
        reason: What is wrong with that event, in words.
        parked_at: When it was parked, UTC.
    """

    stream: str
    position: int
    topic: str
    reason: str
    parked_at: datetime | None


class Parking:
    """The parked streams of one read model."""

    def __init__(self, read_model: ReadModel) -> None:
        self._read_model = read_model
        self._collection = read_model.parked

    def streams(self, *, limit: int = MAX_PARKED) -> list[ParkedStream]:
        """Return the parked streams, the longest parked first."""
        with answered():
            found = self._collection.find().sort("position", 1)[:limit]
            return [parked_stream(document) for document in found]

    def count(self) -> int:
        """Return how many streams are parked."""
        with answered():
            return self._collection.count_documents({})

    def find(self, stream: str, *, session: ClientSession | None = None) -> ParkedStream | None:
        """Return a stream if it is parked."""
        with answered():
            found = self._collection.find_one({"_id": stream}, session=session)
        return None if found is None else parked_stream(found)

    def park_and_filter(
        self, batch: Batch, session: ClientSession, *, on_error: OnError
    ) -> Sequence[ScoreEvent]:
        """Park the streams of a batch's faults, and return the events that are to be projected.

        Raises:
            PoisonEvent: at the first fault that is not in a parked stream, if it is to stop.
            TooManyParked: if there is no room for another one.
        """
        # Guarded, so that a list that was dropped is not taken for an empty one.
        listed = self._read_model.database.cursor_command(
            {
                "find": self._collection.name,
                "projection": {"_id": 1},
                "batchSize": MAX_PARKED,
                **self._read_model.inventory.guard(self._collection.name),
            },
            session=session,
        )
        parked = {found["_id"]: 0 for found in listed}
        parkable = [fault for fault in batch.faults if fault.stream not in parked]
        if parkable and on_error == "stop":
            raise poison(parkable[0])
        fresh: dict[str, Fault] = {}
        for fault in parkable:
            fresh.setdefault(fault.stream, fault)
        if len(parked) + len(fresh) > MAX_PARKED:
            raise TooManyParked(
                f"{MAX_PARKED} streams are parked already, so the fault cannot lie in single "
                f"events: mend it ({next(iter(fresh.values())).reason}) and run score-ledger unpark"
            )
        for fault in fresh.values():
            self._collection.update_one(
                {"_id": fault.stream},
                {"$set": _description(fault), "$currentDate": {"parkedAt": True}},
                upsert=True,
                session=session,
            )
        parked |= {stream: fault.position for stream, fault in fresh.items()}
        if not parked:
            return batch.events
        return [
            event
            for event in batch.events
            if event.stream not in parked or event.position < parked[event.stream]
        ]

    def move(self, was: ParkedStream, to: ScoreEvent | Fault, session: ClientSession) -> bool:
        """Park a stream at a later event; false if somebody else has changed it meanwhile.

        Args:
            was: The stream as it was found.
            to: The fault that it stays parked for, or the next event that is to be unparked.
            session: Of the transaction.
        """
        changed = self._collection.update_one(
            {"_id": was.stream, "position": was.position},
            {"$set": _description(to if isinstance(to, Fault) else Fault.of(to, _BEING_UNPARKED))},
            session=session,
        )
        return changed.matched_count == 1

    def remove(self, was: ParkedStream, session: ClientSession) -> bool:
        """Take a stream off the list; false if somebody else has changed it meanwhile."""
        gone = self._collection.delete_one(
            {"_id": was.stream, "position": was.position}, session=session
        )
        return gone.deleted_count == 1


def poison(fault: Fault) -> PoisonEvent:
    """Return the error that a fault stops a worker with."""
    return PoisonEvent(
        position=fault.position, stream=fault.stream, topic=fault.topic, reason=fault.reason
    )


def _description(fault: Fault) -> Document:
    return {"position": fault.position, "topic": fault.topic, "reason": fault.reason}


def parked_stream(document: Document) -> ParkedStream:
    """Return what a document of ``score_parked`` says.

    Raises:
        ForeignDocument: if it is none.
    """
    try:
        return ParkedStream(
            stream=document["_id"],
            position=int(document["position"]),
            topic=document["topic"],
            reason=document["reason"],
            parked_at=document.get("parkedAt"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ForeignDocument(collection="score_parked", document_id=document["_id"]) from error
