"""``Leaderboard``: who leads, by the old total unless the ledger's is asked for."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from pymongo.errors import ConnectionFailure, OperationFailure

from projections.errors import ReadModelUnavailable
from projections.mongo.errors import (
    answered,
    is_other_collection,
    translated,
)
from projections.mongo.sessions import discarding, in_session, in_snapshot
from scoring.rules import MAX_TOTAL, normalised_user_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bson.binary import Binary
    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

T = TypeVar("T")

By = Literal["recomputed", "ledger"]
"""The total that ranks: the old recomputed one, or the running balance of the ledger."""

_FIELDS: Final[dict[str, str]] = {"recomputed": "recomputedTotal", "ledger": "totalScore"}


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


class Leaderboard:
    """Ranks users; ties are listed by user id.

    ``by="recomputed"`` ranks by the old recomputed total, which is what users see;
    ``by="ledger"`` ranks by the running balance of the ledger. A call that says neither ranks by
    ``rank_by``. Users who have nothing yet are on no leaderboard; those whose total is 0 are.

    Every call reads one snapshot of the database, so that ranks and rows agree with
    each other while scores move. Rows come from the index alone. A rank costs counting the index
    entries above it, so it grows with the rank; where a row with its rank is at hand, ``around``
    and ``page`` take it and count no further than ties.

    Attributes:
        rank_by: The total that ranks, unless a call says ``by``.
    """

    def __init__(self, read_model: ReadModel, *, rank_by: By = "recomputed") -> None:
        """Read from this read model.

        Raises:
            ValueError: if ``rank_by`` is not known.
        """
        ranking_field(rank_by, argument="rank_by")  # which checks it
        self.rank_by = rank_by
        self._read_model = read_model
        self._users = read_model.users
        self._generations = read_model.generations
        self._uuid: Binary | None = None

    def top(self, n: int = 10, by: By | None = None) -> list[LeaderboardRow]:
        """Return the first ``n`` rows.

        Raises:
            ValueError: if ``n`` is negative or ``by`` is not known.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = self._field(by)
        _check_number("n", n, at_least=0)
        if n == 0:
            return []
        return self._read(field, lambda snapshot: _ranked(snapshot.rows(limit=n)))

    def rank_of(self, user_id: str, by: By | None = None) -> LeaderboardRow | None:
        """Return a user's row, or ``None`` for a user who has nothing yet.

        It counts the users who have more in the index, without reading their documents.

        Raises:
            ValueError: if ``by`` is not known.
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = self._field(by)
        user_id = normalised_user_id(user_id)
        return self._read(field, lambda snapshot: snapshot.row_of(user_id))

    def around(
        self, user: str | LeaderboardRow, k: int = 5, by: By | None = None
    ) -> list[LeaderboardRow]:
        """Return a user's row with the ``k`` rows before and the ``k`` after it, if so many.

        Args:
            user: A user id, or the user's row from an earlier call with the same ``by``: as long
                as the user still has that score, its rank is taken for true, which saves counting.
            k: Rows on either side, 0 or more.
            by: The total that ranks; default ``rank_by``.

        Returns:
            The rows in order; none for a user who has nothing yet.

        Raises:
            ValueError: if ``k`` is negative or ``by`` is not known.
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = self._field(by)
        _check_number("k", k, at_least=0)
        user_id = normalised_user_id(user.user_id if isinstance(user, LeaderboardRow) else user)

        def read(snapshot: _Snapshot) -> list[LeaderboardRow]:
            row = user if isinstance(user, LeaderboardRow) else None
            if row is not None:
                rows = snapshot.around(row, k)
                if rows is not None:
                    return rows
            row = snapshot.row_of(user_id)
            return [] if row is None else snapshot.around(row, k) or []

        return self._read(field, read)

    def page(
        self, *, after: LeaderboardRow | None = None, limit: int = 100, by: By | None = None
    ) -> list[LeaderboardRow]:
        """Return the ``limit`` rows after a row, which may have been read at any time.

        The place in the list is that of ``after``, its score and user id, not a number of rows to
        skip: nobody whose score stays is skipped or repeated, however others move. A user who
        moves past the place between two pages may be on both or on neither, each page being true
        when it was read; ``pages`` keeps to one snapshot. Ranks continue from ``after``.

        Args:
            after: The last row of the page before, with the same ``by``; ``None`` to begin.
            limit: Rows on a page, at least 1.
            by: The total that ranks; default ``rank_by``.

        Raises:
            ValueError: if ``limit`` is less than 1 or ``by`` is not known.
            TypeError: if ``after`` is not a row.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = self._field(by)
        _check_number("limit", limit, at_least=1)
        if after is None:
            return self.top(limit, by)
        if not isinstance(after, LeaderboardRow):
            raise TypeError(f"after must be the last LeaderboardRow of the page; got {after!r}")

        def read(snapshot: _Snapshot) -> list[LeaderboardRow]:
            # The place itself is still taken, unless its user has moved.
            place = (after.score, after.user_id)
            found = snapshot.rows(limit=limit + 1, start=place)
            rows = found[1:] if found[:1] == [place] else found[:limit]
            return _ranked_after(after, rows, lambda: snapshot.count(after.score))

        return self._read(field, read)

    def pages(self, *, size: int = 1000, by: By | None = None) -> Iterator[list[LeaderboardRow]]:
        """Yield the whole leaderboard as it is at the first page, whatever moves meanwhile.

        Everybody is on it once, with the rank and score in that snapshot. The server keeps one
        for five minutes (``minSnapshotHistoryWindowInSeconds``); a reader who is slower than that
        gets an error, not a wrong page.

        Args:
            size: Rows on a page, at least 1.
            by: The total that ranks; default ``rank_by``.

        Raises:
            ValueError: if ``size`` is less than 1 or ``by`` is not known.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = self._field(by)
        _check_number("size", size, at_least=1)
        return self._pages(size, field)

    def _field(self, by: By | None) -> str:
        return ranking_field(self.rank_by if by is None else by)

    def _pages(self, size: int, field: str) -> Iterator[list[LeaderboardRow]]:
        self.top(1)  # which finds out the UUID of the collection that is live
        with (
            translated(),
            _if_replaced(
                "a rebuild replaced the leaderboard while it was read: read it again from its start"
            ),
            discarding(self._read_model.client),
            self._read_model.client.start_session(snapshot=True) as session,
        ):
            snapshot = _Snapshot(self._users, field, session, self._uuid)
            place = 1
            rows = _ranked(snapshot.rows(limit=size))
            while rows:
                yield rows
                last = rows[-1]
                place += len(rows)
                found = snapshot.rows(limit=size + 1, start=(last.score, last.user_id))[1:]
                ties = bool(found) and found[0][0] == last.score
                rows = _ranked(found, place, last.rank if ties else place)

    def _read(self, field: str, read: Callable[[_Snapshot], T]) -> T:
        """Read from one snapshot of one generation, or from a later one if that is gone."""
        with answered():
            known = self._uuid
            if known is not None:
                # Asked for by the UUID under which it was live, the collection is found only as
                # long as no switch has renamed it. To ask which generation is live would take as
                # long as reading a page.
                with suppress(OperationFailure, ConnectionFailure):  # it is tried once more below
                    return in_session(
                        self._read_model.client,
                        lambda session: read(_Snapshot(self._users, field, session, known)),
                        snapshot=True,
                    )
            return self._read_live(field, read)

    def _read_live(self, field: str, read: Callable[[_Snapshot], T]) -> T:
        def from_one_snapshot(watching: ClientSession) -> tuple[T, Binary | None]:
            def from_session(session: ClientSession) -> tuple[T, Binary | None]:
                uuid = self._uuid_of_users()
                result = read(_Snapshot(self._users, field, session))
                # The generation is looked at after what was read, by the server's time.
                if session.cluster_time is not None:
                    watching.advance_cluster_time(session.cluster_time)
                if session.operation_time is not None:
                    watching.advance_operation_time(session.operation_time)
                return result, uuid

            return in_snapshot(self._read_model.client, from_session)

        result, self._uuid = self._generations.consistently(from_one_snapshot)
        return result

    def _uuid_of_users(self) -> Binary | None:
        listed = self._read_model.database.list_collections(filter={"name": self._users.name})
        return next((entry["info"]["uuid"] for entry in listed), None)


