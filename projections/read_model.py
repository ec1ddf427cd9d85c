"""The read model in MongoDB: its collections, indexes and documents.

``score_grants``: one document per grant, inserted once and never updated.
``user_scores``: one document per user, sums of the former.
``score_buckets``: the buckets a reader of the old way would see.
``score_positions``: how far the event store has been projected, by application name.
``score_parked``: streams that are not projected from some event on.
``score_workers``: the sessions of workers, so that one that was killed cannot hold up the others,
and why one has failed.
``score_control``: which generation of the documents is live; see ``generations``.

The first three names, and that of parked streams, are always the live read model. A generation that
is being built beside it has the same names with a suffix, ``score_grants__g2``, and one that was
replaced with another, ``score_grants__g2_old``: a name that a rename has led from never comes back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from bson.codec_options import CodecOptions
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from projections.driver_errors import translated
from projections.errors import ReadModelDamaged, ReadModelUnavailable
from projections.generations import Generations
from projections.inventory import Inventory
from projections.switching import NOT_HELD

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
CONTROL: Final = "score_control"
PARKED: Final = "score_parked"

GENERATIONAL: Final = (GRANTS, USERS, BUCKETS, PARKED)
"""What a rebuild makes anew, and a switch renames."""

SHAPE: Final = 1
"""Version of what the projection writes into these. A release that writes other fields, or
other values into the same ones, raises it: whoever then opens documents of the old shape is advised
to rebuild them."""

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
    CONTROL: [],
}


class ReadModel:
    """The collections of one database, read and written with majority concerns.

    What a reader has seen therefore survives a change of primary, and so does what a worker has
    been told is committed.
    """

    def __init__(
        self, client: MongoClient[Document], database: str, *, generation: int | None = None
    ) -> None:
        """Name the database, and the generation unless it is the live one; nothing is sent yet."""
        self.client = client
        self.generation = generation
        self.shape = SHAPE
        self.generational = GENERATIONAL
        self.indexes = INDEXES
        self.database: Database[Document] = client.get_database(
            database,
            codec_options=CodecOptions(tz_aware=True),
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority"),
        )
        self.grants: Collection[Document] = self.database[self.name_of(GRANTS)]
        self.users: Collection[Document] = self.database[self.name_of(USERS)]
        self.buckets: Collection[Document] = self.database[self.name_of(BUCKETS)]
        self.positions: Collection[Document] = self.database[POSITIONS]
        self.workers: Collection[Document] = self.database[WORKERS]
        self.parked: Collection[Document] = self.database[self.name_of(PARKED)]
        self.control: Collection[Document] = self.database[CONTROL]
        self.generations = Generations(self)
        self.inventory = Inventory(self)

    def of_generation(self, generation: int | None) -> ReadModel:
        """Return the read model of a generation that is not the live one, or of that: ``None``."""
        return ReadModel(self.client, self.database.name, generation=generation)

    def name_of(self, collection: str) -> str:
        """Return the name that one of ``GENERATIONAL`` has in this generation."""
        return suffixed(collection, self.generation)

    def position_id(self, application_name: str) -> str:
        """Return the id of the document that keeps this generation's position."""
        return suffixed(application_name, self.generation)

    @property
    def writable(self) -> Document:
        """What the document of a position must match besides its position to be moved."""
        # Not held by a switch, and not of a shape that another release has made meanwhile; a live
        # position that was never rebuilt names none.
        return {**NOT_HELD, "shape": {"$in": [self.shape, None]}}

    def prepare(self) -> None:
        """Check that the server can do transactions, and create what is missing.

        Raises:
            NameTaken: if a collection has the name of one of these and is not the ledger's.
            ReadModelUnavailable: if the server is not there, or is not of a replica set.
        """
        self._check_server()
        with suppress(ReadModelDamaged):  # which stops workers, and has to be open to be rebuilt
            self.inventory.check()

    def check(self) -> None:
        """Check all that can be checked without writing anything.

        Raises:
            NameTaken: if a collection has the name of one of these and is not the ledger's.
            ReadModelGone: if there is no read model.
            ReadModelUnavailable: if the server is not there, or is not of a replica set.
        """
        self._check_server()
        self.inventory.check_existence()

    def _check_server(self) -> None:
        with translated():
            hello = self.client.admin.command("hello")
            if hello.get("isreplicaset"):
                raise ReadModelUnavailable(
                    "the MongoDB server is started for a replica set that was never initiated: run "
                    "rs.initiate() on it once, one node is enough"
                )
            if "setName" not in hello and hello.get("msg") != "isdbgrid":
                raise ReadModelUnavailable(
                    "the MongoDB server is a standalone one, which cannot do transactions: start "
                    "it with --replSet NAME and run rs.initiate() once, one node is enough"
                )

    def prepare_building(self, application_name: str) -> None:
        """Create the collections and the position of this generation, which is being built.

        Raises:
            NameTaken: if a collection has the name of one of these and is not the ledger's.
            RebuildSuperseded: if this generation is not the one to build any more.
            ReadModelUnavailable: if MongoDB failed.
        """
        self.inventory.create_building(application_name)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of users and grants, from the collections' metadata."""
        return self.generations.consistently(
            lambda _: (
                self.users.estimated_document_count(),
                self.grants.estimated_document_count(),
            ),
            any_shape=True,
        )

    def place(self) -> str:
        """Return host, port and database, without credentials."""
        with translated():
            address = self.client.address
        host = f"{address[0]}:{address[1]}" if address else "sharded cluster"
        return f"{host}/{self.database.name}"


def suffixed(name: str, generation: int | None) -> str:
    """Return the name that something live has in a generation that is being built."""
    return name if generation is None else f"{name}__g{generation}"
