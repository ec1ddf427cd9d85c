"""The repositories behind the ports, each registered once, traced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from projections.errors import PositionMoved
from projections.events.model import ProjectedGrant
from projections.mongo import MongoScoreView
from projections.mongo.collections import GRANTS, USERS
from projections.queries.history import UserHistory
from projections.queries.leaderboard import Leaderboard
from projections.telemetry.metrics import count_batch, count_conflict, count_grant, count_grants
from projections.telemetry.tracing import Call, Store, batch_span, traced
from scoring import BatchFailed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from threading import Event

    from projections.mongo.batches import Batch
    from projections.mongo.parking import OnError
    from projections.mongo.read_model import ReadModel
    from projections.ports import ScoreGrantRepository, UserScoreRepository
    from scoring import ContributionReceipt, Grant, GrantReceipt, Score, Scoring

_MONGODB: Final = "mongodb"
_EVENT_STORES: Final = {
    "eventsourcing.sqlite": ("sqlite", "SQLITE_DBNAME"),
    "eventsourcing.postgres": ("postgresql", "POSTGRES_DBNAME"),
}
"""By persistence module: the ``db.system.name``, and the variable that names the database."""


class EventSourcedUserScores:
    """``UserScoreRepository`` on the event store of a ``Scoring`` application; counts answers."""

    def __init__(self, scoring: Scoring) -> None:
        """Use this application."""
        self._scoring = scoring

    def grant(
        self,
        user_id: str,
        grant_id: str,
        key: str,
        category: str,
        source: str,
        amount: int,
        granted_at: datetime,
    ) -> GrantReceipt:
        """Award points once; see ``Scoring.grant``."""
        receipt = self._scoring.grant(user_id, grant_id, key, category, source, amount, granted_at)
        count_grant(receipt)
        return receipt

    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        """Award many grants; see ``Scoring.grant_many``."""
        try:
            receipts = self._scoring.grant_many(grants)
        except BatchFailed as failed:
            count_grants(failed.receipts_so_far)
            raise
        count_grants(receipts)
        return receipts

    def contribute(
        self,
        user_id: str,
        key: str,
        category: str,
        source: str,
        points: int,
        at: datetime | None = None,
    ) -> ContributionReceipt:
        """Set the bucket of a key, the old way; see ``Scoring.contribute``."""
        return self._scoring.contribute(user_id, key, category, source, points, at)

    def feed_post(
        self, user_id: str, post_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a feed post; see ``Scoring.feed_post``."""
        return self._scoring.feed_post(user_id, post_id, points, at)

    def award_badge(
        self, user_id: str, badge_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a badge; see ``Scoring.award_badge``."""
        return self._scoring.award_badge(user_id, badge_id, points, at)

    def score_of(self, user_id: str) -> Score:
        """Return a user's state; see ``Scoring.score_of``."""
        return self._scoring.score_of(user_id)


class TracedScoreView(MongoScoreView):
    """A view whose batches are spans that link to the commands they project, and are measured."""

    def apply(self, batch: Batch, *, on_error: OnError = "stop", stop: Event | None = None) -> None:
        """Add a batch; see ``MongoScoreView.apply``."""
        started = time.monotonic()
        attributes: dict[str, str | int] = {
            "db.system.name": _MONGODB,
            "db.namespace": self.read_model.database.name,
            "db.collection.name": GRANTS,
            "db.operation.name": "project",
            "score_ledger.batch.size": len(batch.events),
            "score_ledger.batch.position": batch.position,
        }
        traceparents = (
            projected.event.traceparent
            for projected in batch.events
            if isinstance(projected, ProjectedGrant)
        )
        try:
            with batch_span(f"project {GRANTS}", attributes=attributes, traceparents=traceparents):
                super().apply(batch, on_error=on_error, stop=stop)
        except PositionMoved:
            count_conflict()
            raise
        count_batch(grants=len(batch.events), seconds=time.monotonic() - started)


class Repositories(NamedTuple):
    """The three repositories of a ledger.

    Attributes:
        user_scores: Users' scores in the event store.
        score_grants: Projected grants and totals of single users.
        leaderboard: Projected users by their totals.
    """

    user_scores: UserScoreRepository
    score_grants: ScoreGrantRepository
    leaderboard: Leaderboard


def registered(scoring: Scoring, read_model: ReadModel) -> Repositories:
    """Return the repositories on these two, each call of which is a span."""
    return Repositories(
        user_scores=traced(EventSourcedUserScores, _event_store(scoring))(scoring),
        score_grants=traced(
            UserHistory,
            _mongodb(read_model, history=Call("find", GRANTS), totals=Call("find", USERS)),
        )(read_model),
        leaderboard=traced(
            Leaderboard,
            _mongodb(
                read_model,
                **dict.fromkeys(("top", "rank_of", "around", "page"), Call("find", USERS)),
            ),
        )(read_model),
    )


def _mongodb(read_model: ReadModel, **calls: Call) -> Store:
    return Store(_MONGODB, read_model.database.name, USERS, calls)


def _event_store(scoring: Scoring) -> Store:
    module = scoring.env.get("PERSISTENCE_MODULE", "")
    system, variable = _EVENT_STORES.get(module, ("other_sql", ""))
    # In memory there is no table, but what would be in one.
    table = getattr(scoring.recorder, "events_table_name", "stored_events")
    insert, select = Call("INSERT", table), Call("SELECT", table)
    return Store(
        system=system,
        namespace=scoring.env.get(variable, "") if variable else scoring.name,
        collection=table,
        calls={
            **dict.fromkeys(("grant", "grant_many"), insert),
            **dict.fromkeys(("contribute", "feed_post", "award_badge"), insert),
            "score_of": select,
        },
    )
