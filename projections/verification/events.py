"""Verifying the read model against the event store: nothing missing, extra or altered."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

from bson import decode_all
from pymongo.errors import OperationFailure

from projections.errors import PoisonEvent, ReadModelUnavailable
from projections.events.anchor import Tracked
from projections.events.anchored_store import AnchoredStore
from projections.events.decoder import EventDecoder
from projections.events.model import TOPICS, BucketEvent, GrantEvent, stream_name
from projections.events.pages import read_page
from projections.joins import outer_join
from projections.mongo.batches import encoded, grant_document
from projections.mongo.errors import is_snapshot_gone
from projections.mongo.parking import parked_stream
from projections.mongo.sessions import in_snapshot
from projections.verification.collections import verify_collections
from projections.verification.expectation import Expectation
from projections.verification.ranks import verify_ranks
from projections.verification.report import (
    DOCUMENT,
    MAX_DIFFERENCES,
    Difference,
    Verification,
    VerificationProgress,
    compare_fields,
    flat,
)
from scoring import UserScore
from scoring.errors import versions_in_words
from scoring.event_store import missing_versions
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel
    from scoring import Scoring


_EVENTS_PER_PAGE: Final = 5000
_MAX_LAST_STRETCH_EVENTS: Final = 20_000
_PROGRESS_EVERY: Final = 1000


def verify_events(
    scoring: Scoring,
    read_model: ReadModel,
    *,
    on_progress: Callable[[VerificationProgress], None] | None = None,
) -> Verification:
    """Compare grants, users, buckets, ranks and the tracked position with the events.

    Events and grants are read in order of their position and merged, in pages; users and buckets
    are compared with what the events add up to, as they were at one instant together with the
    position of that instant. Workers may therefore go on, and memory does not grow with history.

    Raises:
        EventStoreReplaced: if the store is not the one that was projected, or went back.
        ShapeChanged: if the documents are of another release's shape.
        ScoringError: if the event store cannot be read.
        ReadModelUnavailable: if MongoDB failed.
    """

    def verified(session: ClientSession) -> Verification:
        # First of all, because it explains what else there is.
        outcome = verify_collections(read_model)
        while True:
            with Expectation() as expectation, suppress(_ParkingChanged):
                run = _EventVerification(scoring, read_model, expectation, on_progress)
                outcome.add(run.run(session))
                return outcome

    return read_model.generations.consistently(verified, seconds=None)


class _ParkingChanged(Exception):
    """A stream was parked or unparked whose events are compared already: start over."""


class _EventVerification:
    """One run over all events."""

    def __init__(
        self,
        scoring: Scoring,
        read_model: ReadModel,
        expectation: Expectation,
        on_progress: Callable[[VerificationProgress], None] | None,
    ) -> None:
        self._scoring = scoring
        self._decoder = EventDecoder(scoring.mapper)
        self._read_model = read_model
        self._store = AnchoredStore(scoring, read_model)
        self._position_id = read_model.position_id(scoring.name)
        self._expectation = expectation
        self._on_progress = on_progress
        self._position = 0
        self._outcome = Verification()
        self._poisoned_streams: set[str] = set()
        # From these positions on, events of these streams are rightly not projected.
        self._parked: dict[str, int] = {}

    def run(self, session: ClientSession) -> Verification:
        self._look_for_parked_streams(session)
        # Grants are never changed, so those up to a tracked position need not be read at one
        # instant; only the last stretch is, in which workers may be at work meanwhile.
        while True:
            tracked, _, _ = self._positions(session)
            until = tracked or 0
            if until - self._position <= _MAX_LAST_STRETCH_EVENTS:
                break
            self._compare_grants(until, session)
        try:
            at_one_instant = in_snapshot(self._read_model.client, self._compare_at_one_instant)
        except OperationFailure as error:
            if not is_snapshot_gone(error):
                raise
            raise ReadModelUnavailable(
                "MongoDB does not keep one instant readable for as long as it takes to compare all "
                "users and buckets: raise its parameter minSnapshotHistoryWindowInSeconds"
            ) from error
        self._outcome.add(at_one_instant)
        return self._outcome

    def _compare_at_one_instant(self, session: ClientSession) -> Verification:
        outcome = Verification()
        self._look_for_parked_streams(session)
        tracked, newest, foreign = self._positions(session)
        until = tracked or 0
        self._compare_grants(until, session)
        projected = max(until, self._last_projected(until, newest, session))
        if projected > until:
            outcome.report(Difference(None, "position", projected, tracked))
            self._compare_grants(projected, session)
        if foreign:
            outcome.report(Difference(None, "foreignGrants", 0, foreign))
        # Also what is not a number, which no comparison with one finds.
        behind = {"_id": {"$not": {"$lte": projected}}}
        for document in self._read_model.grants.find(behind, session=session).sort("_id", 1):
            self._report_extra_grant(document, outcome)
        self._look_for_gaps(outcome)
        before = outcome.difference_count
        self._compare_users(session, outcome)
        if outcome.difference_count == before:
            outcome.add(verify_ranks(self._read_model, session))
        self._compare_buckets(session, outcome)
        return outcome

    def _look_for_parked_streams(self, session: ClientSession) -> None:
        found = self._read_model.parked.find(session=session)
        parked = {stream.stream: stream.position for stream in map(parked_stream, found)}
        if self._compared(parked) != self._compared(self._parked):
            raise _ParkingChanged
        self._parked = parked

    def _compared(self, parked: dict[str, int]) -> dict[str, int]:
        """Return those of the parked streams that mattered to what is compared already."""
        return {stream: at for stream, at in parked.items() if at <= self._position}

    def _positions(self, session: ClientSession) -> tuple[int | None, int, int]:
        """Return the tracked position, the newest of the event store, and the foreign count."""
        document = (
            self._read_model.positions.find_one({"_id": self._position_id}, session=session) or {}
        )
        tracked = Tracked.of(document)
        read_event_store(lambda: self._store.check(tracked))
        newest = read_event_store(self._scoring.recorder.max_notification_id) or 0
        return tracked.position, newest, document.get("foreignGrants", 0)

    def _last_projected(self, after: int, newest: int, session: ClientSession) -> int:
        """Return the position of the last grant behind ``after`` that is of an event, or 0."""
        ids = {"$gt": after, "$lte": newest}
        for document in self._read_model.grants.find({"_id": ids}, session=session).sort("_id", -1):
            position = document["_id"]
            if not isinstance(position, int):
                continue
            for event in self._events(position - 1, position)[0]:
                if isinstance(event, GrantEvent) and document == _stored(event):
                    return position
        return 0

    def _compare_grants(self, until: int, session: ClientSession) -> None:
        """Compare events and grants behind the last position compared, up to ``until``."""
        while self._position < until:
            events, end = self._events(self._position, until)
            page = Verification()
            grants = [event for event in events if not isinstance(event, BucketEvent)]
            self._merge_grants(grants, end, session, page)
            # All at once, so that a page that failed half-way may be compared again.
            self._expectation.add(e for e in events if not isinstance(e, PoisonEvent))
            self._outcome.add(page)
            self._position = end
            self._report("grants", end, until)

    def _events(
        self, after: int, until: int
    ) -> tuple[list[GrantEvent | BucketEvent | PoisonEvent], int]:
        """Return a page of events and the position up to which it has them all."""
        notifications = read_event_store(
            lambda: read_page(
                self._scoring.recorder,
                after=after,
                stop=until,
                limit=_EVENTS_PER_PAGE,
                topics=TOPICS,
            )
        )
        events: list[GrantEvent | BucketEvent | PoisonEvent] = []
        for notification in notifications:
            if self._parked:
                parked_at = self._parked.get(stream_name(notification.originator_id))
                if parked_at is not None and notification.id >= parked_at:
                    continue
            try:
                events.append(self._decoder.decode(notification))
            except PoisonEvent as poison:
                events.append(poison)
        return events, notifications[-1].id if len(notifications) == _EVENTS_PER_PAGE else until

    def _merge_grants(
        self,
        events: list[GrantEvent | PoisonEvent],
        end: int,
        session: ClientSession,
        outcome: Verification,
    ) -> None:
        ids: Document = {"$lte": end}
        if self._position:
            ids["$gt"] = self._position
        found = self._read_model.grants.find_raw_batches(
            {"_id": ids}, session=session, batch_size=_EVENTS_PER_PAGE + 1
        )
        batches = cast("Iterator[bytes]", found.sort("_id", 1))
        first, second = next(batches, b""), next(batches, b"")
        if first == _as_sent(events) and not second:
            outcome.grants += len(events)
            return
        options = self._read_model.grants.codec_options
        documents: Iterator[Document] = chain.from_iterable(
            decode_all(batch, options) for batch in chain([first, second], batches)
        )
        document = next(documents, None)
        for event in events:
            while document is not None and not _is_at_least(document["_id"], event.position):
                self._report_extra_grant(document, outcome)
                document = next(documents, None)
            in_place = None
            if document is not None and document["_id"] == event.position:
                in_place = document
                document = next(documents, None)
            self._compare_grant(event, in_place, outcome)
        while document is not None:
            self._report_extra_grant(document, outcome)
            document = next(documents, None)

    def _compare_grant(
        self, event: GrantEvent | PoisonEvent, document: Document | None, outcome: Verification
    ) -> None:
        if isinstance(event, PoisonEvent):
            self._poisoned_streams.add(event.stream)
            found = f"{event.reason} (stream {event.stream}, topic {event.topic})"
            outcome.report(
                Difference(None, "event", "an event that can be read", found, event.position)
            )
            return
        outcome.grants += 1
        expected = _stored(event)
        identity: dict[str, Any] = {
            "user_id": event.data.user_id,
            "position": event.position,
            "grant_id": event.data.grant_id,
        }
        if document is not None and document.get("grantId") == event.data.grant_id:
            compare_fields(outcome, expected, document, **identity)
            return
        if document is None and outcome.difference_count < MAX_DIFFERENCES:
            # Named in full: whoever has the grant's id kept it from being projected.
            document = self._read_model.grants.find_one({"grantId": event.data.grant_id})
        outcome.report(Difference(what=DOCUMENT, expected=expected, found=document, **identity))

    def _report_extra_grant(self, document: Document, outcome: Verification) -> None:
        position = document["_id"] if isinstance(document["_id"], int) else None
        named = {name: document.get(name) for name in ("userId", "grantId")}
        user_id, grant_id = (name if isinstance(name, str) else None for name in named.values())
        outcome.report(Difference(user_id, DOCUMENT, None, document, position, grant_id))

    def _look_for_gaps(self, outcome: Verification) -> None:
        """Report versions that are missing in the event store, though later ones are there."""
        for user_id in self._expectation.users_short_of_events():
            stream = UserScore.create_id(user_id)
            gaps = read_event_store(partial(missing_versions, self._scoring.recorder, stream))
            for gap in gaps:
                outcome.report(Difference(user_id, "stream", versions_in_words(gap), "missing"))

    def _compare_users(self, session: ClientSession, outcome: Verification) -> None:
        total, _ = self._expectation.counts()
        found = self._read_model.users.find(session=session).sort("_id", 1)
        documents = self._keyed(found, lambda document: document["_id"], outcome)
        for user_id, expected, document in outer_join(self._expectation.users(), documents):
            outcome.users += 1
            if outcome.users % _PROGRESS_EVERY == 0:
                self._report("users", outcome.users, max(total, outcome.users))
            if self._is_poisoned(user_id):
                continue
            if expected is None or document is None:
                outcome.report(Difference(user_id, DOCUMENT, expected, document))
            else:
                compare_fields(outcome, expected, flat(document), user_id=user_id)

    def _compare_buckets(self, session: ClientSession, outcome: Verification) -> None:
        _, total = self._expectation.counts()
        found = self._read_model.buckets.find(session=session).sort("_id", 1)
        documents = self._keyed(found, _bucket_key, outcome)
        for user_key, expected, document in outer_join(self._expectation.buckets(), documents):
            outcome.buckets += 1
            if outcome.buckets % _PROGRESS_EVERY == 0:
                self._report("buckets", outcome.buckets, max(total, outcome.buckets))
            user_id, key = user_key
            if self._is_poisoned(user_id):
                continue
            if expected is None or document is None:
                outcome.report(Difference(user_id, DOCUMENT, expected, document, key=key))
            else:
                compare_fields(outcome, expected, flat(document), user_id=user_id, key=key)

    def _keyed(
        self,
        documents: Iterator[Document],
        key_of: Callable[[Document], Any],
        outcome: Verification,
    ) -> Iterator[tuple[Any, Document]]:
        """Yield documents with their keys; report those whose ids the projection never writes."""
        for document in documents:
            key = key_of(document)
            if all(isinstance(part, str) for part in (key if isinstance(key, tuple) else [key])):
                yield key, document
            else:
                outcome.report(Difference(None, DOCUMENT, None, document))

    def _is_poisoned(self, user_id: str) -> bool:
        """Tell whether an event of this user cannot be read, so nothing is known of their sums."""
        return bool(self._poisoned_streams) and (
            str(UserScore.create_id(user_id)) in self._poisoned_streams
        )

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(VerificationProgress(stage, done, total))


def _as_sent(events: list[GrantEvent | PoisonEvent]) -> bytes | None:
    """Return the documents of a page as they were sent, or ``None`` if not all can have been.

    If they are stored like that byte for byte, they need not be decoded and compared one by one,
    which takes three times as long. Stored otherwise they may still be equal.
    """
    documents = []
    for event in events:
        if isinstance(event, PoisonEvent):
            return None
        try:
            documents.append(encoded(event))
        except Exception:  # noqa: BLE001 - whatever it is, this grant was never sent
            return None
    return b"".join(documents)


def _stored(grant: GrantEvent) -> Document:
    """Return a grant's document as it is read back: MongoDB keeps milliseconds."""
    document = grant_document(grant)
    recorded = document["recordedAt"]
    document["recordedAt"] = recorded.replace(microsecond=recorded.microsecond // 1000 * 1000)
    return document


def _bucket_key(document: Document) -> tuple[Any, Any]:
    key = document["_id"]
    if isinstance(key, dict) and [*key] == ["userId", "key"]:  # in this order, as it is sorted
        return key["userId"], key["key"]
    return None, None


def _is_at_least(found: Any, position: int) -> bool:
    return isinstance(found, int | float) and found >= position
