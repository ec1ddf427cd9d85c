"""Handling the commands of one caller, or of several together: a truthful receipt for each.

The event store decides: commands are committed hopefully, without asking first which ids are free.
If the store refuses them, the claims tell why: an id that was taken is answered from the original,
a claim with one of our own tokens means that an attempt had been committed although its answer was
lost, and no claim at all means that somebody else advanced a user's stream first.

Single commands of several threads are attempted together. What goes wrong then is left to each
caller: whoever was not answered goes on alone, in the caller's own thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeAlias, TypeVar

from eventsourcing.application import ProcessingEvent
from eventsourcing.persistence import ConnectionPoolClosedError, IntegrityError
from eventsourcing.utils import get_topic

from scoring.contributions import Contribution
from scoring.errors import ScoringError, StreamHasGap
from scoring.event_store import StoreWentBack
from scoring.grants import Grant
from scoring.receipts import ReceiptT
from scoring.retries import (
    LOST_RACES,
    STORE_ERRORS,
    STORE_FAILURES,
    Retries,
    TimeLimit,
    in_words,
    is_hopeless,
    read_event_store,
)
from scoring.trace_context import current_traceparent
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from eventsourcing.persistence import ApplicationRecorder

    from scoring.commit_queue import CommitQueue
    from scoring.conflicts import Conflict, ConflictLog
    from scoring.event_store import Place, RecordedEvents
    from scoring.user_scores import UserScores

    AnyHandler: TypeAlias = "CommandHandler[Any, Any, Any]"

CommandT = TypeVar("CommandT", Grant, Contribution)
StepT = TypeVar("StepT")

ANSWERED_FOR: Final = (UserScore.GrantRecorded, UserScore.BucketSet)
"""The events whose positions are in receipts."""

_SEARCH_WINDOW: Final = 1000
_WORTH_A_QUERY: Final = 500  # commands in a chunk


class RefusedAt(Exception):
    """A command of the chunk cannot be recorded or answered for; nothing was committed."""

    def __init__(self, index: int, error: ScoringError) -> None:
        super().__init__(str(error))
        self.index = index
        self.error = error


@dataclass(frozen=True, slots=True)
class WriteSide:
    """What commands work on.

    Attributes:
        commit: Records what was collected from aggregates, in one transaction.
        recorder: The event store's recorder, which knows positions.
        scores: The users' aggregates.
        queue: Where commands of several threads meet.
        conflicts: Told of each id that was taken with another payload.
    """

    commit: Callable[[ProcessingEvent[UUID]], RecordedEvents]
    recorder: ApplicationRecorder
    scores: UserScores
    queue: CommitQueue[AnyHandler]
    conflicts: ConflictLog


@dataclass(eq=False)
class Attempt:
    """One attempt at the commands of one caller, or at single ones of several.

    Attributes:
        write_side: What it works on.
        scores: By user id, the aggregates it works on, which nobody else has.
        granted: By grant id, the grants that it wants to record.
        steps: By handler, what was decided for each command.
        events: What was sent to the store.
    """

    write_side: WriteSide
    scores: dict[str, UserScore] = field(default_factory=dict)
    granted: dict[str, UserScore.GrantRecorded] = field(default_factory=dict)
    steps: dict[AnyHandler, Sequence[Any]] = field(default_factory=dict)
    events: Sequence[Any] = ()

    @property
    def proof(self) -> Any:
        """The event by which it is recognised in the store: a claim, which has a token, if any."""
        claims = (event for event in self.events if isinstance(event, GrantClaimed))
        # Not the first one: whoever opens a user's stream at the same moment records the same.
        return next(claims, self.events[-1])

    def carry_out(self, handlers: Sequence[AnyHandler]) -> None:
        """Decide, commit and answer; handlers for which that is not possible are told why.

        Args:
            handlers: One, or several with one command each: that changes nothing if it is refused.
        """
        self._decide(handlers)
        if self.steps:
            self._commit()
            # Last, for whoever is not answered by now answers from these.
            self.write_side.scores.check_in(
                score for score in self.scores.values() if not score.pending_events
            )

    def _decide(self, handlers: Sequence[AnyHandler]) -> None:
        scores = self.write_side.scores
        if current := {each: each.users for each in handlers if each.needs_current_scores}:
            self._load(scores.check_out_current, current)
        are_current = set(self.scores)
        self._load(scores.check_out, {each: each.receiving_users() for each in handlers})
        for handler in handlers:
            if handler.refusal is None:
                try:
                    self.steps[handler] = handler.decide(self)
                except RefusedAt as refused:
                    handler.refusal = refused
        # Whose total is told, though nothing is recorded for them, by which they would be found to
        # be behind the store.
        if told := {each: each.users for each in self.steps if each.answers_for_others}:
            for user_id in self.scores.keys() - are_current - {s.user_id for s in self._changed()}:
                del self.scores[user_id]
            self._load(scores.check_out_current, told)

    def _changed(self) -> list[UserScore]:
        # Not those that were only opened, for a command that recorded nothing.
        return [
            score
            for score in self.scores.values()
            if score.pending_events and score.version > UserScore.INITIAL_VERSION
        ]

    def _load(
        self,
        load: Callable[[Sequence[str]], dict[str, UserScore]],
        users: Mapping[AnyHandler, Collection[str]],
    ) -> None:
        while missing := {
            user_id: None
            for handler, of_handler in users.items()
            if handler.refusal is None
            for user_id in of_handler
            if user_id not in self.scores
        }:
            try:
                self.scores |= load(list(missing))
            except StreamHasGap as error:
                for handler, of_handler in users.items():
                    if error.user_id in of_handler and handler.refusal is None:
                        handler.refuse(error)
                        self.steps.pop(handler, None)
            else:
                return

    def _commit(self) -> None:
        changed = self._changed()
        positions: dict[int, int] = {}
        # All that the receipts need is read before the commit: after it, nothing may fail.
        if changed:
            processing_event = collected(changed)
            self.events = processing_event.events
            for handler in self.steps:
                handler.sent.append(self)
            recorded = self.write_side.commit(processing_event)
            self.write_side.scores.advanced(recorded, changed)
            positions = {
                id(event): position
                for event, position in zip(self.events, recorded.positions, strict=True)
                if isinstance(event, ANSWERED_FOR)
            }
            newest = max(positions.values())
        else:
            newest = self.write_side.recorder.max_notification_id() or 0
        for handler in self.steps:
            handler.answer(self, positions, newest)

    def stored_positions(self) -> dict[int, int]:
        """Return the positions of its grants and buckets, found in the store, as ``_commit`` does.

        Raises:
            StoreWentBack: if they are not there.
        """
        answered_for = [event for event in self.events if isinstance(event, ANSWERED_FOR)]
        wanted = {place_of(event) for event in answered_for}
        # They were committed moments ago, so their positions are among the newest.
        found: dict[Place, int] = {}
        recorder = self.write_side.recorder
        stop = recorder.max_notification_id() or 0
        while len(found) < len(wanted) and stop > 0:
            start = max(1, stop - _SEARCH_WINDOW + 1)
            for notification in recorder.select_notifications(
                start=start,
                limit=_SEARCH_WINDOW,
                stop=stop,
                topics=[get_topic(event_class) for event_class in ANSWERED_FOR],
            ):
                place = place_of(notification)
                if place in wanted:
                    found[place] = notification.id
            stop = start - 1
        if len(found) < len(wanted):
            raise StoreWentBack  # between the claims, which were there, and this
        return {id(event): found[place_of(event)] for event in answered_for}


class CommandHandler(ABC, Generic[CommandT, ReceiptT, StepT]):
    """Commits the commands of one caller until there is a truthful receipt for each; used once.

    Attributes:
        write_side: What it works on.
        users: Whom the commands name.
        sent: The attempts of it that may be recorded.
        refusal: Why the latest attempt left it out.
        failure: What the store failed its latest attempt with, where no other caller was in it.
    """

    needs_current_scores: ClassVar[bool]
    """Whether the commit does not always find out that it was decided on old state."""
    _subject: ClassVar[str]
    _cure: ClassVar[str]

    def __init__(self, write_side: WriteSide, commands: Sequence[CommandT]) -> None:
        self.write_side = write_side
        self._commands: Sequence[CommandT] = commands
        self.users: Collection[str] = dict.fromkeys([command.user_id for command in commands])
        # Here, as it may be another caller's thread that records them.
        self._traceparent = current_traceparent()
        # By grant id: the grant that was found to hold the id already.
        self._originals: dict[str, UserScore.GrantRecorded] = {}
        self._repeats_ids = False
        self.sent: list[Attempt] = []
        self.refusal: RefusedAt | None = None
        self.failure: Exception | None = None
        self._receipts: list[ReceiptT] | None = None
        self._conflicts: list[Conflict] = []

    @abstractmethod
    def _grant_id_of(self, command: CommandT) -> str | None:
        """Return the grant id that a command is about, if it is about one."""

    @abstractmethod
    def receiving_users(self) -> Collection[str]:
        """Return the users for whom something is to be recorded whatever was recorded before."""

    @abstractmethod
    def decide(self, attempt: Attempt) -> list[StepT]:
        """Decide on an attempt's aggregates what is to be recorded for each command.

        Raises:
            RefusedAt: if a command cannot be recorded.
        """

    @abstractmethod
    def _answers(
        self, attempt: Attempt, positions: Mapping[int, int], newest: int
    ) -> list[ReceiptT]:
        """Answer for an attempt that is committed.

        Args:
            attempt: Whose aggregates nobody else has changed.
            positions: By the ``id()`` of an event: of its grants and buckets.
            newest: The position of the last of them, or of the store where it has none.
        """

    def answer(self, attempt: Attempt, positions: Mapping[int, int], newest: int) -> None:
        """Take the receipts from an attempt that is committed; see ``_answers``."""
        self._receipts = self._answers(attempt, positions, newest)

    def refuse(self, error: StreamHasGap) -> None:
        """Be left out of an attempt, as a user's events are lost."""
        index = [command.user_id for command in self._commands].index(error.user_id)
        self.refusal = RefusedAt(index, error)

    @property
    def found_taken_ids(self) -> bool:
        """Whether some of the ids had been recorded before."""
        return bool(self._originals)

    @property
    def answers_for_others(self) -> bool:
        """Whether some of the answers are of ids that other commands have, from before or now."""
        return self._repeats_ids or self.found_taken_ids

    def receipts(self, *, ask_first: bool | None = None) -> list[ReceiptT]:
        """Commit the commands and return a receipt for each, in order.

        Args:
            ask_first: Look the ids up before the first attempt: cheaper when many are taken, as
                when a file is imported again, and dearer when none is. ``None`` if that is not
                known: then it depends on the first one.

        Raises:
            RefusedAt: if an aggregate refused a command.
            ScoringError: if the store failed and stayed so.
        """
        try:
            with TimeLimit() as limit:
                if self._begins_with_taken_id() if ask_first is None else ask_first:
                    read_event_store(lambda: self._learn_originals(self._commands))
                receipts = self._receipts_within(limit)
        except ConnectionPoolClosedError as error:
            # Perhaps between the commit and giving back the connection.
            raise ScoringError(
                f"the event store was closed, so it is unknown whether {self._subject} are "
                f"recorded: {self._cure}, on one that is open"
            ) from error
        # These refer back to here, and would wait for the garbage collector.
        self.sent.clear()
        for conflict in self._conflicts:
            self.write_side.conflicts.add(conflict)
        return receipts

    def _begins_with_taken_id(self) -> bool:
        # As what is imported again does: a query for one id, where a commit in vain costs more.
        if len(self._commands) < _WORTH_A_QUERY:
            return False
        first = [command for command in self._commands if self._grant_id_of(command)][:1]
        read_event_store(lambda: self._learn_originals(first))
        return self.found_taken_ids

    def _receipts_within(self, limit: TimeLimit) -> list[ReceiptT]:
        races, failures = Retries(LOST_RACES), Retries(STORE_FAILURES)
        is_alone = len(self._commands) > 1
        while True:
            taken_before = len(self._originals)
            failure: Exception | None = None
            try:
                receipts = self._attempted(alone=is_alone)
                if receipts is not None:
                    return receipts
            except RefusedAt as refused:
                # A taken id is answered even where a new one would be refused.
                failure = refused
            except STORE_ERRORS as error:
                failure = _passing(
                    error, f"the event store refused {self._subject}: {in_words(error)}"
                )
            is_alone = True
            try:
                # Asked after any failure: the commit may have been done and its answer lost.
                receipts = self._receipts_of_lost_commit()
                if receipts is not None:
                    return receipts
                self._learn_originals(self._commands)
            except STORE_ERRORS as error:
                failure = _passing(error, self._unknown("cannot be read", error))
            if failure is None or len(self._originals) > taken_before:
                continue  # something was learnt, and there are only so many ids to learn about
            if isinstance(failure, RefusedAt):
                raise failure
            retries = failures
            if isinstance(failure, IntegrityError):
                self.write_side.scores.expect_others()
                retries = races
            try:
                retries.back_off(failure)
            except STORE_ERRORS:
                raise ScoringError(self._exhausted(failure, retries, limit)) from failure

    def _attempted(self, *, alone: bool) -> list[ReceiptT] | None:
        """Return the receipts, or ``None`` if others were in the attempt and it came to nothing."""
        if alone:
            self.write_side.queue.alone(lambda: Attempt(self.write_side).carry_out([self]))
        else:
            self.write_side.queue.join(self)
            # Perhaps for what others did before it in the attempt, which may have failed.
            self.refusal = None
        if self._receipts is None and (problem := self.refusal or self.failure) is not None:
            self.refusal = self.failure = None
            raise problem
        return self._receipts

    def _receipts_of_lost_commit(self) -> list[ReceiptT] | None:
        recorded = self.write_side.scores.are_recorded([attempt.proof for attempt in self.sent])
        for attempt, is_recorded in zip(self.sent, recorded, strict=True):
            if is_recorded:
                positions = attempt.stored_positions()
                self.answer(attempt, positions, max(positions.values()))
        return self._receipts

    def unknown_ids(self, commands: Iterable[CommandT] | None = None) -> list[str]:
        """Return the grant ids, of all commands or of these, of which no original is known."""
        named = dict.fromkeys(
            map(self._grant_id_of, self._commands if commands is None else commands)
        )
        return [grant_id for grant_id in named if grant_id and grant_id not in self._originals]

    def learn(self, originals: Mapping[str, UserScore.GrantRecorded | ScoringError]) -> None:
        """Take note of the grants that hold ids already.

        Raises:
            RefusedAt: if there is an error in the place of one that a command needs.
        """
        if not originals:
            return
        for index, command in enumerate(self._commands):
            grant_id = self._grant_id_of(command)
            original = originals.get(grant_id or "")
            if isinstance(original, ScoringError):
                raise RefusedAt(index, original)
            if grant_id and original:
                self._originals[grant_id] = original

    def _learn_originals(self, commands: Sequence[CommandT]) -> None:
        self.learn(self.write_side.scores.originals_of(self.unknown_ids(commands)))

    def _exhausted(self, failure: Exception, retries: Retries, limit: TimeLimit) -> str:
        times = "once" if retries.failures == 1 else f"{retries.failures} times"
        tried = f"{times} in {limit.elapsed_seconds:.0f} seconds"
        if isinstance(failure, IntegrityError):
            return (
                f"{self._subject} lost the race for their users' streams {tried} and were "
                "not recorded: try again when fewer writers grant to the same users"
            )
        return self._unknown(f"failed {tried}", failure)

    def _unknown(self, what: str, failure: Exception) -> str:
        return (
            f"the event store {what} ({in_words(failure)}), so it is unknown whether "
            f"{self._subject} are recorded: {self._cure}"
        )


