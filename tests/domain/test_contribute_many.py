"""``Scoring.contribute_many``: each contribution is answered as if it had been made alone."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from eventsourcing.persistence import OperationalError
from hypothesis import given, settings
from hypothesis import strategies as st

from concurrency import meanwhile
from group_commit import Watched, failing
from old_way import OldWay
from postgres_proxy import lossy_proxy
from postgres_server import PostgresServer
from scoring import (
    BatchFailed,
    Contribution,
    ContributionReceipt,
    GrantStatus,
    InvalidGrant,
    Scoring,
    StreamHasGap,
    UserScore,
)
from scoring.batches import COMMANDS_PER_COMMIT
from scoring.identity import user_stream_id
from scoring.testing.store_reader import StoreReader
from support import NOON, make_grant, sqlite_env

RECORDED, DUPLICATE, CONFLICT = GrantStatus.RECORDED, GrantStatus.DUPLICATE, GrantStatus.CONFLICT
POST, BADGE, PLAIN = "content:feed-post:8812", "award:badge:first", "telemetry:activity"


def sets(
    points: int, *, user_id: str = "ada", key: str = PLAIN, category: str = "x", at: Any = NOON
) -> Contribution:
    return Contribution(
        user_id=user_id, key=key, category=category, source="s", points=points, at=at
    )


def outcome(receipt: ContributionReceipt) -> tuple[str | None, GrantStatus, int, int]:
    before, after = receipt.recomputed_before, receipt.recomputed_after
    return receipt.user_id, receipt.status, before, after


contributions = st.builds(
    sets,
    st.integers(0, 2),
    user_id=st.sampled_from(["ada", "bob", "Zoe\u0308"]),
    key=st.sampled_from([POST, BADGE, PLAIN]),
    category=st.sampled_from(["x", "y"]),
    at=st.sampled_from([NOON, None]),
)


@settings(max_examples=60)
@given(
    before=st.lists(contributions, max_size=6),
    plain_grants=st.booleans(),
    batch=st.lists(contributions, max_size=14),
)
def test_a_batch_is_answered_and_recorded_as_single_calls_are(
    before: list[Contribution],
    plain_grants: bool,  # noqa: FBT001
    batch: list[Contribution],
) -> None:
    """Over all cases of the table at ``contribute``, also within one chunk: the same receipts and
    the same events as one by one, and buckets as in a map."""
    old = OldWay()
    with Scoring(clock=lambda: NOON) as many, Scoring(clock=lambda: NOON) as single:
        for app in (many, single):
            if plain_grants:
                app.grant("ada", f"ada/{POST}", POST, "x", "s", 1, NOON)
            for one in before:
                app.contribute(**one.model_dump())
        if plain_grants:
            old.contribute("ada", POST, "x", "s", 1)
        receipts = many.contribute_many(iter(batch))
        expected = [single.contribute(**one.model_dump()) for one in batch]
        assert list(map(outcome, receipts)) == list(map(outcome, expected))
        for user_id in ("ada", "bob", "Zo\u00eb"):
            assert streams(many, user_id) == streams(single, user_id)
        for one in (*before, *batch):
            old.contribute(one.user_id, one.key, one.category, one.source, one.points)
        for user_id in ("ada", "bob", "Zo\u00eb"):
            assert many.score_of(user_id) == single.score_of(user_id)
            assert many.score_of(user_id).recomputed_total == old.total(user_id)
        StoreReader().read(many)  # every grant has its claim
        newest = many.recorder.max_notification_id() or 0
        for receipt, one in zip(receipts, batch, strict=True):
            assert 0 < receipt.position <= newest
            if receipt.recomputed_before != receipt.recomputed_after:
                [notification] = many.recorder.select_notifications(receipt.position, 1)
                event: Any = many.mapper.to_domain_event(notification)
                assert (event.user_id, event.key) == (one.user_id, one.key)
        again = many.contribute_many(last_of_each(batch))
        assert (many.recorder.max_notification_id() or 0) == newest
        assert all(r.status is not RECORDED for r in again)


def last_of_each(batch: list[Contribution]) -> list[Contribution]:
    """The last contribution to each bucket: given again, they change nothing."""
    return list({(one.user_id, one.key): one for one in batch}.values())


def streams(app: Scoring, user_id: str) -> list[tuple[str, dict[str, object]]]:
    """A user's events, their times of recording aside."""
    events = []
    for event in app.events.get(user_stream_id(user_id)):
        fields = {name: value for name, value in vars(event).items() if name != "timestamp"}
        events.append((type(event).__name__, fields))
    return events


