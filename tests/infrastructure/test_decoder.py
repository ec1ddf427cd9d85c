"""``EventDecoder``: quick where it can be, and of one opinion with the library's mapper."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.persistence import Mapper, Notification
from eventsourcing.utils import get_topic
from hypothesis import example, given, settings
from hypothesis import strategies as st

from projections import PoisonEvent
from projections.events.decoder import EventDecoder
from projections.events.model import BucketEvent, GrantEvent, ScoreEvent
from projections.mongo.batches import grant_document
from scoring import Grant, Scoring, UserScore
from scoring.identity import user_stream_id
from scoring.testing import grants
from support import make_grant

TRANSCODERS = ("scoring.transcoding:ScoringTranscoder", "eventsourcing.persistence:JSONTranscoder")
COMPRESSED = {"COMPRESSOR_TOPIC": "eventsourcing.compressor:ZlibCompressor"}


class SlowMapper(Mapper[Any]):
    """Not the library's own class, so nothing is known of what it writes."""


class DeafMapper(Mapper[Any]):
    """One that must not be asked."""

    def to_domain_event(self, stored_event: object) -> Any:
        """Fail."""
        raise AssertionError(stored_event)


def stored(app: Scoring, grant: Grant) -> Notification:
    """The notification of a grant that an application has recorded."""
    position = app.grant(**grant.model_dump()).position
    (found,) = app.recorder.select_notifications(position, 1)
    return found


def slow(app: Scoring) -> EventDecoder:
    mapper = app.mapper
    return EventDecoder(
        SlowMapper(mapper.transcoder, compressor=mapper.compressor, cipher=mapper.cipher)
    )


def outcome(decoder: EventDecoder, notification: Notification) -> ScoreEvent | str:
    """What a decoder makes of a notification, or that it cannot make anything of it."""
    try:
        return decoder.decode(notification)
    except PoisonEvent as poison:
        return str(poison)


@pytest.mark.parametrize("transcoder", TRANSCODERS)
@pytest.mark.parametrize("how", [{}, COMPRESSED], ids=["plain", "compressed"])
@settings(max_examples=200)
@given(grant=grants())
def test_a_grant_is_read_as_the_mapper_reads_it(
    transcoder: str, how: dict[str, str], grant: Grant
) -> None:
    """Field for field, with the document it becomes, for every grant that can be recorded."""
    with Scoring({"TRANSCODER_TOPIC": transcoder, **how}) as app:
        notification = stored(app, grant)
        event = app.mapper.to_domain_event(notification)
        assert isinstance(event, UserScore.GrantRecorded)
        quick = EventDecoder(app.mapper).decode(notification)
        assert isinstance(quick, GrantEvent)
        assert quick == slow(app).decode(notification)
        for name in ("originator_id", "originator_version"):
            assert getattr(quick, name) == getattr(event, name)
        names = {field.name for field in fields(event)} - {"originator_id", "originator_version"}
        for name in names:
            assert getattr(quick.data, name) == getattr(event, name)
        assert quick.data.recomputed_change == event.recomputed_change
        assert grant_document(quick)["grantedAt"] == grant.granted_at


