"""``scoring.testing`` is fit for use: it finds planted mistakes, and says what it misses."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from command_line import run_python
from scoring import (
    Contribution,
    ContributionReceipt,
    Grant,
    GrantReceipt,
    GrantStatus,
    InvalidGrant,
    Score,
    Scoring,
    UserScore,
)
from scoring.rules import MAX_GRANT_ID_LENGTH, MAX_USER_ID_LENGTH, normalised_user_id
from scoring.testing import (
    LedgerModel,
    ScoringMachine,
    bucket_set,
    changed_payloads,
    given,
    grant_claimed,
    grant_ids,
    grant_recorded,
    grant_sequences,
    grant_shaped_keys,
    grants,
    keys,
    user_created,
    user_ids,
)
from support import NOON, make_grant

# --- the state machine ---------------------------------------------------------------------------


def test_conflicts_do_not_bury_what_a_failing_run_says(caplog: pytest.LogCaptureFixture) -> None:
    """Conflicts are provoked on purpose, of which at most the first of the process is logged."""
    conflicts: list[GrantReceipt] = []

    class Counting(Scoring):
        def grant(self, *args: Any, **kwargs: Any) -> GrantReceipt:
            receipt = super().grant(*args, **kwargs)
            conflicts.extend([receipt] if receipt.status is GrantStatus.CONFLICT else [])
            return receipt

    class Machine(ScoringMachine):
        def make_scoring(self) -> Scoring:
            return Counting()

    quick = settings(max_examples=30, stateful_step_count=20, derandomize=True)
    run_state_machine_as_test(Machine, settings=quick)
    assert len(conflicts) > 1
    assert len(caplog.records) <= 1
    with Scoring() as app:  # which is not under test by a machine
        for amount in (1, 2):
            app.grant(**make_grant(1, amount=amount).model_dump())
    assert "another payload" in caplog.records[-1].getMessage()


class LyingAboutTotals(Scoring):
    def grant(self, *args: Any, **kwargs: Any) -> GrantReceipt:
        receipt = super().grant(*args, **kwargs)
        return replace(receipt, total_after=receipt.total_after + 1)


class LyingAboutPositions(Scoring):
    def grant(self, *args: Any, **kwargs: Any) -> GrantReceipt:
        receipt = super().grant(*args, **kwargs)
        return replace(receipt, position=receipt.position + 1)


class PositionsOfDuplicatesTooEarly(Scoring):
    def grant(self, *args: Any, **kwargs: Any) -> GrantReceipt:
        receipt = super().grant(*args, **kwargs)
        return receipt if receipt.status == "RECORDED" else replace(receipt, position=1)


class CallingConflictsDuplicates(Scoring):
    def grant(self, *args: Any, **kwargs: Any) -> GrantReceipt:
        receipt = super().grant(*args, **kwargs)
        if receipt.status is GrantStatus.CONFLICT:
            return replace(receipt, status=GrantStatus.DUPLICATE)
        return receipt


class CountingTwice(Scoring):
    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        batch = list(grants)
        receipts = super().grant_many(batch)
        super().grant_many(
            grant.model_copy(update={"grant_id": f"again {number}"})
            for number, grant in enumerate(batch)
            if grant.key == "telemetry:activity"
        )
        return receipts


class BatchesInDisorder(Scoring):
    def grant_many(self, grants: Iterable[Grant]) -> list[GrantReceipt]:
        return super().grant_many(grants)[::-1]


class ForgettingASource(Scoring):
    def score_of(self, user_id: str) -> Score:
        score = super().score_of(user_id)
        return replace(score, source_totals=dict(list(score.source_totals.items())[:2]))


class RememberingOnlyInMemory(Scoring):
    def _record(self, processing_event: Any) -> Any:
        recordings = super()._record(processing_event)
        self.truth = {**getattr(self, "truth", {}), **dict.fromkeys(processing_event.aggregates)}
        return recordings

    def score_of(self, user_id: str) -> Score:
        score = super().score_of(user_id)
        known = UserScore.create_id(normalised_user_id(user_id)) in getattr(self, "truth", {})
        return score if known else replace(score, total_score=0)


class SpoilingSnapshots(Scoring):
    def take_snapshot(self, aggregate_id: Any, *_: Any, **__: Any) -> None:
        score: Any = self.repository.get(aggregate_id)
        score.recomputed_total += 1
        assert self.snapshots is not None
        self.snapshots.put([UserScore.Snapshot.take(score)])


class AcceptingAnything(Scoring):
    def grant(self, *args: Any, **kwargs: Any) -> GrantReceipt:
        try:
            return super().grant(*args, **kwargs)
        except InvalidGrant:
            return GrantReceipt(GrantStatus.DUPLICATE, 0, 0, 0, "nobody")


class LyingAboutTheOldTotal(Scoring):
    def contribute(self, user_id: str, key: str, *args: Any) -> ContributionReceipt:
        receipt = super().contribute(user_id, key, *args)
        return replace(receipt, recomputed_after=receipt.recomputed_after + 1)


class GrantingNoBadges(Scoring):
    def award_badge(
        self, user_id: str, badge_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        key = f"award:medal:{badge_id}"
        return self.contribute(user_id, key, "award", "badge", points, at)


class PostsUnderOtherLabels(Scoring):
    def feed_post(
        self, user_id: str, post_id: str, points: int, at: datetime | None = None
    ) -> ContributionReceipt:
        key = f"content:feed-post:{post_id}"
        return self.contribute(user_id, key, "content", "post", points, at)


class ContributingInDisorder(Scoring):
    def contribute_many(
        self, contributions: Iterable[Contribution], *, overwrite: bool = True
    ) -> list[ContributionReceipt]:
        backwards = list(contributions)[::-1]
        return super().contribute_many(backwards, overwrite=overwrite)[::-1]


@pytest.mark.parametrize(
    "application",
    [
        LyingAboutTheOldTotal,
        GrantingNoBadges,
        PostsUnderOtherLabels,
        ContributingInDisorder,
        LyingAboutTotals,
        LyingAboutPositions,
        PositionsOfDuplicatesTooEarly,
        CallingConflictsDuplicates,
        CountingTwice,
        BatchesInDisorder,
        ForgettingASource,
        RememberingOnlyInMemory,
        SpoilingSnapshots,
        AcceptingAnything,
    ],
)
def test_the_machine_finds_a_planted_mistake(
    application: type[Scoring], caplog: pytest.LogCaptureFixture
) -> None:
    """Each of these applications has one thing wrong with it, and fails."""
    caplog.set_level(logging.ERROR, logger="scoring")

    class Machine(ScoringMachine):
        def make_scoring(self) -> Scoring:
            return application()

    eager = settings(
        max_examples=200,
        stateful_step_count=30,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=eager)


# --- given, when, then ---------------------------------------------------------------------------


def award(grant_id: str, amount: int, key: str = "quiz:1") -> Any:
    return lambda score: score.grant(grant_id, key, "learning", "quiz", amount, NOON)


QUIZ: dict[str, Any] = {
    "key": "quiz:1",
    "category": "learning",
    "source": "quiz",
    "granted_at": NOON,
}


def test_a_specification_reads_given_when_then() -> None:
    """Events before, a command, events after, and the state that results."""
    (
        given(user_created("jane"), grant_recorded(amount=5), grant_recorded(amount=6))
        .when(award("g-9", 3))
        .then(grant_recorded(grant_id="g-9", amount=3, **QUIZ))
        .then_state(total_score=14, grant_count=3, version=4)
    )


def test_claims_are_left_aside_unless_they_are_asked_for() -> None:
    """A grant comes with the claim on its id, which points at its version."""
    badge = "award:badge:1"
    outcome = given(grant_recorded(), user_id="jane").when(award(f"jane/{badge}", 3, badge))
    event = grant_recorded(**{**QUIZ, "key": badge}, grant_id=f"jane/{badge}", amount=3)
    outcome.then(event)
    outcome.then(event, grant_claimed(grant_id=f"jane/{badge}", version=3), claims=True)
    outcome.then_state(recomputed_total=3)
    with pytest.raises(AssertionError):
        outcome.then(event, grant_claimed(grant_id="other", version=3), claims=True)
    with pytest.raises(AssertionError):
        outcome.then(event, claims=True)


def test_buckets_are_specified_like_grants() -> None:
    """A bucket is overwritten, a grant of its key takes its place, the balance is left alone."""
    badge = "award:badge:1"
    labels: dict[str, Any] = {"category": "learning", "source": "quiz"}
    before = [bucket_set(key=badge, points=9), bucket_set(points=2), grant_recorded(amount=5)]
    (
        given(*before)
        .when(lambda score: score.contribute("telemetry:activity", "learning", "quiz", 4))
        .then(bucket_set(points=4, replaced_points=2, **labels))
        .then_state(total_score=5, recomputed_total=13)
    )
    (
        given(*before)
        .when(award(f"jane/{badge}", 3, badge))
        .then(
            grant_recorded(
                **{**QUIZ, "key": badge}, grant_id=f"jane/{badge}", amount=3, replaced_points=9
            )
        )
        .then_state(total_score=8, recomputed_total=5)
    )
    with pytest.raises(AssertionError, match=r"points=4.*expected.*points=5"):
        given().when(lambda score: score.contribute("a", "learning", "quiz", 4)).then(
            bucket_set(key="a", points=5, **labels)
        )


def test_a_repetition_within_one_command_does_nothing() -> None:
    """``then()`` without events means that nothing happened."""
    given().when(lambda _: None).then()
    given().when(lambda score: [award("g", 1)(score), award("g", 1)(score)]).then(
        grant_recorded(grant_id="g", **QUIZ)
    )


def test_a_refusal_is_specified_by_its_error() -> None:
    """And by nothing having happened."""
    outcome = given(grant_recorded()).when(award("g", 0))
    outcome.then_raises(InvalidGrant, field="amount", value=0).then_state(total_score=1)
    with pytest.raises(InvalidGrant):
        outcome.then()
    with pytest.raises(InvalidGrant):
        outcome.then_raises(KeyError)
    with pytest.raises(AssertionError, match=r"InvalidGrant\.field"):
        outcome.then_raises(InvalidGrant, field="key")


def test_a_specification_that_is_not_met_fails() -> None:
    """Another event, one too few, one too many, another state, no error."""
    outcome = given().when(award("g", 2))
    with pytest.raises(AssertionError, match=r"amount=2.*expected.*amount=3"):
        outcome.then(grant_recorded(grant_id="g", amount=3, **QUIZ))
    with pytest.raises(AssertionError):
        outcome.then()
    with pytest.raises(AssertionError):
        outcome.then(*[grant_recorded(grant_id="g", amount=2, **QUIZ)] * 2)
    with pytest.raises(AssertionError, match="total_score: got 2, expected 3"):
        outcome.then_state(total_score=3)
    with pytest.raises(AssertionError, match="expected InvalidGrant, got"):
        outcome.then_raises(InvalidGrant)


# --- strategies and model ------------------------------------------------------------------------


@hypothesis.given(user_id=user_ids(), grant_id=grant_ids(), key=keys(), shaped=grant_shaped_keys())
def test_what_the_strategies_draw_is_valid(
    user_id: str, grant_id: str, key: str, shaped: str
) -> None:
    """Each value passes its own door, whatever the others are."""
    grant = make_grant(1, user_id=user_id, grant_id=grant_id, key=key)
    derived = f"{normalised_user_id(user_id)}/{shaped}"
    make_grant(1, user_id=user_id, grant_id=derived, key=shaped)
    assert grant.amount


@pytest.mark.parametrize(
    ("strategy", "found"),
    [
        (user_ids(), lambda text: len(text) == MAX_USER_ID_LENGTH),
        (grant_ids(), lambda text: len(text) == MAX_GRANT_ID_LENGTH),
        (user_ids(), lambda text: text != normalised_user_id(text)),
        (user_ids(), lambda text: not text.isascii() and "/" not in text),
        (grants(), lambda grant: grant.key.startswith("award:badge:")),
        (grants(), lambda grant: grant.key == "telemetry:activity"),
        (grant_sequences(), lambda seq: len({grant.grant_id for grant in seq}) < len(seq)),
    ],
)
def test_the_strategies_reach_the_corners(strategy: st.SearchStrategy[Any], found: Any) -> None:
    """The longest ids, ids that NFC changes, grant-shaped keys, repetitions."""
    # The first one found will do: nobody reads it.
    hypothesis.find(strategy, found, settings=settings(phases=[Phase.generate]))


@hypothesis.given(data=st.data(), grant=grants())
def test_a_changed_payload_is_a_conflict(data: st.DataObject, grant: Grant) -> None:
    """The same id, one other field; the model and the ledger call it by the same name."""
    other = data.draw(changed_payloads(grant))
    assert other.grant_id == grant.grant_id
    assert other != grant
    model = LedgerModel()
    assert [model.grant(g) for g in (grant, grant, other)] == [
        GrantStatus.RECORDED,
        GrantStatus.DUPLICATE,
        GrantStatus.CONFLICT,
    ]
    assert model.total(grant.user_id) == grant.amount


def test_without_hypothesis_one_sentence_names_the_extra() -> None:
    """The rest of the package does not need it."""
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import scoring\n"
        "try:\n    import scoring.testing\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert run_python("-c", program).stdout == (
        "scoring.testing needs hypothesis: install the extra score-ledger[testing]\n"
    )