def test_more_than_a_chunk_is_recorded_in_order_and_again_records_nothing(scoring: Scoring) -> None:
    """2,010 contributions of 7 users; the second run leaves the store as it is."""
    batch = [
        sets(
            number,
            user_id=f"user-{number % 7}",
            key=f"award:badge:{number}" if odd else f"k:{number}",
        )
        for number in range(2 * COMMANDS_PER_COMMIT + 10)
        for odd in [number % 2]
    ]
    receipts = scoring.contribute_many(iter(batch))
    assert [r.status for r in receipts] == [RECORDED] * len(batch)
    positions = [r.position for r in receipts]
    assert len(set(positions)) == len(batch)
    totals = {f"user-{n}": sum(range(n, len(batch), 7)) for n in range(7)}
    newest = scoring.recorder.max_notification_id()
    again = scoring.contribute_many(batch)
    assert [r.status for r in again] == [DUPLICATE] * len(batch)
    assert {r.user_id: r.recomputed_after for r in again} == totals
    assert {r.position for r in again} == {newest}
    assert scoring.recorder.max_notification_id() == newest


def test_it_is_eager_and_takes_any_iterable(scoring: Scoring) -> None:
    """Nothing given is nothing answered."""
    assert scoring.contribute_many(iter([])) == []
    assert scoring.contribute_many(sets(n) for n in range(3))[2].recomputed_after == 2


