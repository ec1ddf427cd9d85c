"""Verifying the counts of users by ranges of scores against the users' documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.errors import ReadModelDamaged
from projections.mongo.ranks import (
    HIGHEST,
    LOWEST,
    RANKED,
    RankPage,
    rank_page,
    scores_of,
)
from projections.verification.report import DOCUMENT, Difference, Verification

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from projections.mongo.read_model import ReadModel


def verify_ranks(read_model: ReadModel, session: ClientSession) -> Verification:
    """Count the users in every range of scores, in the snapshot of this session.

    For each total the index is read once, from the highest score down. That says something only
    where the users' own documents are right.
    """
    outcome = Verification()
    pages: dict[str, list[RankPage]] = {total: [] for total in RANKED}
    for document in read_model.ranks.find(session=session).sort("_id", -1):
        try:
            pages[document["_id"]["total"]].append(rank_page(document))
        except (ReadModelDamaged, KeyError, TypeError):
            outcome.report(Difference(None, DOCUMENT, None, document))
    for total in RANKED:
        _Comparison(read_model, session, total, outcome).run(pages[total])
    return outcome


class _Comparison:
    """Compares the documents of one total, from the highest score down."""

    def __init__(
        self, read_model: ReadModel, session: ClientSession, total: str, outcome: Verification
    ) -> None:
        self._scores = scores_of(read_model, total, session, way=-1)
        self._next = next(self._scores, None)
        self._total = total
        self._outcome = outcome

    def run(self, pages: list[RankPage]) -> None:
        above = 0
        top = HIGHEST
        for page in pages:
            self._compare(f"highest {self._total} that is counted below {top + 1}", top, page.to)
            above += self._count_down_to(page.to + 1)
            self._compare(f"users with {self._total} above {page.to}", above, page.above)
            lows = [page.low, *(each + 1 for each in page.tops)]
            for low, high, users in reversed(list(zip(lows, page.tops, page.users, strict=False))):
                counted = self._count_down_to(low)
                self._compare(f"users with {self._total} from {low} to {high}", counted, users)
                above += counted
            top = page.low - 1
        if pages or self._next is not None:
            lowest = top + 1 if pages else None
            self._compare(f"lowest {self._total} that is counted", LOWEST, lowest)

    def _count_down_to(self, low: int) -> int:
        """Return how many of the users that are not counted yet have this score or more."""
        users = 0
        while self._next is not None and self._next >= low:
            users += 1
            self._next = next(self._scores, None)
        return users

    def _compare(self, what: str, expected: int, found: int | None) -> None:
        if found != expected:
            self._outcome.report(Difference(None, what, expected, found))
