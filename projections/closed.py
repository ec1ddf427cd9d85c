"""What becomes of a ledger's parts when it may not be used any more."""

from __future__ import annotations

from typing import Any, Final

from projections.errors import LedgerNotOpen

CLOSED: Final = "the ledger is closed: open a new one with ScoreLedger.open()"


class Closed:
    """Stands where a part of a ledger was, and answers every use of it with one sentence."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __getattr__(self, name: str) -> Any:
        raise LedgerNotOpen(self.sentence)

    def __call__(self, *_: object, **__: object) -> Any:
        """Raise ``LedgerNotOpen``."""
        raise LedgerNotOpen(self.sentence)
