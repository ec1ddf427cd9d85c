"""The repositories behind the ports, each registered once, traced."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from projections.events.stores import kind_of
from projections.mongo.collections import GRANTS, USERS
from projections.queries.history import UserHistory
from projections.queries.leaderboard import Leaderboard
from projections.telemetry.metrics import count_grants
from projections.telemetry.tracing import MONGODB, Call, Store, traced, traced_methods
from scoring import BatchFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from projections.mongo.read_model import ReadModel
    from projections.ports import ScoreGrantRepository, UserScoreRepository
    from projections.queries.leaderboard import By
    from scoring import Scoring


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


def registered(scoring: Scoring, read_model: ReadModel, *, rank_by: By) -> Repositories:
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
        )(read_model, rank_by=rank_by),
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
    return Store(MONGODB, read_model.database.name, USERS, calls)


def _event_store(scoring: Scoring) -> Store:
    kind = kind_of(scoring.env)
    # In memory there is no table, but what would be in one.
    table = getattr(scoring.recorder, "events_table_name", "stored_events")
    writing = ("grant", "grant_many", "contribute", "contribute_many", "feed_post", "award_badge")
    return Store(
        system=kind.system,
        namespace=scoring.env.get(kind.database, "") if kind.database else scoring.name,
        collection=table,
        calls={**dict.fromkeys(writing, Call("INSERT", table)), "score_of": Call("SELECT", table)},
    )
