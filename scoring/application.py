"""``Scoring``: the application service of the write side."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

from eventsourcing.application import Application, ProcessingEvent, Repository
from eventsourcing.sqlite import SQLiteFactory
from eventsourcing.utils import resolve_topic, strtobool

from scoring.batches import COMMANDS_PER_COMMIT, record_in_chunks
from scoring.checkout import CheckOutCache
from scoring.command_handler import RefusedAt, WriteSide, commit_together
from scoring.commit_queue import CommitQueue
from scoring.conflicts import ConflictLog
from scoring.contribution_handler import ContributionHandler
from scoring.contributions import Contribution, grant_shaped_key
from scoring.errors import InvalidSetting, ScoringError
from scoring.event_store import (
    RecordedEvents,
    ScoringEventStore,
    ScoringSnapshotStore,
    StoreWentBack,
)
from scoring.grant_handler import GrantHandler
from scoring.grants import Grant
from scoring.known_versions import KnownVersions
from scoring.retries import STORE_ERRORS, in_words, open_event_store, read_event_store
from scoring.rules import normalised_user_id
from scoring.sqlite import PatientDatastore
from scoring.topics import ImportedTopicsMapper
from scoring.user_score import UserScore
from scoring.user_scores import UserScores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from threading import Event

    from eventsourcing.domain import DomainEventProtocol, MutableOrImmutableAggregate
    from eventsourcing.persistence import ApplicationRecorder, EventStore, Mapper, Recording
    from eventsourcing.utils import Environment, EnvType

    from scoring.receipts import ContributionReceipt, GrantReceipt, Score

logger = logging.getLogger(__name__)

SNAPSHOT_INTERVAL: Final = 100
"""A snapshot is taken when a commit carries a stream over a multiple of this version."""

_DEFAULT_CACHE_SIZE: Final = 10_000
_POSTGRES_MODULE: Final = "eventsourcing.postgres"

_RECORDERS: Final = {
    "eventsourcing.sqlite": "scoring.sqlite:GaplessSQLiteRecorder",
    _POSTGRES_MODULE: "scoring.postgres:GaplessPostgresRecorder",
    "projections.mongo": "projections.mongo.event_store:GaplessMongoRecorder",
}
_SNAPSHOT_RECORDERS: Final = {
    "eventsourcing.sqlite": "scoring.sqlite:SQLiteSnapshotRecorder",
    _POSTGRES_MODULE: "scoring.postgres:PostgresSnapshotRecorder",
}


class Scoring(Application[UUID]):
    """Records grants, each once for ever, and answers from the event store.

    It is an ``eventsourcing`` application: the library's environment variables choose the store
    (in memory by default). Safe to share between threads, and between processes on one store.
    """

    # Positions are tracked under this name, so that subclasses continue where Scoring stopped.
    name = "Scoring"
    env: ClassVar[dict[str, str]] = {
        "TRANSCODER_TOPIC": "scoring.transcoding:ScoringTranscoder",
        # Writers queue for the file; five seconds, the library's default, is short under load.
        "SQLITE_LOCK_TIMEOUT": "15",
        # So that a command, which has 30 seconds, can try more than once.
        "POSTGRES_CONNECT_TIMEOUT": "5",
        "POSTGRES_LOCK_TIMEOUT": "8",
    }
    events: ScoringEventStore
    snapshots: ScoringSnapshotStore | None
    snapshotting_intervals: ClassVar[dict[type[MutableOrImmutableAggregate[Any]], int]] = {
        UserScore: SNAPSHOT_INTERVAL
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the application's name in subclasses."""
        if cls.__dict__.get("name", "Scoring") != "Scoring":
            raise TypeError(
                f"{cls.__name__}.name must stay 'Scoring': positions are tracked under that name"
            )
        cls.name = "Scoring"
        super().__init_subclass__(**kwargs)

    def __init__(
        self, env: EnvType | None = None, *, clock: Callable[[], datetime] | None = None
    ) -> None:
        """Open the event store.

        Args:
            env: The library's variables, e.g. ``{"PERSISTENCE_MODULE": "eventsourcing.sqlite",
                "SQLITE_DBNAME": "events.sqlite"}``; what is missing comes from the process's
                environment.
            clock: Returns the time that ``at=None`` means in ``contribute``, timezone-aware.

        Raises:
            EventStoreNotOpened: if the store cannot be opened.
            InvalidSetting: if a setting of the store would break the order of positions, or cannot
                be understood.
        """
        super().__init__(env)
        if strtobool(self.env.get("POSTGRES_ENABLE_DB_FUNCTIONS") or "no"):
            self.close()
            raise InvalidSetting(
                "POSTGRES_ENABLE_DB_FUNCTIONS",
                "it inserts events without the table lock, so a later position can become visible "
                "before an earlier one and a projection would miss grants; unset it",
            )
        cache_size = self._cache_size()
        self.conflicts = ConflictLog()
        self._clock = clock or _now
        self._listeners: set[Event] = set()
        self._scores = UserScores(
            self.events,
            self.snapshots,
            CheckOutCache(maxsize=cache_size),
            KnownVersions(self.recorder),
        )
        self._queue: CommitQueue[Any] = CommitQueue(
            commit_together, max_members=COMMANDS_PER_COMMIT
        )
        self._write_side = WriteSide(
            self.commit, self.recorder, self._scores, self._queue, self.conflicts
        )

    def _cache_size(self) -> int:
        given = self.env.get(self.AGGREGATE_CACHE_MAXSIZE) or _DEFAULT_CACHE_SIZE
        try:
            return int(given)
        except ValueError as error:
            self.close()
            raise InvalidSetting(
                self.AGGREGATE_CACHE_MAXSIZE,
                f"it must be an integer, the number of users to keep in memory; got {given!r}",
            ) from error

    def construct_env(self, name: str, env: EnvType | None = None) -> Environment:
        """Construct the environment, with the recorder of ours for the library's databases.

        ``APPLICATION_RECORDER_TOPIC`` chooses another.
        """
        chosen = super().construct_env(name, env)
        recorder = _RECORDERS.get(chosen.get("PERSISTENCE_MODULE", ""))
        if recorder is not None:
            chosen.setdefault("APPLICATION_RECORDER_TOPIC", recorder)
        return chosen

    def construct_mapper(self) -> Mapper[UUID]:
        """Construct the mapper, which imports nothing that a stored topic names.

        ``MAPPER_TOPIC`` chooses another.
        """
        if self.env.get("MAPPER_TOPIC"):
            return super().construct_mapper()
        return self.factory.mapper(
            transcoder=self.construct_transcoder(), mapper_class=ImportedTopicsMapper
        )

    def construct_recorder(self) -> ApplicationRecorder:
        """Construct the recorder; processes that open one new store together may collide."""
        if isinstance(self.factory, SQLiteFactory):
            self.factory.datastore = PatientDatastore(self.factory.datastore)
        elif self.env.get("PERSISTENCE_MODULE") == _POSTGRES_MODULE:
            from scoring.postgres_pool import bounded_pool  # noqa: PLC0415 - an optional dependency

            theirs: Any = self.factory
            theirs.datastore.pool = bounded_pool(theirs.datastore)
        return open_event_store(super().construct_recorder)

    def construct_event_store(self) -> EventStore[UUID]:
        """Construct the event store."""
        return ScoringEventStore(mapper=self.mapper, recorder=self.recorder)

    def construct_snapshot_store(self) -> EventStore[UUID]:
        """Construct the store of snapshots."""
        recorder: Any = open_event_store(
            lambda: self.factory.aggregate_recorder(purpose="snapshots")
        )
        ours = _SNAPSHOT_RECORDERS.get(self.env.get("PERSISTENCE_MODULE") or "")
        if ours is not None:  # for which the library has no setting
            recorder = resolve_topic(ours)(
                recorder.datastore, events_table_name=recorder.events_table_name
            )
        return ScoringSnapshotStore(self.mapper, recorder, self.events)

    def construct_repository(self) -> Repository[UUID]:
        """Construct the library's repository without its cache, which shares live objects.

        ``AGGREGATE_CACHE_MAXSIZE`` sets the size of this application's own cache instead.
        """
        return Repository(event_store=self.events, snapshot_store=self.snapshots)

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
        """Award points once.

        A grant id that was ever recorded, for any user, adds nothing: the receipt then says
        ``DUPLICATE`` if the payload is the same and ``CONFLICT`` otherwise. Calling again after
        any error is safe.

        Raises:
            InvalidGrant: if a field breaks its rule; nothing was written.
            StreamHasGap: if events of this user are lost; nothing was written.
            ScoringError: if the store failed and stayed so; the message says what is known.
        """
        grant = Grant(
            user_id=user_id,
            grant_id=grant_id,
            key=key,
            category=category,
            source=source,
            amount=amount,
            granted_at=granted_at,
        )
        try:
            return self._grant_handler([grant]).receipts()[0]
        except RefusedAt as refused:
            raise refused.error from None

    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        """Award many grants, 1,000 to a transaction, and return their receipts in input order.

        A batch may name many users, and ids that were recorded before or repeat within it.

        Raises:
            BatchFailed: carrying the receipts of everything that was recorded. Nothing of the
                failing chunk was, unless the reason says that its outcome is unknown, or its cause
                is a ``StreamHasGap``: then everything before that user's grant was. Granting the
                same input again is safe.
        """
        return record_in_chunks(grants, of=Grant, make_handler=self._grant_handler)

    def _grant_handler(self, grants: Sequence[Grant]) -> GrantHandler:
        return GrantHandler(self._write_side, grants)

    def contribute(
        self,
        user_id: str,
        key: str,
        category: str,
        source: str,
        points: int,
        at: datetime | None = None,
    ) -> ContributionReceipt:
        """Set the bucket of a key to ``points``, the old way; the recomputed total may go down.

        The buckets and the recomputed total are at any time those of a map from key to points,
        category and source, overwritten by each call. A call that changes nothing records nothing.

        A grant-shaped key (``content:feed-post:<id>``, ``award:badge:<id>``) is routed through
        ``grant()`` under its derived id ``<user_id>/<key>``, so that its points are in the ledger
        too. What happens then depends on what is there:

        ==================  =============  =========  ==================  ======================
        grant of the key    points         status     ledger              bucket
        ==================  =============  =========  ==================  ======================
        none                1 or more      RECORDED   a grant at ``at``   becomes the grant's
        none, nor a bucket  0              RECORDED   nothing             is set to 0
        none                0              RECORDED   nothing             is overwritten with 0
        none                0 as it is     DUPLICATE  nothing             stays
        with the same       the same       DUPLICATE  nothing             is set, if it differed
        with others         any            CONFLICT   nothing; logged     is set, if it differed
        ==================  =============  =========  ==================  ======================

        "The same" means points, category and source; time is not compared. It makes no difference
        whether the grant was recorded by this call or by ``grant()``, nor whether a bucket that it
        replaces was there before. A grant under the derived id that did not count in the recomputed
        total, because the key was not grant-shaped in its day, decides the status only.

        Calling again after any error is safe, as long as nobody else set the key meanwhile.

        Args:
            user_id: Who is scored.
            key: What is scored.
            category: Flat label.
            source: Flat label.
            points: What the bucket holds from now on, 0 to 1,000,000,000.
            at: When it was earned, for the grant of a grant-shaped key; default: now.

        Raises:
            InvalidGrant: if a field breaks its rule; nothing was written.
            ScoringError: if the store failed and stayed so; the message says what is known.
        """
        contribution = Contribution(
            user_id=user_id, key=key, category=category, source=source, points=points, at=at
        )
        try:
            return self._contribution_handler([contribution]).receipts()[0]
        except RefusedAt as refused:
            raise refused.error from None

    def contribute_many(
        self, contributions: Iterable[Contribution], *, overwrite: bool = True
    ) -> list[ContributionReceipt]:
        """Set many buckets, 1,000 to a transaction, and return their receipts in input order.

        Each is answered as ``contribute`` would have answered it, after those before it and no
        later one. A batch may name many users, and a key of a user more than once.

        Args:
            contributions: What to set.
            overwrite: Otherwise a bucket that is there stays as it is, whoever set it and however
                close: ``DUPLICATE`` if it is the same, ``CONFLICT`` if it has other points or
                labels. For importing what may have been written since.

        Raises:
            BatchFailed: as from ``grant_many``; contributing the same input again is safe, as long
                as nobody else set the keys meanwhile.
        """
        return record_in_chunks(
            contributions,
            of=Contribution,
            make_handler=partial(self._contribution_handler, overwrite=overwrite),
        )

    def _contribution_handler(
        self, contributions: Sequence[Contribution], *, overwrite: bool = True
    ) -> ContributionHandler:
        return ContributionHandler(
            self._write_side, contributions, clock=self._clock, overwrite=overwrite
        )

    def feed_post(
        self, user_id: str, post_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a feed post, once and for all a grant; see ``contribute``.

        This and ``award_badge`` are the template for whatever is migrated next: name the kind of
        key whose buckets are written once, and what used to call ``contribute`` calls this.

        Args:
            user_id: Whose post it is.
            post_id: Letters, digits and ``. _ ~ @ -``; the key is ``content:feed-post:<post_id>``,
                the category ``content``, the source ``feed``.
            points: 0 to 1,000,000,000.
            at: When it was posted, timezone-aware; default: now.

        Raises:
            InvalidGrant: if a field breaks its rule; nothing was written.
            ScoringError: if the store failed and stayed so; the message says what is known.
        """
        key = grant_shaped_key("content:feed-post", field="post_id", value=post_id)
        return self.contribute(user_id, key, "content", "feed", points, at)

    def award_badge(
        self, user_id: str, badge_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        """Contribute the points of a badge, once and for all a grant; see ``contribute``.

        The same badge given to two users is two grants, given twice to one user it is one.

        Args:
            user_id: Who earned it.
            badge_id: Letters, digits and ``. _ ~ @ -``; the key is ``award:badge:<badge_id>``, the
                category ``award``, the source ``badge``.
            points: 0 to 1,000,000,000.
            at: When it was awarded, timezone-aware; default: now.

        Raises:
            InvalidGrant: if a field breaks its rule; nothing was written.
            ScoringError: if the store failed and stayed so; the message says what is known.
        """
        key = grant_shaped_key("award:badge", field="badge_id", value=badge_id)
        return self.contribute(user_id, key, "award", "badge", points, at)

    def score_of(self, user_id: str) -> Score:
        """Return a user's state straight from the event store, with everything recorded so far.

        Zeros for a user who has nothing yet.

        Raises:
            InvalidGrant: if the id breaks the rule of ``user_id``.
            StreamHasGap: if events of this user are lost.
            ScoringError: if the store failed and stayed so.
        """
        user_id = normalised_user_id(user_id)
        return read_event_store(lambda: self._scores.state_of(user_id))

    def close_gaps(self, user_id: str) -> list[range]:
        """Make a stream that lacks versions readable again, without the points that are lost.

        An event that changes nothing, ``UserScore.GapClosed``, is recorded in the place of each
        event that is missing, and one at the end, where a snapshot is taken: older ones may have
        been taken by a process that had the lost events in memory. A stream that lacks nothing is
        left alone. Other processes that use the store should be restarted before this.

        Returns:
            The versions that were missing.

        Raises:
            InvalidGrant: if the id breaks the rule of ``user_id``.
            ScoringError: if the store failed and stayed so, or others wrote to the stream.
        """
        user_id = normalised_user_id(user_id)
        try:
            return self._queue.alone(lambda: self._scores.close_gaps(user_id))
        except STORE_ERRORS as error:
            raise ScoringError(
                f"the gaps in the stream of user {user_id!r} are not all closed "
                f"({in_words(error)}): close them again, which is safe"
            ) from error

    def close(self) -> None:
        """Close the event store, and log how many conflicts were not logged one by one."""
        super().close()
        conflicts: ConflictLog | None = getattr(self, "conflicts", None)
        if conflicts is not None:  # none yet where opening failed
            conflicts.close()

    def save(
        self,
        *objs: MutableOrImmutableAggregate[UUID] | DomainEventProtocol[UUID] | None,
        **kwargs: Any,
    ) -> list[Recording[UUID]]:
        """Save aggregates and events in one transaction, as in the library.

        What follows the commit (snapshots, notifying) is logged when it fails, not raised: the
        caller must not take a recorded grant for a failed one.
        """
        processing_event: ProcessingEvent[UUID] = ProcessingEvent()
        processing_event.collect_events(*objs, **kwargs)
        return self.commit(processing_event).recordings()

    def commit(self, processing_event: ProcessingEvent[UUID]) -> RecordedEvents:
        """Record what was collected, then snapshot and notify without letting those fail."""
        try:
            recorded = self.events.record(
                processing_event.events,
                tracking=processing_event.tracking,
                **processing_event.saved_kwargs,
            )
        except StoreWentBack:
            self._scores.forget()
            raise
        try:
            self._take_snapshots(processing_event)
            for listener in self._listeners.copy():
                listener.set()
            # The library's own hook does nothing, and what it is given takes a tenth of a batch.
            if type(self)._notify is not Application._notify:  # noqa: SLF001 - meant for subclasses
                self._notify(recorded.recordings())
            self.notify(processing_event.events)
        except Exception:
            with suppress(Exception):  # a broken log handler must not fail the call either
                logger.exception("the events are recorded, but a step after the commit failed")
        return recorded

    def listen(self, recorded: Event) -> None:
        """Set an event whenever this object has recorded something, so that nobody need look."""
        self._listeners.add(recorded)

    def unlisten(self, recorded: Event) -> None:
        """Stop setting an event."""
        self._listeners.discard(recorded)

    def _take_snapshots(self, processing_event: ProcessingEvent[UUID]) -> None:
        # From the aggregates in hand, which hold just what was committed: the library would read
        # each one back, once per multiple of the interval.
        due: dict[UUID, Any] = {}
        for event in processing_event.events:
            if event.originator_version % SNAPSHOT_INTERVAL == 0:
                aggregate = processing_event.aggregates.get(event.originator_id)
                if isinstance(aggregate, UserScore):
                    due[event.originator_id] = aggregate
        if due and self.snapshots is not None:
            self.snapshots.put([UserScore.Snapshot.take(score) for score in due.values()])
        others = {
            id_: aggregate
            for id_, aggregate in processing_event.aggregates.items()
            if not isinstance(aggregate, UserScore)
        }
        if others:
            theirs = ProcessingEvent[UUID]()
            theirs.events, theirs.aggregates = processing_event.events, others
            super()._take_snapshots(theirs)


def _now() -> datetime:
    return datetime.now(UTC)
