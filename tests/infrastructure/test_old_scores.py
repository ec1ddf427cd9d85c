"""``OldScores``: what an old collection says, in each of its shapes, and what cannot be taken."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import DatetimeMS, Decimal128, Int64, ObjectId, encode
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collation import Collation, CollationStrength

from fail_points import failing
from heard_commands import HeardCommands
from projections import OldScores, OldUser, ProjectionError, ReadModelUnavailable, RejectReason
from projections.mongo import connect
from replica_set import ReplicaSet
from scoring.contributions import Bucket
from support import NOON

Document = dict[str, Any]

LABELLED = {"category": "telemetry", "source": "app"}


@pytest.fixture
def site(mongo_uri: str) -> Iterator[MongoClient[Document]]:
    """A client whose URI names a database of the site's own in its path."""
    name = f"site_{uuid4().hex}"
    base, _, options = mongo_uri.partition("?")
    with connect(f"{base.rstrip('/')}/{name}?{options}") as client:
        yield client
        client.drop_database(name)


def given(site: MongoClient[Document], *documents: Any, collection: str = "scores") -> None:
    site.get_default_database()[collection].insert_many(documents)


def old_scores(**changes: Any) -> OldScores:
    return OldScores(**{"collection": "scores", "buckets": "buckets", **changes})


def only(users: Iterator[OldUser]) -> OldUser:
    (user,) = users
    return user


EXPECTED = {
    "telemetry:activity": Bucket(12, "telemetry", "app"),
    "award:badge:early": Bucket(20, "award", "badge"),
}

