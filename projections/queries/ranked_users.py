"""Users in the order of one of their totals, with their ranks, from one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from projections.errors import ReadModelDamaged
from projections.mongo.ranks import pages_from, rank_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.control import Uuids
    from projections.mongo.ranks import RankPage
    from projections.mongo.read_model import ReadModel


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One line of a leaderboard.

    Attributes:
        rank: Competition rank (1, 2, 2, 4): one more than the number of users with more points.
        user_id: The user.
        score: Points, of the total that was asked for.
    """

    rank: int
    user_id: str
    score: int


class RankedUsers:
    """One snapshot of the users, ranked by one field; of these collections only, by their UUIDs.

    A collection that was renamed makes every method raise ``OperationFailure``, if its is given.
    """

    def __init__(
        self, read_model: ReadModel, field: str, session: ClientSession, uuids: Uuids
    ) -> None:
        self._database = read_model.database
        self._users = read_model.users.name
        self._ranks = read_model.ranks.name
        self._field = field
        self._session = session
        self._uuids = uuids
        self._page: RankPage | None = None

    def row_of(self, user_id: str) -> LeaderboardRow | None:
        """Return a user's row, or ``None`` if there is none."""
        score = self._score_of(user_id)
        return None if score is None else LeaderboardRow(self._rank_of(score), user_id, score)

    def around(self, user_id: str, k: int) -> list[LeaderboardRow]:
        """Return the rows around a user's, or none if there is none."""
        score = self._score_of(user_id)
        if score is None:
            return []
        place = (score, user_id)
        # One more above than is shown tells whether it ties with what is shown.
        above = self._places(limit=k + 1, end=place)
        before = above.pop(0) if len(above) > k else None
        return self._ranked(above + self._places(limit=k + 1, start=place), before)

    def first(self, limit: int) -> list[LeaderboardRow]:
        """Return the first rows."""
        return self._ranked(self._places(limit=limit), None)

    def after(self, place: tuple[int, str], limit: int) -> list[LeaderboardRow]:
        """Return the rows after a place."""
        places = self._places(limit=limit + 1, start=place)
        # The place itself is still taken, unless its user has moved.
        return self._ranked(places[1:] if places[:1] == [place] else places[:limit], place)

    def _ranked(
        self, places: list[tuple[int, str]], before: tuple[int, str] | None
    ) -> list[LeaderboardRow]:
        """Return rows for places that follow each other and, if it is given, another one."""
        rows: list[LeaderboardRow] = []
        rank: int | None = 1 if before is None else None
        for score, group in groupby(places, key=itemgetter(0)):
            users = [user_id for _, user_id in group]
            if rank is None:
                rank = self._rank_of(score)
            rows += [LeaderboardRow(rank, user_id, score) for user_id in users]
            # Of those who tie with the place before, not all are here to be counted.
            is_cut = before is not None and before[0] == score
            rank = None if is_cut else rank + len(users)
        return rows

    def _score_of(self, user_id: str) -> int | None:
        document = next(self._find({"filter": {"_id": user_id}, "limit": 1}), None)
        return None if document is None else int(document[self._field])

    def _rank_of(self, score: int) -> int:
        if self._page is None or not self._page.low <= score <= self._page.to:
            query = {"filter": pages_from(self._field, score), "sort": {"_id": 1}, "limit": 1}
            found = next(self._cursor({"find": self._ranks, **query}), None)
            if found is None:
                raise ReadModelDamaged([f"a document of {self._ranks} is missing"])
            self._page = rank_page(found)
        higher, top = self._page.above_range_of(score)
        if score < top:
            higher += self._count({"$gt": score, "$lte": top})
        return higher + 1

    def _places(
        self,
        *,
        limit: int,
        start: tuple[int, str] | None = None,
        end: tuple[int, str] | None = None,
    ) -> list[tuple[int, str]]:
        """Return scores and user ids in order, from ``start`` on or the last before ``end``."""
        field = self._field
        way = 1 if end is None else -1
        query: Document = {"sort": {field: -way, "_id": way}, "limit": limit}
        # Bounds in the index, which the server finds as it finds a key, however far down it is.
        for name, bound in (("min", start), ("max", end)):
            if bound is not None:
                query |= {name: {field: bound[0], "_id": bound[1]}, "hint": {field: -1, "_id": 1}}
        found = self._find(query)
        places = [(int(document[field]), document["_id"]) for document in found]
        return places if end is None else places[::-1]

    def _count(self, condition: Document) -> int:
        """Return how many users have such a score."""
        counting = [{"$match": {self._field: condition}}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]
        found = self._cursor({"aggregate": self._users, "pipeline": counting, "cursor": {}})
        return next((int(document["n"]) for document in found), 0)

    def _find(self, query: Document) -> Iterator[Document]:
        # All that is asked for in the first answer, where it has room.
        return self._cursor(
            {
                "find": self._users,
                "projection": {self._field: 1},
                "batchSize": query["limit"],
                **query,
            }
        )

    def _cursor(self, command: Document) -> Iterator[Document]:
        uuid = self._uuids.get(next(iter(command.values())))
        guard = {} if uuid is None else {"collectionUUID": uuid}
        return self._database.cursor_command(command | guard, session=self._session)
