"""Score ledger, read side: projects grants into MongoDB and serves them.

``ScoreLedger.open()`` opens everything; the other names are its parts, for those who put them
together themselves.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projections.drift import Drift, UserDrift
    from projections.errors import (
        EventStoreReplaced,
        LedgerNotOpen,
        PoisonEvent,
        PositionMoved,
        ProjectionError,
        ReadModelUnavailable,
        RebuildSuperseded,
        ShapeChanged,
        StreamParked,
    )
    from projections.history import GrantRow, UserHistory, UserTotals
    from projections.leaderboard import Leaderboard, LeaderboardRow
    from projections.ledger import ScoreLedger
    from projections.mongo import MongoScoreView
    from projections.parking import ParkedStream
    from projections.ports import LeaderboardRepository, ScoreGrantRepository, UserScoreRepository
    from projections.projection import ScoreGrantsProjection
    from projections.read_model import ReadModel
    from projections.rebuild import RebuildOutcome
    from projections.settings import Settings
    from projections.status import LedgerStatus
    from projections.unparking import Unparked
    from projections.verification import Difference, Verification, VerificationProgress
    from projections.worker import Progress, ProjectionWorker

__all__ = [
    "Difference",
    "Drift",
    "EventStoreReplaced",
    "GrantRow",
    "Leaderboard",
    "LeaderboardRepository",
    "LeaderboardRow",
    "LedgerNotOpen",
    "LedgerStatus",
    "MongoScoreView",
    "ParkedStream",
    "PoisonEvent",
    "PositionMoved",
    "Progress",
    "ProjectionError",
    "ProjectionWorker",
    "ReadModel",
    "ReadModelUnavailable",
    "RebuildOutcome",
    "RebuildSuperseded",
    "ScoreGrantRepository",
    "ScoreGrantsProjection",
    "ScoreLedger",
    "Settings",
    "ShapeChanged",
    "StreamParked",
    "Unparked",
    "UserDrift",
    "UserHistory",
    "UserScoreRepository",
    "UserTotals",
    "Verification",
    "VerificationProgress",
]

_MODULES = (
    *("errors", "drift", "history", "leaderboard", "ledger", "mongo", "parking", "ports"),
    *("projection", "read_model", "rebuild", "settings", "status", "unparking", "verification"),
    "worker",
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
