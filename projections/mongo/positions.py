"""The documents of tracked positions: how far each application's events are projected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bson import ObjectId
from eventsourcing.persistence import IntegrityError, Tracking
from pymongo.errors import DuplicateKeyError

from projections.errors import PositionMoved, ReadModelUnavailable
from projections.events.anchor import Tracked
from projections.mongo.errors import answered

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from projections.mongo.batches import Batch
    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel


class Positions:
    """The tracked positions of one read model."""

    def __init__(self, read_model: ReadModel) -> None:
        self._read_model = read_model
        self._collection = read_model.positions

    def tracked(self, application_name: str) -> Tracked:
        """Return the tracked position of an application, and its anchor."""
        with answered():
            return Tracked.of(self._collection.find_one(self._of(application_name)))

    def foreign_count(self, application_name: str) -> int:
        """Return how many grants met a foreign document in their place and were not added."""
        with answered():
            document = self._collection.find_one(self._of(application_name))
        return 0 if document is None else int(document.get("foreignGrants", 0))

    def insert(self, tracking: Tracking) -> None:
        """Move a position forward; see ``MongoScoreView.insert_tracking``."""
        while True:
            try:
                with answered():
                    self._collection.update_one(
                        {
                            **self._of(tracking.application_name),
                            "position": {"$not": {"$gte": tracking.notification_id}},
                            **self._read_model.writable,
                        },
                        {"$set": {"position": tracking.notification_id}},
                        upsert=True,
                    )
                return
            except ReadModelUnavailable as error:
                if not isinstance(error.__cause__, DuplicateKeyError):
                    raise
                if not self._read_model.generations.await_release(tracking.application_name):
                    raise IntegrityError(
                        f"position {tracking.notification_id} of {tracking.application_name} "
                        "is tracked already"
                    ) from error

    def move(self, batch: Batch, session: ClientSession) -> tuple[Document, Document]:
        """Move a position from where a batch begins to where it ends.

        Returns:
            What tells who has written last, and what: before and afterwards; see ``Committed``.

        Raises:
            PositionMoved: if it is not where the batch begins.
        """
        mark = ObjectId()
        try:
            answer = self._collection.database.command(
                {
                    "findAndModify": self._collection.name,
                    "query": {
                        **self._of(batch.application_name),
                        # Its anchor, too: a batch of another history never continues this one.
                        **batch.continues.matching(),
                        **self._read_model.writable,
                    },
                    "update": {"$set": {**batch.reaches.fields(), "mark": mark}},
                    "fields": {"_id": 0, "mark": 1, "position": 1, "shape": 1, "unparkings": 1},
                    # Only a live position may be new: one that is gone was of a rebuild that is
                    # over.
                    "upsert": batch.continues.position is None
                    and self._read_model.generation is None,
                },
                session=session,
            )
        except DuplicateKeyError as error:
            raise _moved(batch) from error
        if not answer["lastErrorObject"]["n"]:
            raise _moved(batch)
        before: Document = answer["value"] or {"shape": self._read_model.shape}
        return before, {**before, "mark": mark, "position": batch.reaches.position}

    def hold(self, application_name: str, session: ClientSession) -> Tracked:
        """Return what is tracked, and keep workers from moving it until the transaction ends.

        It is held by being written, so that a worker's transaction at the same time conflicts, and
        so does a switch to another generation.

        Raises:
            PositionMoved: if a switch holds it.
        """
        held = self._collection.find_one_and_update(
            {**self._of(application_name), **self._read_model.writable},
            {"$inc": {"unparkings": 1}},
            session=session,
        )
        if held is None:
            raise PositionMoved(f"the position of {application_name} is held by a switch")
        return Tracked.of(held)

    def count_foreign(self, application_name: str, foreign: int, session: ClientSession) -> None:
        """Count grants that met a foreign document in their place."""
        if foreign:
            self._collection.update_one(
                self._of(application_name), {"$inc": {"foreignGrants": foreign}}, session=session
            )

    def _of(self, application_name: str) -> Document:
        return {"_id": self._read_model.position_id(application_name)}


def _moved(batch: Batch) -> PositionMoved:
    return PositionMoved(
        f"the tracked position of {batch.application_name} is no longer "
        f"{batch.continues.position}: another worker is at work"
    )
