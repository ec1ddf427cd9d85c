"""What becomes of a ledger that may not be used any more: closed, or inherited over a fork."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from projections.errors import LedgerNotOpen

if TYPE_CHECKING:
    from projections.ledger import ScoreLedger


class Gone:
    """Stands where a part of a ledger was, and answers every use of it with one sentence."""

    def __init__(self, sentence: str) -> None:
        """Say why the part is gone."""
        self.sentence = sentence

    def __getattr__(self, name: str) -> Any:
        """Raise ``LedgerNotOpen``."""
        raise LedgerNotOpen(self.sentence)


_open_ledgers: WeakSet[ScoreLedger] = WeakSet()


def watch_for_forks(ledger: ScoreLedger) -> None:
    """Make this ledger unusable in children that this process forks."""
    _open_ledgers.add(ledger)


def _after_in_child() -> None:
    for ledger in list(_open_ledgers):
        ledger.leave_to_parent()


os.register_at_fork(after_in_child=_after_in_child)
