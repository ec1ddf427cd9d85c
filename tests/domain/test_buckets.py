"""``UserScore.contribute``: the buckets of the old way, beside the balance."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from eventsourcing.persistence import StoredEvent
from hypothesis import given
from hypothesis import strategies as st

from old_way import OldWay
from scoring import GrantClaimed, InvalidGrant, Scoring, UserScore
from scoring.contributions import Bucket
from support import NOON

POST = "content:feed-post:1"


def contributed(score: UserScore, *contributions: tuple[Any, ...]) -> list[object]:
    before = len(score.pending_events)
    for contribution in contributions:
        score.contribute(*contribution)
    return list(score.pending_events[before:])


def test_a_contribution_overwrites_the_bucket_and_the_total_may_go_down() -> None:
    """A map from key to points, and the total is the sum of its values."""
    score = UserScore("ada")
    *_, third = contributed(score, ("a:x", "a", "s", 7), ("b", "b", "s", 5), ("a:x", "a", "s", 3))
    assert isinstance(third, UserScore.BucketSet)
    assert (third.points, third.replaced_points, third.recomputed_change) == (3, 7, -4)
    assert score.recomputed_total == 8
    assert score.buckets == {"a:x": Bucket(3, "a", "s"), "b": Bucket(5, "b", "s")}
    assert (score.total_score, score.grant_count) == (0, 0)


def test_a_repeated_contribution_records_nothing() -> None:
    """The same points, category and source; another category is another bucket of equal points."""
    score = UserScore("ada")
    assert len(contributed(score, *[("a", "x", "s", 7)] * 3)) == 1
    assert len(contributed(score, ("a", "y", "s", 7))) == 1
    assert score.recomputed_total == 7


def test_a_first_contribution_of_0_makes_a_bucket() -> None:
    """As in a map, a key with 0 is not the same as no key."""
    score = UserScore("ada")
    assert len(contributed(score, ("a", "x", "s", 0), ("a", "x", "s", 0))) == 1
    assert score.buckets == {"a": Bucket(0, "x", "s")}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("points", value) for value in (-1, 10**9 + 1, True, 5.0, "5", None)],
        *[("key", value) for value in ("", "a b", "a::b", "x" * 257, None)],
        *[("category", value) for value in ("", "Content", "a.b", "$a", None)],
        *[("source", value) for value in ("", "Feed", "a" * 33, 7)],
    ],
)
def test_what_breaks_a_rule_is_refused_by_name_and_triggers_nothing(field: str, value: Any) -> None:
    """The same rules as for grants, and points from 0."""
    score = UserScore("ada")
    values = {"key": "a", "category": "x", "source": "s", "points": 1, field: value}
    with pytest.raises(InvalidGrant) as refused:
        score.contribute(**values)
    assert (refused.value.field, refused.value.value) == (field, value)
    assert score.version == 1


def test_the_recomputed_total_never_passes_what_64_bits_hold() -> None:
    """By contributions or by grants, and what is replaced makes room."""
    score = UserScore("ada")
    score.contribute("a", "x", "s", 10)
    score.recomputed_total = 2**63 - 1
    with pytest.raises(InvalidGrant, match="points must be at most 10,"):
        score.contribute("a", "x", "s", 11)
    with pytest.raises(InvalidGrant, match="amount must be at most 0,"):
        score.grant(f"ada/{POST}", POST, "content", "feed", 1, NOON)
    score.contribute("a", "x", "s", 9)
    score.grant(f"ada/{POST}", POST, "content", "feed", 1, NOON)
    assert score.recomputed_total == 2**63 - 1


def test_a_grant_shaped_key_whose_bucket_is_known_is_overwritten_again() -> None:
    """It has no grant, so a user's other grants are no reason to refuse it; another key is."""
    score = UserScore("ada")
    score.contribute(POST, "content", "feed", 4)
    score.grant("ada/award:badge:first", "award:badge:first", "award", "badge", 6, NOON)
    score.contribute(POST, "content", "feed", 3)
    assert (score.recomputed_total, score.total_score) == (9, 6)
    with pytest.raises(InvalidGrant, match="key must be one without a grant"):
        score.contribute("award:badge:first", "award", "badge", 1)


def test_a_grant_takes_the_place_of_a_bucket_that_was_there_before() -> None:
    """The old total counts the key once; how much was replaced is in the event."""
    score = UserScore("ada")
    score.contribute(POST, "content", "feed", 4)
    score.grant(f"ada/{POST}", POST, "content", "feed", 6, NOON)
    event = score.pending_events[-1]
    assert isinstance(event, UserScore.GrantRecorded)
    assert event.replaced_points == 4
    assert (score.total_score, score.recomputed_total, score.buckets) == (6, 6, {})


