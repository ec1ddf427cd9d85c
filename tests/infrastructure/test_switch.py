"""The switch between generations, stopped at each of its steps, and what readers see of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from bson.binary import Binary
from eventsourcing.persistence import Tracking
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from concurrency import at_once, lasting_at_most, meanwhile, until
from fail_points import failing, transactions_of
from heard_commands import HeardCommands, Overtaken
from projections import (
    Leaderboard,
    MongoScoreView,
    PositionMoved,
    ProjectionError,
    ProjectionWorker,
    RebuildSuperseded,
)
from projections.errors import ReadModelUnavailable
from projections.events.anchor import Tracked
from projections.mongo import connect
from projections.mongo.batches import Batch
from projections.mongo.collections import GENERATIONAL
from projections.mongo.control import GenerationState
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch, next_step, roll_forward
from projections.mongo.writer import Transaction
from projections.queries.history import UserHistory
from projections.verification.events import verify_events
from projections.worker.rebuild import Rebuild
from scoring import Grant, Scoring
from support import build_next, make_grant, worker_maker

STEPS = 2 * len(GENERATIONAL) + 1
"""The renames, and the transaction that makes the new generation the live one."""

NEW = 1_000_000
"""What the planted generation has for totals and amounts, so that it can be told apart."""


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits takes over soon."""
    monkeypatch.setattr("projections.mongo.generations.SILENT_SWITCH_SECONDS", 0.05)
    monkeypatch.setattr("projections.mongo.switch.SILENT_HOLD_SECONDS", 0.3)


def plant(building: ReadModel, value: int) -> None:
    building.users.update_many({}, {"$set": {"totalScore": value}})
    building.grants.update_many({}, {"$set": {"amount": value}})


def built(scoring: Scoring, live: ReadModel) -> Switch:
    """A second generation that differs from the first, ready to be switched to."""
    switch = build_next(scoring, live)
    plant(live.of_generation(live.generations.begin()), NEW)
    return switch


def committed(scoring: Scoring, live: ReadModel) -> Switch:
    switch = built(scoring, live)
    assert switch.hold()
    assert switch.commit(at_least=scoring.recorder.max_notification_id() or 0)
    return switch


def walk(live: ReadModel, steps: int) -> None:
    for _ in range(steps):
        step = next_step(live)
        assert step is not None
        step()


def collections(live: ReadModel) -> set[str]:
    return set(live.database.list_collection_names())


def assert_second_generation_is_live(live: ReadModel, *, building: int | None = None) -> None:
    state = live.generations.state()
    assert (state.generation, state.building, state.switching_to) == (2, building, None)
    names = {name for name in collections(live) if name.startswith(GENERATIONAL)}
    assert names == {*GENERATIONAL, *(f"{name}__g1_old" for name in GENERATIONAL)}
    assert [document["_id"] for document in live.positions.find()] == ["Scoring"]
    assert "hold" not in (live.positions.find_one() or {})
    assert live.users.distinct("totalScore") == [NEW]
    assert live.grants.distinct("amount") == [NEW]
    assert len(live.grants.index_information()) == len(live.users.index_information()) == 3
    assert NEW not in live.database.user_scores__g1_old.distinct("totalScore")


def a_reader(_: Scoring, live: ReadModel) -> None:
    rows = Leaderboard(live).top(100, by="ledger")
    assert {row.score for row in rows} == {NEW}


def a_worker(scoring: Scoring, live: ReadModel) -> None:
    scoring.grant_many([make_grant(99, amount=5)])
    ProjectionWorker(scoring, MongoScoreView(live)).catch_up()
    assert live.grants.find_one_and_delete({"grantId": "grant-99"}) is not None
    live.users.update_one({"_id": make_grant(99).user_id}, {"$inc": {"totalScore": -5}})


def an_opening(_: Scoring, live: ReadModel) -> None:
    live.prepare()


@pytest.mark.parametrize("comer", [a_reader, a_worker, an_opening])
@pytest.mark.parametrize("steps", range(STEPS))
@pytest.mark.usefixtures("short_silence")
def test_a_switch_stopped_at_any_step_is_rolled_forward_by_whoever_comes_next(
    scoring: Scoring, live: ReadModel, steps: int, comer: Callable[[Scoring, ReadModel], None]
) -> None:
    """From what is there alone, and the new generation is live with its position."""
    committed(scoring, live)
    walk(live, steps)
    # Everybody who comes is another process than the one that stopped.
    comer(scoring, ReadModel(live.client, live.database.name))
    assert_second_generation_is_live(live)


