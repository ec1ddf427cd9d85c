"""Score ledger, read side: projects grants into MongoDB and serves them.

``ScoreLedger.open()`` opens everything; the other names are its parts, for those who put them
together themselves.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projections.drift import Drift, OpenedBalances, Tolerance, UserDrift
    from projections.errors import (
        BatchRefused,
        BatchTooSlow,
        EventStoreReplaced,
        EventStoresDiffer,
        ForeignDocument,
        LedgerNotOpen,
        NameTaken,
        PoisonEvent,
        PositionMoved,
        ProjectionError,
        ReadModelDamaged,
        ReadModelGone,
        ReadModelUnavailable,
        RebuildSuperseded,
        ShapeChanged,
        SourceWritten,
        StreamParked,
        TooManyParked,
    )
    from projections.ledger import ScoreLedger
    from projections.migration import (
        Comparison,
        ComparisonProgress,
        DifferenceKind,
        OldReject,
        OldScores,
        OldUser,
        RejectReason,
        ScoreDifference,
        ScoreSide,
    )
    from projections.mongo import MongoScoreView
    from projections.mongo.batches import Batch
    from projections.mongo.parking import ParkedStream
    from projections.mongo.read_model import ReadModel
    from projections.ports import LeaderboardRepository, ScoreGrantRepository, UserScoreRepository
    from projections.queries.history import GrantRow, UserHistory, UserTotals
    from projections.queries.leaderboard import By, Leaderboard
    from projections.queries.ranked_users import LeaderboardRow
    from projections.relocation import CopyProgress, EventCopy, copy_events
    from projections.settings import Settings
    from projections.status import LedgerStatus
    from projections.verification.report import Difference, Verification, VerificationProgress
    from projections.worker.projection import ScoreGrantsProjection
    from projections.worker.rebuild import RebuildOutcome
    from projections.worker.unparker import Unparked
    from projections.worker.worker import Progress, ProjectionWorker
    from scoring import InvalidSetting, LedgerError

__all__ = [
    "Batch",
    "BatchRefused",
    "BatchTooSlow",
    "By",
    "Comparison",
    "ComparisonProgress",
    "CopyProgress",
    "Difference",
    "DifferenceKind",
    "Drift",
    "EventCopy",
    "EventStoreReplaced",
    "EventStoresDiffer",
    "ForeignDocument",
    "GrantRow",
    "InvalidSetting",
    "Leaderboard",
    "LeaderboardRepository",
    "LeaderboardRow",
    "LedgerError",
    "LedgerNotOpen",
    "LedgerStatus",
    "MongoScoreView",
    "NameTaken",
    "OldReject",
    "OldScores",
    "OldUser",
    "OpenedBalances",
    "ParkedStream",
    "PoisonEvent",
    "PositionMoved",
    "Progress",
    "ProjectionError",
    "ProjectionWorker",
    "ReadModel",
    "ReadModelDamaged",
    "ReadModelGone",
    "ReadModelUnavailable",
    "RebuildOutcome",
    "RebuildSuperseded",
    "RejectReason",
    "ScoreDifference",
    "ScoreGrantRepository",
    "ScoreGrantsProjection",
    "ScoreLedger",
    "ScoreSide",
    "Settings",
    "ShapeChanged",
    "SourceWritten",
    "StreamParked",
    "Tolerance",
    "TooManyParked",
    "Unparked",
    "UserDrift",
    "UserHistory",
    "UserScoreRepository",
    "UserTotals",
    "Verification",
    "VerificationProgress",
    "copy_events",
]

_MODULES = (
    *("errors", "drift", "ledger", "migration", "mongo", "ports", "relocation", "settings"),
    "status",
    *("mongo.batches", "mongo.parking", "mongo.read_model"),
    *("queries.history", "queries.leaderboard", "queries.ranked_users"),
    *("verification.report", "worker.projection", "worker.rebuild", "worker.unparker"),
    "worker.worker",
)

if not TYPE_CHECKING:

    def __getattr__(name):
        """Import a public name when it is first asked for.

        A submodule, the command line above all, begins without everything else that is here.
        """
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        homes = (import_module(f"{__name__}.{module}") for module in _MODULES)
        value = next(getattr(home, name) for home in homes if hasattr(home, name))
        globals()[name] = value
        return value

    def __dir__():
        """List the public names, also before they are imported."""
        return sorted({*globals(), *__all__})
