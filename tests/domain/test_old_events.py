"""Old events keep loading: the bytes below are what version 1 stores, and must load for ever.

Never edit these literals to make a test pass: they stand for data that users have.
"""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.cipher import AESCipher
from eventsourcing.persistence import (
    DatetimeAsISO,
    DecimalAsStr,
    JSONTranscoder,
    StoredEvent,
    UUIDAsHex,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from scoring import (
    CLAIMS_NAMESPACE,
    USERS_NAMESPACE,
    GrantClaimed,
    GrantStatus,
    InvalidGrant,
    Scoring,
    ScoringError,
    UserScore,
)
from scoring.testing import ScoringMachine
from scoring.transcoding import ScoringTranscoder
from support import make_grant, sqlite_env

ZOE = UUID("5695b539-ba15-55cb-b499-aecf38b517be")
QUIZ_CLAIM = UUID("e86f90ea-cb5f-50e3-84e5-8d10b156199c")
BADGE_CLAIM = UUID("2be12459-3bc6-5259-8b06-36fd1c07fc13")

CREATED_1 = StoredEvent(
    ZOE,
    1,
    "scoring:UserScore.Created",
    b'{"timestamp":{"_type_":"datetime_iso","_data_":"2026-11-22T15:00:38.895546+00:00"},'
    b'"originator_topic":"scoring:UserScore","user_id":"Zo\xc3\xab"}',
)
GRANT_RECORDED_1 = StoredEvent(
    ZOE,
    2,
    "scoring:UserScore.GrantRecorded",
    b'{"timestamp":{"_type_":"datetime_iso","_data_":"2026-11-22T15:00:38.895792+00:00"},'
    b'"user_id":"Zo\xc3\xab","grant_id":"quiz-1","key":"quiz:history:1","category":"learning",'
    b'"source":"quiz","amount":7,"granted_at":{"_type_":"datetime_iso",'
    b'"_data_":"2026-11-22T10:00:00.123000+00:00"},"replaced_points":null}',
)
GRANT_CLAIMED_1 = StoredEvent(
    QUIZ_CLAIM,
    1,
    "scoring:GrantClaimed",
    b'{"user_id":"Zo\xc3\xab","version":2,"token":"e4c783740c78b757"}',
)
BADGE_RECORDED_1 = StoredEvent(
    ZOE,
    3,
    "scoring:UserScore.GrantRecorded",
    b'{"timestamp":{"_type_":"datetime_iso","_data_":"2026-11-22T15:00:38.896355+00:00"},'
    b'"user_id":"Zo\xc3\xab","grant_id":"Zo\xc3\xab/award:badge:x","key":"award:badge:x",'
    b'"category":"award","source":"badge","amount":50,"granted_at":{"_type_":"datetime_iso",'
    b'"_data_":"2026-11-22T10:00:00.123000+00:00"},"replaced_points":0}',
)
BADGE_CLAIMED_1 = StoredEvent(
    BADGE_CLAIM,
    1,
    "scoring:GrantClaimed",
    b'{"user_id":"Zo\xc3\xab","version":3,"token":"afc62373c6039149"}',
)
SNAPSHOT_1 = StoredEvent(
    ZOE,
    3,
    "scoring:UserScoreSnapshot",
    b'{"timestamp":{"_type_":"datetime_iso","_data_":"2026-11-22T15:00:38.897903+00:00"},'
    b'"topic":"scoring:UserScore","state":{"_created_on":{"_type_":"datetime_iso",'
    b'"_data_":"2026-11-22T15:00:38.895546+00:00"},"_modified_on":{"_type_":"datetime_iso",'
    b'"_data_":"2026-11-22T15:00:38.896355+00:00"},"user_id":"Zo\xc3\xab","total_score":57,'
    b'"category_totals":{"learning":7,"award":50},"source_totals":{"quiz":7,"badge":50},'
    b'"grant_count":2,"recomputed_total":50}}',
)
STREAM_1 = [CREATED_1, GRANT_RECORDED_1, GRANT_CLAIMED_1, BADGE_RECORDED_1, BADGE_CLAIMED_1]

QUIZ: dict[str, Any] = {
    "user_id": "Zoë",
    "grant_id": "quiz-1",
    "key": "quiz:history:1",
    "category": "learning",
    "source": "quiz",
    "amount": 7,
    "granted_at": datetime(2026, 11, 22, 10, 0, 0, 123000, tzinfo=UTC),
}
LIBRARYS_OWN = "eventsourcing.persistence:JSONTranscoder"
OURS = "scoring.transcoding:ScoringTranscoder"


def changed(event: StoredEvent, **state: object) -> StoredEvent:
    """The same event with other values in its bytes."""
    bytes_ = json.dumps({**json.loads(event.state), **state}).encode()
    return StoredEvent(event.originator_id, event.originator_version, event.topic, bytes_)


@pytest.fixture(params=[OURS, LIBRARYS_OWN])
def old_store(request: pytest.FixtureRequest) -> Iterator[Scoring]:
    """A store that version 1 left behind, opened today."""
    with Scoring({"TRANSCODER_TOPIC": request.param}) as app:
        app.recorder.insert_events(STREAM_1)
        yield app


# --- version 1 -----------------------------------------------------------------------------------


def test_the_namespaces_are_those_of_version_1() -> None:
    """Other ones would lose every user and every claim."""
    assert UUID("6c1d7c0e-6f1b-5b0e-9a53-2f6f2b9d8a01") == USERS_NAMESPACE
    assert UUID("b7a4b5a2-0c57-5f0d-8e0a-7d1f4f5e9c02") == CLAIMS_NAMESPACE
    assert UserScore.create_id("Zoë") == ZOE


def test_a_stream_of_version_1_loads(old_store: Scoring) -> None:
    """Totals, labels and the recomputed total are what they were."""
    score = old_store.score_of("Zoë")
    assert (score.total_score, score.recomputed_total, score.grant_count) == (57, 50, 2)
    assert score.category_totals == {"learning": 7, "award": 50}
    assert score.source_totals == {"quiz": 7, "badge": 50}
    assert score.version == 3


def test_a_claim_of_version_1_still_holds(old_store: Scoring) -> None:
    """A repetition is known, a conflict is told apart, and the next grant follows on."""
    assert old_store.grant(**QUIZ).status is GrantStatus.DUPLICATE
    assert old_store.grant(**{**QUIZ, "amount": 8}).status is GrantStatus.CONFLICT
    badge = {**QUIZ, "grant_id": "Zoë/award:badge:x", "key": "award:badge:x", "amount": 50}
    badge |= {"category": "award", "source": "badge"}
    assert old_store.grant(**badge).status is GrantStatus.DUPLICATE
    receipt = old_store.grant(**{**QUIZ, "grant_id": "quiz-2"})
    assert (receipt.status, receipt.total_before, receipt.total_after) == ("RECORDED", 57, 64)


def test_a_snapshot_of_version_1_loads_without_the_events_before_it() -> None:
    """Only the snapshot is needed, the event that it was taken at, and what follows it."""
    later = changed(GRANT_RECORDED_1, grant_id="quiz-2", amount=3)
    with Scoring() as app:
        assert app.snapshots is not None
        app.snapshots.recorder.insert_events([SNAPSHOT_1])
        app.recorder.insert_events(
            [BADGE_RECORDED_1, StoredEvent(ZOE, 4, later.topic, later.state)]
        )
        score = app.score_of("Zoë")
        assert (score.total_score, score.recomputed_total, score.version) == (60, 50, 4)
        assert score.category_totals == {"learning": 10, "award": 50}
        assert app.grant(**{**QUIZ, "grant_id": "quiz-3"}).total_after == 67


def test_today_writes_what_version_1_wrote() -> None:
    """Field for field and byte for byte; a change needs a class version and an upcast.

    Snapshots have had theirs: version 2 has the buckets of the old way.
    """
    with Scoring() as app:
        app.grant(**QUIZ)
        app.grant(
            "Zoë", "Zoë/award:badge:x", "award:badge:x", "award", "badge", 50, QUIZ["granted_at"]
        )
        app.take_snapshot(ZOE)
        assert app.snapshots is not None
        written = [
            *app.recorder.select_notifications(start=1, limit=10),
            *app.snapshots.recorder.select_events(ZOE),
        ]
    moments = ("timestamp", "token", "_created_on", "_modified_on")

    def without_moments(event: StoredEvent) -> tuple[object, ...]:
        state = json.loads(event.state)
        for part in (state, state.get("state", {})):
            for name in moments:
                if name in part:
                    part[name] = "…"
        ordered = json.dumps(state, ensure_ascii=False, separators=(",", ":"))
        return event.originator_id, event.originator_version, event.topic, ordered

    expected = [without_moments(event) for event in STREAM_1]
    assert [without_moments(event) for event in written[:-1]] == expected
    snapshot, before = (json.loads(event.state)["state"] for event in (written[-1], SNAPSHOT_1))
    assert snapshot == {
        **before,
        "_created_on": snapshot["_created_on"],
        "_modified_on": snapshot["_modified_on"],
        "buckets": [],
        "class_version": 2,
    }


def test_fields_that_are_not_known_today_are_no_obstacle() -> None:
    """A newer version may have written more; its grants still count."""
    with Scoring() as app:
        more = [changed(event, invented_later="x") for event in STREAM_1]
        app.recorder.insert_events(more)
        assert app.score_of("Zoë").total_score == 57
        assert app.grant(**QUIZ).status is GrantStatus.DUPLICATE


# --- versions to come ----------------------------------------------------------------------------


def test_version_1_is_upcast_by_a_later_version(
    old_store: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is done when an event gains a field: raise ``class_version``, write the upcast."""

    def upcast(state: dict[str, Any]) -> None:
        state["reason"] = "unknown, recorded by version 1"

    event_class = UserScore.GrantRecorded
    monkeypatch.setattr(event_class, "class_version", 2, raising=False)
    monkeypatch.setattr(event_class, "upcast_v1_v2", staticmethod(upcast), raising=False)
    events: list[Any] = list(old_store.events.get(ZOE, gt=1))
    assert {event.reason for event in events} == {"unknown, recorded by version 1"}
    old_store.grant(**{**QUIZ, "grant_id": "quiz-2"})
    newest = old_store.recorder.select_events(ZOE, gt=3)[0]
    assert json.loads(newest.state)["class_version"] == 2
    assert old_store.score_of("Zoë").total_score == 64


def test_a_snapshot_of_version_1_is_upcast() -> None:
    """It is from before there were contributions, so it gets no buckets."""
    with Scoring() as app:
        assert app.snapshots is not None
        app.snapshots.recorder.insert_events([SNAPSHOT_1])
        app.recorder.insert_events([BADGE_RECORDED_1])
        score: Any = app.repository.get(ZOE)
        assert (score.total_score, score.recomputed_total, score.buckets) == (57, 50, {})


# --- rules that were tightened since -------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"amount": 0},
        {"amount": -5},
        {"amount": 5_000_000_000},
        {"category": "Content.Feed", "source": "$x"},
        {"key": "a key with spaces", "category": ""},
        {"grant_id": " \u0000 " + "x" * 1000},
        {"granted_at": {"_type_": "datetime_iso", "_data_": "2026-11-22T10:00:00"}},
        {"grant_id": "carl/award:badge:1"},
        {"key": "award:badge:1", "replaced_points": None},
        {"key": "quiz:1", "replaced_points": 3},
    ],
    ids=str,
)
def test_a_tightened_rule_never_makes_a_stream_unloadable(values: dict[str, object]) -> None:
    """Today's rules refuse every one of these; a stream that holds it loads and goes on."""
    odd = changed(GRANT_RECORDED_1, **values)
    points: Any = values.get("amount", 7)
    before: Any = values.get("replaced_points")
    with Scoring() as app:
        app.recorder.insert_events([CREATED_1, odd, GRANT_CLAIMED_1])
        score = app.score_of("Zoë")
        assert score.total_score == points
        # What the event meant is in the event, whatever its key means today.
        assert score.recomputed_total == (0 if before is None else points - before)
        app.take_snapshot(ZOE)
        receipt = app.grant(**{**QUIZ, "grant_id": "quiz-2"})
        assert (receipt.total_before, receipt.total_after) == (points, points + 7)
    if "replaced_points" not in values:
        with pytest.raises(InvalidGrant):
            make_grant(1, **{**QUIZ, **values})


def test_a_conflict_with_what_today_refuses_is_still_a_conflict(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The original is read past today's rules, and logged."""
    with Scoring() as app:
        odd = changed(GRANT_RECORDED_1, amount=0, category="Content.Feed", key="a b")
        app.recorder.insert_events([CREATED_1, odd, GRANT_CLAIMED_1])
        receipt = app.grant(**QUIZ)
        assert (receipt.status, receipt.total_after) == (GrantStatus.CONFLICT, 0)
        assert "Content.Feed" in caplog.text


# --- transcoders ---------------------------------------------------------------------------------


def transcoders() -> tuple[JSONTranscoder, JSONTranscoder]:
    pair = ScoringTranscoder(), JSONTranscoder()
    for transcoder in pair:
        for transcoding in (UUIDAsHex(), DecimalAsStr(), DatetimeAsISO()):
            transcoder.register(transcoding)
    return pair


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from((2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30)),
        st.floats(allow_nan=False),
        TEXT,
        st.datetimes(timezones=st.just(UTC)),
        st.uuids(),
        st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


def assert_both_transcoders_agree(state: dict[str, Any]) -> None:
    ours, librarys = transcoders()
    written = librarys.encode(state)
    assert ours.encode(state) == written
    read = ours.decode(written)
    assert read == librarys.decode(written) == state
    assert [type(value) for value in read.values()] == [type(value) for value in state.values()]


STATES = given(state=st.dictionaries(TEXT, VALUES, max_size=5))


@settings(max_examples=200)
@STATES
def test_both_transcoders_write_and_read_the_same(state: dict[str, Any]) -> None:
    """Bytes for bytes and value for value, whatever an embedder's own events hold."""
    assert_both_transcoders_agree(state)


@pytest.mark.soak
@settings(max_examples=20_000)
@STATES
def test_both_transcoders_write_and_read_the_same_for_long(state: dict[str, Any]) -> None:
    """More of it."""
    assert_both_transcoders_agree(state)


ZONES = (UTC, None, *(timezone(timedelta(seconds=seconds)) for seconds in (20, -1, 7200)))


@given(at=st.datetimes(timezones=st.sampled_from(ZONES)))
def test_both_transcoders_write_and_read_a_time_the_same(at: datetime) -> None:
    """In any time zone, in any year, to the microsecond."""
    assert_both_transcoders_agree({"at": at})


class Microseconds(DatetimeAsISO):
    """Another format of times."""

    name = "microseconds"

    def encode(self, obj: datetime) -> str:
        """Write a number."""
        return str(int(obj.timestamp() * 1e6))


def test_both_transcoders_write_times_as_an_application_registered() -> None:
    """And not in the library's format, which ours knows by heart."""
    ours, librarys = transcoders()
    for transcoder in (ours, librarys):
        transcoder.register(Microseconds())
    state = {"at": QUIZ["granted_at"]}
    assert ours.encode(state) == librarys.encode(state)
    assert b"datetime_iso" not in ours.encode(state)


def test_what_json_has_no_word_for_is_read_alike() -> None:
    """NaN and the infinities are the library's extension of JSON."""
    ours, librarys = transcoders()
    state = {"nan": math.nan, "inf": [math.inf, -math.inf], "huge": 1e300, "int": 10**400}
    assert ours.encode(state) == librarys.encode(state)
    assert repr(ours.decode(librarys.encode(state))) == repr(state)


@pytest.mark.parametrize(
    "written",
    [
        b'{"half of a pair":"\\ud800"}',
        b'{"huge":1e400}',
        b'{"twice":1,"twice":2}',
        b'{"nested":[[{"_type_":"uuid_hex"},{"_type_":"decimal_str","_data_":"1.0"}]]}',
        b'{"unknown":[{"_type_":"money","_data_":1}]}',
        b'{"cut off":',
        b'"\xff"',
    ],
)
def test_what_another_program_wrote_is_read_or_refused_alike(written: bytes) -> None:
    """The same value, or the same error."""

    def outcome(transcoder: JSONTranscoder) -> str:
        try:
            return repr(transcoder.decode(written))
        except Exception as error:  # noqa: BLE001 - which one it is, is compared
            return repr(error)

    ours, librarys = transcoders()
    assert outcome(ours) == outcome(librarys)


@pytest.mark.parametrize(("first", "second"), [(OURS, LIBRARYS_OWN), (LIBRARYS_OWN, OURS)])
def test_a_store_may_switch_between_the_transcoders(
    tmp_path: Path, first: str, second: str
) -> None:
    """Snapshots included; no migration."""
    env = sqlite_env(tmp_path / "events.sqlite")
    grants = [make_grant(number, user_id="jane") for number in range(250)]
    with Scoring({**env, "TRANSCODER_TOPIC": first}) as app:
        app.grant_many(grants[:210])
        total = app.score_of("jane").total_score
    with Scoring({**env, "TRANSCODER_TOPIC": second}) as app:
        assert app.score_of("jane").total_score == total
        statuses = [receipt.status for receipt in app.grant_many(grants)]
        assert statuses == [GrantStatus.DUPLICATE] * 210 + [GrantStatus.RECORDED] * 40


# --- compression and encryption ------------------------------------------------------------------

COMPRESSED = {"COMPRESSOR_TOPIC": "eventsourcing.compressor:ZlibCompressor"}
ENCRYPTED = {
    "CIPHER_TOPIC": "eventsourcing.cipher:AESCipher",
    "CIPHER_KEY": AESCipher.create_key(32),
}


@pytest.mark.parametrize("how", [COMPRESSED, ENCRYPTED, COMPRESSED | ENCRYPTED])
def test_the_ledger_equals_the_model_when_compressed_and_encrypted(how: dict[str, str]) -> None:
    """The library's own variables, through the whole state machine."""

    class Machine(ScoringMachine):
        def make_scoring(self) -> Scoring:
            return Scoring(how)

    quick = settings(max_examples=15, stateful_step_count=20, derandomize=True)
    run_state_machine_as_test(Machine, settings=quick)


@pytest.mark.parametrize("how", [COMPRESSED, ENCRYPTED, COMPRESSED | ENCRYPTED])
def test_compressed_and_encrypted_stores_are_loaded_again(
    tmp_path: Path, how: dict[str, str]
) -> None:
    """Events, claims and snapshots; nothing is on disk in plain text."""
    file = tmp_path / "events.sqlite"
    grants = [make_grant(number, user_id="jane-the-secret") for number in range(250)]
    with Scoring(sqlite_env(file) | how) as app:
        app.grant_many(grants[:210])
    with Scoring(sqlite_env(file) | how) as app:
        assert app.score_of("jane-the-secret").grant_count == 210
        statuses = [receipt.status for receipt in app.grant_many(grants)]
        assert statuses == [GrantStatus.DUPLICATE] * 210 + [GrantStatus.RECORDED] * 40
    with closing(sqlite3.connect(file)) as database:
        rows = [
            row[0]
            for table in ("stored_events", "stored_snapshots")
            for row in database.execute(f"SELECT state FROM {table}")
        ]
    assert len(rows) > 500
    assert not any(b"jane-the-secret" in state for state in rows)
    if how == COMPRESSED:
        assert b"jane-the-secret" in zlib.decompress(rows[0])


def test_another_key_is_a_clear_error(tmp_path: Path) -> None:
    """Reading what another key encrypted is refused at once, and writes nothing."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env | ENCRYPTED) as app:
        app.grant(**QUIZ)
        newest = app.recorder.max_notification_id()
    wrong = ENCRYPTED | {"CIPHER_KEY": AESCipher.create_key(32)}
    with Scoring(env | wrong) as app:
        with pytest.raises(ScoringError, match="cannot be read: Failed to deserialise"):
            app.score_of("Zoë")
        with pytest.raises(ScoringError, match="refused the grants: Failed to deserialise"):
            app.grant(**{**QUIZ, "grant_id": "quiz-2"})
        assert app.recorder.max_notification_id() == newest


def test_events_are_found_by_their_topics() -> None:
    """What projections select or skip by name keeps its name."""
    assert GRANT_CLAIMED_1.topic == GrantClaimed.TOPIC
    assert GRANT_RECORDED_1.topic == UserScore.GrantRecorded.TOPIC
    assert CREATED_1.topic == UserScore.Created.TOPIC
    assert UserScore.BucketSet.TOPIC == "scoring:UserScore.BucketSet"
