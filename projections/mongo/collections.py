"""The collections of the read model: their names, indexes and documents; nothing is sent here.

``score_grants``: one document per grant, inserted once and never updated.
``user_scores``: one document per user, sums of the former.
``score_buckets``: the buckets a reader of the old way would see.
``score_ranks``: how many users have how many points; see ``ranks``.
``score_positions``: how far the event store has been projected, by application name.
``score_parked``: streams that are not projected from some event on.
``score_workers``: the sessions of workers, so that one that was killed cannot hold up the others,
and why one has failed.
``score_control``: which generation of the documents is live; see ``control``.

The first three names, and that of parked streams, are always the live read model. A generation that
is being built beside it has the same names with a suffix, ``score_grants__g2``, and one that was
replaced with another, ``score_grants__g2_old``: a name that a rename has led from never comes back.
"""

from __future__ import annotations

import re
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel

from projections.mongo.client import database_of, nodes_of

if TYPE_CHECKING:
    from typing import Self

    from pymongo import MongoClient
    from pymongo.collection import Collection
    from pymongo.database import Database

Document = dict[str, Any]

GRANTS: Final = "score_grants"
USERS: Final = "user_scores"
BUCKETS: Final = "score_buckets"
RANKS: Final = "score_ranks"
POSITIONS: Final = "score_positions"
WORKERS: Final = "score_workers"
CONTROL: Final = "score_control"
PARKED: Final = "score_parked"

GENERATIONAL: Final = (GRANTS, USERS, BUCKETS, RANKS, PARKED)
"""What a rebuild makes again, and a switch renames."""

SHAPE: Final = 2
"""Version of what the projection writes into these. A release that writes other fields, or
other values into the same ones, raises it: whoever then opens documents of the old shape is advised
to rebuild them."""

FIRST_SHAPE: Final = 1
"""Of a live position that names none."""

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
    RANKS: [],
    POSITIONS: [],
    # Whoever was killed while nobody was waiting is forgotten in time.
    WORKERS: [IndexModel([("seenAt", ASCENDING)], expireAfterSeconds=3600)],
    PARKED: [],
    CONTROL: [],
}

LOADING: Final = "loading"
"""In the place of a shape: of the position of a generation that has no indexes yet, and no counts
of ranks; see ``load``. Releases that know of no such thing leave it alone."""

CONTROL_ID: Final = "read-model"
"""The one document of ``score_control``."""

NOT_HELD: Final[Document] = {"hold": {"$exists": False}}
"""What the document of a position must match for a worker to move it."""

_GENERATION_SUFFIX: Final = re.compile(r"__g(\d+)(?:_old)?\Z")


class Collections:
    """The collections of one database, read and written with majority concerns.

    What a reader has seen therefore survives a change of primary, and so does what a worker has
    been told is committed.

    Attributes:
        loads: Whether this generation is filled before it has indexes.
        stop: When set, what failed in a transaction on positions or generations is not tried again.
    """

    def __init__(
        self, client: MongoClient[Document], database: str, *, generation: int | None = None
    ) -> None:
        """Name the database, and the generation unless it is the live one; nothing is sent yet.

        Raises:
            InvalidSetting: if it can be in no database of this name.
        """
        self.client = client
        self.generation = generation
        self.stop = Event()
        self.shape = SHAPE
        self.loads = generation is not None
        self.database: Database[Document] = database_of(client, database)
        self.grants: Collection[Document] = self.database[self.name_of(GRANTS)]
        self.users: Collection[Document] = self.database[self.name_of(USERS)]
        self.buckets: Collection[Document] = self.database[self.name_of(BUCKETS)]
        self.ranks: Collection[Document] = self.database[self.name_of(RANKS)]
        self.positions: Collection[Document] = self.database[POSITIONS]
        self.workers: Collection[Document] = self.database[WORKERS]
        self.parked: Collection[Document] = self.database[self.name_of(PARKED)]
        self.control: Collection[Document] = self.database[CONTROL]

    def of_generation(self, generation: int | None) -> Self:
        """Return those of a generation that is not the live one, or of that: ``None``."""
        others = type(self)(self.client, self.database.name, generation=generation)
        others.stop = self.stop
        return others

    @property
    def indexes(self) -> dict[str, list[IndexModel]]:
        """The indexes that each collection is made with."""
        return {name: [] for name in INDEXES} if self.loads else INDEXES

    def name_of(self, collection: str) -> str:
        """Return the name that one of ``GENERATIONAL`` has in this generation."""
        return suffixed(collection, self.generation)

    def position_id(self, application_name: str) -> str:
        """Return the id of the document that keeps this generation's position."""
        return suffixed(application_name, self.generation)

    @property
    def writable(self) -> Document:
        """What the document of a position must match besides its position to be moved."""
        # Not held by a switch, and not of a shape that another release has made. As an equality, so
        # that a position that is new names its shape; those of the first shape may name none.
        shape = self.shape if self.generation is None else {"$in": [self.shape, LOADING]}
        return {**NOT_HELD, "shape": shape}

    def place(self) -> str:
        """Return the nodes with their ports, and the database, without credentials."""
        return f"{nodes_of(self.client)}/{self.database.name}"


def suffixed(name: str, generation: int | None) -> str:
    """Return the name that something live has in a generation that is being built."""
    return name if generation is None else f"{name}__g{generation}"


def put_away(name: str, generation: int) -> str:
    """Return the name that a live collection gets when its generation is replaced."""
    return f"{suffixed(name, generation)}_old"


def live_name_and_generation(name: str) -> tuple[str, int | None]:
    """Return what ``suffixed`` or ``put_away`` has made a name of; ``None`` for a live one."""
    suffix = _GENERATION_SUFFIX.search(name)
    return (name[: suffix.start()], int(suffix[1])) if suffix else (name, None)


def seconds_ago(seconds: float) -> Document:
    """Return an expression for a time by the server's clock: those of processes need not agree."""
    return {"$subtract": ["$$NOW", seconds * 1000]}
