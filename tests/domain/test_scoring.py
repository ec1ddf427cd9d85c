"""``Scoring``: append-once, receipts and batches, on a SQLite file."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from uuid import UUID

import pytest
from eventsourcing.persistence import Recording

from scoring import (
    BatchFailed,
    Grant,
    GrantReceipt,
    GrantStatus,
    Score,
    Scoring,
    UserScore,
)
from scoring.batches import COMMANDS_PER_COMMIT
from scoring.identity import user_stream_id
from support import make_grant, sqlite_env

RECORDED, DUPLICATE, CONFLICT = GrantStatus.RECORDED, GrantStatus.DUPLICATE, GrantStatus.CONFLICT


def grant(app: Scoring, grant: Grant) -> GrantReceipt:
    return app.grant(**grant.model_dump())


def statuses(receipts: list[GrantReceipt]) -> list[GrantStatus]:
    return [receipt.status for receipt in receipts]


def events(app: Scoring) -> int:
    return app.recorder.max_notification_id() or 0


def test_a_grant_is_recorded_with_its_balance_and_position(scoring: Scoring) -> None:
    """The receipt says what changed and where to wait for it."""
    first = grant(scoring, make_grant(1, user_id="ada", amount=5))
    second = grant(scoring, make_grant(2, user_id="ada", amount=7))
    assert first == GrantReceipt(RECORDED, 2, 0, 5, "ada")  # after the stream's opening event
    assert second == GrantReceipt(RECORDED, 4, 5, 12, "ada")  # after the claim of the first


def test_what_is_recorded_is_told_to_a_subclass_and_returned_by_save() -> None:
    """As in the library, though nothing of it is made where nobody asks."""
    told: list[Recording[UUID]] = []

    class Telling(Scoring):
        def _notify(self, recordings: list[Recording[UUID]]) -> None:
            super()._notify(recordings)
            told.extend(recordings)

    with Telling() as app:
        grant(app, make_grant(1, user_id="ada"))
        score = UserScore(user_id="bob")
        saved = app.save(score)
        assert told[-1:] == saved
        assert [each.notification for each in told] == app.recorder.select_notifications(1, 10)
        assert [app.mapper.to_domain_event(each.notification) for each in told] == [
            each.domain_event for each in told
        ]


def test_receipts_of_different_users_never_compare_equal(scoring: Scoring) -> None:
    """However alike they are otherwise: a test of somebody's would take one for the other."""
    answers: dict[str, tuple[object, object]] = {}
    for _ in range(2):  # the second time, both have everything, at the same position
        for number, user in enumerate(("ada", "bob")):
            given = make_grant(number, user_id=user, amount=5)
            bucket = (user, "telemetry:activity", "telemetry", "app", 3)
            answers[user] = grant(scoring, given), scoring.contribute(*bucket)
    for of_ada, of_bob in zip(answers["ada"], answers["bob"], strict=True):
        assert str(of_ada).replace("ada", "bob") == str(of_bob)
        assert of_ada != of_bob


def test_granting_again_is_a_duplicate_that_changes_nothing(scoring: Scoring) -> None:
    """Retries are safe."""
    receipt = grant(scoring, make_grant(1))
    before = events(scoring)
    again = grant(scoring, make_grant(1))
    assert again.status is DUPLICATE
    assert again.position >= receipt.position
    assert again.total_before == again.total_after == receipt.total_after
    assert events(scoring) == before


