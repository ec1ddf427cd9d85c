"""``Leaderboard``: who leads, by the old total unless the ledger's is asked for."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from pymongo.errors import ConnectionFailure, OperationFailure

from projections.errors import ReadModelUnavailable
from projections.mongo.errors import answered, is_other_collection, translated
from projections.mongo.sessions import discarding, in_session, in_snapshot
from projections.queries.ranked_users import LeaderboardRow, RankedUsers
from scoring.rules import MAX_TOTAL, normalised_user_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.client_session import ClientSession

    from projections.mongo.control import Uuids
    from projections.mongo.read_model import ReadModel

T = TypeVar("T")

By = Literal["recomputed", "ledger"]
"""The total that ranks: the old recomputed one, or the running balance of the ledger."""

_FIELDS: Final[dict[str, str]] = {"recomputed": "recomputedTotal", "ledger": "totalScore"}


class Leaderboard:
    """Ranks users; ties are listed by user id.

    ``by="recomputed"`` ranks by the old recomputed total, which is what users see;
    ``by="ledger"`` ranks by the running balance of the ledger. A call that says neither ranks by
    ``rank_by``. Users who have nothing yet are on no leaderboard; those whose total is 0 are.

    Every call reads one snapshot of the database, so that ranks and rows agree with
    each other while scores move. Rows come from the index alone. A rank costs one document of
    counts and at most some hundred index entries, whatever the rank and however many users
    there are.

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
        self._generations = read_model.generations
        self._uuids: Uuids = {}

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
        return self._read(field, lambda snapshot: snapshot.first(n))

    def rank_of(self, user_id: str, by: By | None = None) -> LeaderboardRow | None:
        """Return a user's row, or ``None`` for a user who has nothing yet.

        Raises:
            ValueError: if ``by`` is not known.
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = self._field(by)
        user_id = normalised_user_id(user_id)
        return self._read(field, lambda snapshot: snapshot.row_of(user_id))

    def around(self, user_id: str, k: int = 5, by: By | None = None) -> list[LeaderboardRow]:
        """Return a user's row with the ``k`` rows before and the ``k`` after it, if so many.

        Args:
            user_id: Whose row.
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
        user_id = normalised_user_id(user_id)
        return self._read(field, lambda snapshot: snapshot.around(user_id, k))

    def page(
        self, *, after: LeaderboardRow | None = None, limit: int = 100, by: By | None = None
    ) -> list[LeaderboardRow]:
        """Return the ``limit`` rows after a row, which may have been read at any time.

        The place in the list is that of ``after``, its score and user id, not a number of rows to
        skip: nobody whose score stays is skipped or repeated, however others move. A user who
        moves past the place between two pages may be on both or on neither, each page being true
        when it was read, with the ranks of that moment; ``pages`` keeps to one snapshot.

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

        place = (after.score, after.user_id)
        return self._read(field, lambda snapshot: snapshot.after(place, limit))

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
        self.top(1)  # which finds out the UUIDs of the collections that are live
        with (
            translated(),
            _if_replaced(
                "a rebuild replaced the leaderboard while it was read: read it again from its start"
            ),
            discarding(self._read_model.client),
            self._read_model.client.start_session(snapshot=True) as session,
        ):
            snapshot = RankedUsers(self._read_model, field, session, self._uuids)
            rows = snapshot.first(size)
            while rows:
                yield rows
                rows = snapshot.after((rows[-1].score, rows[-1].user_id), size)

    def _read(self, field: str, read: Callable[[RankedUsers], T]) -> T:
        """Read from one snapshot of one generation, or from a later one if that is gone."""
        with answered():
            known = self._uuids
            if known:
                # Asked for by the UUIDs under which they were live, the collections are found only
                # as long as no switch has renamed them. To ask which generation is live would take
                # as long as reading a page.
                with suppress(OperationFailure, ConnectionFailure):  # it is tried once more below
                    return in_session(
                        self._read_model.client,
                        lambda session: read(RankedUsers(self._read_model, field, session, known)),
                        snapshot=True,
                    )
            return self._read_live(field, read)

    def _read_live(self, field: str, read: Callable[[RankedUsers], T]) -> T:
        def from_one_snapshot(watching: ClientSession) -> tuple[T, Uuids]:
            def from_session(session: ClientSession) -> tuple[T, Uuids]:
                uuids = self._live_uuids()
                result = read(RankedUsers(self._read_model, field, session, {}))
                # The generation is looked at after what was read, by the server's time.
                if session.cluster_time is not None:
                    watching.advance_cluster_time(session.cluster_time)
                if session.operation_time is not None:
                    watching.advance_operation_time(session.operation_time)
                return result, uuids

            return in_snapshot(self._read_model.client, from_session)

        result, self._uuids = self._generations.consistently(from_one_snapshot)
        return result

    def _live_uuids(self) -> Uuids:
        names = [self._read_model.users.name, self._read_model.ranks.name]
        listed = self._read_model.database.list_collections(filter={"name": {"$in": names}})
        return {entry["name"]: entry["info"]["uuid"] for entry in listed}


@contextmanager
def _if_replaced(advice: str) -> Iterator[None]:
    try:
        yield
    except OperationFailure as error:
        if is_other_collection(error):
            raise ReadModelUnavailable(advice) from error
        raise


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
