"""Test an application that embeds the ledger: run ``pytest examples/testing_your_application.py``.

A school awards stars for lessons. Its application is a subclass of ``Scoring`` with one command;
below it are its tests, built on ``scoring.testing``: a specification by example, properties, one of
them held against the site's old code instead of a model of this package, and the state machine that
drives the whole application, the new command included, against a model. Needs
``pip install score-ledger[testing] pytest``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from scoring import Grant, GrantStatus, InvalidGrant, Scoring, make_grant_id
from scoring.testing import (
    LedgerModel,
    ScoringMachine,
    given,
    grant_recorded,
    grant_sequences,
    invalid_grants,
    user_ids,
)

if TYPE_CHECKING:
    from typing import Any

    from scoring import GrantReceipt

# A busy machine is no failure.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

# --- the application -----------------------------------------------------------------------------

POINTS_PER_STAR = 10


def lesson_grant(user_id: str, lesson: int, stars: int, at: datetime) -> Grant:
    """Return the grant of a finished lesson: one for each user and lesson, for ever."""
    return Grant(
        user_id=user_id,
        # Not an f-string: a user id may have slashes, and what it ends in may be reserved. (The
        # tests below find that mistake.)
        grant_id=make_grant_id("lesson", lesson, user_id),
        key=f"school:lesson:{lesson}",
        category="learning",
        source="lesson",
        amount=stars * POINTS_PER_STAR,
        granted_at=at,
    )


class SchoolScoring(Scoring):
    """The ledger, with the command of a school."""

    def finish_lesson(self, user_id: str, lesson: int, stars: int, at: datetime) -> GrantReceipt:
        """Award a lesson's stars, the first time it is finished."""
        return self.grant_many([lesson_grant(user_id, lesson, stars, at)])[0]


# --- its tests -----------------------------------------------------------------------------------

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

lessons = st.integers(1, 5)
stars_won = st.integers(1, 3)


def test_a_finished_lesson_is_one_grant() -> None:
    """Given, when, then: what a command does to one user, in events."""
    lesson = lesson_grant("jane", lesson=7, stars=3, at=NOON)
    (
        given(grant_recorded(amount=5), user_id="jane")
        .when(lambda score: score.record(lesson))
        .then(grant_recorded(**lesson.model_dump()))
        .then_state(total_score=35, recomputed_total=0)
    )


def test_a_lesson_without_stars_is_refused() -> None:
    """An error is specified by its data."""
    (
        given()
        .when(lambda _: lesson_grant("jane", lesson=7, stars=0, at=NOON))
        .then_raises(InvalidGrant, field="amount", value=0)
    )


@hypothesis.given(user_id=user_ids(), lesson=lessons, stars=stars_won)
def test_only_the_first_attempt_counts(user_id: str, lesson: int, stars: int) -> None:
    """A strategy of this package stands for every user there may be."""
    scoring = SchoolScoring()
    first = scoring.finish_lesson(user_id, lesson, stars, NOON)
    again = scoring.finish_lesson(user_id, lesson, stars, NOON)
    assert (first.status, again.status) == (GrantStatus.RECORDED, GrantStatus.DUPLICATE)
    assert scoring.score_of(user_id).total_score == stars * POINTS_PER_STAR


@hypothesis.settings(max_examples=30)
@hypothesis.given(sequence=grant_sequences(max_size=12))
def test_one_by_one_and_in_one_batch_are_the_same(sequence: list[Grant]) -> None:
    """Sequences hold duplicates and conflicts, which is where batches go wrong."""
    one_by_one, batch, model = SchoolScoring(), SchoolScoring(), LedgerModel()
    expected = [model.grant(grant) for grant in sequence]
    singles = [one_by_one.grant(**grant.model_dump()) for grant in sequence]
    together = batch.grant_many(sequence)
    assert [receipt.status for receipt in singles] == expected
    assert [receipt.status for receipt in together] == expected
    for user_id in {grant.user_id for grant in sequence}:
        total = model.total(user_id)
        assert one_by_one.score_of(user_id).total_score == total
        assert batch.score_of(user_id).total_score == total


class OldSite:
    """What the school's site did before: an oracle that has no line of the ledger in it."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str], int] = {}

    def contribute(self, user_id: str, key: str, points: int) -> None:
        """Overwrite the points of a key."""
        self.points[user_id, key] = points

    def total(self, user_id: str) -> int:
        """Return the sum that users see."""
        return sum(points for (user, _), points in self.points.items() if user == user_id)


pupils = st.sampled_from(("jane", "carl"))
old_keys = st.sampled_from(("content:feed-post:1", "award:badge:1", "school:streak"))


@hypothesis.given(calls=st.lists(st.tuples(pupils, old_keys, st.integers(0, 3)), max_size=20))
def test_users_see_the_total_that_they_saw_before(calls: list[tuple[str, str, int]]) -> None:
    """In shadow mode the old total stays what the old site says, whatever becomes a grant."""
    scoring, site = SchoolScoring(), OldSite()
    for user_id, key, points in calls:
        scoring.contribute(user_id, key, "any", "any", points, NOON)
        site.contribute(user_id, key, points)
        assert scoring.score_of(user_id).recomputed_total == site.total(user_id)


@hypothesis.given(invalid=invalid_grants())
def test_the_field_to_blame_is_named(invalid: tuple[dict[str, Any], str]) -> None:
    """Each invalid grant comes with the field that is wrong with it."""
    kwargs, field = invalid
    with pytest.raises(InvalidGrant) as refused:
        SchoolScoring().grant(**kwargs)
    assert refused.value.field == field


class SchoolMachine(ScoringMachine):
    """The state machine on the school's application, its own command included."""

    scoring: SchoolScoring

    def make_scoring(self) -> SchoolScoring:
        """Open the application under test."""
        return SchoolScoring()

    @rule(user_index=st.integers(0, 3), lesson=lessons, stars=stars_won)
    def finish_lesson(self, user_index: int, lesson: int, stars: int) -> None:
        """Any user finishes any lesson, again perhaps, and perhaps with other stars."""
        user_id = self.users[user_index % len(self.users)]
        receipt = self.scoring.finish_lesson(user_id, lesson, stars, NOON)
        self.compare([lesson_grant(user_id, lesson, stars, NOON)], [receipt])


TestSchoolMachine = SchoolMachine.TestCase
TestSchoolMachine.settings = hypothesis.settings(max_examples=30, stateful_step_count=20)
