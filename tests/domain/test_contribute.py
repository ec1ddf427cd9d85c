"""``Scoring.contribute``, ``feed_post`` and ``award_badge``: routed, and unchanged to look at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import OperationalError

from concurrency import at_once
from group_commit import Watched, failing
from scoring import Contribution, ContributionReceipt, GrantStatus, InvalidGrant, Scoring, UserScore
from scoring.contributions import Bucket
from scoring.identity import user_stream_id
from support import NOON, sqlite_env

RECORDED, DUPLICATE, CONFLICT = GrantStatus.RECORDED, GrantStatus.DUPLICATE, GrantStatus.CONFLICT
POST = "content:feed-post:8812"


def events(app: Scoring, user_id: str = "ada") -> list[str]:
    """The names of a user's events, the opening one aside."""
    stream = app.events.get(user_stream_id(user_id))
    return [type(event).__name__ for event in stream if not isinstance(event, UserScore.Created)]


def outcome(receipt: ContributionReceipt) -> tuple[GrantStatus, int, int]:
    return receipt.status, receipt.recomputed_before, receipt.recomputed_after


def grant_post(app: Scoring, points: int, *, user_id: str = "ada", **changes: Any) -> GrantStatus:
    values = {"category": "content", "source": "feed", "granted_at": NOON, **changes}
    return app.grant(
        user_id=user_id, grant_id=f"{user_id}/{POST}", key=POST, amount=points, **values
    ).status


def test_a_recompute_key_is_a_map_entry(scoring: Scoring) -> None:
    """Set, lowered, repeated, set to 0: the ledger never hears of it."""
    contribute = [
        scoring.contribute("ada", "telemetry:activity", "telemetry", "app", points)
        for points in (5, 3, 3, 0, 0)
    ]
    assert [outcome(receipt) for receipt in contribute] == [
        (RECORDED, 0, 5),
        (RECORDED, 5, 3),
        (DUPLICATE, 3, 3),
        (RECORDED, 3, 0),
        (DUPLICATE, 0, 0),
    ]
    assert events(scoring) == ["BucketSet"] * 3
    assert [receipt.position for receipt in contribute] == [2, 3, 3, 4, 4]
    assert scoring.score_of("ada").total_score == 0


# The overlaps of the two ways, as at ``Scoring.contribute``: what was done before, then calls with
# their status, the recomputed total and the balance after each.
Step = Callable[[Scoring], Any]
Expected = tuple[GrantStatus, int, int]


def post(points: int, user: str = "ada") -> Step:
    return lambda app: app.feed_post(user, "8812", points, NOON)


def labelled(points: int, category: str, source: str) -> Step:
    return lambda app: app.contribute("ada", POST, category, source, points, NOON)


def granted(points: int, **changes: Any) -> Step:
    return lambda app: grant_post(app, points, **changes)


def bucket_from_before(points: int) -> Step:
    """As an application does that brings its buckets along without making them grants."""

    def step(app: Scoring) -> None:
        score = UserScore("ada")
        score.contribute(POST, "content", "feed", points)
        app.save(score)

    return step


