"""The read model in MongoDB: its collections, indexes and documents.

``score_grants``: one document per grant, inserted once and never updated.
``user_scores``: one document per user, sums of the former.
``score_buckets``: the buckets a reader of the old way would see.
``score_positions``: how far the event store has been projected, by application name.
``score_workers``: the sessions of workers, so that one that was killed cannot hold up the others,
and why one has failed.
``score_parked``: streams that are not projected from some event on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bson.codec_options import CodecOptions
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import CollectionInvalid, OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from projections.driver_errors import translated
from projections.errors import ReadModelUnavailable

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.collection import Collection
    from pymongo.database import Database

Document = dict[str, Any]

GRANTS: Final = "score_grants"
USERS: Final = "user_scores"
BUCKETS: Final = "score_buckets"
POSITIONS: Final = "score_positions"
WORKERS: Final = "score_workers"
PARKED: Final = "score_parked"

INDEXES: Final = {
    GRANTS: [
        IndexModel([("grantId", ASCENDING)], unique=True),
        IndexModel([("userId", ASCENDING), ("_id", DESCENDING)]),
    ],
    USERS: [
        IndexModel([("recomputedTotal", DESCENDING), ("_id", ASCENDING)]),
        IndexModel([("totalScore", DESCENDING), ("_id", ASCENDING)]),
    ],
    BUCKETS: [],
    POSITIONS: [],
    # Whoever was killed while nobody was waiting is forgotten in time.
    WORKERS: [IndexModel([("seenAt", ASCENDING)], expireAfterSeconds=3600)],
    PARKED: [],
}


class ReadModel:
    """The collections of one database, read and written with majority concerns.

    What a reader has seen therefore survives a change of primary, and so does what a worker has
    been told is committed.
    """

    def __init__(self, client: MongoClient[Document], database: str) -> None:
        """Name the database; nothing is sent yet."""
        self.client = client
        self.database: Database[Document] = client.get_database(
            database,
            codec_options=CodecOptions(tz_aware=True),
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority"),
        )
        self.grants: Collection[Document] = self.database[GRANTS]
        self.users: Collection[Document] = self.database[USERS]
        self.buckets: Collection[Document] = self.database[BUCKETS]
        self.positions: Collection[Document] = self.database[POSITIONS]
        self.workers: Collection[Document] = self.database[WORKERS]
        self.parked: Collection[Document] = self.database[PARKED]

    def prepare(self) -> None:
        """Check that the server can do transactions, and create what is missing.

        Raises:
            ReadModelUnavailable: if the server is not there, or is a standalone one.
        """
        with translated():
            hello = self.client.admin.command("hello")
            if "setName" not in hello and hello.get("msg") != "isdbgrid":
                raise ReadModelUnavailable(
                    "the MongoDB server is a standalone one, which cannot do transactions: start "
                    "it with --replSet NAME and run rs.initiate() once, one node is enough"
                )
            # Created beforehand, because a transaction had better not wait for an index.
            existing = set(self.database.list_collection_names())
            for name, indexes in INDEXES.items():
                if name not in existing:
                    self._create(name)
                if indexes:
                    self.database[name].create_indexes(indexes)

    def _create(self, name: str) -> None:
        try:
            self.database.create_collection(name)
        except (CollectionInvalid, OperationFailure):
            # Another process was faster.
            if name not in self.database.list_collection_names():
                raise

    def counts(self) -> tuple[int, int]:
        """Return the numbers of users and grants, from the collections' metadata."""
        with translated():
            return self.users.estimated_document_count(), self.grants.estimated_document_count()

    def place(self) -> str:
        """Return host, port and database, without credentials."""
        with translated():
            address = self.client.address
        host = f"{address[0]}:{address[1]}" if address else "sharded cluster"
        return f"{host}/{self.database.name}"
