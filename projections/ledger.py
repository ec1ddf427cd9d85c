"""``ScoreLedger``: the composition root; opens event store, read model and worker together."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, sleep_using_event, wait_exponential

from projections.closed import CLOSED, Closed
from projections.connections import Stores
from projections.drift import (
    Drift,
    OpenedBalances,
    Tolerance,
    UserDrift,
    measure_drift,
    open_balances,
)
from projections.errors import LedgerNotOpen, ProjectionError
from projections.events.stores import kind_of, place_of
from projections.freshness import Freshness
from projections.migration.comparison import SETTLE_SECONDS, OldComparison
from projections.mongo import MongoScoreView
from projections.settings import Settings, chosen_settings
from projections.status import LedgerStatus, status_of
from projections.telemetry.batches import observed
from projections.telemetry.metrics import observe
from projections.telemetry.repositories import registered
from projections.verification.events import verify_events
from projections.verification.totals import verify_totals
from projections.words import counted
from projections.worker.rebuild import Rebuild, RebuildOutcome
from projections.worker.unparker import Unparked, Unparker
from projections.worker.worker import Progress, ProjectionWorker
from scoring import Contribution, ContributionReceipt, Grant, GrantReceipt, Score, Scoring
from scoring.forks import call_in_child, keep_for_ever
from scoring.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from os import PathLike
    from typing import Self

    from pymongo import MongoClient
    from pymongo.database import Database

    from projections.events.stores import Events
    from projections.migration import Comparison, ComparisonProgress, OldScores, ScoreDifference
    from projections.ports import UserScoreRepository
    from projections.queries.history import GrantRow, UserTotals
    from projections.queries.leaderboard import By
    from projections.verification.report import Verification, VerificationProgress

logger = logging.getLogger(__name__)

_PROJECTED_SECONDS = 60.0
_LONGEST_PAUSE_AFTER_ERROR_SECONDS = 30.0
DEFAULT_WAIT_SECONDS = 10.0
"""How long what compares both totals waits for what was recorded before it was asked for."""


class ScoreLedger:
    """The whole ledger in one object: commands, reads, and a worker that projects.

    Made by ``ScoreLedger.open()``; a context manager. It closes what it opened and nothing else.

    Threads may share one. A process that was forked may not use its parent's: every call raises
    ``LedgerNotOpen`` there, and a new ledger can be opened; closing the inherited one does nothing.
    Its calls block, so from asyncio call ``await asyncio.to_thread(ledger.grant, ...)``.
    """

    def __init__(
        self,
        *,
        scoring: Scoring,
        view: MongoScoreView,
        settings: Settings,
        owned: ExitStack,
        read_only: bool = False,
    ) -> None:
        """Put the parts together; use ``open()`` instead."""
        self._scoring = scoring
        self._view = view
        self._settings = settings
        self._owned = owned
        self._read_only = read_only
        self._pid = os.getpid()
        self._stop = Event()
        self._thread: Thread | None = None
        self._freshness = Freshness(scoring, view, interrupt=self._stop)
        self._repositories = registered(scoring, view.read_model, rank_by=settings.rank_by)
        self.leaderboard = self._repositories.leaderboard
        call_in_child(self, ScoreLedger._leave_to_parent)
        observe(self, namespace=view.read_model.database.name)

    @classmethod
    def open(
        cls,
        *,
        folder: str | PathLike[str] | None = None,
        worker: bool = True,
        create: bool = True,
        read_only: bool = False,
        any_shape: bool = False,
        settings: Settings | None = None,
        event_store: Mapping[str, str] | None = None,
        scoring: Scoring | None = None,
        events: Events | None = None,
        mongo: MongoClient[Any] | Database[Any] | str | None = None,
        mongo_database: str | None = None,
        rank_by: By | None = None,
    ) -> Self:
        """Open the ledger that the arguments and the environment describe.

        With nothing set, events go to ``.score-ledger/events.sqlite``, and a ``mongod`` of its
        own runs for the folder as long as somebody uses it, and is kept for the next user for
        ``Settings.linger_seconds``. An argument beats the environment.

        Args:
            folder: The embedded folder; default ``SCORE_LEDGER_FOLDER`` or ``.score-ledger``.
            worker: Project in the background; otherwise call ``catch_up()``.
            create: Make an event store in SQLite or MongoDB, if it is not there; otherwise that is
                an error.
            read_only: For users of both databases who may only read: nothing is created or changed,
                and what would write raises ``ProjectionError``. Takes ``worker=False``.
            any_shape: Open a read model too whose documents another release made in another shape;
                only ``rebuild()`` and ``status()`` are of use then.
            settings: An object of yours instead of ``folder`` and of what the environment says.
            event_store: The library's variables for the event store, perhaps the ``env`` of an
                application of yours, whose prefixed variables count too. What is missing comes
                from the environment; without a ``PERSISTENCE_MODULE`` it is what ``events`` says.
            scoring: A ``Scoring`` application of yours, perhaps of a subclass; it stays open.
            events: Where events are: ``"sqlite"``, ``"postgres"``, or ``"mongo"``, which is where
                ``mongo`` is, in the same database, through the same client; default
                ``SCORE_LEDGER_EVENTS`` or ``PERSISTENCE_MODULE``, and without these ``"sqlite"``.
            mongo: A ``MongoClient`` or ``Database`` of yours, which stays open, or a URI.
            mongo_database: Name of the database, unless ``mongo`` is a ``Database``.
            rank_by: The total that leaderboards rank by, unless a call says ``by``: ``"ledger"`` is
                for those who never had an old way; default ``SCORE_LEDGER_RANK_BY`` or
                ``"recomputed"``.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if an argument is not usable, or two of them say the same thing.
            InvalidSetting: a ``ValueError``, too: if a variable or a text such as a URI is not
                usable.
            LedgerError: if a part cannot be opened; what was opened is closed again.
            ShapeChanged: if the read model has to be rebuilt for this release first.
        """
        if scoring is not None and event_store is not None:
            raise ValueError(
                "scoring and event_store were given, which both say where events are: give one"
            )
        if scoring is not None and not isinstance(scoring, Scoring):
            raise TypeError(
                f"scoring must be a Scoring object, opened, not {scoring!r}: leave it out to have "
                "one opened"
            )
        settings = chosen_settings(settings, folder=folder, rank_by=rank_by, events=events)
        if scoring is not None:
            settings.check_module(scoring.env.get("PERSISTENCE_MODULE") or "eventsourcing.popo")
        if read_only and worker:
            raise ValueError(
                "a worker writes, so it cannot be had with read_only=True: give worker=False too"
            )
        with ExitStack() as stack:
            stores = Stores(
                settings,
                stack,
                mongo=mongo,
                mongo_database=mongo_database,
                create=create,
                read_only=read_only,
            )
            if scoring is None:
                scoring = stores.scoring(event_store)
            read_model = stores.read_model()
            if not any_shape:
                read_model.generations.check_shape()
            logger.info(
                "opening a ledger: events in %s %s, read model in MongoDB at %s",
                kind_of(scoring.env).module or "memory",
                place_of(scoring),
                read_model.place(),
            )
            ledger = cls(
                scoring=scoring,
                view=stack.enter_context(closing(MongoScoreView(read_model))),
                settings=settings,
                owned=stack.pop_all(),
                read_only=read_only,
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
        return self._commands().grant(user_id, grant_id, key, category, source, amount, granted_at)

    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        """Award many grants; see ``Scoring.grant_many``."""
        return self._commands().grant_many(grants)

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
        return self._commands().contribute(user_id, key, category, source, points, at)

    def contribute_many(
        self, contributions: Iterable[Contribution], *, overwrite: bool = True
    ) -> list[ContributionReceipt]:
        """Set many buckets; see ``Scoring.contribute_many``."""
        return self._commands().contribute_many(contributions, overwrite=overwrite)

    def feed_post(
        self, user_id: str, post_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a feed post; see ``Scoring.feed_post``."""
        return self._commands().feed_post(user_id, post_id, points, at)

    def award_badge(
        self, user_id: str, badge_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a badge; see ``Scoring.award_badge``."""
        return self._commands().award_badge(user_id, badge_id, points, at)

    def score_of(self, user_id: str) -> Score:
        """Return a user's state straight from the event store; see ``Scoring.score_of``."""
        return self._repositories.user_scores.score_of(user_id)

    def totals(self, user_id: str) -> UserTotals:
        """Return a user's projected totals; zeros, at version 0, for a user who has nothing yet.

        Raises:
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        return self._repositories.score_grants.totals(user_id)

    def history(
        self, user_id: str, *, before: int | None = None, limit: int = 100
    ) -> list[GrantRow]:
        """Return a page of a user's projected grants, newest position first.

        Args:
            user_id: Whose.
            before: Only grants at lower positions: the last position of a page, for the one that
                follows; ``None`` for the first page.
            limit: Grants on a page, at least 1.

        Raises:
            ValueError: if ``limit`` is less than 1, or ``before`` is not a position.
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ReadModelUnavailable: if MongoDB failed.
        """
        return self._repositories.score_grants.history(user_id, before=before, limit=limit)

    def wait(self, receipt: GrantReceipt | ContributionReceipt, *, timeout: float = 5.0) -> None:
        """Block until the answer of a receipt is visible to readers.

        Args:
            receipt: What ``grant`` or ``contribute`` returned.
            timeout: Seconds.

        Raises:
            EventStoreReplaced: if the event store was replaced, or went back.
            TimeoutError: if it is not visible by then; it says why a worker gave up, if one did.
            StreamParked: if it is not going to be visible, because the user's stream is parked.
            ReadModelUnavailable: if MongoDB failed, and not just for a moment.
            LedgerNotOpen: if the ledger is closed by then.
        """
        if not isinstance(receipt, GrantReceipt | ContributionReceipt):
            raise TypeError(
                f"wait takes one receipt, not a {type(receipt).__name__}: of many, give the one "
                "with the highest position"
            )
        self._freshness.await_receipt(receipt, timeout)

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
            EventStoreReplaced: if the event store was replaced, or went back.
            ValueError: if one of these streams is not parked.
            ReadModelUnavailable: if MongoDB failed; what was projected until then stays.
            ScoringError: if the event store failed.
        """
        self._check_writable()
        self._freshness.check_event_store()
        parked = self._view.parking.streams()
        if streams is not None:
            unknown = set(streams) - {stream.stream for stream in parked}
            if unknown:
                raise ValueError(
                    f"stream {min(unknown)} is not parked: score-ledger status lists those that are"
                )
            parked = [stream for stream in parked if stream.stream in streams]
        return Unparker(self._scoring, self._view, stop=stop, on_grants=on_grants).run(parked)

    def catch_up(
        self, *, stop: Event | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> int:
        """Project everything recorded up to now and return the tracked position."""
        self._check_writable()
        return self._worker(on_progress).catch_up(stop=stop)

    def follow(self, *, stop: Event, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Project what is recorded, as it is recorded, until ``stop`` is set."""
        self._check_writable()
        self._worker(on_progress).follow(stop)

    def rebuild(
        self,
        *,
        fresh: bool = False,
        adopt: bool = False,
        stop: Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RebuildOutcome:
        """Project everything again beside the live read model, and switch to it.

        Readers and workers may go on. The generation that is replaced is kept until
        ``drop_kept_generations()``. Interrupted, the next call carries on.

        Args:
            fresh: Give up what an interrupted rebuild left, and start over.
            adopt: Rebuild although the event store was replaced, or went back: whatever it does not
                have is gone from the read model then.
            stop: When set, stop at the next boundary between batches. A MongoDB that does not
                answer is not waited for any longer than the driver takes to give it up: seconds
                through a client that the ledger made, half a minute through one of yours, unless
                it has time limits of its own. So it is wherever a ``stop`` is taken.
            on_progress: Told after each batch.

        Raises:
            EventStoreReplaced: if the event store is such a one, unless ``adopt``.
            PoisonEvent: at an event that cannot be projected; the live read model stays.
            ReadModelUnavailable: if MongoDB failed.
        """
        self._check_writable()
        rebuild = Rebuild(
            self._scoring,
            self._view.read_model,
            lambda view, report: self._worker(report, view=view),
        )
        return rebuild.run(fresh=fresh, adopt=adopt, stop=stop, on_progress=on_progress)

    def drop_kept_generations(self) -> list[int]:
        """Drop the generations that rebuilds have replaced, and return their numbers."""
        self._check_writable()
        return self._view.read_model.generations.drop_kept()

    def verify(
        self,
        *,
        events: bool = True,
        on_progress: Callable[[VerificationProgress], None] | None = None,
    ) -> Verification:
        """Compare the read model with the event store; workers may go on.

        Every grant up to the tracked position is there once, with the same payload, and nothing
        extra; totals, categories, sources, counts, buckets, recomputed totals and the position are
        what the events add up to. Memory does not grow with history.

        Args:
            events: Otherwise compare users with the sums of their projected grants and buckets
                only, which does not read the event store.
            on_progress: Told now and then.

        Raises:
            EventStoreReplaced: if the event store is read, and is not the one that was projected,
                or went back.
            ScoringError: if the event store cannot be read.
            ReadModelUnavailable: if MongoDB failed.
        """
        read_model = self._view.read_model
        if events:
            outcome = verify_events(self._scoring, read_model, on_progress=on_progress)
        else:
            outcome = verify_totals(read_model, on_progress=on_progress)
        outcome.parked_streams = self._view.parking.count()
        return outcome

    def drift(
        self,
        *,
        wait: float = DEFAULT_WAIT_SECONDS,
        tolerance: Tolerance | None = None,
        on_user: Callable[[UserDrift], None] | None = None,
        on_progress: Callable[[Drift], None] | None = None,
    ) -> Drift:
        """Compare the old total of every user with their balance; see ``measure_drift``.

        What was recorded before the call is in the comparison, as it waits for a worker to have
        projected it; traffic may go on.

        Args:
            wait: Seconds to wait for that. What is missing then is said by ``lag_events``, and
                makes the verdict an unsafe one.
            tolerance: What a user is taken not to notice; default, not a point.
            on_user: Told of every user, in the order of user ids.
            on_progress: Told after every user.

        Raises:
            EventStoreReplaced: if the event store was replaced, or went back.
            ProjectionError: if a rebuild took the place of the read model meanwhile.
            ReadModelUnavailable: if MongoDB failed.
        """
        started = time.monotonic()
        position, lag_events = self._freshness.await_recorded(wait)
        waited_seconds = time.monotonic() - started
        generations = self._view.read_model.generations
        before = generations.await_settled()
        drift = measure_drift(
            self._view.read_model, tolerance=tolerance, on_user=on_user, on_progress=on_progress
        )
        after = generations.await_settled()
        if after.generation != before.generation:
            # What was handed on already cannot be taken back, so it is not read again unasked.
            raise ProjectionError(
                "a rebuild took the place of the read model while its drift was measured, so this "
                "report would mix the two: measure it again"
            )
        drift.position, drift.lag_events = position, lag_events
        drift.waited_seconds = waited_seconds
        drift.parked_streams = self._view.parking.count()
        return drift

    def open_balances(
        self,
        *,
        keys: Collection[str] | None = None,
        granted_at: datetime | None = None,
        wait: float = DEFAULT_WAIT_SECONDS,
        dry_run: bool = False,
        stop: Event | None = None,
        on_progress: Callable[[OpenedBalances], None] | None = None,
    ) -> OpenedBalances:
        """Grant what each bucket has beyond the grants of its key, but for posts and badges.

        It brings the two totals together, and leaves the recomputed one as it is. It may be
        repeated, interrupted and run beside others and traffic: the id of such a grant is made from
        the user, the key and what the key had been granted before, so nothing is granted twice. An
        application that also grants single events of a key gives the ledger the grant before the
        count: the other way round, an opening balance in between counts the event twice.

        Args:
            keys: Only keys of these kinds, as the drift report names them; default, all.
            granted_at: The time of these grants, timezone-aware; default: now.
            wait: Seconds to wait for what was recorded before the call to be projected.
            dry_run: Record nothing.
            stop: When set, stop at the next boundary between users.
            on_progress: Told after every user.

        Raises:
            EventStoreReplaced: if the event store was replaced, or went back.
            ProjectionError: if the read model stayed behind, or streams are parked, so that it is
                not known what has been granted; nothing was recorded.
            ReadModelUnavailable: if MongoDB failed; what was recorded stays, and opening them again
                carries on.
            BatchFailed: if the event store failed; likewise.
        """
        if not dry_run:
            self._check_writable()
        _, lag_events = self._freshness.await_recorded(wait)
        if lag_events:
            raise ProjectionError(
                f"the read model was still {counted(lag_events, 'event')} behind after {wait:g} s, "
                "so no balance was opened: check with score-ledger status that a worker is running"
            )
        if self._view.parking.count():
            raise ProjectionError(
                "streams are parked, so it is not known what their users have, and no balance was "
                "opened: mend the cause, run score-ledger unpark, and open them again"
            )
        return open_balances(
            self._view.read_model,
            self._repositories.user_scores.grant_many,
            granted_at=granted_at or datetime.now(UTC),
            kinds=keys,
            dry_run=dry_run,
            stop=stop,
            on_progress=on_progress,
        )

    def compare(
        self,
        old: OldScores,
        client: MongoClient[Any] | None = None,
        *,
        repair: bool = False,
        settle_seconds: float = SETTLE_SECONDS,
        on_difference: Callable[[ScoreDifference], None] | None = None,
        on_progress: Callable[[ComparisonProgress], None] | None = None,
    ) -> Comparison:
        """Compare what a site's own old collection holds with the ledger's recomputed side.

        Every bucket and total of every user is compared, while both sides are being written: what
        differs is looked at again, with everything projected that is recorded by then, until it is
        the same or has stood still for ``settle_seconds``. A bucket of 0 points is the same as
        none. Memory grows with neither users nor differences.

        Args:
            old: Where the old collection is and how it is spelt. It is only read.
            client: Of the server that it is on; default, the ledger's own.
            repair: Contribute what the old side holds for each bucket that differs and stood still
                (0 points where it holds none), and look again until that is so. What cannot be
                repaired says why.
            settle_seconds: How long a difference has to stand still; more than a call of the site
                may take between its two writes.
            on_difference: Told of every difference, also of those that are only counted.
            on_progress: Told now and then.

        Raises:
            EventStoreReplaced: if the event store was replaced, or went back.
            ProjectionError: if ``repair`` is asked for and the old collection has no bucket at all.
            TimeoutError: if nobody projects: without the right to write, somebody else has to.
            ReadModelUnavailable: if MongoDB failed.
            ScoringError: if the event store failed.
        """
        if repair:
            self._check_writable()
        self._freshness.check_event_store()
        comparison = OldComparison(
            *(old, client or self._view.read_model.client, self._scoring, self._view.read_model),
            catch_up=self._project_recorded,
            contribute_many=self.contribute_many if repair else None,
            settle_seconds=settle_seconds,
            on_difference=on_difference,
            on_progress=on_progress,
        )
        outcome = comparison.run()
        outcome.parked_streams = self._view.parking.count()
        return outcome

    def status(self) -> LedgerStatus:
        """Return where the ledger stands.

        A store that is not the one that was projected so far is shown, not raised.

        Raises:
            ScoringError: if the event store cannot be read.
            ReadModelUnavailable: if MongoDB failed.
        """
        return status_of(self._scoring, self._view)

    def close(self) -> None:
        """Stop the worker at a batch boundary and close what was opened; may be called again.

        In a forked child it does nothing to a ledger that was inherited.
        """
        if self._pid != os.getpid():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # First, so that what other threads begin from here on meets no half-closed part.
        self._retire(CLOSED)
        self._owned.close()

    def _leave_to_parent(self) -> None:
        """Become unusable in a child that was forked; called there before anything else runs."""
        keep_for_ever(self._owned)
        self._retire(
            f"the ledger was opened by process {self._pid}, which forked this one: open a new one "
            "with ScoreLedger.open()"
        )

    def _retire(self, sentence: str) -> None:
        """Have every use from now on raise ``LedgerNotOpen``."""
        closed: Any = Closed(sentence)
        # They may be in somebody's hands already, so they are emptied, not replaced.
        for holder in (*self._repositories, self._freshness):
            # A text is no part: what a leaderboard ranks by stays true.
            parts = [name for name, part in vars(holder).items() if not isinstance(part, str)]
            vars(holder).update(dict.fromkeys(parts, closed))
        self._scoring = self._view = closed

    def __enter__(self) -> Self:
        """Return the ledger itself.

        Raises:
            LedgerNotOpen: if it was closed, or inherited over a fork.
        """
        if isinstance(self._view, Closed):
            raise LedgerNotOpen(self._view.sentence)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _project_recorded(self) -> None:
        """Return when everything recorded by now is projected, by whomever."""
        tracked, newest = self._freshness.positions()
        if tracked >= newest:
            return
        if self._read_only or self._thread is not None:
            self._freshness.await_position(newest, _PROJECTED_SECONDS)
        else:
            self.catch_up()

    def _commands(self) -> UserScoreRepository:
        self._check_writable()
        return self._repositories.user_scores

    def _check_writable(self) -> None:
        if self._read_only:
            raise ProjectionError(
                "the ledger was opened with read_only=True, so it neither records nor projects: "
                "open it without, as users of the databases who may write"
            )

    def _worker(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        view: MongoScoreView | None = None,
    ) -> ProjectionWorker:
        return ProjectionWorker(
            self._scoring,
            view or self._view,
            batch_size=self._settings.batch_size,
            batch_bytes=self._settings.batch_bytes,
            on_error=self._settings.on_error,
            on_progress=on_progress,
            around_batch=partial(observed, namespace=self._view.read_model.database.name),
        )

    def _start_worker(self) -> None:
        self._thread = Thread(target=self._work, name="score-ledger-worker", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        restarts = Retries(
            Retrying(
                wait=wait_exponential(max=_LONGEST_PAUSE_AFTER_ERROR_SECONDS),
                sleep=sleep_using_event(self._stop),
            )
        )
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._worker().follow(self._stop)
            except Exception as error:
                logger.exception("the projection stopped; trying again")
                if time.monotonic() - started > _LONGEST_PAUSE_AFTER_ERROR_SECONDS:
                    restarts.reset()
                restarts.back_off(error)