def commit_together(handlers: Sequence[AnyHandler]) -> None:
    """Commit single commands of several callers; whoever is not answered by it goes on alone."""
    # Whoever was in an attempt that was cut short has to find out about that one first.
    handlers = [handler for handler in handlers if not handler.sent]
    if not handlers:
        return
    write_side = handlers[0].write_side
    attempt = Attempt(write_side)
    try:
        try:
            attempt.carry_out(handlers)
        except IntegrityError:
            # Ids are taken, or others have granted to the same users, who are loaded again.
            sent = [attempt.proof] if attempt.events else []
            if len(handlers) == 1 or True in write_side.scores.are_recorded(sent):
                raise
            originals = write_side.scores.originals_of(
                [grant_id for handler in handlers for grant_id in handler.unknown_ids()]
            )
            if not originals:
                write_side.scores.expect_others()
            for handler in handlers:
                try:
                    handler.learn(originals)
                except RefusedAt as refused:
                    handler.refusal = refused
            Attempt(write_side).carry_out(handlers)
    except STORE_ERRORS as error:
        if len(handlers) == 1:
            handlers[0].failure = error


def _passing(error: Exception, what: str) -> Exception:
    if isinstance(error, ConnectionPoolClosedError):
        raise error
    if is_hopeless(error):
        raise ScoringError(what) from error
    return error


def collected(scores: Iterable[UserScore]) -> ProcessingEvent[UUID]:
    """Collect the pending events of aggregates, to be committed together."""
    processing_event: ProcessingEvent[UUID] = ProcessingEvent()
    # What ProcessingEvent.collect_events() does, without its protocol checks: they cost more
    # than everything else here together.
    for score in scores:
        processing_event.events.extend(score.collect_events())
        processing_event.aggregates[score.id] = score
    return processing_event


def place_of(event: Any) -> Place:
    """Return where an event is stored."""
    return event.originator_id, event.originator_version
