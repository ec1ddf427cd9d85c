"""Score ledger, write side: an append-only ledger of points as an event-sourced domain.

Every award is a grant, recorded once for ever as a domain event of a ``UserScore`` aggregate.
``Scoring`` is the application service; this package knows nothing of MongoDB.

From the inside out: ``rules``, ``grants`` and ``contributions`` say what is accepted, and
``user_score`` decides and applies. ``event_store`` and ``user_scores`` record and load.
``command_handler`` commits commands until each has a truthful receipt, and ``commit_queue`` has
those of several threads go together; ``application`` is the whole. ``sqlite`` and ``postgres`` are
the library's adapters with what they lack.
"""

from scoring.application import Scoring
from scoring.contributions import Contribution
from scoring.errors import (
    BatchFailed,
    EventStoreNotOpened,
    InvalidGrant,
    InvalidSetting,
    LedgerError,
    ScoringError,
    StreamHasGap,
)
from scoring.grants import Grant
from scoring.identity import CLAIMS_NAMESPACE, USERS_NAMESPACE, make_grant_id
from scoring.receipts import ContributionReceipt, GrantReceipt, GrantStatus, Score
from scoring.user_score import GrantClaimed, UserScore, UserScoreSnapshot

__all__ = [
    "CLAIMS_NAMESPACE",
    "USERS_NAMESPACE",
    "BatchFailed",
    "Contribution",
    "ContributionReceipt",
    "EventStoreNotOpened",
    "Grant",
    "GrantClaimed",
    "GrantReceipt",
    "GrantStatus",
    "InvalidGrant",
    "InvalidSetting",
    "LedgerError",
    "Score",
    "Scoring",
    "ScoringError",
    "StreamHasGap",
    "UserScore",
    "UserScoreSnapshot",
    "make_grant_id",
]
