"""``ScoreLedger``: the composition root; opens event store, read model and worker together."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from projections.embedded import open_server
from projections.errors import ProjectionError, StreamParked
from projections.history import GrantRow, UserHistory, UserTotals
from projections.leaderboard import Leaderboard
from projections.mongo import MongoScoreView, connect
from projections.read_model import ReadModel
from projections.settings import SQLITE_MODULE, Settings
from projections.unparking import Unparked, Unparking
from projections.verify import Verification, verify_totals
from projections.worker import Progress, ProjectionWorker
from scoring import Grant, GrantReceipt, Score, Scoring
from scoring.identity import user_stream_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from projections.parking import ParkedStream

logger = logging.getLogger(__name__)

_FIRST_PAUSE_AFTER_ERROR_SECONDS = 1.0
_LONGEST_PAUSE_AFTER_ERROR_SECONDS = 30.0
_PARKED_SHOWN = 20
_EVENTS_ASKED_FOR_THEIR_TIME = 10


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """Where a ledger stands.

    Attributes:
        event_store: The library's persistence module that keeps the events.
        events: Where: a file or a database.
        newest_position: Newest position of the event store; 0 when empty.
        read_model: Host, port and database of the read model.
        tracked_position: Position up to which it stands for the event store.
        lag_events: Events between the two, claims included.
        lag_seconds: How long ago the oldest of them was recorded; 0 if there is none, ``None`` if
            it does not say.
        users: Users in the read model.
        grants: Grants in the read model.
        foreign_grants: Grants that met a foreign document in their place and were not added.
        parked_count: Streams with an event that cannot be projected, left behind from there on.
        parked_streams: The first of them.
        worker_error: Why a worker last gave up, if no worker has come further since.
    """

    event_store: str
    events: str
    newest_position: int
    read_model: str
    tracked_position: int
    lag_events: int
    lag_seconds: float | None
    users: int
    grants: int
    foreign_grants: int
    parked_count: int
    parked_streams: list[ParkedStream]
    worker_error: str | None


def open_scoring(settings: Settings, *, event_store: Mapping[str, str] | None = None) -> Scoring:
    """Open the event store alone, as the settings and the library's variables say.

    Args:
        settings: Where the default store is.
        event_store: The library's variables; default, those of the environment.

    Raises:
        ProjectionError: if it cannot be opened, in one sentence.
    """
    env = dict(settings.event_store() if event_store is None else event_store)
    try:
        if env.get("SQLITE_DBNAME") == str(settings.events_file):
            settings.folder.mkdir(parents=True, exist_ok=True)
        return Scoring(env)
    except Exception as error:
        raise ProjectionError(
            f"the event store cannot be opened with {env.get('PERSISTENCE_MODULE')}: {error}"
        ) from error


class ScoreLedger:
    """The whole ledger in one object: commands, reads, and a worker that projects.

    Made by ``ScoreLedger.open()``; a context manager. It closes what it opened, and may be used
    from several threads.
    """

    def __init__(
        self, *, scoring: Scoring, view: MongoScoreView, settings: Settings, owned: ExitStack
    ) -> None:
        """Put the parts together; use ``open()`` instead."""
        self._scoring = scoring
        self._view = view
        self._settings = settings
        self._owned = owned
        self._stop = Event()
        self._thread: Thread | None = None
        self._history = UserHistory(view.read_model)
        self.leaderboard = Leaderboard(view.read_model)

    @classmethod
    def open(
        cls,
        *,
        folder: Path | None = None,
        worker: bool = True,
        settings: Settings | None = None,
        event_store: Mapping[str, str] | None = None,
    ) -> Self:
        """Open the ledger that the arguments and the environment describe.

        With nothing set, events go to ``.score-ledger/events.sqlite``, and a ``mongod`` of its
        own runs for the folder as long as somebody uses it.

        Args:
            folder: The embedded folder; default ``SCORE_LEDGER_FOLDER`` or ``.score-ledger``.
            worker: Project in the background; otherwise call ``catch_up()``.
            settings: Beat the environment altogether; ``folder`` is not looked at then.
            event_store: The library's variables for the event store; beat the environment.

        Raises:
            ProjectionError: if a part cannot be opened; what was opened is closed again.
        """
        settings = settings or Settings.load(folder=folder)
        with ExitStack() as stack:
            scoring = stack.enter_context(open_scoring(settings, event_store=event_store))
            uri = settings.mongo_uri
            if uri is None:
                server = open_server(settings.folder / "mongo", mongod=settings.mongod)
                uri = stack.enter_context(server).uri
            client = stack.enter_context(connect(uri))
            read_model = ReadModel(client, settings.mongo_database)
            read_model.prepare()
            ledger = cls(
                scoring=scoring,
                view=stack.enter_context(closing(MongoScoreView(read_model))),
                settings=settings,
                owned=stack.pop_all(),
            )
        if worker:
            ledger._start_worker()
        return ledger

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
        return self._scoring.grant(user_id, grant_id, key, category, source, amount, granted_at)

    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        """Award many grants; see ``Scoring.grant_many``."""
        return self._scoring.grant_many(grants)

    def score_of(self, user_id: str) -> Score:
        """Return a user's state straight from the event store; see ``Scoring.score_of``."""
        return self._scoring.score_of(user_id)

    def totals(self, user_id: str) -> UserTotals | None:
        """Return a user's projected totals; see ``UserHistory.totals``."""
        return self._history.totals(user_id)

    def history(
        self, user_id: str, *, after: int | None = None, limit: int = 100
    ) -> list[GrantRow]:
        """Return a page of a user's projected grants, newest first; see ``UserHistory.grants``."""
        return self._history.grants(user_id, after=after, limit=limit)

    def wait(self, receipt: GrantReceipt, *, timeout: float = 5.0) -> None:
        """Block until the answer of a receipt is visible to readers.

        Args:
            receipt: What ``grant`` returned.
            timeout: Seconds.

        Raises:
            TimeoutError: if it is not visible by then.
            StreamParked: if it is not going to be visible, because the user's stream is parked.
            ReadModelUnavailable: if MongoDB failed, and not just for a moment.
        """
        self._view.wait(self._scoring.name, receipt.position, timeout=timeout)
        # Asked afterwards: a stream is parked in the transaction that moves the position.
        parked = self._view.parking.find(self._stream_of(receipt))
        if parked is not None and parked.position <= receipt.position:
            raise StreamParked(stream=parked.stream, position=parked.position, reason=parked.reason)

    def unpark(
        self,
        streams: Collection[str] | None = None,
        *,
        stop: Event | None = None,
        on_grants: Callable[[int], None] | None = None,
    ) -> Unparked:
        """Project what was left behind of parked streams, after the cause was mended.

        In order and exactly once, whoever else is projecting. A stream whose event still cannot be
        projected stays parked.

        Args:
            streams: Their originator ids; default, all parked streams.
            stop: When set, stop after the next transaction.
            on_grants: Told how many grants each transaction has projected.

        Raises:
            ProjectionError: if one of these streams is not parked.
            ReadModelUnavailable: if MongoDB failed; what was projected until then stays.
            ScoringError: if the event store failed.
        """
        parked = self._view.parking.streams()
        if streams is not None:
            unknown = set(streams) - {stream.stream for stream in parked}
            if unknown:
                raise ProjectionError(
                    f"stream {min(unknown)} is not parked: score-ledger status lists those that are"
                )
            parked = [stream for stream in parked if stream.stream in streams]
        return Unparking(self._scoring, self._view, stop=stop, on_grants=on_grants).run(parked)

    def catch_up(
        self,
        *,
        stop: Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Project everything recorded up to now and return the tracked position."""
        return self._worker(on_progress).catch_up(stop=stop)

    def follow(self, *, stop: Event, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Project what is recorded, as it is recorded, until ``stop`` is set."""
        self._worker(on_progress).follow(stop)

    def verify(self, *, on_progress: Callable[[Verification], None] | None = None) -> Verification:
        """Compare the read model's totals with its grants; see ``verify_totals``."""
        outcome = verify_totals(self._view.read_model, on_progress=on_progress)
        outcome.parked_streams = self._view.parking.count()
        return outcome

    def status(self) -> LedgerStatus:
        """Return where the ledger stands."""
        newest = self._scoring.recorder.max_notification_id() or 0
        tracked = self._view.max_tracking_id(self._scoring.name) or 0
        env = self._scoring.env
        module = env.get("PERSISTENCE_MODULE") or ""
        names = (
            ("SQLITE_DBNAME",) if module == SQLITE_MODULE else ("POSTGRES_HOST", "POSTGRES_DBNAME")
        )
        users, grants = self._view.read_model.counts()
        return LedgerStatus(
            event_store=module,
            events=" ".join(filter(None, (env.get(name) for name in names))),
            newest_position=newest,
            read_model=self._view.read_model.place(),
            tracked_position=tracked,
            lag_events=max(0, newest - tracked),
            lag_seconds=self._lag_seconds(tracked) if newest > tracked else 0.0,
            users=users,
            grants=grants,
            foreign_grants=self._view.foreign_count(self._scoring.name),
            parked_count=self._view.parking.count(),
            parked_streams=self._view.parking.streams(limit=_PARKED_SHOWN),
            worker_error=self._view.failure(self._scoring.name) if newest > tracked else None,
        )

    def close(self) -> None:
        """Stop the worker at a batch boundary and close what was opened; may be called again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._owned.close()

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Close the ledger."""
        self.close()

    def _lag_seconds(self, tracked: int) -> float | None:
        oldest = self._scoring.recorder.select_notifications(
            start=tracked, limit=_EVENTS_ASKED_FOR_THEIR_TIME, inclusive_of_start=False
        )
        for notification in oldest:
            # The first one may be poison, or another application's.
            with suppress(Exception):
                event: Any = self._scoring.mapper.to_domain_event(notification)
                return max(0.0, float((datetime.now(UTC) - event.timestamp).total_seconds()))
        return None

    def _stream_of(self, receipt: GrantReceipt) -> str:
        if receipt.user_id is not None:
            return str(user_stream_id(receipt.user_id))
        found = self._scoring.recorder.select_notifications(start=receipt.position, limit=1)
        return str(found[0].originator_id) if found else ""

    def _worker(self, on_progress: Callable[[Progress], None] | None = None) -> ProjectionWorker:
        return ProjectionWorker(
            self._scoring,
            self._view,
            batch_size=self._settings.batch_size,
            batch_bytes=self._settings.batch_bytes,
            on_error=self._settings.on_error,
            on_progress=on_progress,
        )

    def _start_worker(self) -> None:
        self._thread = Thread(target=self._work, name="score-ledger-worker", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        pause = _FIRST_PAUSE_AFTER_ERROR_SECONDS
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._worker().follow(self._stop)
            except Exception:
                logger.exception("the projection stopped; trying again")
                if time.monotonic() - started > _LONGEST_PAUSE_AFTER_ERROR_SECONDS:
                    pause = _FIRST_PAUSE_AFTER_ERROR_SECONDS
                self._stop.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_AFTER_ERROR_SECONDS)