CASES: dict[str, list[tuple[Step, Expected | None]]] = {
    "a first post is a grant": [(post(5), (RECORDED, 5, 5))],
    "delivered again it is a duplicate": [(post(5), None), (post(5), (DUPLICATE, 5, 5))],
    "with other points the bucket is overwritten and the ledger is not": [
        (post(5), None),
        (post(9), (CONFLICT, 9, 5)),
        (post(9), (CONFLICT, 9, 5)),
        (post(2), (CONFLICT, 2, 5)),
    ],
    "with 0 points likewise": [
        (post(5), None),
        (post(0), (CONFLICT, 0, 5)),
        (post(0), (CONFLICT, 0, 5)),
    ],
    "the first points again put the bucket back": [
        (post(5), None),
        (post(9), (CONFLICT, 9, 5)),
        (post(5), (DUPLICATE, 5, 5)),
        (post(5), (DUPLICATE, 5, 5)),
    ],
    "other labels are a conflict that leaves the total": [
        (post(5), None),
        (labelled(5, "blog", "feed"), (CONFLICT, 5, 5)),
        (labelled(5, "content", "import"), (CONFLICT, 5, 5)),
        (post(5), (DUPLICATE, 5, 5)),
    ],
    "a first contribution of 0 is a bucket without a grant": [
        (post(0), (RECORDED, 0, 0)),
        (post(0), (DUPLICATE, 0, 0)),
        (post(5), (RECORDED, 5, 5)),
        (post(0), (CONFLICT, 0, 5)),
    ],
    "a bucket from before becomes a grant at the first delivery": [
        (bucket_from_before(5), None),
        (post(5), (RECORDED, 5, 5)),
        (post(5), (DUPLICATE, 5, 5)),
    ],
    "a bucket from before with other points is replaced by the grant": [
        (bucket_from_before(5), None),
        (post(3), (RECORDED, 3, 3)),
        (post(5), (CONFLICT, 5, 3)),
    ],
    "a bucket from before can be set to 0 without a grant": [
        (bucket_from_before(5), None),
        (post(0), (RECORDED, 0, 0)),
        (post(4), (RECORDED, 4, 4)),
    ],
    "a bucket from before is replaced by a plain grant": [
        (bucket_from_before(5), None),
        (granted(3), (RECORDED, 3, 3)),
    ],
    "granted first, then delivered the old way": [
        (granted(5), (RECORDED, 5, 5)),
        (post(5), (DUPLICATE, 5, 5)),
        (post(7), (CONFLICT, 7, 5)),
    ],
    "delivered the old way first, then granted": [
        (post(5), None),
        (granted(5), (DUPLICATE, 5, 5)),
        (granted(6), (CONFLICT, 5, 5)),
    ],
    "grant() compares the time, and never touches an overwritten bucket": [
        (post(5), None),
        (post(9), None),
        (granted(5, granted_at=NOON + timedelta(hours=1)), (CONFLICT, 9, 5)),
        (granted(5), (DUPLICATE, 9, 5)),
        (granted(9), (CONFLICT, 9, 5)),
    ],
    "a plain grant over a first 0": [(post(0), None), (granted(5), (RECORDED, 5, 5))],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reloaded", [False, True], ids=["one process", "reloaded"])
def test_overlaps(name: str, reloaded: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Each case, in one process and with a new process for each call."""
    env = sqlite_env(tmp_path / "events.sqlite")
    app = Scoring(env)
    for number, (step, expected) in enumerate(CASES[name]):
        if reloaded:
            app.close()
            app = Scoring(env)
        answer = step(app)
        if expected is None:
            continue
        status, recomputed, balance = expected
        score = app.score_of("ada")
        assert (score.recomputed_total, score.total_score) == (recomputed, balance), number
        assert getattr(answer, "status", answer) is status, number
        if isinstance(answer, ContributionReceipt):
            assert answer.recomputed_after == recomputed, number
    app.close()


def test_time_is_not_compared_in_routed_calls(scoring: Scoring) -> None:
    """The old way had no time; the first one given stays."""
    scoring.feed_post("ada", "1", 5, NOON)
    assert scoring.feed_post("ada", "1", 5, NOON + timedelta(days=1)).status is DUPLICATE
    assert scoring.feed_post("ada", "1", 5).status is DUPLICATE


def test_without_a_time_it_is_the_clock_of_scoring() -> None:
    """Injected here; it is asked only when a grant is made."""
    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(NOON)
        return NOON

    with Scoring(clock=clock) as app:
        app.feed_post("ada", "1", 5)
        app.contribute("ada", "a", "x", "s", 5)
        assert len(asked) == 1
        grant = next(
            event
            for event in app.events.get(user_stream_id("ada"))
            if isinstance(event, UserScore.GrantRecorded)
        )
        assert grant.granted_at == NOON


def test_the_named_calls_are_contributions_with_fixed_labels(scoring: Scoring) -> None:
    """A feed post and a badge, granted under their derived ids."""
    scoring.feed_post("ada", "8812", 5, NOON)
    scoring.award_badge("ada", "first-post", 20, NOON)
    grants = [
        (event.grant_id, event.key, event.category, event.source, event.amount)
        for event in scoring.events.get(user_stream_id("ada"))
        if isinstance(event, UserScore.GrantRecorded)
    ]
    assert grants == [
        ("ada/content:feed-post:8812", "content:feed-post:8812", "content", "feed", 5),
        ("ada/award:badge:first-post", "award:badge:first-post", "award", "badge", 20),
    ]


def test_the_same_badge_for_two_users_is_two_grants_and_twice_for_one_is_one(
    scoring: Scoring,
) -> None:
    """The derived id names the user."""
    statuses = [scoring.award_badge(u, "helper", 5, NOON).status for u in ("ada", "bob", "ada")]
    assert statuses == [RECORDED, RECORDED, DUPLICATE]
    assert [scoring.score_of(user).total_score for user in ("ada", "bob")] == [5, 5]


@pytest.mark.parametrize("bad", ["", "1:2", "a/b", "a b", "é", "x" * 239, None, 7])
def test_an_id_that_makes_no_grant_shaped_key_is_refused_by_name(
    scoring: Scoring, bad: Any
) -> None:
    """It must not slip through as a recompute key."""
    for call, field in ((scoring.feed_post, "post_id"), (scoring.award_badge, "badge_id")):
        if field == "badge_id" and bad == "x" * 239:
            bad = "x" * 245
        with pytest.raises(InvalidGrant) as refused:
            call("ada", bad, 5, NOON)
        assert refused.value.field == field
    assert scoring.recorder.max_notification_id() is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"user_id": " ada"}, "user_id"),
        ({"key": "no spaces"}, "key"),
        ({"category": "Content"}, "category"),
        ({"source": ""}, "source"),
        ({"points": -1}, "points"),
        ({"points": 10**9 + 1}, "points"),
        ({"points": 1.0}, "points"),
        ({"points": True}, "points"),
        ({"at": datetime(2026, 1, 1)}, "at"),  # noqa: DTZ001 - naive on purpose
        ({"at": "2026-01-01T00:00:00Z"}, "at"),
    ],
)
@pytest.mark.parametrize("key", [POST, "telemetry:activity"])
def test_a_bad_contribution_writes_nothing(
    scoring: Scoring, key: str, changes: dict[str, Any], field: str
) -> None:
    """Field, value and rule are named, whichever way it would have gone, and however it is made."""
    values: dict[str, Any]
    values = {"user_id": "ada", "key": key, "category": "x", "source": "s", "points": 5, "at": NOON}
    for door in (
        lambda: scoring.contribute(**{**values, **changes}),
        lambda: Contribution.model_construct(**{**values, **changes}),
        lambda: Contribution(**values).model_copy(update=changes),
        lambda: Contribution(**values).copy(update=changes),
    ):
        with pytest.raises(InvalidGrant) as refused:
            door()
        assert refused.value.field == field
    assert scoring.recorder.max_notification_id() is None


def test_user_ids_are_normalised_like_everywhere(scoring: Scoring) -> None:
    """Two spellings of one name are one user and one derived id."""
    assert scoring.award_badge("Zoe\u0308", "x", 5, NOON).status is RECORDED
    assert scoring.award_badge("Zo\u00eb", "x", 5, NOON).status is DUPLICATE


def test_a_conflict_is_logged_with_both_sides(
    scoring: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may want to know what the ledger did not take."""
    scoring.feed_post("ada", "1", 5, NOON)
    with caplog.at_level(logging.WARNING):
        scoring.feed_post("ada", "1", 9, NOON)
    [message] = caplog.messages
    assert message == (
        "key 'content:feed-post:1' of 'ada' has a grant, so only its bucket was set: "
        "given points 9, kept points 5"
    )


def test_a_contribution_that_is_repeated_at_the_limit_of_a_total_is_a_duplicate(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a grant is: what was recorded is answered for, though there is no room for it again."""
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", 20)
    first = scoring.award_badge("ada", "first-post", 15, NOON)
    again = scoring.award_badge("ada", "first-post", 15, NOON)
    assert [first.status, again.status] == ["RECORDED", "DUPLICATE"]
    assert (again.recomputed_before, again.recomputed_after) == (15, 15)
    other = scoring.award_badge("ada", "first-post", 19, NOON)
    assert (other.status, other.recomputed_after) == ("CONFLICT", 19)
    with pytest.raises(InvalidGrant, match="points must be at most"):
        scoring.award_badge("ada", "another", 15, NOON)
    assert scoring.score_of("ada").total_score == 15


def test_another_process_decides_on_what_is_recorded_not_on_what_it_remembers(
    tmp_path: Path,
) -> None:
    """A process whose memory says 'unchanged' must look before it records nothing."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as one, Scoring(env) as two:
        one.contribute("ada", "a", "x", "s", 5)
        two.contribute("ada", "a", "x", "s", 7)
        assert outcome(one.contribute("ada", "a", "x", "s", 5)) == (RECORDED, 7, 5)
        one.feed_post("ada", "1", 5, NOON)
        two.feed_post("ada", "1", 9, NOON)
        assert outcome(one.feed_post("ada", "1", 5, NOON)) == (DUPLICATE, 14, 10)
        for app in (one, two):
            assert app.score_of("ada").recomputed_total == 10


def test_a_key_that_becomes_grant_shaped_later_is_migrated_by_its_next_delivery(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket from its recompute days gives way to the grant; this is how kinds are added."""
    scoring.contribute("ada", "award:medal:gold", "award", "medal", 30)
    for module in ("user_score", "contribution_handler", "grants"):
        monkeypatch.setattr(f"scoring.{module}.is_grant_shaped", lambda key: "medal" in key)
    receipt = scoring.contribute("ada", "award:medal:gold", "award", "medal", 30, NOON)
    assert outcome(receipt) == (RECORDED, 30, 30)
    assert scoring.score_of("ada").total_score == 30


def test_a_grant_from_before_its_key_was_grant_shaped_did_not_make_the_bucket(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides the status only: what it put into the recomputed total was nothing."""
    key = "award:medal:gold"
    scoring.grant("ada", f"ada/{key}", key, "award", "medal", 30, NOON)
    for module in ("user_score", "contribution_handler", "grants"):
        monkeypatch.setattr(f"scoring.{module}.is_grant_shaped", lambda key: "medal" in key)
    assert outcome(scoring.contribute("ada", key, "award", "medal", 30)) == (DUPLICATE, 0, 30)
    assert outcome(scoring.contribute("ada", key, "award", "medal", 8)) == (CONFLICT, 30, 8)
    assert scoring.score_of("ada").total_score == 30


# --- races and lost answers ----------------------------------------------------------------------


def test_racing_deliveries_of_one_post_make_one_grant(tmp_path: Path) -> None:
    """Four applications on one file; the last one to write has its way with the bucket only."""
    env = sqlite_env(tmp_path / "events.sqlite")
    apps = [Scoring(env) for _ in range(4)]
    receipts: list[ContributionReceipt] = []
    for number in range(5):

        def deliver(which: int, number: int = number) -> None:
            receipts.append(apps[which].feed_post("ada", str(number), which + 1, NOON))

        at_once(4, deliver)
    assert sorted(r.status for r in receipts) == [CONFLICT] * 15 + [RECORDED] * 5
    score = apps[0].score_of("ada")
    assert score.grant_count == 5
    # Every change was answered with the totals before and after it, so together they make a chain.
    changes = {r.position: r for r in receipts}
    chain = [changes[position] for position in sorted(changes)]
    total = 0
    for receipt in chain:
        assert receipt.recomputed_before == total
        total = receipt.recomputed_after
    assert score.recomputed_total == total
    for app in apps:
        app.close()


def test_racing_contributions_of_one_key_leave_the_points_of_one_of_them(tmp_path: Path) -> None:
    """And the total is that of the buckets, whoever came last."""
    env = sqlite_env(tmp_path / "events.sqlite")
    apps = [Scoring(env) for _ in range(4)]

    def count_up(which: int) -> None:
        for number in range(10):
            apps[which].contribute("ada", "a", "x", "s", 10 * which + number + 1)

    at_once(4, count_up)
    with Scoring(env) as fresh:
        stream = list(fresh.events.get(user_stream_id("ada")))
        last = stream[-1]
        assert isinstance(last, UserScore.BucketSet)
        assert fresh.score_of("ada").recomputed_total == last.points
        assert len(stream) == 41
    for app in apps:
        app.close()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda app: app.contribute("ada", "a", "x", "s", 5), (RECORDED, 9, 14)),
        (lambda app: app.feed_post("ada", "2", 5, NOON), (RECORDED, 9, 14)),
        (lambda app: app.feed_post("ada", "1", 5, NOON), (CONFLICT, 9, 5)),
        (lambda app: app.feed_post("ada", "3", 0, NOON), (RECORDED, 9, 9)),
    ],
    ids=["bucket", "grant", "overwritten", "zero"],
)
def test_a_commit_whose_answer_was_lost_is_answered_truthfully_and_done_once(
    watched: Watched,
    call: Callable[[Scoring], ContributionReceipt],
    expected: tuple[GrantStatus, int, int],
    *,
    done: bool,
) -> None:
    """Also where the first attempt was refused because the id is taken."""
    watched.feed_post("ada", "1", 9, NOON)
    before = len(events(watched))
    watched.instead += [failing(OperationalError("lost"), done=done)] * 2
    receipt = call(watched)
    assert len(watched.instead) < 2
    assert outcome(receipt) == expected
    assert len(events(watched)) == before + 1
    [notification] = watched.recorder.select_notifications(receipt.position, 1)
    event = watched.mapper.to_domain_event(notification)
    assert isinstance(event, UserScore.BucketSet | UserScore.GrantRecorded)
    assert watched.score_of("ada").recomputed_total == expected[2]


def test_somebody_elses_contribution_is_not_undone_by_a_retry(watched: Watched) -> None:
    """Ours was committed, its answer lost, and another one came before we looked: theirs stays."""
    with Scoring(watched.env) as other:
        watched.instead.append(
            failing(
                OperationalError("lost"),
                done=True,
                then=lambda: other.contribute("ada", "a", "x", "s", 8),
            )
        )
        assert outcome(watched.contribute("ada", "a", "x", "s", 5)) == (RECORDED, 0, 5)
    assert watched.score_of("ada").recomputed_total == 8


def test_snapshots_are_taken_of_users_who_only_contribute(tmp_path: Path) -> None:
    """Loading stays short, and the buckets come back with the snapshot."""
    env = sqlite_env(tmp_path / "events.sqlite")
    with Scoring(env) as app:
        for number in range(230):
            app.contribute("ada", f"key:{number % 3}", "x", "s", number)
    with Scoring(env) as app:
        assert app.snapshots is not None
        newest = list(app.snapshots.get(user_stream_id("ada"), desc=True, limit=1))
        assert newest[0].originator_version == 200
        score: Any = app.repository.get(user_stream_id("ada"))
        assert score.buckets["key:1"] == Bucket(229, "x", "s")
        assert app.score_of("ada").recomputed_total == 227 + 228 + 229
