"""MongoDB as a persistence module of the ``eventsourcing`` library.

``SCOREGRANTSPROJECTION_PERSISTENCE_MODULE=projections.mongo`` with ``MONGO_URI`` and
``MONGO_DATABASE`` makes the library construct a ``MongoScoreView``. Events are not stored here.
"""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NoReturn

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    IntegrityError,
    ProcessRecorder,
    Tracking,
    TrackingRecorder,
)
from pymongo import InsertOne, MongoClient, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from projections.batches import (
    Batch,
    ProjectedBucket,
    ProjectedGrant,
    bucket_documents,
    grant_document,
    user_changes,
)
from projections.driver_errors import translated
from projections.errors import PositionMoved, ReadModelUnavailable
from projections.read_model import Document, ReadModel
from projections.switching import NOT_HELD
from projections.transactions import TransactionRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventsourcing.utils import Environment, EnvType
    from pymongo.client_session import ClientSession

logger = logging.getLogger(__name__)

DEFAULT_DATABASE: Final = "score_ledger"

_DUPLICATE_KEY: Final = 11000
_LOOKUP_SIZE: Final = 1000
_ATTEMPTS_AGAINST_FOREIGN_WRITERS: Final = 5


def connect(uri: str) -> MongoClient[Document]:
    """Return a client for a URI; it connects when first used.

    Raises:
        ReadModelUnavailable: if the URI cannot be understood.
    """
    with translated():
        try:
            return MongoClient(uri, serverSelectionTimeoutMS=10_000, appname="score-ledger")
        except (ValueError, TypeError) as error:  # a port or an option out of range
            raise ReadModelUnavailable(f"MONGO_URI is not usable: {error}") from error