SHAPES: dict[str, tuple[list[Document], OldScores]] = {
    "a map": (
        [
            {
                "_id": "ada",
                "buckets": {
                    "telemetry:activity": {"points": 12, **LABELLED},
                    "award:badge:early": {"points": 20, "category": "award", "source": "badge"},
                },
            }
        ],
        old_scores(),
    ),
    "a map of bare numbers, with labels by pattern": (
        [{"_id": "ada", "buckets": {"telemetry:activity": 12, "award:badge:early": Int64(20)}}],
        old_scores(
            labels=(
                {"keys": "telemetry:*", **LABELLED},
                {"keys": "award:badge:*", "category": "award", "source": "badge"},
            )
        ),
    ),
    "an array at a path": (
        [
            {
                "name": "ada",
                "stats": {
                    "list": [
                        {"k": "telemetry:activity", "v": {"p": 12}, "c": "telemetry", "s": "app"},
                        {"k": "award:badge:early", "v": {"p": 20}, "c": "award", "s": "badge"},
                    ]
                },
            }
        ],
        OldScores(
            collection="scores",
            user="name",
            buckets="stats.list",
            key="k",
            points="v.p",
            category="c",
            source="s",
        ),
    ),
    "a document a bucket": (
        [
            {
                "_id": {"user": "ada", "key": "award:badge:early"},
                "points": 20,
                "category": "award",
                "source": "badge",
            },
            {"_id": {"user": "ada", "key": "telemetry:activity"}, "points": 12, **LABELLED},
        ],
        OldScores(collection="scores", user="_id.user", key="_id.key"),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_says_the_same(site: MongoClient[Document], shape: str) -> None:
    """Wherever the buckets are and however they are spelt."""
    documents, old = SHAPES[shape]
    given(site, *documents)
    user = only(old.read(site))
    assert user.user_id == "ada"
    assert {key: contribution.bucket for key, contribution in user.buckets.items()} == EXPECTED
    assert user.rejects == []
    assert only(old.read(site, users=["ada", "nobody"])).buckets == user.buckets


R = RejectReason
AT = {"at": "at"}

REFUSED: dict[str, tuple[str, Any, OldScores, list[tuple[RejectReason, str, Any]]]] = {
    # key, bucket, description, and what is refused: reason, path behind the bucket, value
    "whole": ("k", {"points": 12.0, **LABELLED}, old_scores(), [(R.POINTS_WHOLE, "points", 12.0)]),
    "whole decimal": (
        *("k", {"points": Decimal128("12.0"), **LABELLED}, old_scores()),
        [(R.POINTS_WHOLE, "points", Decimal128("12.0"))],
    ),
    "fraction": (
        *("k", {"points": 12.5, **LABELLED}, old_scores(round="whole")),
        [(R.POINTS_FRACTION, "points", 12.5)],
    ),
    "negative": (
        "k",
        {"points": -3, **LABELLED},
        old_scores(),
        [(R.POINTS_NEGATIVE, "points", -3)],
    ),
    "barely negative": (
        *("k", {"points": -0.4, **LABELLED}, old_scores(round="nearest")),
        [(R.POINTS_NEGATIVE, "points", -0.4)],
    ),
    "too many": (
        *("k", {"points": 10**10, **LABELLED}, old_scores()),
        [(R.POINTS_TOO_LARGE, "points", 10**10)],
    ),
    "text": (
        *("k", {"points": "12", **LABELLED}, old_scores(round="nearest")),
        [(R.POINTS_NOT_A_NUMBER, "points", "12")],
    ),
    "true": (
        *("k", {"points": True, **LABELLED}, old_scores()),
        [(R.POINTS_NOT_A_NUMBER, "points", True)],
    ),
    "infinite": (
        *("k", {"points": float("inf"), **LABELLED}, old_scores(round="nearest")),
        [(R.POINTS_NOT_A_NUMBER, "points", float("inf"))],
    ),
    "infinite decimal": (
        *("k", {"points": Decimal128("NaN"), **LABELLED}, old_scores(round="nearest")),
        [(R.POINTS_NOT_A_NUMBER, "points", Decimal128("NaN"))],
    ),
    "no points": ("k", LABELLED, old_scores(), [(R.POINTS_MISSING, "points", None)]),
    "underscore": (
        *("k", {"points": 1, "category": "feed_post", "source": "app"}, old_scores()),
        [(R.LABEL_INVALID, "category", "feed_post")],
    ),
    "capital": (
        *("k", {"points": 1, "category": "telemetry", "source": "Telemetry"}, old_scores()),
        [(R.LABEL_INVALID, "source", "Telemetry")],
    ),
    "no source": (
        *("k", {"points": 1, "category": "telemetry"}, old_scores()),
        [(R.LABEL_MISSING, "source", None)],
    ),
    "a label that is no text": (
        *("k", {"points": 1, "category": 7, "source": "app"}, old_scores()),
        [(R.LABEL_INVALID, "category", 7)],
    ),
    "space": ("a b", {"points": 1, **LABELLED}, old_scores(), [(R.KEY_INVALID, "", "a b")]),
    "umlaut": ("über", {"points": 1, **LABELLED}, old_scores(), [(R.KEY_INVALID, "", "über")]),
    "no key at all": ("", {"points": 1, **LABELLED}, old_scores(), [(R.KEY_INVALID, "", "")]),
    "all at once": (
        *("a b", {"points": -1, "category": "No", "source": ""}, old_scores()),
        [
            (R.POINTS_NEGATIVE, "points", -1),
            (R.LABEL_MISSING, "source", ""),
            (R.KEY_INVALID, "", "a b"),
            (R.LABEL_INVALID, "category", "No"),
        ],
    ),
    "no time": (
        *("award:badge:x", {"points": 1, "at": "yesterday", **LABELLED}, old_scores(**AT)),
        [(R.TIME_UNREADABLE, "at", "yesterday")],
    ),
    "no time and no label": (
        *("award:badge:x", {"points": 1, "source": "app"}, old_scores(**AT)),
        [(R.LABEL_MISSING, "category", None), (R.TIME_MISSING, "", None)],
    ),
    "a time without offset": (
        *("award:badge:x", {"points": 1, "at": "2026-11-22T12:00:00", **LABELLED}),
        *(old_scores(**AT), [(R.TIME_UNREADABLE, "at", "2026-11-22T12:00:00")]),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_has_its_reason_its_value_and_its_place(
    site: MongoClient[Document], name: str
) -> None:
    """And does not keep the user's other buckets out."""
    key, bucket, old, expected = REFUSED[name]
    given(site, {"_id": "ada", "buckets": {"fine": {"points": 1, **LABELLED}, key: bucket}})
    user = only(old.read(site))
    assert list(user.buckets) == ["fine"]
    place = f"buckets.{key}"
    assert [(r.reason, r.path, r.value) for r in user.rejects] == [
        (reason, f"{place}.{path}" if path else place, value) for reason, path, value in expected
    ]
    assert {(r.user_id, r.key, r.document_id) for r in user.rejects} == {("ada", key, "ada")}


TAKEN: dict[str, tuple[Document, Document, Bucket]] = {
    "whole": ({"round": "whole"}, {"points": 12.0, **LABELLED}, Bucket(12, "telemetry", "app")),
    "a half goes up": (
        *({"round": "nearest"}, {"points": 12.5, **LABELLED}),
        Bucket(13, "telemetry", "app"),
    ),
    "a decimal": (
        *({"round": "nearest"}, {"points": Decimal128("12.4"), **LABELLED}),
        Bucket(12, "telemetry", "app"),
    ),
    "a label that is mapped": (
        {"label_map": {"feed_post": "feed-post", "Telemetry": "telemetry"}},
        {"points": 1, "category": "feed_post", "source": "Telemetry"},
        Bucket(1, "feed-post", "telemetry"),
    ),
    "a label that is missing": (
        {"labels": [{"keys": "other", **LABELLED}, {"keys": "k*", "category": "a", "source": "b"}]},
        {"points": 1, "source": "own"},
        Bucket(1, "a", "own"),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_was_chosen_is_taken(site: MongoClient[Document], name: str) -> None:
    """Each choice makes something acceptable that is refused without it."""
    chosen, bucket, expected = TAKEN[name]
    given(site, {"_id": "ada", "buckets": {"key": bucket}})
    assert only(old_scores().read(site)).buckets == {}
    assert only(old_scores(**chosen).read(site)).buckets["key"].bucket == expected


def test_a_key_that_a_user_has_twice_is_taken_not_at_all(site: MongoClient[Document]) -> None:
    """Which of them is meant cannot be known, however many there are."""
    points = [1, 2, 2]
    given(site, *({"user": "ada", "key": "k", "points": n, **LABELLED} for n in points))
    user = only(OldScores(collection="scores", user="user").read(site))
    assert user.buckets == {}
    assert [r.reason for r in user.rejects] == [R.KEY_TWICE] * 3
    assert sorted(r.value[0] for r in user.rejects) == points


TIMES: dict[str, tuple[Any, datetime]] = {
    "a date": (NOON, NOON),
    "a text": ("2026-11-22T13:00:00+01:00", NOON),
    "an id": (ObjectId.from_datetime(NOON), NOON),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_are_those_of_the_document(site: MongoClient[Document], name: str) -> None:
    """The one that is given stands in only where there is none, and only for what is granted."""
    value, moment = TIMES[name]
    given_at = datetime(2020, 1, 1, tzinfo=UTC)
    given(
        site,
        {
            "_id": "ada",
            "buckets": {
                "award:badge:x": {"points": 1, "at": value, **LABELLED},
                "award:badge:y": {"points": 1, **LABELLED},
                "telemetry:a": {"points": 1, **LABELLED},
            },
        },
    )
    taken = only(old_scores(at="at").read(site)).buckets
    assert [each.at for each in taken.values()] == [moment, None, None]
    taken = only(old_scores(at="at", granted_at=given_at).read(site)).buckets
    assert [each.at for each in taken.values()] == [moment, given_at, None]


BEYOND = RawBSONDocument(
    encode({"user": "AB", "at": DatetimeMS(2**62)}).replace(b"AB", b"\xff\xfe")
)
"""Text that is not UTF-8, and a date beyond the year 9999."""


def test_what_python_has_no_values_for_is_refused_and_stops_nothing(
    site: MongoClient[Document],
) -> None:
    """The driver would give up the whole answer for one of them."""
    given(site, BEYOND, {"user": "zoe", "key": "k", "points": 1, **LABELLED})
    first, second = OldScores(collection="scores", user="user", at="at").read(site)
    found = [first, second] if first.user_id is None else [second, first]
    assert [reject.reason for reject in found[0].rejects] == [R.USER_INVALID]
    assert found[1].user_id == "zoe"


def test_users_that_are_not_text_are_refused_or_taken_as_text(site: MongoClient[Document]) -> None:
    """ObjectIds, integers and UUIDs have a text that everybody knows; nothing else has."""
    id_, uuid = ObjectId(), UUID("6c1d7c0e-6f1b-5b0e-9a53-2f6f2b9d8a01")
    buckets = {"k": {"points": 1, **LABELLED}}
    users: list[Any] = [7, 8.0, id_, {"a": 1}, True, 9.5]
    given(site, *({"_id": user, "buckets": buckets} for user in users))
    refused = list(old_scores().read(site))
    assert [user.user_id for user in refused] == [None] * len(users)
    assert {r.reason for user in refused for r in user.rejects} == {R.USER_NOT_TEXT}
    old = old_scores(users_as_text=True)
    taken = [user.user_id for user in old.read(site)]
    assert taken == ["7", "8", None, None, str(id_), None]  # in MongoDB's order of types
    found = old.read(site, users=["7", "8", str(id_), str(uuid), "77"])
    assert [user.user_id for user in found] == ["7", "8", str(id_)]


def test_a_user_in_two_spellings_is_not_mixed_up(site: MongoClient[Document]) -> None:
    """An integer and its text, or composed and decomposed letters: the plain text is taken."""
    buckets = {"k": {"points": 1, **LABELLED}}
    given(
        site,
        *({"_id": user, "buckets": buckets} for user in (7, "7", "e\u0301", "\u00e9", "o\u0308")),
    )
    found = list(old_scores(users_as_text=True).read(site))
    assert [user.user_id for user in found] == [None, "7", None, "ö", "é"]
    rejects = [reject for user in found for reject in user.rejects]
    assert [(r.reason, r.value) for r in rejects] == [(R.USER_TWICE, 7), (R.USER_TWICE, "e\u0301")]
    asked = [user.user_id for user in old_scores().read(site, users=["ö"])]
    assert asked == ["ö"]


def test_users_are_told_apart_whatever_the_collation_of_the_collection(
    site: MongoClient[Document],
) -> None:
    """Sorted as one, the documents of two users would come mixed."""
    alike = Collation(locale="en", strength=CollationStrength.SECONDARY)
    site.get_default_database().create_collection("scores", collation=alike)
    given(
        site,
        *(
            {"user": user, "key": key, "points": 1, **LABELLED}
            for key in ("k1", "k2")
            for user in ("ada", "Ada")
        ),
    )
    found = OldScores(collection="scores", user="user").read(site)
    assert [(user.user_id, list(user.buckets)) for user in found] == [
        ("Ada", ["k1", "k2"]),
        ("ada", ["k1", "k2"]),
    ]


def test_documents_without_a_user_are_told_one_by_one(site: MongoClient[Document]) -> None:
    """There may be any number of them."""
    given(
        site, {"_id": 1, "key": "k"}, {"_id": 2, "key": "k", "user": None}, {"_id": 3, "user": " "}
    )
    found = list(OldScores(collection="scores", user="user").read(site))
    assert [(r.document_id, r.reason) for user in found for r in user.rejects] == [
        (1, R.USER_MISSING),
        (2, R.USER_MISSING),
        (3, R.USER_INVALID),
    ]


def test_the_old_total_is_read_and_need_not_be_there(site: MongoClient[Document]) -> None:
    """It is only compared with, so what is whole is taken."""
    totals: list[Any] = [12.0, 7, None, "many"]
    given(site, *({"_id": f"u{n}", "sum": {"t": total}} for n, total in enumerate(totals)))
    found = list(old_scores(total="sum.t").read(site))
    assert [user.total for user in found] == [12, 7, None, None]
    assert [(r.reason, r.path) for user in found for r in user.rejects] == [
        (R.TOTAL_UNREADABLE, "sum.t")
    ]


@pytest.mark.parametrize(
    ("buckets", "reason", "path"),
    [
        ("none", R.BUCKETS_UNREADABLE, "buckets"),
        ([1], R.BUCKET_UNREADABLE, "buckets.0"),
        ([{"points": 1, **LABELLED}], R.KEY_MISSING, "buckets.0.key"),
    ],
)
def test_buckets_that_are_something_else_are_told(
    site: MongoClient[Document], buckets: Any, reason: RejectReason, path: str
) -> None:
    given(site, {"_id": "ada", "buckets": buckets})
    (reject,) = only(old_scores().read(site)).rejects
    assert (reject.reason, reject.path, reject.key) == (reason, path, None)


def test_nothing_but_reads_is_sent(site: MongoClient[Document], mongo_uri: str) -> None:
    """Also with an ``OldScores`` that has to look for another spelling."""
    database = site.get_default_database().name
    given(site, *({"_id": n, "buckets": {"k": 1}} for n in range(10)), {"_id": "5"})
    told = HeardCommands()
    with MongoClient[Document](mongo_uri, event_listeners=[told]) as client:
        old = old_scores(database=database, users_as_text=True)
        assert old.count(client) == 11
        assert len(list(old.read(client))) == 11
    assert set(told.names) <= {"find", "getMore", "count", "endSessions", "saslContinue"}


def test_the_database_is_named_by_the_description_or_the_uri(
    site: MongoClient[Document], mongo_uri: str
) -> None:
    """There is no default that might be somebody else's."""
    given(site, {"_id": "ada"})
    assert only(old_scores().read(site)).user_id == "ada"
    with connect(mongo_uri) as client:
        with pytest.raises(ProjectionError, match="in which database the old collection scores"):
            next(old_scores().read(client))
        named = old_scores(database=site.get_default_database().name)
        assert only(named.read(client)).user_id == "ada"


def test_memory_does_not_grow_with_the_collection(site: MongoClient[Document]) -> None:
    """Four times as many users take no more."""
    peaks = []
    for begin, end in ((0, 1_500), (1_500, 6_000)):
        buckets = [{"k": "key", "points": 1, **LABELLED}]
        given(site, *({"_id": f"user-{n:06}", "buckets": buckets} for n in range(begin, end)))
        tracemalloc.start()
        count = sum(1 for _ in old_scores(key="k").read(site))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == end
    assert peaks[1] < 1.5 * peaks[0]


EACH: list[Any] = [*range(350), *(f"u{number:04}" for number in range(350, 400))]
"""Users of two types, in MongoDB's order; the first answer ends among the numbers."""


def given_each(client: MongoClient[Document], database: str) -> OldScores:
    """Each of these has three documents, so that one answer ends within a user."""
    client[database]["scores"].insert_many(
        {"user": user, "key": key, "points": 1, **LABELLED} for user in EACH for key in "abc"
    )
    return OldScores(collection="scores", database=database, user="user", users_as_text=True)


def assert_each_once(found: list[OldUser]) -> None:
    assert [(user.user_id, sorted(user.buckets), user.rejects) for user in found] == [
        (str(user), ["a", "b", "c"], []) for user in EACH
    ]


@pytest.mark.parametrize(
    "failure",
    [{"errorCode": 11602}, {"errorCode": 43}, {"closeConnection": True}],
    ids=["stepped down", "no cursor", "no connection"],
)
def test_reading_goes_on_after_the_last_user_that_was_read(
    site: MongoClient[Document], mongo_uri: str, failure: Document
) -> None:
    """Every user once and in order, with all buckets, though an answer fails in the midst of one.

    The driver asks once more by itself where it may; more than that are ours to ask again.
    """
    old = given_each(site, site.get_default_database().name)
    with failing(mongo_uri, "getMore", mode={"times": 2}, **failure):
        assert_each_once(list(old.read(site)))


def test_a_failure_that_does_not_pass_is_raised(
    site: MongoClient[Document], mongo_uri: str
) -> None:
    """With what MongoDB says, and not asked again for a minute."""
    old = given_each(site, site.get_default_database().name)
    with (
        failing(mongo_uri, "getMore", errorCode=13),
        pytest.raises(ReadModelUnavailable, match="refused access"),
    ):
        list(old.read(site))


@pytest.mark.soak
def test_reading_goes_on_when_the_primary_is_killed_and_the_next_steps_down(
    replica_set: ReplicaSet,
) -> None:
    """Likewise, on three nodes."""
    with connect(replica_set.uri) as client:
        database = f"site_{uuid4().hex}"
        found = []
        for number, user in enumerate(given_each(client, database).read(client)):
            found.append(user)
            if number == 100:
                replica_set.kill(replica_set.primary())
            if number == 340:
                replica_set.step_down()
        assert_each_once(found)
        client.drop_database(database)


WRONG_TOML: dict[str, tuple[str, str]] = {
    "no TOML": ("collection = ", "is not TOML"),
    "unknown": ('collection = "a"\ncolour = 1\n', "colour: Extra inputs are not permitted"),
    "no collection": ("", "collection: Field required"),
    "a path": ('collection = "a"\nuser = "a..b"\n', "user: 'a..b' is not a path"),
    "a label": (
        'collection = "a"\n[label_map]\nfeed_post = "feed_post"\n',
        "label_map.feed_post: a label is 1 to 32 characters",
    ),
    "a time": ('collection = "a"\ngranted_at = 2026-11-22T09:30:00\n', "granted_at: Input should"),
    "a total of nobody": ('collection = "a"\ntotal = "t"\n', "total is a field of a user's"),
    "rounding": ('collection = "a"\nround = "up"\n', "round: Input should be 'refuse'"),
}


@pytest.mark.parametrize("name", WRONG_TOML)
def test_a_wrong_description_is_one_sentence(tmp_path: Path, name: str) -> None:
    text, message = WRONG_TOML[name]
    (tmp_path / "old.toml").write_text(text)
    with pytest.raises(ValueError, match=r"old\.toml") as raised:
        OldScores.from_toml(tmp_path / "old.toml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_description_from_toml_is_the_one_from_python(tmp_path: Path) -> None:
    """Every attribute has its name in the file."""
    (tmp_path / "old.toml").write_text(
        """
        collection = "scores"
        database = "site"
        user = "userId"
        buckets = "buckets"
        at = "changedAt"
        total = "total"
        round = "whole"
        users_as_text = true
        granted_at = 2026-11-22T12:00:00Z
        labels = [{ keys = "telemetry:*", category = "telemetry", source = "app" }]
        [label_map]
        feed_post = "feed-post"
        """
    )
    assert OldScores.from_toml(tmp_path / "old.toml", round="nearest") == OldScores(
        collection="scores",
        database="site",
        user="userId",
        buckets="buckets",
        at="changedAt",
        total="total",
        round="nearest",
        users_as_text=True,
        granted_at=NOON,
        labels=({"keys": "telemetry:*", **LABELLED},),
        label_map={"feed_post": "feed-post"},
    )
    with pytest.raises(ValueError, match=r"missing\.toml cannot be read: No such file"):
        OldScores.from_toml(tmp_path / "missing.toml")