def test_a_bucket_that_a_grant_may_account_for_is_not_guessed_at() -> None:
    """The aggregate does not keep grants, so it says who can: nothing is counted wrongly."""
    score = UserScore("ada")
    score.grant(f"ada/{POST}", POST, "content", "feed", 6, NOON)
    with pytest.raises(InvalidGrant, match=r"Scoring\.contribute\(\) takes all grant-shaped"):
        score.contribute(POST, "content", "feed", 7)
    score.contribute("telemetry:activity", "telemetry", "app", 7)
    assert score.recomputed_total == 13


def test_plain_grants_leave_the_recomputed_total_alone() -> None:
    """Even where a bucket has the same key: only grant-shaped keys count in both."""
    score = UserScore("ada")
    score.contribute("quiz:history:1", "learning", "quiz", 5)
    score.grant("g", "quiz:history:1", "learning", "quiz", 8, NOON)
    assert (score.total_score, score.recomputed_total) == (8, 5)


keys = st.sampled_from(["a", "b:c", "telemetry:activity", "_type_", "_data_"])
contributions = st.lists(
    st.tuples(keys, st.sampled_from(["x", "y"]), st.just("s"), st.integers(0, 5)), max_size=60
)


@given(contributions)
def test_the_buckets_are_those_of_a_map(history: list[tuple[str, str, str, int]]) -> None:
    """At every version, after a replay, and through a snapshot as it is stored."""
    score, old = UserScore("ada"), OldWay()
    for contribution in history:
        score.contribute(*contribution)
        old.contribute("ada", *contribution)
        assert score.recomputed_total == old.total("ada")
    expected = {k: Bucket(b.points, b.category, b.source) for k, b in old.buckets["ada"].items()}
    assert score.buckets == expected
    replayed: Any = None
    for event in score.collect_events():
        replayed = event.mutate(replayed)
    assert replayed == score
    with Scoring() as app:
        stored = app.mapper.to_stored_event(UserScore.Snapshot.take(score))
        restored: Any = app.mapper.to_domain_event(stored)
    assert restored.mutate(None) == score


def test_state_is_bounded_by_live_keys_not_by_history() -> None:
    """A thousand contributions to one key and a thousand granted posts leave one bucket."""
    score = UserScore("ada")
    for number in range(1000):
        score.contribute("telemetry:activity", "telemetry", "app", number)
        post = f"content:feed-post:{number}"
        score.grant(f"ada/{post}", post, "content", "feed", 1, NOON)
    assert len(score.buckets) == 1
    assert score.recomputed_total == 999 + 1000


def test_a_snapshot_from_before_there_were_contributions_still_loads() -> None:
    """Byte for byte as it was stored then; what follows it is applied to it."""
    stream = UserScore.create_id("ada")
    stored = StoredEvent(
        originator_id=stream,
        originator_version=101,
        topic="scoring:UserScoreSnapshot",
        state=b'{"timestamp":{"_type_":"datetime_iso","_data_":"2026-11-22T12:00:00+00:00"},'
        b'"topic":"scoring:UserScore","state":{'
        b'"_created_on":{"_type_":"datetime_iso","_data_":"2026-11-22T12:00:00+00:00"},'
        b'"_modified_on":{"_type_":"datetime_iso","_data_":"2026-11-22T12:00:00+00:00"},'
        b'"user_id":"ada","total_score":550,"category_totals":{"content":550},'
        b'"source_totals":{"feed":550},"grant_count":100,"recomputed_total":50}}',
    )
    event_class: Any = UserScore.BucketSet
    bucket_set = partial(
        event_class,
        originator_id=stream,
        timestamp=NOON,
        user_id="ada",
        category="x",
        source="s",
        replaced_points=0,
        equals_grant=False,
    )
    with Scoring() as app:
        assert app.snapshots is not None
        app.snapshots.recorder.insert_events([stored])
        app.events.put(
            [
                bucket_set(originator_version=101, key="in the snapshot", points=50),
                bucket_set(originator_version=102, key="a", points=5),
            ]
        )
        score = app.score_of("ada")
        assert (score.total_score, score.recomputed_total, score.version) == (550, 55, 102)
        assert app.contribute("ada", "a", "x", "s", 1).recomputed_after == 51


def test_an_event_means_what_it_meant_when_the_key_counts_differently_today(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replaying looks at no rule: not at which keys are grant-shaped, nor at what is accepted."""
    score = UserScore("ada")
    score.grant(f"ada/{POST}", POST, "content", "feed", 6, NOON)
    score.contribute("a", "x", "s", 10)
    events = [e for e in score.collect_events() if not isinstance(e, GrantClaimed)]
    monkeypatch.setattr("scoring.user_score.is_grant_shaped", lambda key: key == "a")
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", 3)
    replayed: Any = None
    for event in events:
        replayed = event.mutate(replayed)
    assert replayed == score
