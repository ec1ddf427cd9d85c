"""How far a user's two scores may be apart and still count as the same to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from projections.words import counted

if TYPE_CHECKING:
    from typing import Self

_GIVEN: Final = re.compile(
    r"(?:(?P<points>[0-9]{1,18})|(?P<percent>[0-9]{1,6}(?:\.[0-9]{1,6})?) ?%)"
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Points, or percent of the old score, by which nobody is taken to notice a difference.

    Attributes:
        points: Points, either way.
        percent: Percent of the recomputed total, either way; of an old score of 0 it is nothing.

    Raises:
        ValueError: if one of them is negative.
    """

    points: int = 0
    percent: Decimal = Decimal()

    def __post_init__(self) -> None:
        if not (self.points >= 0 and self.percent >= 0):
            raise ValueError(f"a tolerance must not be negative; got {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the tolerance that somebody wrote: ``5`` is points, ``0.5%`` is percent.

        Raises:
            ValueError: if it is neither.
        """
        given = _GIVEN.fullmatch(text.strip())
        if given is None:
            raise ValueError(
                f"a tolerance is points, as 5, or percent of the old score, as 0.5%; got {text!r}"
            )
        if given["points"] is not None:
            return cls(points=int(given["points"]))
        return cls(percent=Decimal(given["percent"]))

    def covers(self, *, old: int, new: int) -> bool:
        """Tell whether two totals are no further apart than this."""
        difference = abs(new - old)
        return difference <= self.points or difference * 100 <= self.percent * old

    def __str__(self) -> str:
        if self.percent:
            percent = f"{self.percent.normalize():f} %"
            return f"{counted(self.points, 'point')} or {percent}" if self.points else percent
        return counted(self.points, "point")
