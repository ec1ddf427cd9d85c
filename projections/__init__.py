"""Score ledger, read side: projects grants into MongoDB and serves them.

``ScoreLedger.open()`` opens everything; the other names are its parts, for those who put them
together themselves.
"""

from projections.errors import (
    LedgerNotOpen,
    PoisonEvent,
    PositionMoved,
    ProjectionError,
    ReadModelUnavailable,
)
from projections.history import GrantRow, UserTotals
from projections.leaderboard import Leaderboard, LeaderboardRow
from projections.ledger import LedgerStatus, ScoreLedger
from projections.mongo import MongoScoreView
from projections.ports import (
    LeaderboardRepository,
    ScoreGrantRepository,
    UserScoreRepository,
)
from projections.projection import ScoreGrantsProjection
from projections.settings import Settings
from projections.verify import Difference, Verification
from projections.worker import Progress, ProjectionWorker

__all__ = [
    "Difference",
    "GrantRow",
    "Leaderboard",
    "LeaderboardRepository",
    "LeaderboardRow",
    "LedgerNotOpen",
    "LedgerStatus",
    "MongoScoreView",
    "PoisonEvent",
    "PositionMoved",
    "Progress",
    "ProjectionError",
    "ProjectionWorker",
    "ReadModelUnavailable",
    "ScoreGrantRepository",
    "ScoreGrantsProjection",
    "ScoreLedger",
    "Settings",
    "UserScoreRepository",
    "UserTotals",
    "Verification",
]
