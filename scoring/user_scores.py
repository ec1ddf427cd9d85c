"""Loading ``UserScore`` aggregates and claims from the event store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsourcing.application import AggregateNotFoundError

from scoring.identity import claim_stream_id, user_stream_id
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Iterable
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
        score: UserScore = _evolved(cached, self._app.events.get(cached.id, gt=cached.version))
        return score

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
            LookupError: if it is not there, which only damage to the store can bring about.
        """
        found = self._app.events.get(
            user_stream_id(claim.user_id), gt=claim.version - 1, lte=claim.version
        )
        for event in found:
            if isinstance(event, UserScore.GrantRecorded):
                return event
        raise LookupError(f"no grant at version {claim.version} of user {claim.user_id!r}")

    def is_recorded(self, event: UserScore.Event) -> bool:
        """Tell whether just this event was committed; its timestamp tells it from others."""
        version = event.originator_version
        return event in self._app.events.get(event.originator_id, gt=version - 1, lte=version)

    def _load(self, user_id: str) -> UserScore | None:
        stream_id = user_stream_id(user_id)
        try:
            score: UserScore = self._app.repository.get(stream_id, projector_func=_evolved)
        except AggregateNotFoundError:
            return None
        return score


def _evolved(score: Any, events: Iterable[Any]) -> Any:
    # The library's projector function without its protocol check of every event, which takes
    # several times as long as applying the event.
    for event in events:
        score = event.mutate(score)
    return score
