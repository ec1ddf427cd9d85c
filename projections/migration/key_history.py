"""What the event store was told about single keys of a user, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from projections.events.model import TOPICS
from scoring.contributions import Bucket
from scoring.identity import user_stream_id
from scoring.retries import STORE_ERRORS, read_event_store
from scoring.user_score import UserScore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from scoring import Scoring

RACE: Final = timedelta(minutes=1)
"""Two writes race if there is at most so much between them: a command takes half of it at most."""

_EVENTS_PER_PAGE: Final = 1000


@dataclass(slots=True)
class KeyHistory:
    """The newest events of one key.

    Attributes:
        at: When the last of them was recorded, UTC.
        raced: Whether another one, at most ``RACE`` before that, set what was asked for.
        finished: Whether no earlier one could say more.
    """

    at: datetime | None = None
    raced: bool = False
    finished: bool = False


def read_histories(
    app: Scoring, user_id: str, wanted: Mapping[str, Bucket | None]
) -> dict[str, KeyHistory]:
    """Return the newest events of some keys of a user.

    Reads the user's stream backwards, in pages, as far as need be.

    Args:
        app: Whose event store.
        user_id: Whose keys.
        wanted: By key, the bucket that the old side holds: was the key set to that, too?

    Raises:
        ScoringError: if the event store cannot be read.
    """
    histories = {key: KeyHistory() for key in wanted}
    for event in _newest_first(app, user_id):
        if all(history.finished for history in histories.values()):
            break
        for key, history in histories.items():
            if history.at is not None and event.timestamp < history.at - RACE:
                history.finished = True
            elif event.key == key and not history.finished:
                _tell(history, event, wanted[key])
    return histories


def _tell(history: KeyHistory, event: Any, wanted: Bucket | None) -> None:
    if history.at is None:
        history.at = event.timestamp
        history.finished = wanted is None
    elif _bucket(event) == wanted:
        history.raced = history.finished = True


def _newest_first(app: Scoring, user_id: str) -> Iterator[Any]:
    """Yield the events of a user that set a bucket."""
    below: int | None = None
    while True:
        page = read_event_store(
            lambda below=below: app.recorder.select_events(  # type: ignore[misc]
                user_stream_id(user_id), lte=below, desc=True, limit=_EVENTS_PER_PAGE
            )
        )
        for stored in page:
            if stored.topic in TOPICS:
                try:
                    event: Any = app.mapper.to_domain_event(stored)
                except STORE_ERRORS:
                    continue  # whoever projects says so; here it says nothing
                if isinstance(event, UserScore.BucketSet) or event.replaced_points is not None:
                    yield event
        if len(page) < _EVENTS_PER_PAGE:
            return
        below = page[-1].originator_version - 1


def _bucket(event: UserScore.BucketSet | UserScore.GrantRecorded) -> Bucket:
    points = event.points if isinstance(event, UserScore.BucketSet) else event.amount
    return Bucket(points, event.category, event.source)
