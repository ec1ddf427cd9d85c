"""Loading ``UserScore`` aggregates and claims from the event store."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from eventsourcing.application import AggregateNotFoundError
from eventsourcing.domain import OriginatorVersionError

from scoring.errors import ScoringError, StreamHasGap
from scoring.event_store import missing_versions
from scoring.identity import claim_stream_id, user_stream_id
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from eventsourcing.application import Application

    from scoring.checkout import CheckOutCache


class UserScores:
    """The users of one application, loaded from its store and kept in its cache.

    The caller holds the user's lock, so that threads do not all load the same user.
    """

    def __init__(self, app: Application[UUID], cache: CheckOutCache) -> None:
        """Read from this application's store."""
        self._app = app
        self._cache = cache

    def take(self, user_id: str) -> UserScore:
        """Return the user's aggregate for a command, perhaps behind the store, perhaps new.

        Being behind is found out by the commit, which then fails, so it need not cost a read here.
        """
        return self._cache.take(user_id) or self._load(user_id) or UserScore(user_id=user_id)

    def current(self, user_id: str) -> UserScore | None:
        """Return the user's aggregate with everything recorded so far, or ``None``."""
        cached = self._cache.take(user_id)
        if cached is None:
            return self._load(user_id)
        events: Iterator[Any] = self._app.events.get(cached.id, gt=cached.version - 1)
        newest = next(events, None)
        if newest is None or not (
            newest.originator_version == cached.version and newest.timestamp == cached.modified_on
        ):
            self.forget()
            return self._load(user_id)
        with _gaps_named(user_id):
            score: UserScore = _evolved(cached, events)
        return score

    def forget(self) -> None:
        """Load everybody anew, as the store is not the one that they were loaded from."""
        self._cache.clear()

    def give_back(self, score: UserScore) -> None:
        """Keep an aggregate whose state is committed."""
        self._cache.give_back(score)

    def claim_on(self, grant_id: str) -> GrantClaimed | None:
        """Return the claim on a grant id, or ``None`` if it is free."""
        for event in self._app.events.get(claim_stream_id(grant_id), limit=1):
            if isinstance(event, GrantClaimed):
                return event
        return None

    def claimed_grant(self, claim: GrantClaimed) -> UserScore.GrantRecorded:
        """Return the grant that a claim points to: one read by key, whatever the stream's length.

        Raises:
            ScoringError: if it is not there, which only damage to the store can bring about.
        """
        found = self._app.events.get(
            user_stream_id(claim.user_id), gt=claim.version - 1, lte=claim.version
        )
        for event in found:
            if isinstance(event, UserScore.GrantRecorded):
                return event
        raise ScoringError(
            f"the event store is damaged: a grant id is claimed for version {claim.version} of the "
            f"stream of user {claim.user_id!r}, where there is no grant; restore the right backup"
        )

    def is_recorded(self, event: UserScore.Event) -> bool:
        """Tell whether just this event was committed; its timestamp tells it from others."""
        version = event.originator_version
        return event in self._app.events.get(event.originator_id, gt=version - 1, lte=version)

    def close_gaps(self, user_id: str) -> list[range]:
        """Put events that change nothing in the place of those that are missing."""
        stream = user_stream_id(user_id)
        gaps = missing_versions(self._app.events.recorder, stream)
        if not gaps:
            return []
        stored: list[Any] = list(self._app.events.get(stream))
        end = _filler(user_id, stored[-1].originator_version + 1)
        fillers = [[_filler(user_id, version) for version in gap] for gap in gaps]
        # The gaps are closed last: if this is cut short, they are found and closed another time.
        self._app.events.put([end])
        if self._app.snapshots is not None:
            in_order = sorted(
                [*stored, *chain(*fillers), end], key=attrgetter("originator_version")
            )
            self._app.snapshots.put([UserScore.Snapshot.take(_evolved(None, in_order))])
        for closing_one in fillers:
            self._app.events.put(closing_one)
        self.forget()
        return gaps

    def _load(self, user_id: str) -> UserScore | None:
        stream_id = user_stream_id(user_id)
        try:
            with _gaps_named(user_id):
                score: UserScore = self._app.repository.get(stream_id, projector_func=_evolved)
        except AggregateNotFoundError:
            return None
        return score


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