@pytest.mark.parametrize("transcoder", TRANSCODERS)
def test_the_mapper_is_not_asked_for_grants(
    transcoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a catch-up would take half as long again; buckets are few and take their time."""
    with Scoring({"TRANSCODER_TOPIC": transcoder}) as app:
        notification = stored(app, make_grant(1))
        app.contribute("ada", "telemetry:activity", "telemetry", "app", 7)
        (bucket,) = app.recorder.select_notifications(
            1, 10, topics=[get_topic(UserScore.BucketSet)]
        )
        decoder = EventDecoder(app.mapper)
        monkeypatch.setattr(Mapper, "to_domain_event", DeafMapper.to_domain_event)
        assert isinstance(decoder.decode(notification), GrantEvent)
        with pytest.raises(PoisonEvent):
            decoder.decode(bucket)
        with pytest.raises(PoisonEvent):
            slow(app).decode(notification)


def iso(value: str) -> dict[str, str]:
    return {"_type_": "datetime_iso", "_data_": value}


STORED_NOON = iso("2026-01-01T12:00:00+00:00")
STATE: dict[str, Any] = {
    "timestamp": iso("2026-01-01T12:00:00.123456+00:00"),
    "user_id": "ada",
    "grant_id": "grant-1",
    "key": "quiz:history:1",
    "category": "learning",
    "source": "quiz",
    "amount": 5,
    "granted_at": STORED_NOON,
    "replaced_points": None,
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from((2**63 - 1, 2**63, -(2**63), 2**64, 10**30)),
    st.floats(),
    st.floats(min_value=-(10**6), max_value=10**6).map(round).map(float),
    st.text(),
    st.datetimes(timezones=st.sampled_from((UTC, None))).map(datetime.isoformat).map(iso),
    st.text(max_size=30).map(iso),
    st.builds(lambda kind: {"_type_": kind, "_data_": "1"}, st.sampled_from(("decimal_str", "no"))),
    st.dictionaries(st.sampled_from(("_type_", "_data_", "more")), st.text(), max_size=3),
    st.lists(st.integers(), max_size=2),
)
FIELDS = st.sampled_from((*STATE, "traceparent", "position", "extra", "originator_id"))


@st.composite
def stored_states(draw: st.DrawFn) -> bytes:
    """A grant as it is stored, with a few changes."""
    changes = draw(st.dictionaries(FIELDS, VALUES, max_size=2))
    missing = draw(st.sets(st.sampled_from((*STATE,)), max_size=1))
    cut = draw(st.sampled_from((None, None, None, -1, 5, 0)))
    tail = draw(st.sampled_from((b"", b"", b"", b" ", b"x", b"}", b"\xff", b"\x00")))
    return stored_state(changes, missing)[:cut] + tail


def stored_state(changes: dict[str, Any], missing: Collection[str] = ()) -> bytes:
    values = {name: value for name, value in (STATE | changes).items() if name not in missing}
    return json.dumps(values).encode()


def assert_judged_alike(state: bytes) -> None:
    notification = Notification(
        id=7,
        originator_id=user_stream_id("ada"),
        originator_version=3,
        topic=GrantEvent.TOPIC,
        state=state,
    )
    with Scoring() as app:
        assert outcome(EventDecoder(app.mapper), notification) == outcome(slow(app), notification)


@settings(max_examples=500)
@given(state=stored_states())
@example(stored_state({"amount": 5.0}))
@example(stored_state({"amount": True}))
@example(stored_state({"granted_at": "2026-01-01T12:00:00+00:00"}))
@example(stored_state({"user_id": "\ud800"}))
@example(stored_state({"timestamp": None}))
@example(stored_state({"granted_at": STORED_NOON | {"_type_": "other"}}))
@example(stored_state({"granted_at": STORED_NOON | {"more": 1}}))
@example(stored_state({"granted_at": {"_typ_": "datetime_iso", "_data_": STORED_NOON["_data_"]}}))
@example(stored_state({"granted_at": {"_data_": STORED_NOON["_data_"]}}))
@example(stored_state({"traceparent": 7}))
def test_whatever_is_stored_is_judged_as_the_mapper_judges_it(state: bytes) -> None:
    """The same grant, or the same reason why it is none."""
    assert_judged_alike(state)


@pytest.mark.soak
@settings(max_examples=20_000)
@given(state=stored_states())
def test_whatever_is_stored_is_judged_as_the_mapper_judges_it_for_long(state: bytes) -> None:
    """More of it."""
    assert_judged_alike(state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", None),
        ("grant_id", 5),
        ("key", None),
        ("category", []),
        ("source", 1.5),
        ("amount", 5.0),
        ("amount", True),
        ("amount", 2**63),
        ("replaced_points", -(2**63) - 1),
        ("timestamp", "today"),
        ("granted_at", 5),
        ("granted_at", iso("2026-01-01T12:00:00")),
        ("replaced_points", "0"),
        ("traceparent", 7),
    ],
)
def test_a_value_of_another_type_is_named(field: str, value: object) -> None:
    """In words that tell whoever is to mend the event where to look."""
    notification = Notification(
        id=7,
        originator_id=user_stream_id("ada"),
        originator_version=3,
        topic=GrantEvent.TOPIC,
        state=json.dumps(STATE | {field: value}).encode(),
    )
    with Scoring() as app, pytest.raises(PoisonEvent, match=f"its {field} cannot be "):
        EventDecoder(app.mapper).decode(notification)


def test_a_bucket_is_read_by_the_mapper() -> None:
    """And its types are checked, too."""
    with Scoring() as app:
        app.contribute("ada", "telemetry:activity", "telemetry", "app", 7)
        (found,) = app.recorder.select_notifications(1, 10, topics=[BucketEvent.TOPIC])
        bucket = EventDecoder(app.mapper).decode(found)
        assert isinstance(bucket, BucketEvent)
        assert (bucket.data.user_id, bucket.data.points) == ("ada", 7)
        broken = Notification(
            id=found.id,
            originator_id=found.originator_id,
            originator_version=found.originator_version,
            topic=found.topic,
            state=found.state.replace(b'"points":7', b'"points":"7"'),
        )
        with pytest.raises(PoisonEvent, match="its points cannot be '7'"):
            EventDecoder(app.mapper).decode(broken)


@pytest.mark.parametrize("as_text", [str, lambda stream: stream.hex], ids=["hyphens", "none"])
def test_a_stream_has_one_name_however_a_store_writes_it(as_text: Callable[[UUID], str]) -> None:
    """With ORIGINATOR_ID_TYPE=text, too: a parked stream is found again by its name."""
    stream = user_stream_id("ada")
    for state in (json.dumps(STATE).encode(), b"{"):
        notification: Any = Notification(
            id=7,
            originator_id=as_text(stream),
            originator_version=3,
            topic=GrantEvent.TOPIC,
            state=state,
        )
        with Scoring() as app:
            try:
                found = EventDecoder(app.mapper).decode(notification).stream
            except PoisonEvent as poison:
                found = poison.stream
        assert found == str(stream)
