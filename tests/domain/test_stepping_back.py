"""An event store that is put back to an earlier state under a process that goes on."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import IntegrityError
from eventsourcing.sqlite import SQLiteApplicationRecorder

from receipts_check import read_ledger
from restored_stores import MongoStore, PostgresStore, SQLiteStore, Store
from scoring import BatchFailed, Contribution, Grant, Scoring, ScoringError, StreamHasGap, UserScore
from scoring.event_store import StoreWentBack
from scoring.identity import claim_stream_id, user_stream_id
from support import make_grant, mongo_env


class ChosenRecorder(SQLiteApplicationRecorder):
    """A recorder that an embedder has chosen."""


class Note(Aggregate):
    """An aggregate of an embedder's."""

    class Changed(Aggregate.Event):
        """It was changed."""

        def apply(self, aggregate: Note) -> None:
            """Do nothing."""


@pytest.fixture(params=["sqlite", "postgres", "mongo", "chosen recorder"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that can be put back, of every kind."""
    if request.param == "mongo":
        # Where it does not restart, it is looked at once a second.
        monkeypatch.setattr("projections.mongo.event_store.foundations._LOOKS_BACK_SECONDS", 0)
        uri = request.getfixturevalue("mongo_uri")
        return MongoStore(mongo_env(uri, f"back_{uuid4().hex[:8]}"))
    if request.param == "postgres":
        return PostgresStore(request.getfixturevalue("postgres"))
    if request.param == "sqlite":
        return SQLiteStore(tmp_path)
    topic = f"{__name__}:{ChosenRecorder.__qualname__}"
    return SQLiteStore(tmp_path, APPLICATION_RECORDER_TOPIC=topic)


@pytest.fixture
def app(store: Store) -> Iterator[Scoring]:
    """The process that goes on."""
    with Scoring(store.env) as app:
        yield app


def give(app: Scoring, numbers: range, user_id: str = "ada", **changes: Any) -> list[Any]:
    """Grant five points each, one by one."""
    grants = [make_grant(n, user_id=user_id, amount=5, **changes) for n in numbers]
    return [app.grant(**grant.model_dump()) for grant in grants]


def contribute(app: Scoring, user_id: str) -> int:
    """Set a bucket, and return the version at which it is."""
    app.contribute(user_id, "telemetry:activity", "telemetry", "app", next(_points))
    return app.score_of(user_id).version


_points = count(1)


def grant_many(app: Scoring, user_id: str) -> int:
    [receipt] = app.grant_many([make_grant(99, user_id=user_id, amount=5)])
    assert receipt.status == "RECORDED"
    return app.score_of(user_id).version


def grant_one(app: Scoring, user_id: str) -> int:
    [receipt] = give(app, range(99, 100), user_id)
    assert (receipt.status, receipt.total_before, receipt.total_after) == ("RECORDED", 15, 20)
    return app.score_of(user_id).version


def save_one(app: Scoring, user_id: str) -> int:
    """As embedders do: again when somebody else was faster, which is how they hear of it."""
    score: UserScore = app.repository.get(UserScore.create_id(user_id))
    score.record(make_grant(99, user_id=user_id, amount=5))
    try:
        app.save(score)
    except IntegrityError:
        return save_one(app, user_id)
    return score.version


@pytest.mark.parametrize("command", [grant_one, grant_many, contribute, save_one])
def test_a_commit_that_follows_a_step_back_builds_on_what_the_store_has(
    app: Scoring, store: Store, command: Callable[[Scoring, str], int]
) -> None:
    """The balance of the receipt is the store's, and the versions have no gap."""
    give(app, range(1, 4))
    store.back_up()
    give(app, range(4, 7))
    store.put_back()
    assert command(app, "ada") == 5
    with Scoring(store.env) as other:
        assert other.score_of("ada") == app.score_of("ada")
        assert other.score_of("ada").version == 5
    read_ledger(app)


def test_a_read_that_follows_a_step_back_answers_from_what_the_store_has(
    app: Scoring, store: Store
) -> None:
    """Also for a user who is not in the store any more, and for one who was written anew since."""
    give(app, range(1, 4))
    store.back_up()
    give(app, range(4, 7))
    give(app, range(11, 12), "bob")
    give(app, range(21, 24), "eve")
    store.put_back()
    assert app.score_of("ada").total_score == 15
    assert app.score_of("bob").version == 0
    with Scoring(store.env) as other:
        give(other, range(31, 34), "eve", category="learning")
    assert app.score_of("eve").category_totals == {"learning": 15}


def written_anew(app: Scoring, store: Store) -> Scoring:
    """An application that has eve in memory, whose events another process has written anew since.

    She has as many events as before, of another category.
    """
    give(app, range(1, 4))
    store.back_up()
    give(app, range(21, 24), "eve")
    store.put_back()
    with Scoring(store.env) as other:
        give(other, range(31, 34), "eve", category="learning")
    return app


def test_a_read_compares_the_newest_event_with_what_is_in_memory(
    app: Scoring, store: Store
) -> None:
    """Its version alone would not tell."""
    assert written_anew(app, store).score_of("eve").category_totals == {"learning": 15}


@pytest.mark.parametrize("store", ["sqlite", "postgres", "mongo"], indirect=True)
def test_a_commit_that_follows_a_step_back_drops_all_that_is_in_memory(
    app: Scoring, store: Store
) -> None:
    """Not only whom it was about: after it, nobody could tell that eve was written anew."""
    written_anew(app, store)
    give(app, range(7, 8))
    give(app, range(40, 41), "eve", category="learning")
    cached = app._scores._cache.check_out(["eve"])
    assert cached["eve"].category_totals == {"learning": 20}


@pytest.mark.parametrize("store", ["sqlite", "postgres", "mongo"], indirect=True)
def test_a_commit_does_not_build_on_events_that_took_the_place_of_lost_ones(
    app: Scoring, store: Store
) -> None:
    """Another process has reached the same version by other events meanwhile."""
    give(app, range(1, 4))
    store.back_up()
    give(app, range(4, 7))
    store.put_back()
    with Scoring(store.env) as other:
        for number in range(14, 17):
            other.grant(**make_grant(number, user_id="ada", amount=100).model_dump())
    [receipt] = give(app, range(99, 100))
    assert (receipt.total_before, receipt.total_after) == (315, 320)
    read_ledger(app)


@pytest.mark.parametrize("store", ["sqlite", "postgres", "mongo"], indirect=True)
def test_a_commit_does_not_build_on_lost_events_that_others_had_written(
    app: Scoring, store: Store
) -> None:
    """The store went back to a state that has all that this process has written itself."""
    give(app, range(11, 12), "bob")
    store.back_up()
    with Scoring(store.env) as other:
        give(other, range(1, 4))
        assert app.score_of("ada").total_score == 15
        store.put_back()
    with Scoring(store.env) as other:
        for number in range(4, 7):
            other.grant(**make_grant(number, user_id="ada", amount=100).model_dump())
    [receipt] = give(app, range(99, 100))
    assert (receipt.total_before, receipt.total_after) == (300, 305)
    assert app.score_of("ada").total_score == 305


def test_grants_that_were_lost_are_recorded_again(app: Scoring, store: Store) -> None:
    """A retry of what was answered before is no duplicate, and what is left is one."""
    receipts = give(app, range(1, 4))
    store.back_up()
    give(app, range(4, 7))
    store.put_back()
    again = give(app, range(1, 7))
    assert [receipt.status for receipt in again] == ["DUPLICATE"] * 3 + ["RECORDED"] * 3
    assert [receipt.total_after for receipt in again] == [15, 15, 15, 20, 25, 30]
    assert again[3].position > receipts[2].position
    read_ledger(app)


def test_a_snapshot_that_is_ahead_of_the_events_is_not_believed(app: Scoring, store: Store) -> None:
    """Nor one whose events were lost and written anew; older ones serve instead."""
    app.grant_many([make_grant(n, user_id="ada", amount=5) for n in range(150)])
    store.back_up()
    score: UserScore = app.repository.get(UserScore.create_id("ada"))
    app.grant_many([make_grant(n, user_id="ada", amount=5) for n in range(150, 300)])
    ahead: UserScore = app.repository.get(UserScore.create_id("ada"))
    store.put_back()
    assert app.snapshots is not None
    app.snapshots.put([UserScore.Snapshot.take(ahead)])
    with Scoring(store.env) as other:
        assert other.score_of("ada").total_score == 750
        assert other.repository.get(score.id).version == score.version == 151
        other.grant_many([make_grant(n, user_id="ada", amount=1) for n in range(1000, 1150)])
    with Scoring(store.env) as other:
        assert other.score_of("ada").version == ahead.version
        assert other.score_of("ada").total_score == 900
        snapshots = other.snapshots
        assert snapshots is not None
        versions = [s.originator_version for s in snapshots.get(score.id)]
        assert versions == [s.originator_version for s in snapshots.get(score.id, desc=True)][::-1]
        assert versions
        assert ahead.version not in versions


def test_users_who_are_loaded_together_are_as_if_loaded_alone(app: Scoring, store: Store) -> None:
    """From a snapshot that is believed, from one that is not, from events only, and new ones."""
    names = ["new", "ada", "bob", "few", "long", "another new one"]
    counts = {"ada": 120, "bob": 120, "few": 3, "long": 230}
    app.grant_many(
        [
            make_grant(1000 * number + n, user_id=user, amount=n + 1)
            for number, (user, many) in enumerate(counts.items())
            for n in range(many)
        ]
    )
    app.contribute("long", "telemetry:activity", "telemetry", "app", 1)
    store.back_up()
    app.grant_many([make_grant(5000 + n, user_id="ada") for n in range(10)])
    ahead: UserScore = app.repository.get(user_stream_id("ada"))
    store.put_back()
    assert app.snapshots is not None
    app.snapshots.put([UserScore.Snapshot.take(ahead)])
    totals = {user: many * (many + 1) // 2 for user, many in counts.items()}
    with Scoring(store.env) as other:
        alone = {user: other._scores.check_out_current([user]).get(user) for user in names}
    with Scoring(store.env) as other:
        together = other._scores.check_out_current(names)
        assert {user: score.total_score for user, score in together.items()} == totals
        for user in names:
            assert vars(together.get(user) or object) == vars(alone[user] or object)
    with Scoring(store.env) as other:
        receipts = other.grant_many([make_grant(n, user_id=u) for n, u in enumerate(names, 6000)])
        assert [r.total_before for r in receipts] == [totals.get(user, 0) for user in names]


@pytest.mark.parametrize("written_since", [False, True])
def test_the_totals_of_taken_ids_are_those_of_the_store_that_was_put_back(
    app: Scoring, store: Store, *, written_since: bool
) -> None:
    """Of so many users that they are not looked up one by one; perhaps it is as long as before."""

    def five_points(app: Scoring, first: int) -> list[Any]:
        some = [make_grant(first + n, user_id=f"user-{n % 120}", amount=5) for n in range(600)]
        return app.grant_many(some)

    five_points(app, 0)
    store.back_up()
    five_points(app, 0)
    five_points(app, 1000)
    assert {receipt.total_after for receipt in five_points(app, 0)} == {50}
    store.put_back()
    if written_since:
        with Scoring(store.env) as other:
            other.grant_many([make_grant(n, user_id="user-7") for n in range(2000, 2600)])
    receipts = five_points(app, 0)
    with Scoring(store.env) as other:
        for receipt in receipts[:120]:
            assert receipt.total_after == other.score_of(receipt.user_id).total_score


def test_a_commit_right_after_events_that_were_replaced_does_not_hide_them(
    app: Scoring, store: Store
) -> None:
    """What this process has seen of others is looked for, too, though its own events are there."""
    labels: Any = {"key": "k", "category": "any", "source": "any"}
    buckets = [Contribution(user_id=f"user-{n}", points=5, **labels) for n in range(120)]
    app.contribute_many(buckets)
    with Scoring(store.env) as other:
        store.back_up()
        give(other, range(1), "user-0")  # two events
    app.contribute_many(buckets)
    store.put_back()
    with Scoring(store.env) as other:
        other.contribute("user-1", points=70, **labels)
        other.contribute("user-2", points=70, **labels)
    app.contribute("user-3", points=70, **labels)
    receipts = app.contribute_many(buckets)
    assert [each.recomputed_before for each in receipts[:5]] == [5, 70, 70, 70, 5]


def test_an_aggregate_of_an_embedders_own_is_not_saved_onto_a_gap(
    app: Scoring, store: Store
) -> None:
    """It hears so as it hears of a lost race, loads again, and goes on."""
    note = Note()
    app.save(note)
    store.back_up()
    for _ in range(2):
        note.trigger_event(Note.Changed)
        app.save(note)
    store.put_back()
    note.trigger_event(Note.Changed)
    with pytest.raises(StoreWentBack, match="put back to an earlier state"):
        app.save(note)
    again: Note = app.repository.get(note.id)
    again.trigger_event(Note.Changed)
    app.save(again)
    assert app.repository.get(note.id).version == 2


def test_events_that_leave_a_version_out_are_not_saved(app: Scoring, store: Store) -> None:
    """Whoever made them, and whatever else is saved with them."""
    note = Note()
    for _ in range(3):
        note.trigger_event(Note.Changed)
    first, second, _, fourth = note.collect_events()
    with pytest.raises(IntegrityError):
        app.save(first, second, fourth)
    with pytest.raises(StoreWentBack):
        app.save(fourth)
    assert app.recorder.max_notification_id() is None
    stored = Note()
    app.save(stored)
    stored.trigger_event(Note.Changed)
    with Scoring(store.env) as other, pytest.raises(StoreWentBack):
        other.save(*stored.collect_events(), fourth)
    assert app.recorder.max_notification_id() == 1


# --- streams that have a gap already, from before there was a check ------------------------------


@pytest.fixture
def broken(app: Scoring, store: Store) -> Scoring:
    """An application on a store in which versions 3 to 4 of ada's stream are missing."""
    give(app, range(1, 6))
    give(app, range(11, 14), "bob")
    for version in (3, 4):
        store.delete(stream=str(user_stream_id("ada")).replace("-", ""), version=version)
    for number in (2, 3):
        claim = str(claim_stream_id(f"grant-{number}")).replace("-", "")
        store.delete(stream=claim, version=1)
    return app


def test_a_stream_with_a_gap_is_an_error_that_names_user_and_versions(
    broken: Scoring, store: Store
) -> None:
    """From every command and read, in a process that loads the user."""
    del broken
    with Scoring(store.env) as app:
        commands: list[Callable[[], object]] = [
            lambda: app.score_of("ada"),
            lambda: give(app, range(50, 51)),
            lambda: give(app, range(1, 2)),  # whose total would be in the receipt
            lambda: app.contribute("ada", "telemetry:activity", "telemetry", "app", 1),
            lambda: app.award_badge("ada", "first-post", 5),
        ]
        for command in commands:
            with pytest.raises(StreamHasGap, match=r"'ada' lacks versions 3 to 4") as gap:
                command()
            assert (gap.value.user_id, gap.value.missing) == ("ada", range(3, 5))
            assert isinstance(gap.value, ScoringError)
            assert pickle.loads(pickle.dumps(gap.value)).missing == range(3, 5)
        assert app.score_of("bob").total_score == 15
        assert give(app, range(60, 61), "bob")[0].status == "RECORDED"


def test_a_stream_with_a_gap_does_not_keep_others_from_being_recorded(
    broken: Scoring, store: Store
) -> None:
    """A batch stops at its grant with receipts of all before it, and may be gone on with behind."""
    del broken
    batch = [
        make_grant(n, user_id={3: "ada", 5: "ada"}.get(n % 8, f"user-{n % 5}"))
        for n in range(100, 130)
    ]
    batch += [make_grant(1, user_id="ada", amount=5), make_grant(11, user_id="bob", amount=5)]
    answered: dict[str, str] = {}
    refused: list[Grant] = []
    with Scoring(store.env) as app:
        rest = batch
        while rest:
            try:
                receipts = app.grant_many(rest)
                failed = None
            except BatchFailed as error:
                failed, receipts = error, error.receipts_so_far
            answered |= {g.grant_id: r.status.name for g, r in zip(rest, receipts, strict=False)}
            if failed is None:
                break
            assert isinstance(failed.__cause__, StreamHasGap)
            assert len(receipts) == failed.index
            refused.append(rest[failed.index])
            rest = rest[failed.index + 1 :]
        assert refused == [grant for grant in batch if grant.user_id == "ada"]
        assert answered.pop("grant-11") == "DUPLICATE"
        assert set(answered.values()) == {"RECORDED"}
        assert len(answered) + len(refused) + 1 == len(batch)
        assert app.score_of("user-0").grant_count == 6 - sum(
            g.user_id == "ada" for g in batch if g.grant_id.endswith(("0", "5"))
        )


@pytest.mark.parametrize("versions", [(1,), (3, 4), (2, 3, 5), (99, 100, 101)])
def test_gaps_that_are_closed_leave_what_the_events_say(
    app: Scoring, store: Store, versions: tuple[int, ...]
) -> None:
    """Snapshots that know of the lost events do not bring their points back."""
    app.grant_many([make_grant(n, user_id="ada", amount=5) for n in range(250)])
    for version in versions:
        store.delete(stream=user_stream_id("ada").hex, version=version)
    with Scoring(store.env) as other:
        gaps = other.close_gaps("ada")
        assert gaps
        assert [version for gap in gaps for version in gap] == list(versions)
        assert other.close_gaps("ada") == []
        assert other.close_gaps("nobody") == []
        left = 250 - len([v for v in versions if v > 1])
        assert other.score_of("ada").total_score == 5 * left
        assert other.score_of("ada").version == 252
        [receipt] = give(other, range(500, 501))
        assert (receipt.status, receipt.total_before) == ("RECORDED", 5 * left)
    with Scoring(store.env) as other:
        assert other.score_of("ada").grant_count == left + 1
        replayed: UserScore = other.repository.get(UserScore.create_id("ada"), version=253)
        assert replayed.total_score == 5 * (left + 1)


def test_a_claim_without_its_grant_is_a_clear_error(app: Scoring, store: Store) -> None:
    """It says what is damaged, in a batch too, with the index of the grant."""
    give(app, range(1, 2))
    store.delete(stream=user_stream_id("ada").hex, version=2)
    with pytest.raises(ScoringError, match=r"damaged: .* version 2 .* 'ada'"):
        give(app, range(1, 2), "bob")
    with pytest.raises(BatchFailed, match="damaged") as failed:
        app.grant_many([make_grant(7, user_id="bob"), make_grant(1, user_id="eve")])
    assert failed.value.index == 1
