"""Distributions of points in bounded memory, whatever the number of users.

Points range over many orders of magnitude, so all three count in ranges that grow with the value.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from typing import Final

_STEPS: Final = (1, 2, 5)
_QUANTILES: Final = (0, 5, 25, 50, 75, 95, 100)
_CELLS_A_DECADE: Final = 8


class Spread:
    """Quantiles, true to two significant digits; the ends are exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._low: int | None = None
        self._high: int | None = None

    def add(self, value: int) -> None:
        """Count a value."""
        self._low = value if self._low is None else min(self._low, value)
        self._high = value if self._high is None else max(self._high, value)
        unit = 10 ** max(0, len(str(abs(value))) - 2)
        self._counts[int(math.copysign(abs(value) // unit * unit, value))] += 1

    def quantiles(self) -> dict[str, int]:
        """Return the values below which 0, 5, 25, 50, 75, 95 and 100 percent lie; or nothing."""
        if self._low is None or self._high is None:
            return {}
        total, seen = sum(self._counts.values()), 0
        result = {}
        wanted = list(_QUANTILES)
        for value in sorted(self._counts):
            seen += self._counts[value]
            while wanted and seen * 100 >= wanted[0] * total:
                result[str(wanted.pop(0))] = max(self._low, min(self._high, value))
        return {**result, "0": self._low, "100": self._high}


class SignedBins:
    """A histogram over 0, 1, 2 to 4, 5 to 9, 10 to 19, 20 to 49 and so on, both ways."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count a value."""
        self._counts[_bin(value) if value >= 0 else -_bin(-value)] += 1

    def bars(self) -> list[tuple[int, int, int]]:
        """Return first value, last value and count of each range, empty ones between included."""
        if not self._counts:
            return []
        bars = []
        for index in range(min(self._counts), max(self._counts) + 1):
            low, high = _range(abs(index))
            if index < 0:
                low, high = -high, -low
            bars.append((low, high, self._counts[index]))
        return bars


class Cells:
    """Pairs of totals, counted in cells that grow with both."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int, int], list[int]] = {}

    def add(self, old: int, new: int) -> None:
        """Count a pair."""
        # Those who gain, lose and keep are told apart however small the difference.
        side = (new > old) - (new < old)
        cell = self._cells.setdefault((_cell(old), _cell(new), side), [0, 0, 0])
        cell[0] += 1
        cell[1] += old
        cell[2] += new

    def points(self) -> list[tuple[float, float, int]]:
        """Return the mean old and new total of each cell, and the number of users in it."""
        return [(old / n, new / n, n) for n, old, new in self._cells.values()]


def _bin(value: int) -> int:
    if value == 0:
        return 0
    digits = len(str(value))
    leading = int(str(value)[0])
    return 3 * (digits - 1) + bisect(_STEPS, leading)


def _range(index: int) -> tuple[int, int]:
    if index == 0:
        return 0, 0
    decade, step = divmod(index - 1, 3)
    unit: int = 10**decade
    low = _STEPS[step] * unit
    after = (*_STEPS, 10)[step + 1] * unit
    return low, after - 1


def _cell(value: int) -> int:
    return 0 if value <= 0 else 1 + int(math.log10(value) * _CELLS_A_DECADE)
