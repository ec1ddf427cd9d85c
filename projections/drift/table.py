"""The drift of every user as CSV, written as it is streamed."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Final

from projections.drift.causes import Reason

if TYPE_CHECKING:
    from typing import TextIO

    from projections.drift.causes import UserDrift

COLUMNS: Final = {reason: reason.name.lower() for reason in Reason}
"""The columns that explain the difference: they add up to it."""

# What a spreadsheet would take for a formula.
_FORMULA_STARTS: Final = ("=", "+", "-", "@")


class CsvTable:
    """Writes a line for each user: both totals, the difference, and what makes it up, in points.

    A user id that a spreadsheet would run as a formula gets an apostrophe in front.
    """

    def __init__(self, file: TextIO) -> None:
        """Write the heading; the file is opened with ``newline=""`` and closed by the caller."""
        self._writer = csv.writer(file)
        self._writer.writerow(
            ["user_id", "recomputed_total", "ledger_balance", "difference", *COLUMNS.values()]
        )

    def add(self, user: UserDrift) -> None:
        """Write a user's line."""
        name = f"'{user.user_id}" if user.user_id.startswith(_FORMULA_STARTS) else user.user_id
        by_reason = user.by_reason()
        self._writer.writerow(
            [name, user.old, user.new, user.difference, *(by_reason[r] for r in COLUMNS)]
        )