class MongoScoreView(TrackingRecorder):
    """The materialised view: grants, totals and the position they stand for, kept together."""

    def __init__(self, read_model: ReadModel) -> None:
        """Use these collections; ``read_model.prepare()`` has been called."""
        self.read_model = read_model
        self._lock = Lock()
        self._transactions: TransactionRunner | None = None

    def insert_tracking(self, tracking: Tracking) -> None:
        """Move the tracked position of an application forward.

        Raises:
            IntegrityError: if it is there already, or further.
        """
        with translated():
            while True:
                try:
                    self.read_model.positions.update_one(
                        {
                            "_id": self.read_model.position_id(tracking.application_name),
                            "position": {"$not": {"$gte": tracking.notification_id}},
                            **NOT_HELD,
                        },
                        {"$set": {"position": tracking.notification_id}},
                        upsert=True,
                    )
                    return
                except DuplicateKeyError as error:
                    if self.read_model.generations.await_release(tracking.application_name):
                        continue
                    raise IntegrityError(
                        f"position {tracking.notification_id} of {tracking.application_name} "
                        "is tracked already"
                    ) from error

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the tracked position of an application, or ``None``."""
        with translated():
            document = self.read_model.positions.find_one(
                {"_id": self.read_model.position_id(application_name)}
            )
        position = None if document is None else document.get("position")
        return None if position is None else int(position)

    def foreign_count(self, application_name: str) -> int:
        """Return how many grants met a foreign document in their place and were not added."""
        with translated():
            document = self.read_model.positions.find_one(
                {"_id": self.read_model.position_id(application_name)}
            )
        return 0 if document is None else int(document.get("foreignGrants", 0))

    def apply(self, batch: Batch) -> None:
        """Add a batch in one transaction: grants, buckets, totals and the position, or nothing.

        Raises:
            PositionMoved: if the tracked position is not ``batch.after``; nothing was changed.
            ShapeChanged: if the live documents have another shape by now.
            RebuildSuperseded: if the view's generation is not being built any more.
            ReadModelUnavailable: if MongoDB failed; the batch may be applied again.
        """
        try:
            self._apply(batch)
        except PositionMoved:
            # Perhaps a switch holds it: then there is nothing to be read anew before it is over.
            self.read_model.generations.await_release(batch.application_name)
            raise

    def _apply(self, batch: Batch) -> None:
        with translated(), self._lock:
            if self._transactions is None:
                self._transactions = TransactionRunner(self.read_model)
            try:
                self._transactions.run(lambda session: self._apply_unseen(batch, session))
                return
            except BulkWriteError as error:
                if not _is_duplicate_key(error):
                    raise
            # The duplicate key has aborted the whole transaction. Look up what is there already
            # and leave it alone; a foreign writer may still slip something in between.
            for attempt in range(1, _ATTEMPTS_AGAINST_FOREIGN_WRITERS + 1):
                try:
                    self._transactions.run(lambda session: self._apply_sparing(batch, session))
                    return
                except BulkWriteError as error:
                    if not _is_duplicate_key(error) or attempt == _ATTEMPTS_AGAINST_FOREIGN_WRITERS:
                        raise

    def close(self) -> None:
        """End the session that batches were applied with; the client stays open."""
        with self._lock:
            if self._transactions is not None:
                self._transactions.close()
                self._transactions = None

    def _apply_unseen(self, batch: Batch, session: ClientSession) -> None:
        self._move_position(batch, session, foreign=0)
        self._add(batch.grants, batch.buckets, session)

    def _apply_sparing(self, batch: Batch, session: ClientSession) -> None:
        unseen: list[ProjectedGrant] = []
        foreign = 0
        for start in range(0, len(batch.grants), _LOOKUP_SIZE):
            window = batch.grants[start : start + _LOOKUP_SIZE]
            in_place, seen = self._documents_in_place_of(window, session)
            for grant in window:
                if grant.event.grant_id in seen:
                    continue
                if grant.event.grant_id in in_place or grant.position in in_place:
                    foreign += 1
                    logger.warning(
                        "a foreign document is in the place of grant %r at position %d",
                        grant.event.grant_id,
                        grant.position,
                    )
                else:
                    unseen.append(grant)
        self._move_position(batch, session, foreign=foreign)
        self._add(unseen, self._unseen_buckets(batch.buckets, session), session)

    def _unseen_buckets(
        self, buckets: Sequence[ProjectedBucket], session: ClientSession
    ) -> list[ProjectedBucket]:
        """Return those that come after the versions to which their users were projected."""
        versions: dict[str, int] = {}
        user_ids = sorted({bucket.event.user_id for bucket in buckets})
        for start in range(0, len(user_ids), _LOOKUP_SIZE):
            window = user_ids[start : start + _LOOKUP_SIZE]
            found = self.read_model.users.find(
                {"_id": {"$in": window}}, {"version": 1}, session=session
            )
            versions |= {document["_id"]: document["version"] for document in found}
        return [
            bucket
            for bucket in buckets
            if bucket.event.originator_version > versions.get(bucket.event.user_id, 0)
        ]

    def _documents_in_place_of(
        self, grants: Sequence[ProjectedGrant], session: ClientSession
    ) -> tuple[set[Any], set[str]]:
        """Return the ids and positions that are taken, and the grant ids that are redelivered."""
        expected = {grant.event.grant_id: grant_document(grant) for grant in grants}
        in_place: set[Any] = set()
        seen: set[str] = set()
        found = self.read_model.grants.find(
            {
                "$or": [
                    {"grantId": {"$in": list(expected)}},
                    {"_id": {"$in": [grant.position for grant in grants]}},
                ]
            },
            session=session,
        )
        for document in found:
            in_place |= {document["_id"], document.get("grantId")}
            if _is_same_grant(document, expected.get(document.get("grantId", ""))):
                seen.add(document["grantId"])
        return in_place, seen

    def _move_position(self, batch: Batch, session: ClientSession, *, foreign: int) -> None:
        # First in the transaction, so that of two workers one stops before it has done the work.
        changes: Document = {"$set": {"position": batch.position}}
        if foreign:
            changes["$inc"] = {"foreignGrants": foreign}
        try:
            result = self.read_model.positions.update_one(
                {
                    "_id": self.read_model.position_id(batch.application_name),
                    "position": batch.after,
                    **self.read_model.writable,
                },
                changes,
                # Only a live position may be new: one that is gone was of a rebuild that is over.
                upsert=batch.after is None and self.read_model.generation is None,
                session=session,
            )
        except DuplicateKeyError as error:
            raise _position_moved(batch) from error
        if result.matched_count == 0 and result.upserted_id is None:
            raise _position_moved(batch)

    def _add(
        self,
        grants: Sequence[ProjectedGrant],
        buckets: Sequence[ProjectedBucket],
        session: ClientSession,
    ) -> None:
        if grants:
            self.read_model.grants.bulk_write(
                [InsertOne(grant_document(grant)) for grant in grants], session=session
            )
        changes = user_changes(grants, buckets)
        if changes:
            self.read_model.users.bulk_write(
                [
                    UpdateOne(change.selector(user_id), change.update(), upsert=True)
                    for user_id, change in changes.items()
                ],
                ordered=False,
                session=session,
            )
        documents = bucket_documents(grants, buckets)
        if documents:
            self.read_model.buckets.bulk_write(
                [
                    UpdateOne(
                        {"_id": {"userId": user_id, "key": key}}, {"$set": bucket}, upsert=True
                    )
                    for (user_id, key), bucket in documents.items()
                ],
                ordered=False,
                session=session,
            )


class MongoFactory(InfrastructureFactory[MongoScoreView]):
    """Constructs views from ``MONGO_URI`` and ``MONGO_DATABASE``."""

    MONGO_URI = "MONGO_URI"
    MONGO_DATABASE = "MONGO_DATABASE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        """Connect to the server that the environment names.

        Raises:
            ReadModelUnavailable: if ``MONGO_URI`` is not set or not usable.
        """
        super().__init__(env)
        uri = self.env.get(self.MONGO_URI)
        if not uri:
            raise ReadModelUnavailable(
                "MONGO_URI is not set: the persistence module projections.mongo needs the URI of a "
                "MongoDB replica set"
            )
        self._client = connect(uri)
        self._database = self.env.get(self.MONGO_DATABASE) or DEFAULT_DATABASE

    def tracking_recorder(
        self, tracking_recorder_class: type[MongoScoreView] | None = None
    ) -> MongoScoreView:
        """Construct the view, creating its collections and indexes.

        Raises:
            ShapeChanged: if its documents were made by a release that made others.
        """
        read_model = ReadModel(self._client, self._database)
        read_model.prepare()
        read_model.generations.check_shape()
        return (tracking_recorder_class or MongoScoreView)(read_model)

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Refuse: events are stored elsewhere."""
        del purpose
        _refuse_events()

    def application_recorder(self) -> ApplicationRecorder:
        """Refuse: events are stored elsewhere."""
        _refuse_events()

    def process_recorder(self) -> ProcessRecorder:
        """Refuse: events are stored elsewhere."""
        _refuse_events()

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def _refuse_events() -> NoReturn:
    raise NotImplementedError(
        "projections.mongo keeps the read model only: choose an event store with PERSISTENCE_MODULE"
    )


def _is_duplicate_key(error: BulkWriteError) -> bool:
    return any(item["code"] == _DUPLICATE_KEY for item in error.details.get("writeErrors", ()))


def _is_same_grant(document: Document, expected: Document | None) -> bool:
    if expected is None:
        return False
    # The time of recording is stored in milliseconds but carried in microseconds by the event.
    return all(
        document.get(name) == value for name, value in expected.items() if name != "recordedAt"
    )


def _position_moved(batch: Batch) -> PositionMoved:
    return PositionMoved(
        f"the tracked position of {batch.application_name} is no longer {batch.after}: "
        "another worker is at work"
    )
