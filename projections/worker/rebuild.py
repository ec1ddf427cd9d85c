"""``Rebuild``: projects everything again beside the live read model, and switches to it."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from threading import Event
from typing import TYPE_CHECKING, Final

from projections.errors import EventStoreReplaced, ReadModelUnavailable, RebuildSuperseded
from projections.events.anchored_store import AnchoredStore
from projections.mongo import MongoScoreView
from projections.mongo.load import GrantIdTwice, finish_load
from projections.mongo.switch import SILENT_HOLD_SECONDS, Switch, roll_forward
from projections.retries import retries_until
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from projections.mongo.read_model import ReadModel
    from projections.worker.worker import Progress, ProjectionWorker
    from scoring import Scoring

    MakeWorker = Callable[[MongoScoreView, Callable[[Progress], None]], ProjectionWorker]

logger = logging.getLogger(__name__)

MAX_LAG_AT_HOLD_EVENTS: Final = 10_000
"""Live workers are held for as long as it takes to project this many events, or less."""

_MAX_ROUNDS: Final = 20
_RENEWAL_SECONDS: Final = SILENT_HOLD_SECONDS / 5


@dataclass(frozen=True, slots=True)
class RebuildOutcome:
    """What became of a rebuild.

    Attributes:
        generation: The generation that was built.
        position: How far it has come.
        live: Whether it is live; otherwise the rebuild was stopped, and the next one carries on.
    """

    generation: int
    position: int
    live: bool


class Rebuild:
    """Builds the next generation from position zero, with the worker that also follows.

    It may be killed at any moment and run again, and several may run at once: the next generation
    has a position of its own, which is compared and set in each transaction like the live one, so
    they share the work.
    """

    def __init__(self, scoring: Scoring, live: ReadModel, make_worker: MakeWorker) -> None:
        """Rebuild the read model ``live`` from ``scoring``.

        Args:
            scoring: Whose events are projected.
            live: The read model that is served meanwhile; its workers may go on.
            make_worker: Makes the worker for a view, reporting to a function.
        """
        self._scoring = scoring
        self._live = live
        self._live_view = MongoScoreView(live)
        self._make_worker = make_worker
        self._store = AnchoredStore(scoring, live)
        self._adopt = False
        self._loads = True
        self._stop = Event()

    def run(
        self,
        *,
        fresh: bool = False,
        adopt: bool = False,
        stop: Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RebuildOutcome:
        """Build the next generation, or carry on with the one that was begun, and switch to it.

        Args:
            fresh: Give up one that was begun, and start over.
            adopt: Rebuild although the event store is not the one that the live read model was
                projected from, or went back; the store is the truth then.
            stop: When set, stop at the next boundary between batches.
            on_progress: Told after each batch.

        Raises:
            EventStoreReplaced: if the store is such a one, unless ``adopt``, or becomes one.
            PoisonEvent: at an event that cannot be projected.
            RebuildSuperseded: if another rebuild has given up this generation.
            ReadModelUnavailable: if MongoDB failed.
        """
        self._adopt = adopt
        self._live = self._live.of_generation(None)
        self._stop = self._live.stop = stop or Event()
        retries = retries_until(self._stop)
        retries.call(self._target)  # before there is work to lose
        building: ReadModel | None = None
        position = 0

        def watched(progress: Progress) -> None:
            nonlocal position
            if progress.position > position:
                retries.reset()
            position = progress.position
            if on_progress is not None:
                on_progress(progress)

        try:
            building = retries.call(lambda: self._begin(fresh=fresh))
            with closing(MongoScoreView(building)) as view:
                if outcome := retries.call(lambda: self._build(view, watched)):
                    return outcome
        except GrantIdTwice as twice:
            logger.warning("a generation is given up, and built with its indexes: %s", twice)
            self._loads = False
            return self.run(fresh=True, adopt=adopt, stop=stop, on_progress=on_progress)
        except RebuildSuperseded as superseded:
            state = retries.call(self._live.generations.await_settled)
            if state.generation != superseded.generation:
                raise
            # Another rebuild shared the work and was the first to switch, or this one was and had
            # to ask again.
            live_position = retries.call(self._live_position)
            return RebuildOutcome(state.generation, live_position, live=True)
        except ReadModelUnavailable:
            if building is None or not self._stop.is_set():
                raise
        return RebuildOutcome(building.generation or 0, position, live=False)

    def _begin(self, *, fresh: bool) -> ReadModel:
        self._live.prepare()  # the database may have been dropped since it was opened
        building = self._live.of_generation(self._live.generations.begin(fresh=fresh))
        building.loads = self._loads
        Switch(self._live, building, self._scoring.name).check_server()
        # One that was interrupted early has claimed its number only.
        building.inventory.create_building(self._scoring.name)
        begun = MongoScoreView(building).tracked(self._scoring.name)
        try:
            read_event_store(lambda: self._store.check(begun))
        except EventStoreReplaced as replaced:
            if fresh:  # it was begun a moment ago
                raise
            logger.warning("generation %s is given up: %s", building.generation, replaced)
            return self._begin(fresh=True)
        return building

    def _build(
        self, view: MongoScoreView, on_progress: Callable[[Progress], None]
    ) -> RebuildOutcome | None:
        """Return what became of it, or ``None`` if it was stopped."""
        building = view.read_model
        assert building.generation is not None  # noqa: S101 - for the type checker
        switch = Switch(self._live, building, self._scoring.name)
        worker = self._make_worker(view, _Renewing(switch, on_progress))
        for rounds in count(1):
            position = worker.catch_up(stop=self._stop)
            if self._stop.is_set():
                return None
            finish_load(building, self._scoring.name)
            near = self._target() - position <= MAX_LAG_AT_HOLD_EVENTS
            # Each round is shorter than the one before, unless grants are recorded as fast as
            # they are projected: then live workers have to wait a little longer.
            if (near or rounds >= _MAX_ROUNDS) and self._switch(switch, view, worker):
                break
            if self._live.generations.state().building != building.generation:
                raise RebuildSuperseded(building.generation)
        return RebuildOutcome(building.generation, self._live_position(), live=True)

    def _switch(self, switch: Switch, view: MongoScoreView, worker: ProjectionWorker) -> bool:
        """Switch to a view that has nearly caught up; return whether it was done."""
        if not switch.hold():
            # By another rebuild that shares the work.
            self._live.generations.await_release(self._scoring.name)
            return False
        try:
            target = self._target()
            if (view.max_tracking_id(self._scoring.name) or 0) < target:
                worker.catch_up(stop=self._stop)
            # Last, so that nothing goes live that the event store does not have.
            built = view.tracked(self._scoring.name)
            read_event_store(lambda: self._store.check(built))
            if not switch.commit(at_least=target):
                return False
        finally:
            switch.release()
        roll_forward(self._live)
        logger.info("generation %s is live", view.read_model.generation)
        return True

    def _target(self) -> int:
        """Return the position that the new generation has to reach: the live one, if it has one.

        Raises:
            EventStoreReplaced: if the live one is of another history, unless that is adopted: then
                its number means nothing.
        """
        live = self._live_view.tracked(self._scoring.name)
        try:
            read_event_store(lambda: self._store.check(live))
        except EventStoreReplaced:
            if not self._adopt:
                raise
            return 0
        return live.position or 0

    def _live_position(self) -> int:
        return self._live_view.max_tracking_id(self._scoring.name) or 0


class _Renewing:
    """Reports progress, and says now and then that a hold is still wanted."""

    def __init__(self, switch: Switch, on_progress: Callable[[Progress], None]) -> None:
        self._switch = switch
        self._on_progress = on_progress
        self._renewed = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        self._on_progress(progress)
        if time.monotonic() - self._renewed > _RENEWAL_SECONDS:
            self._renewed = time.monotonic()
            self._switch.renew()
