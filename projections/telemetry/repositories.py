"""The repositories behind the ports, each registered once, traced."""

from __future__ import annotations

import time
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from projections.errors import PositionMoved
from projections.events.model import GrantEvent
from projections.events.stores import kind_of
from projections.mongo import MongoScoreView
from projections.mongo.collections import GRANTS, USERS
from projections.queries.history import UserHistory
from projections.queries.leaderboard import Leaderboard
from projections.telemetry.metrics import count_batch, count_conflict, count_grants
from projections.telemetry.tracing import Call, Store, batch_span, traced, traced_methods
from scoring import BatchFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from projections.mongo.batches import Batch
    from projections.mongo.parking import OnError
    from projections.mongo.read_model import ReadModel
    from projections.ports import ScoreGrantRepository, UserScoreRepository
    from scoring import Scoring

_MONGODB: Final = "mongodb"


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
            event.data.traceparent for event in batch.events if isinstance(event, GrantEvent)
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
        user_scores=_commands(scoring),
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


def _commands(scoring: Scoring) -> UserScoreRepository:
    commands = traced_methods(scoring, _event_store(scoring))
    for name in ("grant", "grant_many"):
        setattr(commands, name, _counted(getattr(commands, name)))
    return cast("UserScoreRepository", commands)


def _counted(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def counted(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = command(*args, **kwargs)
        except BatchFailed as failed:
            count_grants(failed.receipts_so_far)
            raise
        count_grants(answer if isinstance(answer, list) else [answer])
        return answer

    return counted


def _mongodb(read_model: ReadModel, **calls: Call) -> Store:
    return Store(_MONGODB, read_model.database.name, USERS, calls)


def _event_store(scoring: Scoring) -> Store:
    kind = kind_of(scoring.env)
    # In memory there is no table, but what would be in one.
    table = getattr(scoring.recorder, "events_table_name", "stored_events")
    insert, select = Call("INSERT", table), Call("SELECT", table)
    return Store(
        system=kind.system,
        namespace=scoring.env.get(kind.database, "") if kind.database else scoring.name,
        collection=table,
        calls={
            **dict.fromkeys(("grant", "grant_many"), insert),
            **dict.fromkeys(("contribute", "feed_post", "award_badge"), insert),
            "score_of": select,
        },
    )
