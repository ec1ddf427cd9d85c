"""Drift: the old total against the ledger's balance, for those who decide about a flip.

It may import ``projections.mongo`` and what is below it.
"""

from projections.drift.balances import OpenedBalances, open_balances
from projections.drift.causes import Cause, Reason, UserDrift
from projections.drift.measurement import measure_drift
from projections.drift.page import write_page
from projections.drift.report import Drift
from projections.drift.table import CsvTable
from projections.drift.tolerance import Tolerance

__all__ = [
    "Cause",
    "CsvTable",
    "Drift",
    "OpenedBalances",
    "Reason",
    "Tolerance",
    "UserDrift",
    "measure_drift",
    "open_balances",
    "write_page",
]
