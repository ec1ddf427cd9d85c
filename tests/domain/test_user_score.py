"""``UserScore``: what the aggregate decides, and what its events mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any
from uuid import uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring import GrantClaimed, InvalidGrant, UserScore
from scoring.identity import CLAIMS_NAMESPACE, USERS_NAMESPACE, claim_stream_id, user_stream_id
from support import NOON, make_grant


def grant(score: UserScore, number: int, **changes: Any) -> None:
    values = make_grant(number, user_id=score.user_id).model_dump(exclude={"user_id"})
    score.grant(**{**values, **changes})


def recorded(events: Sequence[object]) -> list[UserScore.GrantRecorded]:
    return [event for event in events if isinstance(event, UserScore.GrantRecorded)]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_streams_are_found_by_the_published_namespaces(name: str) -> None:
    """Other tools find a user or a claim by ``uuid5`` of the standard library."""
    assert user_stream_id(name) == uuid5(USERS_NAMESPACE, name)
    assert claim_stream_id(name) == uuid5(CLAIMS_NAMESPACE, name)
    assert claim_stream_id(name).version == 5


def test_events_have_every_field_in_its_order() -> None:
    """They are made by their attributes, which are stored in the order of the fields."""
    score = UserScore("ada")
    grant(score, 1)
    for event in score.collect_events()[1:]:
        fields = [field.name for field in dataclasses.fields(event) if field.init]  # type: ignore[arg-type]
        assert list(vars(event)) == fields


def test_a_grant_triggers_exactly_one_event_and_its_claim() -> None:
    """Each GrantRecorded is collected together with the claim that points to it."""
    score = UserScore("ada")
    grant(score, 1)
    created, event, claim = score.collect_events()
    assert isinstance(created, UserScore.Created)
    assert isinstance(event, UserScore.GrantRecorded)
    assert isinstance(claim, GrantClaimed)
    assert (event.user_id, event.grant_id, event.amount) == ("ada", "grant-1", 2)
    assert claim.originator_id == claim_stream_id("grant-1")
    assert (claim.originator_version, claim.user_id, claim.version) == (
        1,
        "ada",
        event.originator_version,
    )


def test_commands_return_none() -> None:
    """A command answers by events only."""
    score: Any = UserScore("ada")
    assert score.grant("g", "k", "content", "feed", 5, NOON) is None
    assert score.contribute("a", "x", "s", 1) is None


def test_the_same_grant_id_twice_counts_once() -> None:
    """Idempotency within one unit of work: the second call triggers nothing."""
    score = UserScore("ada")
    grant(score, 1)
    grant(score, 1)
    grant(score, 1, amount=9)
    assert len(recorded(score.collect_events())) == 1
    assert score.total_score == 2


@given(st.lists(st.integers(1, 1000), unique=True, max_size=40))
def test_balance_equals_the_sum_of_amounts_by_total_category_and_source(numbers: list[int]) -> None:
    """Accumulation, at every version, for any grants."""
    score = UserScore("ada")
    total = 0
    for number in numbers:
        grant(score, number)
        total += make_grant(number).amount
        assert score.total_score == total
        assert sum(score.category_totals.values()) == total
        assert sum(score.source_totals.values()) == total
    assert score.grant_count == len(numbers)
    for name in ("content", "learning", "activity"):
        expected = sum(g.amount for g in map(make_grant, numbers) if g.category == name)
        assert score.category_totals.get(name, 0) == expected


def test_state_does_not_grow_with_the_number_of_grants() -> None:
    """Sums only: after a thousand grants there are as many values as after ten."""
    score = UserScore("ada")
    for number in range(10):
        grant(score, number)
    score.collect_events()
    few = len(repr(UserScore.Snapshot.take(score).state))
    for number in range(10, 1000):
        grant(score, number)
    score.collect_events()
    assert len(repr(UserScore.Snapshot.take(score).state)) < few + 50


def test_a_grant_of_another_user_is_refused() -> None:
    """Each aggregate records its own user's grants only, and triggers nothing for others."""
    score = UserScore(user_id="ada")
    score.collect_events()
    with pytest.raises(InvalidGrant) as refused:
        score.record(make_grant(1, user_id="bob"))
    assert (refused.value.field, refused.value.value) == ("user_id", "bob")
    assert score.collect_events() == []
    assert score.total_score == 0


@pytest.mark.parametrize("key", ["content:feed-post:8812", "award:badge:first-post"])
def test_a_grant_shaped_key_counts_in_the_recomputed_total(key: str) -> None:
    """It adds to the running balance and to the recomputed total, as its bucket did."""
    score = UserScore("ada")
    grant(score, 1, key=key, grant_id=f"ada/{key}", amount=5)
    grant(score, 2, amount=7)
    assert (score.total_score, score.recomputed_total) == (12, 5)


def test_replaying_the_events_gives_the_same_state() -> None:
    """decide and evolve agree."""
    score = UserScore("ada")
    for number in range(50):
        grant(score, number)
    copy: Any = None
    for event in score.collect_events():
        if not isinstance(event, GrantClaimed):
            copy = event.mutate(copy)
    assert copy == score