@contextmanager
def _if_replaced(advice: str) -> Iterator[None]:
    try:
        yield
    except OperationFailure as error:
        if is_other_collection(error):
            raise ReadModelUnavailable(advice) from error
        raise


class _Snapshot:
    """One snapshot of the users, ranked by one field; of one collection only, if its UUID is given.

    A collection that was renamed makes every method raise ``OperationFailure`` then.
    """

    def __init__(
        self,
        users: Collection[Document],
        field: str,
        session: ClientSession,
        uuid: Binary | None = None,
    ) -> None:
        self._users = users
        self._field = field
        self._session = session
        self._options: Document = {} if uuid is None else {"collectionUUID": uuid}

    def around(self, row: LeaderboardRow, k: int) -> list[LeaderboardRow] | None:
        """Return the rows around a row, or ``None`` if it is no longer true."""
        place = (row.score, row.user_id)
        at_and_below = self.rows(limit=k + 1, start=place)
        if at_and_below[:1] != [place]:
            return None
        # One more above than is shown tells whether its ties begin before what is shown.
        above = self.rows(limit=k + 1, end=place)
        higher = [place for place in above if place[0] > row.score]
        first_place = row.rank - len(higher)
        first_rank = first_place
        if len(above) > k and len(higher) > 1 and higher[0][0] == higher[1][0]:
            top = higher[0][0]
            tied_here = sum(score == top for score, _ in higher)
            first_rank -= self.count(top) - tied_here
        if first_rank < 1 or (len(above) <= k and first_place > 1):
            return None

        def ties() -> int:
            if len(above) <= k or higher:
                return sum(score == row.score for score, _ in above + at_and_below)
            return self.count(row.score)

        rows = _ranked(higher, first_place, first_rank)
        rows += [LeaderboardRow(row.rank, user, score) for score, user in above[len(higher) :]]
        return [
            *(rows[1:] if len(above) > k else rows),
            row,
            *_ranked_after(row, at_and_below[1:], ties),
        ]

    def row_of(self, user_id: str) -> LeaderboardRow | None:
        """Return a user's row, or ``None`` if there is none."""
        document = next(self._find({"filter": {"_id": user_id}, "limit": 1}), None)
        if document is None:
            return None
        score = int(document[self._field])
        return LeaderboardRow(self._count({"$gt": score}) + 1, user_id, score)

    def rows(
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
        rows = [(int(document[field]), document["_id"]) for document in self._find(query)]
        return rows if end is None else rows[::-1]

    def count(self, score: int) -> int:
        """Return how many users have just this score."""
        return self._count(score)

    def _count(self, condition: object) -> int:
        counting = [{"$match": {self._field: condition}}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]
        found = self._cursor({"aggregate": self._users.name, "pipeline": counting, "cursor": {}})
        return next((int(document["n"]) for document in found), 0)

    def _find(self, query: Document) -> Iterator[Document]:
        # All that is asked for in the first answer, where it has room.
        return self._cursor(
            {
                "find": self._users.name,
                "projection": {self._field: 1},
                "batchSize": query["limit"],
                **query,
            }
        )

    def _cursor(self, command: Document) -> Iterator[Document]:
        return self._users.database.cursor_command(command | self._options, session=self._session)


def _ranked(
    places: list[tuple[int, str]], first_place: int = 1, first_rank: int | None = None
) -> list[LeaderboardRow]:
    """Return rows for scores and user ids in order; those that tie share the first one's rank."""
    rows: list[LeaderboardRow] = []
    for place, (score, user_id) in enumerate(places, start=first_place):
        if not rows:
            rank = first_place if first_rank is None else first_rank
        else:
            rank = rows[-1].rank if rows[-1].score == score else place
        rows.append(LeaderboardRow(rank, user_id, score))
    return rows


def _ranked_after(
    row: LeaderboardRow, places: list[tuple[int, str]], ties: Callable[[], int]
) -> list[LeaderboardRow]:
    """Return rows for what follows ``row``; ``ties`` counts all users who have its score."""
    tied = list(takewhile(lambda place: place[0] == row.score, places))
    lower = places[len(tied) :]
    rows = [LeaderboardRow(row.rank, user_id, score) for score, user_id in tied]
    return rows + (_ranked(lower, row.rank + ties()) if lower else [])


def _check_number(name: str, number: object, *, at_least: int) -> None:
    # The server takes 64 bits, and one row more than a page is asked for.
    if not isinstance(number, int) or not at_least <= number < MAX_TOTAL:
        raise ValueError(f"{name} must be an integer of {at_least} or more; got {number!r}")


def ranking_field(by: By, *, argument: str = "by") -> str:
    """Return the field of a user's document that ranks.

    Raises:
        ValueError: if it is none of the two totals.
    """
    try:
        return _FIELDS[by]
    except (KeyError, TypeError):
        raise ValueError(f"{argument} must be 'recomputed' or 'ledger'; got {by!r}") from None
