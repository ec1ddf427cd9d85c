"""Migration: from a site's own old collection of scores to the ledger.

An old collection is described once, by ``OldScores``, and read by everything that brings it in or
looks at it; nothing here ever writes to it. It may import ``projections.mongo`` and what is below
it.
"""

from projections.migration.comparison_report import (
    Comparison,
    ComparisonProgress,
    DifferenceKind,
    ScoreDifference,
    ScoreSide,
)
from projections.migration.old_description import LabelDefault
from projections.migration.old_scores import OldScores
from projections.migration.old_users import OldReject, OldUser, RejectReason
from projections.migration.preflight import Preflight, rejected_buckets

__all__ = [
    "Comparison",
    "ComparisonProgress",
    "DifferenceKind",
    "LabelDefault",
    "OldReject",
    "OldScores",
    "OldUser",
    "Preflight",
    "RejectReason",
    "ScoreDifference",
    "ScoreSide",
    "rejected_buckets",
]
