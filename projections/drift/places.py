"""Who would change places on the leaderboard, in bounded memory, whatever the number of users."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

BOARDS: Final = (10, 100, 1000)
"""The parts of the leaderboard that are looked at, by their number of rows."""

MOVES: Final = 10
"""So many of the largest climbs, and of the largest falls, are listed."""

Totals = tuple[str, int, int]
"""A user id with the recomputed total and the balance, in points."""


@dataclass(frozen=True, slots=True)
class Board:
    """What a flip would change in the first rows of the leaderboard.

    Attributes:
        rows: How many rows.
        moved: Users who stay in them with another rank.
        replaced: Users who leave them for others.
    """

    rows: int
    moved: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Move:
    """A user whose rank would be another one; users with the same score share a rank.

    Attributes:
        user_id: The user.
        old_rank: Rank by the recomputed total.
        new_rank: Rank by the ledger's balance.
        old: The recomputed total, in points.
        new: The ledger's balance, in points.
    """

    user_id: str
    old_rank: int
    new_rank: int
    old: int
    new: int

    @property
    def places(self) -> int:
        """Places gained; lost if negative."""
        return self.old_rank - self.new_rank


class Places:
    """Ranks everybody who is in the first thousand rows of either leaderboard by both totals.

    Their totals are given first; then all users are counted, as they stream by.
    """

    def __init__(self, by_old: Iterable[Totals], by_new: Iterable[Totals]) -> None:
        """Take the first rows of both leaderboards, in the order of each."""
        self._boards = [list(by_old), list(by_new)]
        self._totals = {row[0]: row for board in self._boards for row in board}
        self._old = _Ranks(old for _, old, _ in self._totals.values())
        self._new = _Ranks(new for _, _, new in self._totals.values())

    def add(self, old: int, new: int) -> None:
        """Count a user by both totals."""
        self._old.add(old)
        self._new.add(new)

    def boards(self) -> list[Board]:
        """Return what would change, for each of ``BOARDS`` that has rows of its own."""
        moves = {move.user_id: move for move in self._moves()}
        found = []
        most = max(len(board) for board in self._boards)
        for size, smaller in zip(BOARDS, (0, *BOARDS), strict=False):
            if most > smaller:
                old, new = ({row[0] for row in board[:size]} for board in self._boards)
                found.append(Board(size, len(old & new & moves.keys()), len(old - new)))
        return found

    def climbs(self) -> list[Move]:
        """Return who would gain most places, most first."""
        moves = [move for move in self._moves() if move.places > 0]
        return sorted(moves, key=lambda move: (-move.places, move.new_rank, move.user_id))[:MOVES]

    def falls(self) -> list[Move]:
        """Return who would lose most places, most first."""
        moves = [move for move in self._moves() if move.places < 0]
        return sorted(moves, key=lambda move: (move.places, move.old_rank, move.user_id))[:MOVES]

    def _moves(self) -> list[Move]:
        old_ranks, new_ranks = self._old.ranks(), self._new.ranks()
        ranked = (
            Move(user_id, old_ranks[old], new_ranks[new], old, new)
            for user_id, old, new in self._totals.values()
        )
        return [move for move in ranked if move.places]


class _Ranks:
    """Ranks of a few scores among many: how many are higher, counted as they come."""

    def __init__(self, scores: Iterable[int]) -> None:
        self._scores = sorted(set(scores))
        # At each index, the scores that are higher than so many of ours.
        self._counts = [0] * (len(self._scores) + 1)

    def add(self, score: int) -> None:
        self._counts[bisect_left(self._scores, score)] += 1

    def ranks(self) -> dict[int, int]:
        higher = list(accumulate(reversed(self._counts)))[:-1]
        return {
            score: 1 + count for score, count in zip(reversed(self._scores), higher, strict=True)
        }