@pytest.mark.parametrize("steps", range(STEPS))
@pytest.mark.usefixtures("short_silence")
def test_a_rebuild_finishes_a_stopped_switch_before_it_begins(
    scoring: Scoring, live: ReadModel, steps: int
) -> None:
    """It builds the generation after that one."""
    committed(scoring, live)
    walk(live, steps)
    outcome = Rebuild(scoring, live, worker_maker(scoring)).run()
    assert (outcome.generation, outcome.live) == (3, True)
    assert live.generations.kept() == [1, 2]
    assert verify_events(scoring, live).differences == []


def test_the_switch_has_as_many_steps_as_the_tests_stop_at(
    scoring: Scoring, live: ReadModel
) -> None:
    """Or a step would go untested."""
    committed(scoring, live)
    walk(live, STEPS)
    assert next_step(live) is None
    assert_second_generation_is_live(live)


def test_two_who_roll_forward_together_do_it_once(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """Each rename names the UUID it means, so the second one of a kind is refused."""
    committed(scoring, live)

    def roll(_: int) -> None:
        with connect(mongo_uri) as client:
            roll_forward(ReadModel(client, live.database.name))

    at_once(4, roll)
    assert_second_generation_is_live(live)


def test_steps_that_arrive_late_change_nothing(scoring: Scoring, live: ReadModel) -> None:
    """As those of a process that was stopped for an hour, even when the old names are free."""
    committed(scoring, live)
    steps = []
    while (step := next_step(live)) is not None:
        steps.append(step)
        step()
    for step in steps:
        step()
    assert_second_generation_is_live(live)
    assert live.generations.drop_kept() == [1]
    for step in steps:
        step()
    assert live.users.distinct("totalScore") == [NEW]
    assert {name for name in collections(live) if name.startswith(GENERATIONAL)} == {*GENERATIONAL}


@pytest.mark.usefixtures("short_silence")
def test_a_silent_hold_is_lifted_by_the_worker_that_it_holds_up(
    scoring: Scoring, live: ReadModel
) -> None:
    """A rebuild that dies before it commits to the switch has changed nothing."""
    switch = built(scoring, live)
    assert switch.hold()
    scoring.grant_many([make_grant(99)])
    ProjectionWorker(scoring, MongoScoreView(live)).catch_up()
    assert verify_events(scoring, live).ok
    assert not switch.commit(at_least=0)
    assert live.generations.state().switching_to is None


def test_a_held_position_is_not_moved(scoring: Scoring, live: ReadModel) -> None:
    """Neither by a batch nor by the library's own way of tracking, until it is released."""
    view = MongoScoreView(live)
    switch = built(scoring, live)
    tracked = view.tracked(scoring.name)
    position = tracked.position
    assert position is not None
    batch = Batch(scoring.name, tracked, Tracked(position + 1))
    assert switch.hold()
    with pytest.raises(PositionMoved):
        view.apply(batch)
    assert view.max_tracking_id(scoring.name) == position
    switch.release()
    view.apply(batch)
    assert view.max_tracking_id(scoring.name) == position + 1


def test_the_librarys_way_of_tracking_waits_for_a_hold_and_then_goes_on(
    scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its own projections do, which know nothing of switches."""
    monkeypatch.setattr("projections.mongo.switch.SILENT_HOLD_SECONDS", 60.0)
    view = MongoScoreView(live)
    switch = built(scoring, live)
    position = view.max_tracking_id(scoring.name)
    assert position is not None
    assert switch.hold()
    tracking = Thread(target=view.insert_tracking, args=[Tracking(scoring.name, position + 1)])
    tracking.start()
    try:
        tracking.join(0.3)
        assert tracking.is_alive()
        assert view.max_tracking_id(scoring.name) == position
    finally:
        switch.release()
        tracking.join()
    assert view.max_tracking_id(scoring.name) == position + 1


def test_of_two_who_want_to_hold_one_does(scoring: Scoring, live: ReadModel) -> None:
    """The other one is told, and cannot commit."""
    first, second = built(scoring, live), built(scoring, live)
    assert first.hold()
    assert not second.hold()
    assert not second.commit(at_least=0)
    assert first.commit(at_least=0)


def test_a_switch_that_is_overtaken_while_it_is_committed_is_not_and_finds_nothing_missing(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """It was stopped for so long that its hold fell silent, and what it looks for was renamed."""
    faster = built(scoring, live)

    def overtake() -> None:
        live.positions.update_one({}, {"$unset": {"hold": ""}})
        assert faster.hold()
        assert faster.commit(at_least=0)
        roll_forward(live)

    with MongoClient[dict[str, Any]](mongo_uri, event_listeners=[Overtaken(overtake)]) as client:
        seen = ReadModel(client, live.database.name)
        overtaken = Switch(seen, seen.of_generation(2), scoring.name)
        assert overtaken.hold()
        assert not overtaken.commit(at_least=0)
    assert_second_generation_is_live(live)


def test_a_switch_is_not_committed_before_the_new_generation_is_far_enough(
    scoring: Scoring, live: ReadModel
) -> None:
    """Positions never go back."""
    switch = built(scoring, live)
    newest = scoring.recorder.max_notification_id() or 0
    assert switch.hold()
    assert not switch.commit(at_least=newest + 1)
    assert switch.commit(at_least=newest)


def test_a_switch_whose_generation_was_given_up_is_not_committed(
    scoring: Scoring, live: ReadModel
) -> None:
    """By a fresh rebuild, say: its collections are not there any more."""
    switch = built(scoring, live)
    assert switch.hold()
    assert live.generations.begin(fresh=True) == 3
    assert live.positions.distinct("_id") == ["Scoring"]
    assert not switch.commit(at_least=0)
    switch.release()
    assert live.generations.state().switching_to is None


def test_a_switch_to_collections_that_somebody_dropped_is_refused(
    scoring: Scoring, live: ReadModel
) -> None:
    """Readers would find nothing; the generation is to be built anew."""
    switch = built(scoring, live)
    live.of_generation(2).buckets.drop()
    assert switch.hold()
    with pytest.raises(ProjectionError, match=r"score_buckets__g2 .* vanished: .* --fresh"):
        switch.commit(at_least=0)
    switch.release()
    assert live.generations.state().switching_to is None


def test_a_number_that_went_live_meanwhile_is_not_built_again(
    scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole rebuild of somebody else passes between choosing a number and claiming it."""
    generations = ReadModel(live.client, live.database.name).generations
    claim = generations._claim

    def claim_late(state: GenerationState, number: int) -> bool:
        if number == 2:
            committed(scoring, live)
            roll_forward(live)
        return claim(state, number)

    monkeypatch.setattr(generations, "_claim", claim_late)
    assert generations.begin() == 3
    assert_second_generation_is_live(live, building=3)


def test_what_was_looked_up_before_a_commit_is_not_recorded_after_it(
    scoring: Scoring, live: ReadModel
) -> None:
    """Names were given to other collections since."""
    first = live.generations.state()
    switch = built(scoring, live)
    second = live.generations.state()
    found = {9: {"score_grants": Binary.from_uuid(uuid4())}}
    live.generations.record(found, first)
    assert 9 not in live.generations.state().collections
    assert switch.hold()
    assert switch.commit(at_least=0)
    live.generations.record(found, second)
    roll_forward(live)
    for state in (first, second):
        live.generations.record(found, state)
    assert 9 not in live.generations.state().collections
    live.generations.record(found, live.generations.state())
    assert live.generations.state().collections[9] == found[9]
    live.generations._forget(9, {"score_grants": Binary.from_uuid(uuid4())})
    assert live.generations.state().collections[9] == found[9]
    live.generations._forget(9, found[9])
    assert 9 not in live.generations.state().collections


def test_what_is_to_be_built_is_put_down_with_its_position_or_not_at_all(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """Of what is on record without one, nobody would know how far it was built."""
    number = live.generations.begin()
    building = live.of_generation(number).generations
    refused = {"errorCode": 13, "namespace": live.positions.full_name}
    with failing(mongo_uri, "update", **refused), pytest.raises(OperationFailure):
        building.begin_building(number, {}, scoring.name)
    assert number not in live.generations.state().collections
    building.begin_building(number, {}, scoring.name)
    assert number in live.generations.state().collections
    assert live.positions.count_documents({"generation": number}) == 1


def test_a_rebuild_is_taken_up_again_by_a_write_and_never_beside_a_switch(
    scoring: Scoring, live: ReadModel
) -> None:
    """With nothing new to put down, it still meets a switch that is committed at that moment."""
    switch = built(scoring, live)
    number = live.generations.begin()
    building, uuids = live.of_generation(number), live.generations.state().collections[number]
    before = live.control.find_one()
    time.sleep(0.01)
    building.generations.begin_building(number, uuids, scoring.name)
    assert live.control.find_one() != before
    assert switch.hold()
    assert switch.commit(at_least=0)
    with pytest.raises(RebuildSuperseded):
        building.generations.begin_building(number, uuids, scoring.name)


def test_a_switch_that_makes_its_steps_is_left_to_its_rebuild(
    scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it would be in its way; it is carried on once it has fallen silent."""
    monkeypatch.setattr("projections.mongo.generations.SILENT_SWITCH_SECONDS", 60)
    committed(scoring, live)
    waiting = Thread(target=live.generations.await_settled)
    waiting.start()
    try:
        waiting.join(0.3)
        assert live.generations.state().switching_to == 2
    finally:
        monkeypatch.setattr("projections.mongo.generations.SILENT_SWITCH_SECONDS", 0.1)
        waiting.join()
    assert_second_generation_is_live(live)


def test_whoever_has_lost_a_race_does_not_take_it_for_a_hold(
    scoring: Scoring, live: ReadModel
) -> None:
    """Neither in the live generation, nor in one that is built, nor before the first batch."""
    building = live.of_generation(live.generations.begin())
    building.inventory.create_building(scoring.name)
    for generations in (live.generations, building.generations):
        assert not generations.await_release(scoring.name)
        assert not live.generations.await_release("Another")
    with pytest.raises(RebuildSuperseded):
        building.generations.await_release("Another")


def test_no_batch_straddles_the_switch(
    scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hold waits for a transaction that is under way, and refuses the next."""
    view = MongoScoreView(live)
    switch = built(scoring, live)
    scoring.grant_many([make_grant(99)])
    inside, go_on = Event(), Event()

    send: Any = Transaction.send

    def pause(*args: Any) -> None:
        inside.set()
        assert go_on.wait(60)
        send(*args)

    monkeypatch.setattr(Transaction, "send", pause)
    worker = Thread(target=ProjectionWorker(scoring, view).catch_up)
    worker.start()
    assert inside.wait(60)
    holder = Thread(target=switch.hold)
    holder.start()
    holder.join(0.5)
    assert holder.is_alive()
    go_on.set()
    worker.join()
    holder.join()
    position = view.max_tracking_id(scoring.name)
    assert position == scoring.recorder.max_notification_id()
    assert not switch.commit(at_least=position or 0)  # what was under way has to be built too


def test_a_release_after_the_commit_does_not_lift_the_seal(
    scoring: Scoring, live: ReadModel
) -> None:
    """A batch in the middle of the renames would be lost, or be in two generations by halves."""
    switch = committed(scoring, live)
    walk(live, len(GENERATIONAL) + 1)
    switch.release()
    for held in live.positions.find():
        assert held["hold"]["sealed"] is True
    roll_forward(live)
    assert_second_generation_is_live(live)


def test_what_is_dropped_for_being_in_the_way_is_never_a_part_of_a_generation(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """By the time that it is looked at, others may have cleared the way and gone on."""
    committed(scoring, live)
    walk(live, STEPS - 2)
    live.database.create_collection("score_parked")
    listener = Overtaken(lambda: roll_forward(live), nth=3)
    with MongoClient[dict[str, Any]](mongo_uri, event_listeners=[listener]) as client:
        step = next_step(ReadModel(client, live.database.name))  # which lists twice
        assert step is not None
        step()
    assert_second_generation_is_live(live)


def test_a_generation_that_was_given_up_is_not_prepared_any_more(
    scoring: Scoring, live: ReadModel
) -> None:
    """Nobody would finish it, or drop what it left."""
    late = live.of_generation(live.generations.begin())
    live.generations.begin(fresh=True)
    with pytest.raises(RebuildSuperseded, match="generation 2"):
        late.inventory.create_building(scoring.name)
    assert live.positions.distinct("_id") == [scoring.name]
    assert set(live.generations.state().collections) == {1}


def test_after_a_commit_that_failed_the_live_position_is_free_at_once(
    scoring: Scoring, live: ReadModel
) -> None:
    """Workers need not wait until the hold has fallen silent."""
    rebuild = Rebuild(scoring, live, worker_maker(scoring))
    live.database.user_scores__g1_old.insert_one({"_id": "theirs"})
    with pytest.raises(ProjectionError, match="in the way"):
        rebuild.run()
    assert ["hold" in position for position in live.positions.find()] == [False, False]


def test_after_the_commit_the_position_that_was_built_refuses_a_batch(
    scoring: Scoring, live: ReadModel
) -> None:
    """And its worker, which carries a silent switch on, leaves the live position free."""
    switch = built(scoring, live)
    building = MongoScoreView(live.of_generation(2))
    building.read_model.inventory.check()  # as its worker has, who is at work
    assert switch.hold()
    assert switch.commit(at_least=0)
    tracked = building.tracked(scoring.name)
    assert tracked.position is not None
    with pytest.raises((PositionMoved, RebuildSuperseded)):
        building.apply(Batch(scoring.name, tracked, Tracked(tracked.position + 1)))
    roll_forward(live)
    assert MongoScoreView(live).max_tracking_id(scoring.name) == tracked.position
    assert_second_generation_is_live(live)


def test_a_read_that_a_whole_switch_overtakes_is_of_one_generation(
    scoring: Scoring, live: ReadModel
) -> None:
    """Nothing is under way before and after it, but what it read is half old and half new."""
    to_be_made = [True]

    def read(session: ClientSession) -> tuple[Any, Any]:
        user = live.users.find_one({}, session=session)
        while to_be_made:
            to_be_made.clear()
            committed(scoring, live)
            roll_forward(live)
        grant = live.grants.find_one({}, session=session)
        assert user is not None
        assert grant is not None
        return user["totalScore"], grant["amount"]

    reader = ReadModel(live.client, live.database.name)
    assert reader.generations.consistently(read) == (NEW, NEW)


def test_a_fresh_rebuild_that_a_commit_overtakes_gives_nothing_up(
    scoring: Scoring, live: ReadModel, mongo_uri: str
) -> None:
    """The generation that is switched to is the live one then, and another number is taken."""
    switch = built(scoring, live)
    assert switch.hold()
    listener = Overtaken(lambda: switch.commit(at_least=0))
    with MongoClient[dict[str, Any]](mongo_uri, event_listeners=[listener]) as client:
        assert ReadModel(client, live.database.name).generations.begin(fresh=True) == 3
    state = live.generations.state()
    assert (state.generation, state.building) == (2, 3)
    assert live.users.distinct("totalScore") == [NEW]


@contextmanager
def left_open(live: ReadModel, collection: str) -> Iterator[None]:
    """A transaction of a process that was killed a minute ago, which has written something."""
    with transactions_of(500, live.client), live.client.start_session() as session:
        seen_at = datetime.now(UTC) - timedelta(minutes=1)
        live.workers.insert_one({"_id": session.session_id["id"], "seenAt": seen_at})
        session.start_transaction()
        written = live.database[collection].update_many({}, {"$set": {"x": 1}}, session=session)
        assert written.modified_count
        with lasting_at_most(60):
            yield
    assert live.database[collection].count_documents({"x": 1}) == 0


def test_what_a_killed_worker_left_open_does_not_hold_up_the_hold(
    scoring: Scoring, live: ReadModel
) -> None:
    """It is aborted as soon as its worker has been silent for some seconds."""
    switch = built(scoring, live)
    with left_open(live, "score_positions"):
        assert switch.hold()


def test_what_a_killed_rebuild_left_open_does_not_hold_up_the_finish(
    scoring: Scoring, live: ReadModel
) -> None:
    """Nor the beginning of another one."""
    committed(scoring, live)
    with left_open(live, "score_control"):
        roll_forward(live)
    assert_second_generation_is_live(live)
    with left_open(live, "score_control"):
        live.generations.begin()
    live.of_generation(3).inventory.create_building(scoring.name)
    with left_open(live, "score_positions"):
        live.generations.begin(fresh=True)


@pytest.mark.usefixtures("short_silence")
def test_what_a_killed_rebuild_left_open_does_not_hold_up_a_worker(
    scoring: Scoring, live: ReadModel
) -> None:
    """Killed while it committed to the switch, so the hold is still there to be lifted."""
    assert built(scoring, live).hold()
    scoring.grant_many([make_grant(99)])
    with left_open(live, "score_positions"):
        ProjectionWorker(scoring, MongoScoreView(live)).catch_up()
    assert verify_events(scoring, live).ok


def test_a_late_worker_of_a_generation_that_went_live_stops(
    scoring: Scoring, live: ReadModel
) -> None:
    """It makes no collections anew, at whatever position it stood."""
    committed(scoring, live)
    roll_forward(live)
    late = MongoScoreView(live.of_generation(2))
    for after in (None, 5):
        with pytest.raises(RebuildSuperseded):
            late.apply(Batch(scoring.name, Tracked(after), Tracked(10)))
    assert_second_generation_is_live(live)


def test_an_empty_collection_under_a_live_name_does_not_stop_the_switch(
    scoring: Scoring, live: ReadModel
) -> None:
    """Somebody's late command makes a collection where there is none for a moment."""
    committed(scoring, live)
    walk(live, len(GENERATIONAL))
    live.users.create_index("email")
    roll_forward(live)
    assert_second_generation_is_live(live)


def test_documents_under_a_live_name_stop_the_switch_until_they_are_moved_away(
    scoring: Scoring, live: ReadModel
) -> None:
    """They are somebody's, so they are not dropped; the error names the collection."""
    committed(scoring, live)
    walk(live, len(GENERATIONAL))
    live.users.insert_one({"_id": "stranger"})
    with pytest.raises(ProjectionError, match=r"user_scores is in the way .* rename or drop it"):
        roll_forward(live)
    live.users.rename("theirs")
    roll_forward(live)
    assert_second_generation_is_live(live)
    assert live.database.theirs.distinct("_id") == ["stranger"]


@pytest.mark.parametrize("name", ["user_scores__g1_old", "user_scores"])
def test_a_name_that_is_taken_is_said_before_anything_happens(
    scoring: Scoring, live: ReadModel, name: str
) -> None:
    """And what is there stays, even if it replaced one of the live collections."""
    switch = built(scoring, live)
    live.database.theirs.insert_one({"_id": "theirs"})
    live.database.theirs.rename(name, dropTarget=True)
    assert switch.hold()
    with pytest.raises(ProjectionError, match=f"{name} is in the way .* rename or drop it"):
        switch.commit(at_least=0)
    switch.release()
    assert live.generations.drop_kept() == []
    assert live.database[name].distinct("_id") == ["theirs"]
    live.database[name].rename("theirs")
    assert switch.hold()
    assert switch.commit(at_least=0)
    roll_forward(live)
    assert live.users.distinct("totalScore") == [NEW]


@pytest.mark.usefixtures("short_silence")
def test_a_switch_that_cannot_go_on_is_not_waited_for_for_ever(
    scoring: Scoring, live: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says where to look."""
    committed(scoring, live)
    monkeypatch.setattr("projections.mongo.generations.MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr("projections.mongo.generations.roll_forward", lambda _: time.sleep(0.05))
    with pytest.raises(ReadModelUnavailable, match=r"generation 2 .* has not ended"):
        Leaderboard(live).top()


class PlantingRebuild(Rebuild):
    """Gives each generation a value of its own, so that a mixture would show."""

    value = 0

    def _switch(self, switch: Switch, view: MongoScoreView, worker: ProjectionWorker) -> bool:
        plant(view.read_model, self.value)
        return super()._switch(switch, view, worker)


@pytest.mark.parametrize("steps", range(STEPS))
@pytest.mark.usefixtures("short_silence")
def test_a_leaderboard_that_was_read_before_is_true_at_every_step(
    scoring: Scoring, live: ReadModel, steps: int
) -> None:
    """It does not ask which generation is live as long as its collection is where it was."""
    board = Leaderboard(ReadModel(live.client, live.database.name))
    old = board.top(100, by="ledger")
    committed(scoring, live)
    walk(live, steps)
    for rows in (
        board.top(100, by="ledger"),
        board.around(old[3].user_id, 100, by="ledger"),
        [board.rank_of(row.user_id, by="ledger") for row in old],
    ):
        scores = {row.score for row in rows if row is not None}
        assert scores == {NEW} or rows == old
        assert len(rows) == len(old)


@pytest.mark.parametrize("steps", range(STEPS))
@pytest.mark.usefixtures("short_silence")
def test_a_rank_is_read_again_when_a_switch_has_put_its_counts_away(
    scoring: Scoring, live: ReadModel, steps: int
) -> None:
    """By who has seen the generation before: they are not missing, and nothing is damaged."""
    board = Leaderboard(ReadModel(live.client, live.database.name))
    old = board.rank_of("user-3", by="ledger")
    assert old is not None
    committed(scoring, live)
    walk(live, steps)
    new = board.rank_of("user-3", by="ledger")
    assert new is not None
    assert new.score in {old.score, NEW}


def test_a_leaderboard_is_read_with_one_command(live: ReadModel, mongo_uri: str) -> None:
    """After the first time, which asks which generation is live; neighbours take five."""
    heard = HeardCommands()
    with MongoClient[dict[str, Any]](mongo_uri, event_listeners=[heard]) as client:
        board = Leaderboard(ReadModel(client, live.database.name))
        row = board.top(10)[3]
        heard.sent.clear()
        board.top(10)
        assert heard.names == ["find"]
        board.around(row.user_id, 2)
        assert heard.names == ["find"] * 5 + ["aggregate"]


@pytest.mark.parametrize("steps", range(STEPS))
@pytest.mark.parametrize("pages_before", [0, 1])
@pytest.mark.usefixtures("short_silence")
def test_pages_are_whole_or_end_in_an_error(
    scoring: Scoring, live: ReadModel, steps: int, pages_before: int
) -> None:
    """Whether the first was read before the switch or in the middle of it; none ends too soon."""
    board = Leaderboard(ReadModel(live.client, live.database.name))
    old = board.top(100, by="ledger")
    pages = board.pages(size=2, by="ledger")
    rows = [row for page in islice(pages, pages_before) for row in page]
    committed(scoring, live)
    walk(live, steps)
    with suppress(ReadModelUnavailable):
        rows += [row for page in pages for row in page]
        assert rows == old or (len(rows) == len(old) and {row.score for row in rows} == {NEW})


@pytest.mark.parametrize("switches", [10, pytest.param(50, marks=pytest.mark.soak)])
def test_readers_never_see_a_mixture_during_many_switches(
    scoring: Scoring, live: ReadModel, mongo_uri: str, switches: int
) -> None:
    """Leaderboards of several batches, pages of history and totals are of one generation each."""
    users = 115  # more than the server's first reply has, and few enough for one range of scores
    grants: list[Grant] = [
        make_grant(1000 + number, user_id=f"reader-{number % users}") for number in range(2 * users)
    ]
    scoring.grant_many(grants)
    rebuild = PlantingRebuild(scoring, live, worker_maker(scoring))
    rebuild.value = 1
    rebuild.run()
    seen: set[int] = set()
    reads = [0, 0]

    def hammer(number: int, over: Event) -> None:
        with connect(mongo_uri) as client:
            model = ReadModel(client, live.database.name)
            board, history = Leaderboard(model), UserHistory(model)
            newest = 0
            while not over.is_set():
                rows = board.top(1000, by="ledger")
                scores = {row.score for row in rows}
                assert (len(rows), len(scores)) == (users + 7, 1)
                page = history.history("reader-3")
                assert (len(page), len({grant.amount for grant in page})) == (2, 1)
                totals = history.totals("reader-3")
                row = board.rank_of("reader-3", by="ledger")
                assert row is not None
                assert row.rank == 1
                # Nor does a reader ever go back, from one call to the next.
                values = [*scores, page[0].amount, totals.total_score, row.score]
                assert [newest, *values] == sorted([newest, *values])
                newest = values[-1]
                seen.update(scores)
                reads[number] += 4

    with meanwhile(partial(hammer, 0), partial(hammer, 1)):
        for value in range(2, switches + 2):
            rebuild.value = value
            assert rebuild.run().live
            live.generations.drop_kept()
            if value % 3:  # now and then the next one comes before anybody has read this one
                until(partial(seen.__contains__, value))
        until(lambda: min(reads) > switches)
    assert live.generations.state().generation == switches + 2
