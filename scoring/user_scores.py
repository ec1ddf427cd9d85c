"""Loading ``UserScore`` aggregates and claims from the event store."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from eventsourcing.domain import OriginatorVersionError

from scoring.errors import ScoringError, StreamHasGap
from scoring.event_store import missing_versions
from scoring.identity import claim_stream_id, user_stream_id
from scoring.receipts import Score
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scoring.checkout import CheckOutCache
    from scoring.event_store import RecordedEvents, ScoringEventStore, ScoringSnapshotStore
    from scoring.known_versions import KnownVersions

T = TypeVar("T")

_USERS_AT_ONCE: Final = 1000
_LOADED_AT_ONCE: Final = 250

_WORTH_A_LOOK: Final = 100
"""So many users together are looked up by what is new in the store, fewer each for itself."""

_COMMITS_WITH_LOOKUP: Final = 10
"""For so many commits users are looked up first, after others were seen to have written."""


class UserScores:
    """The users of one application, loaded from its store and kept in its cache.

    Aggregates that are checked out are in nobody else's hands, until they are checked in.
    """

    def __init__(
        self,
        events: ScoringEventStore,
        snapshots: ScoringSnapshotStore | None,
        cache: CheckOutCache,
        known: KnownVersions,
    ) -> None:
        self._events = events
        self._snapshots = snapshots
        self._cache = cache
        self._known = known
        self._commits_with_lookup = 0

    def check_out(self, user_ids: Sequence[str]) -> dict[str, UserScore]:
        """Return users' aggregates for a command, perhaps behind the store, perhaps new.

        Being behind is found out by the commit, which then fails, so it need not cost a read here,
        unless other processes write to the same users: then it costs less than what fails.
        """
        if self._commits_with_lookup:
            self._commits_with_lookup -= 1
            scores = self.check_out_current(user_ids)
            return {
                user_id: scores.get(user_id) or UserScore(user_id=user_id) for user_id in user_ids
            }
        scores = self._cache.check_out(user_ids)
        if len(scores) < len(user_ids):
            scores |= self._load([user_id for user_id in user_ids if user_id not in scores])
            for user_id in user_ids:
                if user_id not in scores:
                    scores[user_id] = UserScore(user_id=user_id)
        return scores

    def check_out_current(self, user_ids: Sequence[str]) -> dict[str, UserScore]:
        """Return the aggregates of users with everything recorded so far.

        Those who have nothing yet are left out.
        """
        taken = self._cache.check_out(user_ids)
        absent = [user_id for user_id in user_ids if user_id not in taken]
        scores: dict[str, UserScore] = {}
        in_memory = list(taken.values())
        if has_looked := len(in_memory) >= _WORTH_A_LOOK:
            self._known.look(most_events=len(in_memory))
            scores = {each.user_id: each for each in in_memory if self._known.covers(each)}
            in_memory = [score for score in in_memory if score.user_id not in scores]
        for cached in _parts(in_memory):
            unchanged = []
            # From the newest event that is in memory: if it is another one, the store went back.
            later = self._events.after([(score.id, score.version - 1) for score in cached])
            for score, events in zip(cached, later, strict=True):
                newest: Any = next(events, None)
                if newest is None or not (
                    newest.originator_version == score.version
                    and newest.timestamp == score.modified_on
                ):
                    self.forget()
                    absent.append(score.user_id)
                    continue
                version = score.version
                with _gaps_named(score.user_id):
                    scores[score.user_id] = _evolved(score, events)
                if score.version > version:
                    self.expect_others()
                else:
                    unchanged.append(score)
            if has_looked:
                self._known.learn(unchanged)
        return scores | self._load(absent)

    def state_of(self, user_id: str) -> Score:
        """Return a user's state with everything recorded so far; zeros for one who has nothing."""
        # What is in the cache stays there, for the commands that come meanwhile.
        seen = self._cache.peek(user_id, lambda score: (_state(score), score.id, score.modified_on))
        if seen is not None:
            state, stream, modified_on = seen
            newest: list[Any] = list(self._events.get(stream, gt=state.version - 1, limit=2))
            if [(event.originator_version, event.timestamp) for event in newest] == [
                (state.version, modified_on)
            ]:
                return state
        score = self.check_out_current([user_id]).get(user_id)
        if score is None:
            return Score(user_id, 0, {}, {}, 0, 0, 0)
        state = _state(score)
        self.check_in([score])
        return state

    def expect_others(self) -> None:
        """Look users up before the next commits, as other processes write to them, too."""
        self._commits_with_lookup = _COMMITS_WITH_LOOKUP

    def forget(self) -> None:
        """Load everybody again, as the store is not the one that they were loaded from."""
        self._cache.clear()
        self._known.forget()

    def advanced(self, recorded: RecordedEvents, scores: Iterable[UserScore]) -> None:
        """Take note of what was just recorded, and of the aggregates whose events these are."""
        self._known.follow(recorded, scores)

    def check_in(self, scores: Iterable[UserScore]) -> None:
        """Keep aggregates whose state is committed."""
        self._cache.check_in(scores)

    def originals_of(
        self, grant_ids: Sequence[str]
    ) -> dict[str, UserScore.GrantRecorded | ScoringError]:
        """Return the grants that hold these ids, whatever the length of their users' streams.

        Ids that are free are left out. In the place of a grant that is not there, which only damage
        to the store can bring about, is the error that says so.
        """
        originals: dict[str, UserScore.GrantRecorded | ScoringError] = {}
        claims: dict[str, GrantClaimed] = {}
        decoded = self._events.mapper.to_domain_event
        places = [(claim_stream_id(grant_id), UserScore.INITIAL_VERSION) for grant_id in grant_ids]
        stored = self._events.stored_with_previous(places)
        for grant_id, (previous, at_place) in zip(grant_ids, stored, strict=True):
            if at_place is None:
                continue
            # A grant is recorded just before its claim, so mostly it was read with it.
            if previous is not None and previous.topic == UserScore.GrantRecorded.TOPIC:
                grant: Any = decoded(previous)
                if grant.grant_id == grant_id:
                    originals[grant_id] = grant
                    continue
            claim = decoded(at_place)
            if isinstance(claim, GrantClaimed):
                claims[grant_id] = claim
        found = self._events.at(
            [(user_stream_id(claim.user_id), claim.version) for claim in claims.values()]
        )
        for (grant_id, claim), event in zip(claims.items(), found, strict=True):
            is_grant = isinstance(event, UserScore.GrantRecorded)
            originals[grant_id] = event if is_grant else _damaged(claim)
        return originals

    def are_recorded(self, events: Sequence[Any]) -> list[bool]:
        """Tell of each event whether just this one was committed.

        A claim is told from others by its token, any other event by its timestamp.
        """
        places = [(event.originator_id, event.originator_version) for event in events]
        return [
            event == stored for event, stored in zip(events, self._events.at(places), strict=True)
        ]

    def close_gaps(self, user_id: str) -> list[range]:
        """Put events that change nothing in the place of those that are missing."""
        stream = user_stream_id(user_id)
        gaps = missing_versions(self._events.recorder, stream)
        if not gaps:
            return []
        stored: list[Any] = list(self._events.get(stream))
        end = _filler(user_id, stored[-1].originator_version + 1)
        fillers = [[_filler(user_id, version) for version in gap] for gap in gaps]
        # The gaps are closed last: if this is cut short, they are found and closed another time.
        self._events.put([end])
        if self._snapshots is not None:
            in_order = sorted(
                [*stored, *chain(*fillers), end], key=attrgetter("originator_version")
            )
            self._snapshots.put([UserScore.Snapshot.take(_evolved(None, in_order))])
        for closing_one in fillers:
            self._events.put(closing_one)
        self.forget()
        return gaps

    def _load(self, user_ids: Sequence[str]) -> dict[str, UserScore]:
        scores: dict[str, UserScore] = {}
        # Without snapshots the events of a user may be very many.
        for some in _parts(user_ids, 1 if self._snapshots is None else _LOADED_AT_ONCE):
            streams = [user_stream_id(user_id) for user_id in some]
            snapshots = [None] if self._snapshots is None else self._snapshots.newest(streams)
            versions = [snapshot.originator_version if snapshot else 0 for snapshot in snapshots]
            later = self._events.after(list(zip(streams, versions, strict=True)))
            for user_id, snapshot, events in zip(some, snapshots, later, strict=True):
                with _gaps_named(user_id):
                    score = _evolved(snapshot and snapshot.mutate(None), events)
                if score is not None:
                    scores[user_id] = score
        return scores