@pytest.mark.parametrize(
    "change", [{"amount": 100}, {"user_id": "someone-else"}, {"key": "other"}, {"source": "other"}]
)
def test_the_same_id_with_another_payload_is_a_conflict(
    scoring: Scoring, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    """Nothing changes, for nobody, and what differs is logged."""
    grant(scoring, make_grant(1))
    before = events(scoring)
    other = make_grant(1, **change)
    with caplog.at_level(logging.WARNING):
        receipt = grant(scoring, other)
    assert receipt.status is CONFLICT
    assert events(scoring) == before
    assert scoring.score_of(make_grant(1).user_id).total_score == make_grant(1).amount
    [message] = caplog.messages
    [(name, value)] = change.items()
    assert message == (
        "grant id 'grant-1' was recorded before with another payload: "
        f"given {name} {value!r}, kept {name} {getattr(make_grant(1), name)!r}"
    )


def test_a_duplicate_is_recognised_by_another_process(tmp_path: Path) -> None:
    """The guarantee lives in the store, not in memory."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as first:
        grant(first, make_grant(1))
    with Scoring(env) as second:
        assert grant(second, make_grant(1)).status is DUPLICATE
        assert second.score_of("user-1").grant_count == 1


def test_grants_persist_with_snapshots_and_without_growing_reads(tmp_path: Path) -> None:
    """A user with many grants is loaded from a snapshot and a short tail."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as app:
        app.grant_many([make_grant(n, user_id="ada") for n in range(950)])
        for number in range(950, 1100):
            grant(app, make_grant(number, user_id="ada"))
        expected = app.score_of("ada")
    with Scoring(env) as app:
        assert app.snapshots is not None
        assert app.score_of("ada") == expected
        newest = list(app.snapshots.get(user_stream_id("ada"), desc=True, limit=1))
        assert expected.version - newest[0].originator_version < 100


def test_a_user_who_has_nothing_yet_has_zeros(scoring: Scoring) -> None:
    """Asking about a stranger is not an error and writes nothing."""
    assert scoring.score_of("nobody") == Score("nobody", 0, {}, {}, 0, 0, 0)
    assert events(scoring) == 0


def test_grant_many_answers_in_input_order(scoring: Scoring) -> None:
    """Many users, repeated ids, conflicts and earlier grants in one batch."""
    grant(scoring, make_grant(3))
    batch = [
        make_grant(1),
        make_grant(2),
        make_grant(1),
        make_grant(3),
        make_grant(2, amount=999),
        make_grant(3, amount=999),
        make_grant(4),
    ]
    receipts = scoring.grant_many(batch)
    assert statuses(receipts) == [
        RECORDED, RECORDED, DUPLICATE, DUPLICATE, CONFLICT, CONFLICT, RECORDED,
    ]  # fmt: skip
    assert receipts[2].position == receipts[0].position
    assert receipts[2].total_after == scoring.score_of(make_grant(1).user_id).total_score


def test_a_conflicting_stranger_in_a_batch_leaves_no_trace(scoring: Scoring) -> None:
    """A user named only by a conflict is not opened by the rest of the batch."""
    grant(scoring, make_grant(1))
    scoring.grant_many([make_grant(1, user_id="stranger"), make_grant(2)])
    assert scoring.score_of("stranger").version == 0


def test_grant_many_over_several_chunks_equals_the_sum(scoring: Scoring) -> None:
    """Running balance equals the sum of amounts, over chunks and users."""
    grants = [make_grant(number) for number in range(2 * COMMANDS_PER_COMMIT + 10)]
    receipts = scoring.grant_many(iter(grants))
    assert statuses(receipts) == [RECORDED] * len(grants)
    for user in {g.user_id for g in grants}:
        score = scoring.score_of(user)
        theirs = [g for g in grants if g.user_id == user]
        assert score.total_score == sum(g.amount for g in theirs)
        assert score.grant_count == len(theirs)
        for name in {g.category for g in theirs}:
            assert score.category_totals[name] == sum(
                g.amount for g in theirs if g.category == name
            )
        for name in {g.source for g in theirs}:
            assert score.source_totals[name] == sum(g.amount for g in theirs if g.source == name)
    assert statuses(scoring.grant_many(grants)) == [DUPLICATE] * len(grants)


def test_what_was_recorded_is_freed_without_the_garbage_collector(scoring: Scoring) -> None:
    """Which would else take a tenth of the time, and keep whole batches until it runs."""
    gc.disable()
    try:
        grant(scoring, make_grant(1, user_id="gone"))
        scoring.award_badge("gone", "early-bird", 5)
        scoring.grant_many(make_grant(number, user_id="gone") for number in range(2, 10))
        objects = gc.get_objects()
    finally:
        gc.enable()
    recorded = [event for event in objects if type(event) is UserScore.GrantRecorded]
    assert "gone" not in {event.user_id for event in recorded}


def test_a_batch_that_fails_says_what_was_recorded(scoring: Scoring) -> None:
    """Whole chunks before the failure are recorded, nothing of the failing one is."""

    def grants() -> object:
        for number in range(COMMANDS_PER_COMMIT + 5):
            yield make_grant(number)
        yield make_grant(0, amount=-1)

    with pytest.raises(BatchFailed, match="amount must be") as failed:
        scoring.grant_many(grants())  # type: ignore[arg-type]
    assert len(failed.value.receipts_so_far) == COMMANDS_PER_COMMIT
    assert failed.value.index == COMMANDS_PER_COMMIT + 5
    assert grant(scoring, make_grant(COMMANDS_PER_COMMIT)).status is RECORDED
    assert grant(scoring, make_grant(COMMANDS_PER_COMMIT - 1)).status is DUPLICATE


def test_what_is_not_a_grant_fails_the_batch(scoring: Scoring) -> None:
    """A dictionary is not taken for a grant."""
    with pytest.raises(BatchFailed, match="takes Grant objects") as failed:
        scoring.grant_many([make_grant(1), {"amount": 5}])  # type: ignore[list-item]
    assert (failed.value.index, failed.value.receipts_so_far, events(scoring)) == (1, [], 0)


def test_the_application_keeps_its_name_in_subclasses() -> None:
    """Positions are tracked under it."""

    class Forum(Scoring):
        pass

    assert Forum.name == "Scoring"
    with pytest.raises(TypeError, match="must stay 'Scoring'"):
        type("Named", (Scoring,), {"name": "Named"})
