"""What a worker's last transaction has left, so that its next one need not read it again.

Every transaction that adds events writes the document of the position: a worker the position and
a new mark, and whoever unparks a stream how often that was done. So whoever finds there what its
own last transaction has left knows that nobody has added anything since, and that no switch has
replaced the documents. A mark alone would not tell: releases that know of none leave it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from projections.mongo.collections import Document
    from projections.mongo.ranks import RankPage

MAX_KNOWN_USERS: Final = 100_000
"""Whose totals are kept in memory."""

MAX_KNOWN_PAGES: Final = 256
"""Documents of ranks, of each total: those of some nine million users."""


@dataclass(slots=True)
class Known:
    """A part of the read model.

    Attributes:
        totals: Of some users, by the field that ranks and by user id.
        pages: Some documents of ranks, by the field that ranks, the lowest scores first.
    """

    totals: dict[str, dict[str, int]] = field(default_factory=dict)
    pages: dict[str, list[RankPage]] = field(default_factory=dict)

    def learn(self, newer: Known) -> None:
        """Take what a later transaction has left; what is too much of it is forgotten."""
        for total, scores in newer.totals.items():
            known = self.totals.setdefault(total, {})
            known |= scores
            if len(known) > MAX_KNOWN_USERS:
                self.totals[total] = scores if len(scores) <= MAX_KNOWN_USERS else {}
        for total, pages in newer.pages.items():
            self.pages[total] = pages if len(pages) <= MAX_KNOWN_PAGES else []


@dataclass(frozen=True, slots=True)
class Committed:
    """What is known since a transaction.

    Attributes:
        position: What tells it apart in the document of the position.
        known: What it has left, and what was known before.
    """

    position: Document
    known: Known