def test_a_refused_contribution_fails_its_chunk_and_keeps_the_receipts_of_those_before(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from ``grant_many``: atomic by 1,000, and the index names the culprit."""
    batch = [sets(1, key=f"k:{number}") for number in range(COMMANDS_PER_COMMIT + 5)]
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", COMMANDS_PER_COMMIT + 4)
    with pytest.raises(BatchFailed, match=r"contribution 1004 failed after 1000.*points") as failed:
        scoring.contribute_many(batch)
    assert failed.value.index == COMMANDS_PER_COMMIT + 4
    assert [r.recomputed_after for r in failed.value.receipts_so_far] == list(
        range(1, COMMANDS_PER_COMMIT + 1)
    )
    assert isinstance(failed.value.__cause__, InvalidGrant)
    assert scoring.score_of("ada").recomputed_total == COMMANDS_PER_COMMIT
    monkeypatch.undo()
    statuses = [r.status for r in scoring.contribute_many(batch)]
    assert statuses == [DUPLICATE] * COMMANDS_PER_COMMIT + [RECORDED] * 5


def test_what_is_not_a_contribution_is_named_by_its_index(scoring: Scoring) -> None:
    """And so is an input that fails itself."""
    wrong: Any = [sets(1), make_grant(1)]
    with pytest.raises(BatchFailed, match="takes Contribution objects") as failed:
        scoring.contribute_many(wrong)
    assert (failed.value.index, failed.value.receipts_so_far) == (1, [])

    def broken() -> Iterator[Contribution]:
        yield sets(1)
        raise OSError("the file is gone")

    with pytest.raises(BatchFailed, match="the file is gone"):
        scoring.contribute_many(broken())
    assert scoring.recorder.max_notification_id() is None


def test_behind_a_stream_with_a_gap_everything_before_it_is_recorded(tmp_path: Path) -> None:
    """So that whoever goes on behind it has the contributions of all others recorded."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as app:
        app.contribute_many([sets(points, user_id="gap") for points in (1, 2, 3)])
    with sqlite3.connect(tmp_path / "events.sqlite") as database:
        database.execute(
            "DELETE FROM stored_events WHERE originator_id = ? AND originator_version = 3",
            (user_stream_id("gap").hex,),
        )
    with Scoring(env) as app:
        batch = [sets(1), sets(2, user_id="bob"), sets(5, user_id="gap"), sets(3)]
        with pytest.raises(BatchFailed) as failed:
            app.contribute_many(batch)
        assert isinstance(failed.value.__cause__, StreamHasGap)
        assert failed.value.index == 2
        assert [r.status for r in failed.value.receipts_so_far] == [RECORDED, RECORDED]
        with pytest.raises(StreamHasGap):
            app.contribute("gap", PLAIN, "x", "s", 5)


def test_conflicts_of_a_batch_are_logged_once_each(
    scoring: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    """With both sides, also where both are in the batch; and only when it is committed."""
    with caplog.at_level(logging.WARNING):
        scoring.contribute_many([sets(5, key=POST), sets(9, key=POST), sets(5, key=POST)])
    [message] = caplog.messages
    assert message == (
        "key 'content:feed-post:8812' of 'ada' has a grant, so only its bucket was set: "
        "given points 9, kept points 5"
    )


def test_without_overwriting_it_leaves_what_is_there(scoring: Scoring) -> None:
    """Whoever set it: a contribution, a grant, or one before it in the same call."""
    bucket = partial(sets, category="award")
    scoring.contribute("ada", "plain", "award", "s", 5)
    scoring.contribute("ada", "award:badge:granted", "award", "s", 5, NOON)
    scoring.contribute("ada", "award:badge:taken-away", "award", "s", 5, NOON)
    scoring.contribute("ada", "award:badge:taken-away", "award", "s", 0)
    scoring.contribute("ada", "award:badge:nothing", "award", "s", 0)
    before = scoring.score_of("ada")
    left = [
        bucket(6, key="plain"),
        sets(5, key="plain", category="other"),
        bucket(6, key="award:badge:granted"),
        bucket(0, key="award:badge:granted"),
        bucket(5, key="award:badge:taken-away"),
        bucket(5, key="award:badge:nothing"),
    ]
    same = [
        bucket(5, key="plain"),
        bucket(5, key="award:badge:granted"),
        bucket(0, key="award:badge:nothing"),
    ]
    receipts = scoring.contribute_many([*left, *same], overwrite=False)
    assert [str(receipt.status) for receipt in receipts] == ["CONFLICT"] * 6 + ["DUPLICATE"] * 3
    assert scoring.score_of("ada") == before
    new = [
        bucket(1, key="plain2"),
        bucket(2, key="plain2"),
        bucket(3, key="award:badge:n"),
        bucket(4, key="award:badge:n"),
    ]
    receipts = scoring.contribute_many(new, overwrite=False)
    assert [str(receipt.status) for receipt in receipts] == ["RECORDED", "CONFLICT"] * 2
    assert scoring.score_of("ada").recomputed_total == before.recomputed_total + 4


# --- races and lost answers ----------------------------------------------------------------------

MIXED = [
    sets(5, key="award:badge:1"),
    sets(7, key=POST),  # was granted with 9
    sets(7, key=POST, user_id="bob"),
    sets(4),
    sets(0, key=BADGE),
    sets(2),
    sets(3, key=BADGE),
    sets(9, key=POST),
]
EXPECTED = [
    ("ada", RECORDED, 9, 14),
    ("ada", CONFLICT, 14, 12),
    ("bob", RECORDED, 0, 7),
    ("ada", RECORDED, 12, 16),
    ("ada", RECORDED, 16, 16),
    ("ada", RECORDED, 16, 14),
    ("ada", RECORDED, 14, 17),
    ("ada", DUPLICATE, 17, 19),
]


def check_mixed(app: Scoring, receipts: list[ContributionReceipt]) -> None:
    """The receipts are those of single calls, and each event is where they say."""
    assert list(map(outcome, receipts)) == EXPECTED
    for receipt, one in zip(receipts, MIXED, strict=True):
        [notification] = app.recorder.select_notifications(receipt.position, 1)
        event: Any = app.mapper.to_domain_event(notification)
        assert (event.user_id, event.key) == (one.user_id, one.key)
        points = event.amount if isinstance(event, UserScore.GrantRecorded) else event.points
        assert points == one.points
    assert app.score_of("ada").recomputed_total == 19
    StoreReader().read(app)


@pytest.mark.parametrize("done", [False, True])
def test_a_batch_whose_answer_was_lost_is_answered_truthfully_and_done_once(
    watched: Watched, *, done: bool
) -> None:
    """Also where the first attempt was refused because an id is taken."""
    watched.contribute("ada", POST, "x", "s", 9, NOON)
    watched.instead += [failing(OperationalError("lost"), done=done)] * 2
    receipts = watched.contribute_many(MIXED)
    assert len(watched.instead) < 2
    check_mixed(watched, receipts)


@pytest.mark.parametrize("moment", ["lose_commits", "lose_answers"])
def test_a_batch_whose_connection_is_lost_is_answered_truthfully(
    postgres: PostgresServer, moment: str
) -> None:
    """Lost before the commit, or after it, on the way to PostgreSQL."""
    with lossy_proxy(postgres.new_env()) as (proxy, env), Scoring(env) as app:
        app.contribute("ada", POST, "x", "s", 9, NOON)
        setattr(proxy, moment, 1)
        receipts = app.contribute_many(MIXED)
        assert proxy.lost == 1
        check_mixed(app, receipts)


def test_somebody_elses_contribution_is_not_undone_by_a_retry_of_the_batch(
    watched: Watched,
) -> None:
    """Ours was committed, its answer lost, and another one came before we looked: theirs stays."""
    theirs = [sets(8), sets(8, user_id="bob")]
    with Scoring(watched.env) as other:
        watched.instead.append(
            failing(OperationalError("lost"), done=True, then=lambda: other.contribute_many(theirs))
        )
        receipts = watched.contribute_many([sets(5), sets(6, user_id="bob")])
    assert [outcome(r)[1:] for r in receipts] == [(RECORDED, 0, 5), (RECORDED, 0, 6)]
    assert watched.score_of("ada").recomputed_total == 8


def overtake(scoring: Scoring, monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Have something done once, when users were loaded for the next commit."""
    load: Any = scoring._scores.check_out_current

    def all_current(user_ids: Sequence[str]) -> Any:
        loaded = load(user_ids)
        monkeypatch.setattr(scoring._scores, "check_out_current", load)
        do()
        return loaded

    monkeypatch.setattr(scoring._scores, "check_out_current", all_current)


@pytest.mark.parametrize("theirs", [5, 7])
def test_a_grant_that_comes_between_loading_and_looking_is_seen(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, theirs: int
) -> None:
    """A contribution of 0 points that changes nothing commits nothing, which would tell us."""
    scoring.contribute_many([sets(0, key=POST), sets(1, user_id="bob")])
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as other:
        overtake(
            scoring, monkeypatch, lambda: other.contribute("ada", POST, "x", "s", theirs, NOON)
        )
        receipts = scoring.contribute_many([sets(0, key=POST), sets(1, user_id="bob")])
    assert [outcome(r)[1:] for r in receipts] == [(CONFLICT, theirs, 0), (DUPLICATE, 1, 1)]
    assert scoring.score_of("ada").recomputed_total == 0


def test_a_user_opened_by_another_process_at_the_same_moment_is_not_taken_for_ours(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The event that opens a stream is the same whoever records it; the others tell."""
    monkeypatch.setattr("eventsourcing.domain.datetime_now_with_tzinfo", lambda: NOON)
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as other:
        overtake(scoring, monkeypatch, lambda: other.contribute("ada", "theirs", "x", "s", 7))
        assert outcome(scoring.contribute_many([sets(5)])[0])[1:] == (RECORDED, 7, 12)
    assert scoring.score_of("ada").recomputed_total == 12


def test_what_is_written_while_it_is_imported_stays(tmp_path: Path) -> None:
    """Whoever comes first, and however close: each key ends with what traffic wrote."""
    env = sqlite_env(tmp_path / "events.sqlite")
    keys = [f"{kind}{n}" for n in range(60) for kind in ("telemetry:a", "award:badge:b")]
    old = [sets(1000, key=key) for key in reversed(keys)]
    with Scoring(env) as imported, Scoring(env) as traffic:

        def write(_: Event) -> None:
            for key in keys:
                traffic.contribute("ada", key, "x", "s", 7, NOON)

        with meanwhile(write):
            for start in range(0, len(old), 10):
                imported.contribute_many(old[start : start + 10], overwrite=False)
        assert traffic.score_of("ada").recomputed_total == 7 * len(keys)


def test_another_process_is_seen_by_a_batch_that_changes_nothing_in_memory(tmp_path: Path) -> None:
    """What a cache says about a user is checked before nothing is recorded on its word."""
    env = sqlite_env(tmp_path / "events.sqlite")
    both = [sets(5), sets(5, user_id="bob")]
    with Scoring(env) as one, Scoring(env) as two:
        one.contribute_many(both)
        two.contribute_many([sets(7), sets(5, user_id="bob")])
        receipts = one.contribute_many(both)
        assert [outcome(r)[1:] for r in receipts] == [(RECORDED, 7, 5), (DUPLICATE, 5, 5)]


def test_the_clock_is_asked_once_for_each_new_grant_without_a_time() -> None:
    """Not for plain keys, nor for what was granted before, nor again by a retry."""
    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(NOON)
        return NOON

    with Watched({}, clock=clock) as app:
        app.feed_post("ada", "8812", 5)
        app.instead.append(failing(OperationalError("lost"), done=False))
        app.contribute_many([sets(1, key=BADGE, at=None), sets(1, at=None)])
        assert len(asked) == 2
