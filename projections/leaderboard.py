"""``Leaderboard``: who leads, by the old total unless the ledger is asked for by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from scoring.rules import normalised_user_id

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from projections.read_model import Document, ReadModel

By = Literal["recomputed", "ledger"]

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

    ``by="recomputed"``, the default, ranks by the old recomputed total, which is what users see.
    ``by="ledger"`` ranks by the running balance of the ledger.
    """

    def __init__(self, read_model: ReadModel) -> None:
        """Read from this read model."""
        self._users = read_model.users
        self._generations = read_model.generations

    def top(self, n: int = 10, by: By = "recomputed") -> list[LeaderboardRow]:
        """Return the first ``n`` rows.

        Raises:
            ValueError: if ``n`` is negative or ``by`` is not known.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = _field(by)
        if n < 0:
            raise ValueError(f"n must be 0 or more; got {n}")
        if n == 0:
            return []

        def read(session: ClientSession) -> list[Document]:
            found = self._users.find({}, {field: 1}, session=session)
            return list(found.sort([(field, -1), ("_id", 1)]).limit(n))

        rows: list[LeaderboardRow] = []
        for place, document in enumerate(self._generations.consistently(read), start=1):
            score = int(document[field])
            tied = bool(rows) and rows[-1].score == score
            rows.append(LeaderboardRow(rows[-1].rank if tied else place, document["_id"], score))
        return rows

    def rank_of(self, user_id: str, by: By = "recomputed") -> LeaderboardRow | None:
        """Return a user's row, or ``None`` for a user who has nothing yet.

        Raises:
            ValueError: if ``by`` is not known.
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        field = _field(by)
        user_id = normalised_user_id(user_id)

        def read(session: ClientSession) -> LeaderboardRow | None:
            document = self._users.find_one({"_id": user_id}, {field: 1}, session=session)
            if document is None:
                return None
            better = {field: {"$gt": document[field]}}
            rank = self._users.count_documents(better, session=session) + 1
            return LeaderboardRow(rank, user_id, int(document[field]))

        return self._generations.consistently(read)


def _field(by: str) -> str:
    try:
        return _FIELDS[by]
    except KeyError:
        raise ValueError(f"by must be 'recomputed' or 'ledger'; got {by!r}") from None
