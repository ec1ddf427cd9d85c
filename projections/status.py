"""Where a ledger stands: positions, counts, generations, and what went wrong."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from projections.errors import EventStoreReplaced
from projections.events.anchored_store import AnchoredStore
from projections.events.stores import kind_of, place_of
from projections.mongo import MongoScoreView
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from projections.mongo.parking import ParkedStream
    from scoring import Scoring

_PARKED_SHOWN = 20
_EVENTS_ASKED_FOR_THEIR_TIME = 10


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """Where a ledger stands.

    Attributes:
        event_store: The library's persistence module that keeps the events.
        events: Where: a file, or the servers and the database.
        newest_position: Newest position of the event store; 0 when empty.
        read_model: Host, port and database of the read model.
        tracked_position: Position up to which it stands for the event store.
        lag_events: Events between the two, claims included; ``None`` if ``event_store_replaced``,
            since no position of the one stands for anything in the other then.
        lag_seconds: How long ago the oldest of them was recorded; 0 if there is none, ``None`` if
            it does not say, or ``event_store_replaced``.
        users: Users in the read model.
        grants: Grants in the read model.
        foreign_grants: Grants that met a foreign document in their place and were not added.
        generation: Which generation of the read model is live; each rebuild makes the next.
        building: The generation that a rebuild is making, or left when it was interrupted.
        building_position: How far that one has come.
        kept_generations: Generations that were replaced and not dropped yet.
        parked_count: Streams with an event that cannot be projected, left behind from there on.
        parked_streams: The first of them.
        worker_error: Why a worker last gave up, if no worker has come further since.
        event_store_replaced: What was expected and found, and the cure, if the event store is not
            the one that the read model was projected from, or went back; see
            ``EventStoreReplaced``.
    """

    event_store: str
    events: str
    newest_position: int
    read_model: str
    tracked_position: int
    lag_events: int | None
    lag_seconds: float | None
    users: int
    grants: int
    foreign_grants: int
    generation: int
    building: int | None
    building_position: int | None
    kept_generations: list[int]
    parked_count: int
    parked_streams: list[ParkedStream]
    worker_error: str | None
    event_store_replaced: str | None


def status_of(scoring: Scoring, view: MongoScoreView) -> LedgerStatus:
    """Return where a ledger stands.

    Raises:
        ScoringError: if the event store cannot be read.
        ReadModelUnavailable: if MongoDB failed.
    """
    at = view.tracked(scoring.name)
    tracked = at.position or 0
    replaced: str | None = None
    try:
        read_event_store(lambda: AnchoredStore(scoring, view.read_model).check(at))
    except EventStoreReplaced as error:
        replaced = str(error)
    # Asked afterwards: what is tracked was recorded before.
    newest = read_event_store(scoring.recorder.max_notification_id) or 0
    lag_seconds = None
    if replaced is None:
        lag_seconds = _lag_seconds(scoring, tracked) if newest > tracked else 0.0
    users, grants = view.read_model.counts()
    generations = view.read_model.generations.await_settled()
    return LedgerStatus(
        event_store=kind_of(scoring.env).module,
        events=place_of(scoring),
        newest_position=newest,
        read_model=view.read_model.place(),
        tracked_position=tracked,
        lag_events=newest - tracked if replaced is None else None,
        lag_seconds=lag_seconds,
        users=users,
        grants=grants,
        foreign_grants=view.positions.foreign_count(scoring.name),
        generation=generations.generation,
        building=generations.building,
        building_position=_building_position(scoring, view, generations.building),
        kept_generations=view.read_model.generations.kept(),
        parked_count=view.parking.count(),
        parked_streams=view.parking.streams(limit=_PARKED_SHOWN),
        worker_error=view.failure(scoring.name) if replaced or newest > tracked else None,
        event_store_replaced=replaced,
    )


def _building_position(scoring: Scoring, view: MongoScoreView, building: int | None) -> int | None:
    if building is None:
        return None
    built = MongoScoreView(view.read_model.of_generation(building))
    return built.max_tracking_id(scoring.name) or 0


def _lag_seconds(scoring: Scoring, tracked: int) -> float | None:
    oldest = read_event_store(
        lambda: scoring.recorder.select_notifications(
            start=tracked, limit=_EVENTS_ASKED_FOR_THEIR_TIME, inclusive_of_start=False
        )
    )
    for notification in oldest:
        # The first one may be poison, or another application's.
        with suppress(Exception):
            event: Any = scoring.mapper.to_domain_event(notification)
            return max(0.0, float((datetime.now(UTC) - event.timestamp).total_seconds()))
    return None
