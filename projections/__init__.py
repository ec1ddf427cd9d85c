"""Score ledger, read side: projects grants into MongoDB and serves them.

``ScoreLedger.open()`` opens everything; the other names are its parts, for those who put them
together themselves.
"""

from projections.errors import (
    PoisonEvent,
    PositionMoved,
    ProjectionError,
    ReadModelUnavailable,
    StreamParked,
)
from projections.history import GrantRow, UserTotals
from projections.leaderboard import Leaderboard, LeaderboardRow
from projections.ledger import LedgerStatus, ScoreLedger
from projections.mongo import MongoScoreView
from projections.parking import ParkedStream
from projections.projection import ScoreGrantsProjection
from projections.unparking import Unparked
from projections.verify import Difference, Verification
from projections.worker import Progress, ProjectionWorker

__all__ = [
    "Difference",
    "GrantRow",
    "Leaderboard",
    "LeaderboardRow",
    "LedgerStatus",
    "MongoScoreView",
    "ParkedStream",
    "PoisonEvent",
    "PositionMoved",
    "Progress",
    "ProjectionError",
    "ProjectionWorker",
    "ReadModelUnavailable",
    "ScoreGrantsProjection",
    "ScoreLedger",
    "StreamParked",
    "Unparked",
    "UserTotals",
    "Verification",
]