def _parts(of: Sequence[T], size: int = _USERS_AT_ONCE) -> Iterator[Sequence[T]]:
    return (of[start : start + size] for start in range(0, len(of), size))


def _state(score: UserScore) -> Score:
    return Score(
        user_id=score.user_id,
        total_score=score.total_score,
        category_totals=dict(score.category_totals),
        source_totals=dict(score.source_totals),
        recomputed_total=score.recomputed_total,
        grant_count=score.grant_count,
        version=score.version,
    )


def _damaged(claim: GrantClaimed) -> ScoringError:
    return ScoringError(
        f"the event store is damaged: a grant id is claimed for version {claim.version} of the "
        f"stream of user {claim.user_id!r}, where there is no grant; restore the right backup"
    )


def _filler(user_id: str, version: int) -> Any:
    if version == UserScore.INITIAL_VERSION:
        return UserScore(user_id=user_id).pending_events[0]
    return UserScore.GapClosed(
        originator_id=user_stream_id(user_id),
        originator_version=version,
        timestamp=UserScore.GapClosed.create_timestamp(),
        user_id=user_id,
    )


def _evolved(score: Any, events: Iterable[Any]) -> Any:
    # The library's projector function without its protocol check of every event, which takes
    # several times as long as applying the event.
    for event in events:
        if score is None and isinstance(event, UserScore.Event):
            version = event.originator_version
            if version > UserScore.INITIAL_VERSION:
                raise OriginatorVersionError(version, UserScore.INITIAL_VERSION)
        score = event.mutate(score)
    return score


@contextmanager
def _gaps_named(user_id: str) -> Iterator[None]:
    try:
        yield
    except OriginatorVersionError as error:
        found, wanted = error.args
        raise StreamHasGap(user_id, range(wanted, found)) from error
