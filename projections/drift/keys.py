"""What every user has under each key, both ways; streamed, each user as they are at one instant.

Three sorted streams are merged: users, buckets, and sums of grants.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from bson.max_key import MaxKey

from projections.joins import outer_join
from projections.mongo.sessions import INSTANTS
from scoring.contributions import Bucket
from scoring.identity import is_grant_shaped
from scoring.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

USERS_PER_PAGE: Final = 5000
"""So many users are read at one instant; their totals are held in memory, their keys are not."""

_KEPT_SEGMENTS: Final = 2

# The driver holds one answer of the server at a time, which might be 16 MB.
_BATCH_SIZE: Final = 2000


class BothWays(NamedTuple):
    """One key of one user.

    Attributes:
        key: The key.
        bucket: What the old way has; ``None`` if there is none.
        granted: By category, the points that were granted.
    """

    key: str
    bucket: Bucket | None
    granted: dict[str, int]

    @property
    def old(self) -> int:
        """Points in the recomputed total."""
        return self.bucket.points if self.bucket is not None else 0

    @property
    def new(self) -> int:
        """Points in the ledger's balance."""
        return sum(self.granted.values())


class UserKeys(NamedTuple):
    """One user, at one instant.

    Attributes:
        user_id: The user.
        old: The recomputed total, in points.
        new: The ledger's balance, in points.
        keys: What they should be made of, sorted by key; to be read before the next user is.
    """

    user_id: str
    old: int
    new: int
    keys: Iterator[BothWays]


def kind_of(key: str) -> str:
    """Return the kind of a key: what looks like an id is a ``*``.

    An id is what follows the second segment, or has a digit in it.
    """
    if is_grant_shaped(key):
        return f"{key.rpartition(':')[0]}:*"
    kept = [
        "*" if index >= _KEPT_SEGMENTS or any(c.isdigit() for c in segment) else segment
        for index, segment in enumerate(key.split(":"))
    ]
    return ":".join(kept[: _KEPT_SEGMENTS + 1])


def read_users(read_model: ReadModel) -> Iterator[UserKeys]:
    """Yield everybody who has a document, buckets or grants, sorted by user id.

    Workers may go on: a user's totals, buckets and grants are of the same instant, which is not
    before this was called. It is another one for each page of users, because MongoDB keeps an
    instant for some minutes only.
    """
    after: str | None = None
    while True:
        with _page(read_model, after) as page:
            yield from page.users()
        if page.last is None:
            return
        after = page.last


class _Page:
    """The users behind one of them, with their keys, as they are at one instant."""

    def __init__(self, read_model: ReadModel, session: ClientSession, after: str | None) -> None:
        """Have all three begun, so that what follows is of an instant that the server has."""
        ids: Document = {"$type": "string", **({} if after is None else {"$gt": after})}
        found = read_model.users.find(
            {"_id": ids}, {"recomputedTotal": 1, "totalScore": 1}, session=session
        )
        self._documents = list(found.sort("_id", 1).limit(USERS_PER_PAGE).batch_size(_BATCH_SIZE))
        self.last = self._documents[-1]["_id"] if len(self._documents) == USERS_PER_PAGE else None
        # By ranges of _id, which has the only index; a document behind another one's last key.
        places: Document = {"$type": "object"}
        if after is not None:
            places["$gt"] = {"userId": after, "key": MaxKey()}
        if self.last is not None:
            ids["$lte"] = self.last
            places["$lte"] = {"userId": self.last, "key": MaxKey()}
        self._buckets = read_model.database.cursor_command(
            {
                "find": read_model.buckets.name,
                "filter": {"_id": places, "_id.userId": {"$type": "string"}},
                "sort": {"_id": 1},
                "batchSize": _BATCH_SIZE,
            },
            session=session,
        )
        self._sums = read_model.grants.aggregate(
            [
                {"$match": {"userId": ids}},
                {
                    "$group": {
                        "_id": {"u": "$userId", "k": "$key", "c": "$category"},
                        "amount": {"$sum": "$amount"},
                    }
                },
                {"$sort": {"_id": 1}},
            ],
            allowDiskUse=True,
            batchSize=_BATCH_SIZE,
            session=session,
        )

    def users(self) -> Iterator[UserKeys]:
        totals = (
            (document["_id"], (int(document["recomputedTotal"]), int(document["totalScore"])))
            for document in self._documents
        )
        keys = groupby(self._keys(), key=itemgetter(0))
        for user_id, both, some in outer_join(totals, keys):
            old, new = both or (0, 0)
            yield UserKeys(user_id, old, new, (key for _, key in some or ()))

    def _keys(self) -> Iterator[tuple[str, BothWays]]:
        buckets = (
            ((document["_id"]["userId"], document["_id"]["key"]), document)
            for document in self._buckets
        )
        grants = groupby(self._sums, key=lambda cell: (cell["_id"]["u"], cell["_id"]["k"]))
        for (user_id, key), bucket, some in outer_join(buckets, grants):
            granted = {cell["_id"]["c"]: int(cell["amount"]) for cell in some or ()}
            yield user_id, BothWays(key, _as_bucket(bucket), granted)


def _as_bucket(document: Document | None) -> Bucket | None:
    if document is None:
        return None
    return Bucket(int(document["points"]), document["category"], document["source"])


@contextmanager
def _page(read_model: ReadModel, after: str | None) -> Iterator[_Page]:
    with ExitStack() as stack:

        def begin() -> _Page:
            session = stack.enter_context(read_model.client.start_session(snapshot=True))
            return _Page(read_model, session, after)

        yield Retries(INSTANTS).call(begin)
