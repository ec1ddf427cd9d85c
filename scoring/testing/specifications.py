"""Given events, when a command, then events: what a command does to one user, as a sentence.

::

    given(grant_recorded(amount=5)).when(
        lambda score: score.grant("g-2", "telemetry:activity", "telemetry", "app", 3, NOW)
    ).then(grant_recorded(grant_id="g-2", amount=3)).then_state(total_score=8)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from scoring.identity import claim_stream_id, is_grant_shaped
from scoring.testing.expectation import expect
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from collections.abc import Callable

_LONG_AGO: Final = datetime(2024, 1, 1, tzinfo=UTC)

# Where an event is kept, when, under which token and in which trace, is not what a specification is
# about.
_ASIDE: Final = frozenset(
    {"originator_id", "originator_version", "originator_topic", "timestamp", "token", "traceparent"}
)


@dataclass(frozen=True)
class EventSketch:
    """An event without its place in a stream."""

    event_class: type[Any]
    fields: dict[str, Any]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"{self.event_class.__name__}({fields})"


def user_created(user_id: str = "jane") -> EventSketch:
    """Return the event that opens a user's stream."""
    return EventSketch(UserScore.Created, {"user_id": user_id})


def grant_recorded(
    *,
    user_id: str = "jane",
    grant_id: str = "g-1",
    key: str = "telemetry:activity",
    category: str = "telemetry",
    source: str = "app",
    amount: int = 1,
    granted_at: datetime = _LONG_AGO,
    **more: Any,
) -> EventSketch:
    """Return the event of a grant; name the fields that matter to the specification.

    Args:
        user_id: Who is scored.
        grant_id: Its id.
        key: What was rewarded.
        category: Flat label.
        source: Flat label.
        amount: Points.
        granted_at: Timezone-aware; midnight of 1 January 2024, UTC, unless given.
        **more: Further fields of the event, e.g. ``replaced_points``, which otherwise follows
            from the key.
    """
    more.setdefault("replaced_points", 0 if is_grant_shaped(key) else None)
    fields = {
        "user_id": user_id,
        "grant_id": grant_id,
        "key": key,
        "category": category,
        "source": source,
        "amount": amount,
        "granted_at": granted_at,
        **more,
    }
    return EventSketch(UserScore.GrantRecorded, fields)


def bucket_set(
    *,
    user_id: str = "jane",
    key: str = "telemetry:activity",
    category: str = "telemetry",
    source: str = "app",
    points: int = 1,
    replaced_points: int = 0,
    equals_grant: bool = False,
) -> EventSketch:
    """Return the event of a bucket that the old way overwrote.

    Args:
        user_id: Who is scored.
        key: What is scored.
        category: Flat label.
        source: Flat label.
        points: What the bucket holds from then on.
        replaced_points: What it held before; 0 if there was none.
        equals_grant: Whether it then is as the grant of its key made it.
    """
    fields = {
        "user_id": user_id,
        "key": key,
        "category": category,
        "source": source,
        "points": points,
        "replaced_points": replaced_points,
        "equals_grant": equals_grant,
    }
    return EventSketch(UserScore.BucketSet, fields)


def grant_claimed(*, grant_id: str = "g-1", user_id: str = "jane", version: int) -> EventSketch:
    """Return the claim on a grant id; ``version`` is that of the grant in its user's stream."""
    return EventSketch(
        GrantClaimed, {"of": claim_stream_id(grant_id), "user_id": user_id, "version": version}
    )


def given(*events: EventSketch, user_id: str = "jane") -> Specification:
    """Begin a specification with what has happened to a user.

    Args:
        *events: Built by ``grant_recorded()`` and ``bucket_set()``; ``user_created()`` may come
            first and is supplied if it does not.
        user_id: The user, if there is no ``user_created()``.
    """
    if not events or events[0].event_class is not UserScore.Created:
        events = (user_created(user_id), *events)
    return Specification(events)


class Specification:
    """The given part; continue with ``when()``."""

    def __init__(self, events: tuple[EventSketch, ...]) -> None:
        """Replay the events, as the event store would."""
        created, *others = events
        stream_id = UserScore.create_id(created.fields["user_id"])
        opening = UserScore.Created(
            originator_topic=UserScore.TOPIC,
            originator_id=stream_id,
            originator_version=UserScore.INITIAL_VERSION,
            timestamp=_LONG_AGO,
            **created.fields,
        )
        self._score: UserScore = opening.mutate(None)  # type: ignore[assignment]
        for version, sketch in enumerate(others, start=UserScore.INITIAL_VERSION + 1):
            event = sketch.event_class(
                originator_id=stream_id,
                originator_version=version,
                timestamp=_LONG_AGO,
                **sketch.fields,
            )
            event.mutate(self._score)

    def when(self, command: Callable[[UserScore], object]) -> Outcome:
        """Carry out a command on the user; what it raises is kept for ``then_raises()``."""
        error: Exception | None = None
        try:
            command(self._score)
        except Exception as raised:  # noqa: BLE001 - kept, and raised again by then()
            error = raised
        return Outcome(self._score, error)


class Outcome:
    """What a command did; say what it should have done with one of the ``then`` methods."""

    def __init__(self, score: UserScore, error: Exception | None) -> None:
        """Collect the events, just as an application that saves the user would."""
        self._score = score
        self._error = error
        self._events = [_sketch(event) for event in score.collect_events()]

    def then(self, *events: EventSketch, claims: bool = False) -> Self:
        """Expect exactly these events; none, if none is named.

        Args:
            *events: Built by ``grant_recorded()``, ``bucket_set()`` and, with ``claims``,
                ``grant_claimed()``.
            claims: Compare the claims on grant ids too; they are left aside otherwise.

        Raises:
            AssertionError: if there were others.
            Exception: what the command raised.
        """
        if self._error is not None:
            raise self._error
        happened = [e for e in self._events if claims or e.event_class is not GrantClaimed]
        expect("events", happened, list(events))
        return self

    def then_raises(self, error_class: type[Exception], **attributes: object) -> Self:
        """Expect an error with these attributes, and no event.

        Raises:
            AssertionError: if there was none, another one, or one with other attributes.
            Exception: what the command raised, if it is of another class.
        """
        if self._error is None:
            raise AssertionError(f"expected {error_class.__name__}, got {self._events}")
        if not isinstance(self._error, error_class):
            raise self._error
        for name, expected in attributes.items():
            expect(f"{error_class.__name__}.{name}", getattr(self._error, name), expected)
        expect("events", self._events, [])
        return self

    def then_state(self, **attributes: object) -> Self:
        """Expect attributes of the user afterwards, e.g. ``total_score=8``.

        Raises:
            AssertionError: if one of them differs.
        """
        for name, expected in attributes.items():
            expect(name, getattr(self._score, name), expected)
        return self


def _sketch(event: Any) -> EventSketch:
    fields = {name: value for name, value in vars(event).items() if name not in _ASIDE}
    if isinstance(event, GrantClaimed):
        fields = {"of": event.originator_id, **fields}
    return EventSketch(type(event), fields)
