"""Copying an event store: what is there is compared, what is missing is added, all is compared.

The target is a beginning of the source at every moment, since it gets one page after another, each
whole or a beginning of it. So a copy that was killed is carried on from whatever is there, and
several that run at once help each other: who comes second with a page finds it there, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from operator import attrgetter
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from eventsourcing.persistence import Notification, StoredEvent

from projections.errors import EventStoresDiffer, ProjectionError, SourceWritten
from projections.relocation.stores import copyable
from projections.retries import retries_until
from scoring.retries import STORE_ERRORS, TimeLimit, in_words, read_event_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from projections.relocation.copyable import Copyable
    from scoring import Scoring
    from scoring.retries import Retries

_EVENTS_AT_ONCE: Final = 2000
_SNAPSHOTS_AT_ONCE: Final = 100
"""Of users with many buckets they are large."""

T = TypeVar("T", bound=StoredEvent)


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a copy has come.

    Attributes:
        stage: What is done at the moment, in words.
        done: How far that is: a position for events, else a number of snapshots.
        total: The position up to which it is done; for snapshots, whose number is not known, 0.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EventCopy:
    """The outcome of a copy.

    Attributes:
        source: Where events came from.
        target: Where they are now, too.
        newest_position: The last position of both.
        events: How many events were compared in the end, and are the same in both.
        snapshots: How many snapshots, likewise.
        events_copied: How many of these events this copy has added; an earlier one that was
            interrupted had added the others.
        is_complete: Whether it was not interrupted, so that the target is a copy of the source.
    """

    source: str
    target: str
    newest_position: int
    events: int
    snapshots: int
    events_copied: int
    is_complete: bool


def copy_events(
    source: Scoring,
    target: Scoring,
    *,
    stop: Event | None = None,
    on_progress: Callable[[CopyProgress], None] | None = None,
) -> EventCopy:
    """Copy all events and snapshots of one event store into another, and compare everything.

    Each of the two is in SQLite, PostgreSQL or MongoDB. Positions, streams, versions, topics and
    states stay as they are, so whatever was compressed or encrypted stays so, and receipts and read
    models hold for the copy as they did for the source. Nobody may write to either meanwhile;
    that somebody did is noticed. Nothing that is in the target is ever changed. If it is killed or
    fails, call it again: it compares what is there and carries on.

    Args:
        source: Copied from; see ``connections`` for opening one just to read.
        target: Copied into: empty, or what an interrupted copy of the same source has left.
        stop: Ends the copy soon after it is set, as interrupted.
        on_progress: Called now and then.

    Raises:
        EventStoresDiffer: if the target has something that the source does not have there.
        SourceWritten: if something was recorded in the source meanwhile.
        ProjectionError: if a store is of another kind, the source is empty, both are the same, or
            one cannot be written to.
        ScoringError: if one cannot be read.
    """
    check_source(source)
    return _Copy(copyable(source), copyable(target), stop or Event(), on_progress).run()


def check_source(source: Scoring) -> None:
    """Check that an event store can be copied, before a target is made for it.

    Raises:
        ProjectionError: if it is of another kind, or empty, or ids of streams are of another type.
        ScoringError: if it cannot be read.
    """
    ours = copyable(source)
    try:
        first = read_event_store(lambda: ours.events(None, 1))
    except ValueError as error:
        raise _other_ids(ours) from error
    if not first:
        raise ProjectionError(f"there are no events in {ours.place}: name a store that has")
    read_event_store(lambda: ours.snapshots(None, 1))


@dataclass
class _Part(Generic[T]):
    """Events, or snapshots: rows in an order that all kinds of stores agree on.

    Attributes:
        name: What they are.
        ours: Returns the first rows of the source, up to a number, or those that follow one.
        theirs: Likewise, of the target.
        add: Adds rows to the target.
        place: Returns what the order is by.
        at_once: How many rows are read and added at once.
        total: The last position that is to be read; 0 for snapshots.
        copied: How many were added so far.
        compared: How many were found to be the same when this was last looked at.
    """

    name: str
    ours: Callable[[T | None, int], Sequence[T]]
    theirs: Callable[[T | None, int], Sequence[T]]
    add: Callable[[Sequence[T]], None]
    place: Callable[[T], Any]
    at_once: int
    total: int = 0
    copied: int = 0
    compared: int = 0


class _Copy:
    def __init__(
        self,
        source: Copyable,
        target: Copyable,
        stop: Event,
        on_progress: Callable[[CopyProgress], None] | None,
    ) -> None:
        self._source, self._target, self._stop = source, target, stop
        self._on_progress = on_progress
        self._newest = read_event_store(source.newest_position)

    def run(self) -> EventCopy:
        source, target = self._source, self._target
        if read_event_store(source.identity) == read_event_store(target.identity):
            raise ProjectionError(
                f"{source.place} cannot be copied into itself, which {target.place} is: name "
                "another store to copy into"
            )
        (first,) = read_event_store(lambda: source.events(None, 1))
        if not target.takes(first.originator_id):
            raise _other_ids(target)
        events = _Part(
            "events",
            # What is recorded meanwhile is not copied, and complained of in the end.
            ours=partial(source.events, stop=self._newest),
            theirs=target.events,
            add=target.add_events,
            place=attrgetter("id"),
            at_once=_EVENTS_AT_ONCE,
            total=read_event_store(target.newest_position),
        )
        snapshots = _Part(
            "snapshots",
            ours=source.snapshots,
            theirs=target.snapshots,
            add=target.add_snapshots,
            place=attrgetter("originator_id", "originator_version"),
            at_once=_SNAPSHOTS_AT_ONCE,
        )
        # Before anything is added: what is there is a beginning of the source, or not to be
        # touched. Snapshots may have been taken in any stream since they were copied.
        last = self._compare(events, "comparing what is there")
        events.total = self._newest
        is_complete = (
            self._complete(events, last)
            and self._complete(snapshots, None)
            and self._is_same(events)
            and self._is_same(snapshots)
        )
        self._check_source()
        return EventCopy(
            source=source.place,
            target=target.place,
            newest_position=self._newest,
            events=events.compared,
            snapshots=snapshots.compared,
            events_copied=events.copied,
            is_complete=is_complete,
        )

    def _complete(self, part: _Part[T], last: T | None) -> bool:
        """Add what the target does not have behind a row; tell whether it came to an end."""
        retries = retries_until(self._stop)
        while page := read_event_store(partial(part.ours, last, part.at_once)):
            if self._stop.is_set():
                return False
            missing = self._missing(part, last, page)
            try:
                if missing:
                    with TimeLimit():
                        part.add(missing)
            except STORE_ERRORS as error:
                # Perhaps somebody else adds the same, or they were added and the answer was lost:
                # what is there will tell.
                self._back_off(retries, part, error)
                continue
            retries.reset()
            part.copied += len(missing)
            last = page[-1]
            self._report(part, f"copying {part.name}", last, part.copied)
        return not self._stop.is_set()

    def _missing(self, part: _Part[T], last: T | None, page: Sequence[T]) -> Sequence[T]:
        """Return which rows of a page, behind a row, the target does not have."""
        ours = {part.place(row): row for row in page}
        theirs = {
            place: row
            for row in read_event_store(partial(part.theirs, last, len(page)))
            if (place := part.place(row)) <= part.place(page[-1])
        }
        for place, row in theirs.items():
            if ours.get(place) != row:
                self._raise_difference(ours.get(place), row)
        return [row for place, row in ours.items() if place not in theirs]

    def _back_off(self, retries: Retries, part: _Part[T], error: Exception) -> None:
        try:
            retries.back_off(error)
        except STORE_ERRORS as failure:
            raise ProjectionError(
                f"{part.name} cannot be added to {self._target.place} ({in_words(failure)}): mend "
                "the cause and copy again, which carries on"
            ) from failure

    def _is_same(self, part: _Part[T]) -> bool:
        """Compare everything; tell whether it came to an end."""
        last = self._compare(part, f"comparing {part.name}")
        if self._stop.is_set():
            return False
        for missing in read_event_store(partial(part.ours, last, 1)):
            self._raise_difference(missing, None)
        return True

    def _compare(self, part: _Part[T], stage: str) -> T | None:
        """Return the last row of the target, if all of them are the first ones of the source."""
        last, part.compared = None, 0
        while not self._stop.is_set():
            theirs = read_event_store(partial(part.theirs, last, part.at_once))
            if not theirs:
                break
            ours = read_event_store(partial(part.ours, last, len(theirs)))
            for our, their in zip_longest(ours, theirs):
                if our != their:
                    self._raise_difference(our, their)
            part.compared += len(theirs)
            last = theirs[-1]
            self._report(part, stage, last, part.compared)
        return last

    def _raise_difference(self, ours: StoredEvent | None, theirs: StoredEvent | None) -> NoReturn:
        self._check_source()
        expected, found = _named(ours), _named(theirs)
        raise EventStoresDiffer(
            source=self._source.place,
            target=self._target.place,
            expected=expected,
            found=f"another {found}" if found == expected else found,
        )

    def _check_source(self) -> None:
        found = read_event_store(self._source.newest_position)
        if found != self._newest:
            raise SourceWritten(source=self._source.place, expected=self._newest, found=found)

    def _report(self, part: _Part[T], stage: str, last: T, count: int) -> None:
        if self._on_progress is not None:
            done = last.id if isinstance(last, Notification) else count
            self._on_progress(CopyProgress(stage, done, part.total))


def _other_ids(store: Copyable) -> ProjectionError:
    return ProjectionError(
        f"the ids of streams are of another type than {store.place} is opened for: set "
        "ORIGINATOR_ID_TYPE to text or uuid, as the application does, for both stores"
    )


def _named(row: StoredEvent | None) -> str:
    if row is None:
        return "nothing"
    name = f"version {row.originator_version} of stream {row.originator_id}"
    if isinstance(row, Notification):
        return f"{name} at position {row.id}"
    return f"snapshot of {name}"
