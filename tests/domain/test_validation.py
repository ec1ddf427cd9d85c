"""What is accepted, row by row of the specification's table, at every door of the Python API."""

from __future__ import annotations

import copy
import math
import pickle
import random
import sys
import unicodedata
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from scoring import (
    BatchFailed,
    Grant,
    GrantStatus,
    InvalidGrant,
    Scoring,
    UserScore,
)
from scoring.testing import grants, invalid_grants
from support import make_grant

MAX_TOTAL = 2**63 - 1
UTC_MINUS_1 = timezone(timedelta(hours=-1))
VALID: dict[str, Any] = make_grant(1, user_id="jane").model_dump()

TOO_LONG = 10**5000  # more digits than Python prints
FEW_MARKS = "e\u0301"  # é in two code points


class Text(str):
    """A string of an embedder's own class."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not what it holds"


class Colour(StrEnum):
    RED = "red"


class Points(IntEnum):
    FIVE = 5


class DatetimeSubclass(datetime):
    """As pendulum and pandas have them."""


class Nowhere(tzinfo):
    """A timezone that does not know its offset, so the time is naive after all."""

    def __repr__(self) -> str:
        return "nowhere"

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


class Thing:
    """No value of any field."""

    def __repr__(self) -> str:
        return "a thing"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


ACCEPTED: list[tuple[str, Any, Any]] = [
    ("user_id", "j", "j"),
    ("user_id", "a" * 128, "a" * 128),
    ("user_id", FEW_MARKS * 128, "é" * 128),
    ("user_id", "\u1112\u1161\u11ab" * 128, "한" * 128),
    ("user_id", "\u212b", "\u00e5".upper()),
    ("user_id", "two words", "two words"),
    ("user_id", "👩\u200d🚀", "👩\u200d🚀"),
    ("user_id", "\u200bzero width\ufeff", "\u200bzero width\ufeff"),
    ("user_id", "שלום", "שלום"),
    ("user_id", "private \ue000", "private \ue000"),
    ("user_id", "$where.x/y:z", "$where.x/y:z"),
    ("user_id", Colour.RED, "red"),
    ("user_id", Text("jane"), "jane"),
    ("user_id", Text(FEW_MARKS), "é"),
    ("grant_id", "g" * 256, "g" * 256),
    ("grant_id", FEW_MARKS * 256, "é" * 256),
    ("grant_id", "award:badge:7", "award:badge:7"),
    ("grant_id", "carl/award:badge:", "carl/award:badge:"),
    ("grant_id", "carl/award:badge:a/b", "carl/award:badge:a/b"),
    ("grant_id", "carl/award:badge:🏅", "carl/award:badge:🏅"),
    ("key", "k", "k"),
    ("key", "k" * 256, "k" * 256),
    ("key", "a:B:0._~@/-", "a:B:0._~@/-"),
    ("key", "content:feed-post:8812:like", "content:feed-post:8812:like"),
    ("key", "award:badge:a/b", "award:badge:a/b"),
    ("key", Text("quiz:1"), "quiz:1"),
    ("category", "c", "c"),
    ("category", "a" + "b-9" * 10 + "z", "a" + "b-9" * 10 + "z"),
    ("source", "feed", "feed"),
    ("source", Colour.RED, "red"),
    ("amount", 1, 1),
    ("amount", 1_000_000_000, 1_000_000_000),
    ("amount", Points.FIVE, 5),
    (
        "granted_at",
        datetime(2026, 1, 1, 1, tzinfo=UTC_MINUS_1),
        datetime(2026, 1, 1, 2, tzinfo=UTC),
    ),
    (
        "granted_at",
        datetime(2026, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, 999_000, tzinfo=UTC),
    ),
    (
        "granted_at",
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 0, tzinfo=UTC),
    ),
    ("granted_at", datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)),
    ("granted_at", DatetimeSubclass(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
]

NOT_TEXT = [None, 7, 7.0, b"jane", bytearray(b"jane"), ["jane"], True, Thing()]
NOT_LABELS = ["", "Content", "cOntent", "9a", "-a", "a.b", "$inc", "a_b", "a b", "é", "a\n", "\na"]
REFUSED: list[tuple[str, Any]] = [
    *(("user_id", value) for value in NOT_TEXT),
    ("user_id", ""),
    ("user_id", "a" * 129),
    ("user_id", "é" * 129),
    ("user_id", FEW_MARKS * 129),
    ("user_id", "\u0958" * 65),  # NFC makes two code points of this one
    ("user_id", "a" * 1_000_000),
    ("user_id", FEW_MARKS * 500_000),
    *(("user_id", f"{space}jane") for space in " \u00a0\u1680\u2003\u202f\u3000"),
    *(("user_id", f"jane{space}") for space in " \t\n\u00a0\u2028\u3000"),
    *(("user_id", f"ja{bad}ne") for bad in "\x00\t\n\r\x1b\x7f\x80\x9f\u2028\u2029"),
    *(("user_id", f"ja{bad}ne") for bad in "\ud800\udfff\ufdd0\uffff\U0010ffff\u0378"),
    ("user_id", "\ud83d\ude00"),  # two surrogates are not an emoji
    *(("grant_id", value) for value in NOT_TEXT),
    ("grant_id", ""),
    ("grant_id", "g" * 257),
    ("grant_id", " g"),
    ("grant_id", "g\u2029"),
    ("grant_id", "\ud800"),
    *(("key", value) for value in NOT_TEXT),
    *(
        ("key", value)
        for value in ("", ":", "a:", ":a", "a::b", "a b", "a\n", "\na", "é", "a$", "a|b")
    ),
    ("key", "k" * 257),
    ("key", "award:🏅:7"),
    ("key", "\ud800"),
    *((name, value) for name in ("category", "source") for value in (*NOT_TEXT, *NOT_LABELS)),
    ("category", "a" * 33),
    *(("amount", value) for value in (0, -1, 1_000_000_001, 2**63, 2**64, -(2**70))),
    *(("amount", value) for value in (True, False, 5.0, 5.5, "5", b"5", None, [5])),
    *(("amount", value) for value in (math.nan, math.inf, Decimal(5), Fraction(5), 5 + 0j)),
    ("granted_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - naive is what is refused
    ("granted_at", datetime(2026, 1, 1, tzinfo=Nowhere())),
    *(("granted_at", value) for value in (None, "2026-01-01T00:00:00Z", 0, 1.5, date(2026, 1, 1))),
    ("granted_at", datetime.max.replace(tzinfo=UTC_MINUS_1)),
    ("granted_at", datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
]


def name_of(value: object) -> str:
    shown = value[:30] if isinstance(value, str) else value
    return "unprintable" if isinstance(shown, Unprintable) or shown == TOO_LONG else ascii(shown)


@pytest.fixture
def memory() -> Iterator[Scoring]:
    """An empty ledger."""
    with Scoring() as app:
        yield app


@pytest.mark.parametrize(("field", "value", "kept"), ACCEPTED, ids=name_of)
def test_what_is_accepted_is_kept_in_its_normal_form(
    memory: Scoring, field: str, value: Any, kept: Any
) -> None:
    """The grant, the stored event and a repetition in normal form agree on it."""
    grant = Grant(**{**VALID, field: value})
    assert getattr(grant, field) == kept
    assert type(getattr(grant, field)) is type(kept)
    assert memory.grant(**{**VALID, field: value}).status is GrantStatus.RECORDED
    assert memory.grant(**{**VALID, field: kept}).status is GrantStatus.DUPLICATE
    events = memory.events.get(UserScore.create_id(grant.user_id), gt=1)
    assert [getattr(event, field) for event in events] == [kept]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=name_of)
def test_what_is_refused_is_named_at_every_door(memory: Scoring, field: str, value: Any) -> None:
    """Field, value and rule are in the error, and nothing is written, wherever it comes in."""
    kwargs = {**VALID, field: value}
    aggregate = UserScore(user_id="jane")
    aggregate.collect_events()
    doors: list[Any] = [
        lambda: Grant(**kwargs),
        lambda: Grant.model_construct(**kwargs),
        lambda: Grant(**VALID).model_copy(update={field: value}),
        lambda: Grant(**VALID).copy(update={field: value}),
        lambda: memory.grant(**kwargs),
    ]
    if field == "user_id":
        doors += [lambda: UserScore(user_id=value), lambda: memory.score_of(value)]
    else:
        of_jane = {name: kwargs[name] for name in kwargs if name != "user_id"}
        doors.append(lambda: aggregate.grant(**of_jane))
    for door in doors:
        with pytest.raises(InvalidGrant) as refused:
            door()
        error = refused.value
        assert error.field == field
        assert error.value is value or error.value == value
        assert str(error).startswith(f"{field} must be {error.rule}; got ")
        assert len(str(error)) < 500
        assert str(error).isascii() or "…" in str(error)
        assert isinstance(error, ValueError)
    with pytest.raises(ValidationError):
        Grant.model_validate(kwargs)
    with pytest.raises(BatchFailed) as failed:
        memory.grant_many(Grant(**some) for some in (VALID, kwargs))
    assert (failed.value.index, failed.value.receipts_so_far) == (1, [])
    assert aggregate.collect_events() == []
    assert memory.recorder.max_notification_id() is None


@given(invalid=invalid_grants())
def test_whatever_is_invalid_is_refused(invalid: tuple[dict[str, Any], str]) -> None:
    """As above, with values that nobody thought of."""
    kwargs, field = invalid
    with Scoring() as app:
        with pytest.raises(InvalidGrant) as refused:
            app.grant(**kwargs)
        assert refused.value.field == field
        assert app.recorder.max_notification_id() is None


@given(grant=grants())
def test_a_valid_grant_survives_copies_and_pickling(grant: Grant) -> None:
    """Grants cross process borders whole, and stay valid."""
    for twin in (
        pickle.loads(pickle.dumps(grant)),
        copy.copy(grant),
        copy.deepcopy(grant),
        grant.model_copy(),
        grant.copy(deep=True),
        Grant.model_construct(**grant.model_dump()),
        Grant.model_validate(grant.model_dump()),
    ):
        assert twin == grant
        assert type(twin) is Grant
    with pytest.raises(ValidationError):
        grant.amount = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "value", [TOO_LONG, Unprintable(), "\ud800" * 1000, [0] * 1000], ids=name_of
)
def test_what_cannot_be_printed_is_refused_all_the_same(value: Any) -> None:
    """The error does not trip over the value it names."""
    with pytest.raises(InvalidGrant) as refused:
        Grant(**{**VALID, "amount": value})
    assert len(str(refused.value)) < 300


def test_unknown_and_missing_fields_are_errors() -> None:
    """A typing mistake is not silently dropped."""
    for mistaken in ({**VALID, "points": 5}, {k: v for k, v in VALID.items() if k != "amount"}):
        with pytest.raises(TypeError):
            Grant(**mistaken)
        with pytest.raises((TypeError, ValidationError)):
            Grant.model_validate(mistaken)


def test_the_category_of_every_character_decides() -> None:
    """All characters of the small categories, and a sample of the others."""
    rng = random.Random(1)
    by_category: dict[str, list[str]] = {}
    for code in range(sys.maxunicode + 1):
        by_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    for category, characters in by_category.items():
        sample = characters if len(characters) <= 100 else rng.sample(characters, 100)
        for character in sample:
            text = f"a{character}a"
            if category in {"Cc", "Cs", "Cn", "Zl", "Zp"}:
                with pytest.raises(InvalidGrant):
                    Grant(**{**VALID, "user_id": text})
            else:
                kept = Grant(**{**VALID, "user_id": text}).user_id
                assert kept == unicodedata.normalize("NFC", text)


def test_ids_are_normalised_in_queries_too(memory: Scoring) -> None:
    """The same user and the same id, however they are written."""
    memory.grant(**{**VALID, "user_id": f"Zo{FEW_MARKS}", "grant_id": f"g-{FEW_MARKS}"})
    again = memory.grant(**{**VALID, "user_id": "Zoé", "grant_id": "g-é"})
    assert again.status is GrantStatus.DUPLICATE
    assert memory.score_of("Zoé") == memory.score_of(f"Zo{FEW_MARKS}")
    assert memory.score_of("Zoé").grant_count == 1
    assert UserScore.create_id("Zoé") == UserScore(user_id=f"Zo{FEW_MARKS}").id


# --- derived ids ---------------------------------------------------------------------------------

SHAPED = ["award:badge:early-bird", "content:feed-post:8812", "award:badge:" + "x" * 244]


@pytest.mark.parametrize("key", SHAPED, ids=name_of)
@pytest.mark.parametrize("user_id", ["jane", "a/b", "u" * 128, "é", "award:badge:1"], ids=name_of)
def test_a_derived_id_is_accepted_with_its_own_user_and_key(
    memory: Scoring, user_id: str, key: str
) -> None:
    """It may be longer than the limit for given ids."""
    kwargs = {**VALID, "user_id": user_id, "key": key, "grant_id": f"{user_id}/{key}"}
    assert memory.grant(**kwargs).status is GrantStatus.RECORDED
    assert memory.score_of(user_id).recomputed_total == VALID["amount"]


@pytest.mark.parametrize(
    ("user_id", "grant_id", "key"),
    [
        ("jane", "mine", "award:badge:1"),
        ("jane", "award:badge:1", "award:badge:1"),
        ("jane", "/award:badge:1", "award:badge:1"),
        ("jane", "carl/award:badge:1", "award:badge:1"),
        ("jane", "jane/award:badge:2", "award:badge:1"),
        ("jane", "jane/award:badge:1", "quiz:1"),
        ("jane", "carl/award:badge:1", "quiz:1"),
        ("jane", "carl/content:feed-post:1", "quiz:1"),
        ("jane", "/award:badge:1", "quiz:1"),
        ("jane", "carl/x/award:badge:1", "quiz:1"),
        ("a", "a/b/award:badge:1", "award:badge:1"),
        ("JANE", "jane/award:badge:1", "award:badge:1"),
        ("u" * 128, "u" * 129 + "/award:badge:" + "x" * 200, "quiz:1"),
    ],
    ids=name_of,
)
def test_nobody_takes_a_derived_id_ahead_of_time(
    memory: Scoring, user_id: str, grant_id: str, key: str
) -> None:
    """Neither somebody else's nor one's own, by whatever key."""
    with pytest.raises(InvalidGrant) as refused:
        memory.grant(**{**VALID, "user_id": user_id, "grant_id": grant_id, "key": key})
    assert refused.value.field == "grant_id"
    assert memory.recorder.max_notification_id() is None


# --- the total -----------------------------------------------------------------------------------


def rich_user(app: Scoring, missing: int) -> None:
    """Store what only billions of grants could: a total that lacks little to its limit."""
    score = UserScore(user_id="jane")
    score.grant(**{k: v for k, v in VALID.items() if k != "user_id"})
    score.trigger_event(
        UserScore.GrantRecorded,
        **{**VALID, "grant_id": "rich", "amount": MAX_TOTAL - VALID["amount"] - missing},
        replaced_points=None,
    )
    app.save(score)


def test_a_total_never_passes_its_limit(memory: Scoring) -> None:
    """The last point fits, the next one is refused, and the error says how much would."""
    rich_user(memory, missing=5)
    with pytest.raises(InvalidGrant, match=r"amount must be at most 5, .* 2\^63-1; got 6"):
        memory.grant(**{**VALID, "grant_id": "too-much", "amount": 6})
    receipt = memory.grant(**{**VALID, "grant_id": "just-right", "amount": 5})
    assert receipt.total_after == MAX_TOTAL
    with pytest.raises(InvalidGrant, match="at most 0"):
        memory.grant(**{**VALID, "grant_id": "one-more", "amount": 1})
    assert memory.score_of("jane").total_score == MAX_TOTAL


def test_a_full_total_answers_repetitions_as_ever(memory: Scoring) -> None:
    """A duplicate or a conflict adds nothing, so the limit has no say in it."""
    rich_user(memory, missing=0)
    again = memory.grant(**VALID)
    assert (again.status, again.total_after) == (GrantStatus.DUPLICATE, MAX_TOTAL)
    other = memory.grant(**{**VALID, "amount": VALID["amount"] + 1})
    assert (other.status, other.total_after) == (GrantStatus.CONFLICT, MAX_TOTAL)
    statuses = [receipt.status for receipt in memory.grant_many([Grant(**VALID)] * 2)]
    assert statuses == [GrantStatus.DUPLICATE] * 2


def test_a_batch_is_refused_where_it_passes_the_limit(memory: Scoring) -> None:
    """The index is that of the grant which is too much, and nothing of its chunk is recorded."""
    rich_user(memory, missing=5)
    before = memory.recorder.max_notification_id()
    batch = [Grant(**VALID), *(make_grant(n, user_id="jane", amount=2) for n in range(10, 14))]
    with pytest.raises(BatchFailed, match="at most 1") as failed:
        memory.grant_many(batch)
    assert (failed.value.index, failed.value.receipts_so_far) == (3, [])
    assert memory.recorder.max_notification_id() == before


# --- an embedder's own classes -------------------------------------------------------------------


def test_a_subclass_of_grant_is_the_same_payload(memory: Scoring) -> None:
    """What is compared is the payload, not the class it came in."""

    class OurGrant(Grant):
        """An embedder's own."""

    first, second = memory.grant_many([OurGrant(**VALID), Grant(**VALID)])
    assert (first.status, second.status) == (GrantStatus.RECORDED, GrantStatus.DUPLICATE)
    assert memory.grant_many([OurGrant(**VALID)])[0].status is GrantStatus.DUPLICATE


@pytest.mark.parametrize("size", ["-1", "0", "1", "2"])
def test_any_size_of_the_cache_works(size: str) -> None:
    """Zero and less mean no limit, as the library has it."""
    with Scoring({"AGGREGATE_CACHE_MAXSIZE": size}) as app:
        for number in range(20):
            app.grant(**make_grant(number).model_dump())
        assert sum(app.score_of(f"user-{n}").grant_count for n in range(7)) == 20


def test_a_time_of_recording_of_a_subclass_is_stored_as_the_datetime_it_is(
    memory: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``freeze_time``, whose datetimes are of a class of its own."""
    frozen = DatetimeSubclass.fromtimestamp(0, UTC)
    monkeypatch.setattr("eventsourcing.domain.datetime_now_with_tzinfo", lambda: frozen)
    memory.grant(**VALID)
    events: list[Any] = list(memory.events.get(UserScore.create_id("jane")))
    assert [event.timestamp for event in events] == [frozen, frozen]
    assert {type(event.timestamp) for event in events} == {datetime}
