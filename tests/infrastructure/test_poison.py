"""Events that cannot be projected: they stop the worker, or park their stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from concurrency import meanwhile
from event_store import assert_equal_to_the_events, damaged
from fail_points import failing
from projections import MongoScoreView, PoisonEvent, ProjectionWorker, ScoreLedger, StreamParked
from projections.errors import TooManyParked
from projections.events.anchor import Tracked
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch
from projections.settings import Settings
from projections.worker.unparker import Unparked, Unparker
from scoring import GrantReceipt, GrantStatus, Scoring
from scoring.identity import user_stream_id
from support import make_grant, sqlite_env

EVENTS = "events.sqlite"


def stream_of(user_id: str) -> str:
    return str(user_stream_id(user_id))


def grant(scoring: Scoring, number: int, user_id: str, **changes: object) -> GrantReceipt:
    return scoring.grant(**make_grant(number, user_id=user_id, **changes).model_dump())


def parking(scoring: Scoring, view: MongoScoreView, *, batch_size: int = 100) -> ProjectionWorker:
    return ProjectionWorker(scoring, view, batch_size=batch_size, on_error="park")


def counted(read_model: ReadModel) -> dict[str, int]:
    return {user["_id"]: user["grantCount"] for user in read_model.users.find()}


@pytest.fixture
def ledger(mongo_uri: str, read_model: ReadModel, tmp_path: Path) -> Iterator[ScoreLedger]:
    """A ledger on the same event store and read model, without a worker of its own."""
    settings = Settings(
        folder=tmp_path, mongo_uri=mongo_uri, mongo_database=read_model.database.name
    )
    with ScoreLedger.open(
        settings=settings, worker=False, event_store=sqlite_env(tmp_path / EVENTS)
    ) as ledger:
        yield ledger


def test_an_event_that_mongo_refuses_stops_the_worker_as_one_that_cannot_be_decoded(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """The culprit is found in its batch, and everything before it is projected."""
    receipts = [grant(scoring, number, f"user-{number % 5}") for number in range(60)]
    read_model.database.command(
        "collMod", "score_grants", validator={"grantId": {"$ne": "grant-41"}}
    )
    with pytest.raises(PoisonEvent, match="failed validation") as poison:
        ProjectionWorker(scoring, view).catch_up()
    assert poison.value.position == receipts[41].position
    assert poison.value.stream == stream_of("user-1")
    assert poison.value.topic == "scoring:UserScore.GrantRecorded"
    assert read_model.grants.count_documents({}) == 41
    assert view.max_tracking_id("Scoring") == receipts[41].position - 1


def test_a_sum_that_mongo_refuses_is_traced_to_its_grant(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Here a user's document was damaged by hand; the other users' grants go on."""
    for number in range(20):
        grant(scoring, number, ("ada", "bob")[number % 2])
    read_model.users.insert_one({"_id": "bob", "totalScore": "a lot"})
    parking(scoring, view).catch_up()
    parked = view.parking.streams()
    assert [stream.stream for stream in parked] == [stream_of("bob")]
    assert "non-numeric" in parked[0].reason
    assert read_model.users.find_one({"_id": "ada"}, {"grantCount": 1}) == {
        "_id": "ada",
        "grantCount": 10,
    }
    assert read_model.grants.count_documents({"userId": "bob"}) == 0


def test_a_sum_beyond_64_bits_is_traced_to_the_grant_that_exceeds_it(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """Each of them could be kept, but not what they add up to, be it in one batch or in several."""
    receipts = [grant(scoring, number, ("ada", "bob")[number % 2]) for number in range(20)]

    def enlarged(state: bytes) -> bytes:
        return json.dumps(json.loads(state) | {"amount": 2**62}).encode()

    with damaged(tmp_path / EVENTS, *(receipts[number].position for number in (3, 7)), by=enlarged):
        with pytest.raises(PoisonEvent) as poison:
            ProjectionWorker(scoring, view).catch_up()
        assert poison.value.position == receipts[7].position
        assert counted(read_model) == {"ada": 4, "bob": 3}
        parking(scoring, view).catch_up()
        assert counted(read_model) == {"ada": 10, "bob": 3}
    # 64 bits are exceeded by a single number, too.
    late = grant(scoring, 21, "ada")

    def beyond(state: bytes) -> bytes:
        return json.dumps(json.loads(state) | {"replaced_points": 10**30}).encode()

    with (
        damaged(tmp_path / EVENTS, late.position, by=beyond),
        pytest.raises(PoisonEvent, match="replaced_points") as poison,
    ):
        ProjectionWorker(scoring, view).catch_up()
    assert poison.value.position == late.position


@pytest.mark.usefixtures("answers_awaited")
def test_whoever_waits_behind_a_poison_event_is_told_of_it(
    scoring: Scoring, ledger: ScoreLedger, tmp_path: Path
) -> None:
    """Not that perhaps no worker is running."""
    poison = grant(scoring, 1, "bob")
    receipt = grant(scoring, 2, "ada")
    with damaged(tmp_path / EVENTS, poison.position):
        with pytest.raises(PoisonEvent):
            ledger.catch_up()
        with pytest.raises(TimeoutError, match=rf"gave up .*position {poison.position} .*park"):
            ledger.wait(receipt, timeout=0.1)


def test_why_a_worker_gave_up_is_noted_on_a_server_that_is_slow_for_once(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, tmp_path: Path
) -> None:
    """Nobody could tell otherwise, since the worker is gone."""
    poison = grant(scoring, 1, "bob")
    workers = view.read_model.workers.full_name
    slow = {"blockConnection": True, "blockTimeMS": 1500, "namespace": workers}
    with (
        damaged(tmp_path / EVENTS, poison.position),
        failing(mongo_uri, "update", **slow),
        pytest.raises(PoisonEvent),
    ):
        ProjectionWorker(scoring, view).catch_up()
    assert f"position {poison.position}" in (view.failure("Scoring") or "")


def test_a_poison_event_parks_its_stream_and_the_others_go_on(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, tmp_path: Path
) -> None:
    """The stream's order is kept: nothing of it is projected from that event on."""
    receipts = [grant(scoring, number, ("ada", "bob", "cyd")[number % 3]) for number in range(30)]
    poison = receipts[10].position  # bob's fourth
    with damaged(tmp_path / EVENTS, poison):
        parking(scoring, view, batch_size=4).catch_up()
        assert counted(read_model) == {"ada": 10, "bob": 3, "cyd": 10}
        assert view.max_tracking_id("Scoring") == scoring.recorder.max_notification_id()
        parked = view.parking.streams()
        assert [(stream.stream, stream.position) for stream in parked] == [
            (stream_of("bob"), poison)
        ]
        assert parked[0].topic == "scoring:UserScore.GrantRecorded"
        # A worker that would stop at poison goes on, too: this one is dealt with already.
        grant(scoring, 31, "bob")
        grant(scoring, 32, "ada")
        ProjectionWorker(scoring, view).catch_up()
    assert counted(read_model) == {"ada": 11, "bob": 3, "cyd": 10}


def test_everybody_can_see_that_a_stream_is_parked(
    scoring: Scoring, view: MongoScoreView, ledger: ScoreLedger, tmp_path: Path
) -> None:
    """``wait`` raises for its receipts and for no others, status lists it, verify is not ok."""
    before = grant(scoring, 1, "bob")
    poison = grant(scoring, 2, "bob")
    after = grant(scoring, 3, "bob")
    others = grant(scoring, 4, "ada")
    duplicate = grant(scoring, 3, "bob")
    conflict = grant(scoring, 3, "ada")
    assert (duplicate.status, conflict.status) == (GrantStatus.DUPLICATE, GrantStatus.CONFLICT)
    with damaged(tmp_path / EVENTS, poison.position):
        parking(scoring, view).catch_up()
        for receipt in (poison, after, duplicate):
            with pytest.raises(StreamParked) as error:
                ledger.wait(receipt)
            assert error.value.stream == stream_of("bob")
            assert error.value.position == poison.position
        for receipt in (before, others, conflict):
            ledger.wait(receipt)
        status = ledger.status()
        assert status.parked_count == 1
        assert [parked.position for parked in status.parked_streams] == [poison.position]
        outcome = ledger.verify()
        assert (outcome.ok, outcome.parked_streams) == (False, 1)
    assert ledger.unpark().streams == 1
    for receipt in (poison, after, duplicate):
        ledger.wait(receipt)
    assert ledger.verify().ok
    assert_equal_to_the_events(scoring, view.read_model)


def test_unparking_projects_what_was_left_behind_once_and_in_order(
    scoring: Scoring,
    view: MongoScoreView,
    ledger: ScoreLedger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In several transactions here, so that a long stream takes no more memory."""
    monkeypatch.setattr("projections.worker.unparker._CHUNK", 7)
    receipts = [grant(scoring, number, ("ada", "bob")[number % 2]) for number in range(100)]
    with damaged(tmp_path / EVENTS, receipts[21].position):
        parking(scoring, view).catch_up()
        still = ledger.unpark()
        assert (still.streams, still.grants, len(still.still_parked)) == (0, 0, 1)
    outcome = ledger.unpark()
    assert (outcome.streams, outcome.grants, outcome.still_parked) == (1, 40, [])
    assert view.parking.count() == 0
    assert assert_equal_to_the_events(scoring, view.read_model) == 100
    assert ledger.unpark().streams == 0


def test_a_stream_that_is_poisoned_twice_is_unparked_up_to_the_second_event(
    scoring: Scoring, view: MongoScoreView, ledger: ScoreLedger, tmp_path: Path
) -> None:
    """It is then parked at that one."""
    receipts = [grant(scoring, number, "bob") for number in range(12)]
    with damaged(tmp_path / EVENTS, receipts[9].position):
        with damaged(tmp_path / EVENTS, receipts[4].position):
            parking(scoring, view).catch_up()
        outcome = ledger.unpark()
        assert [parked.position for parked in outcome.still_parked] == [receipts[9].position]
        assert counted(view.read_model) == {"bob": 9}
    ledger.unpark()
    assert assert_equal_to_the_events(scoring, view.read_model) == 12


def test_a_stream_that_mongo_still_refuses_stays_parked_at_the_grant_it_refuses(
    scoring: Scoring, view: MongoScoreView, ledger: ScoreLedger, tmp_path: Path
) -> None:
    """What lies before that grant is projected by unparking."""
    receipts = [grant(scoring, number, "bob") for number in range(12)]
    with damaged(tmp_path / EVENTS, receipts[2].position):
        parking(scoring, view).catch_up()
    database = view.read_model.database
    database.command("collMod", "score_grants", validator={"grantId": {"$ne": "grant-8"}})
    outcome = ledger.unpark([stream_of("bob")])
    assert [parked.position for parked in outcome.still_parked] == [receipts[8].position]
    assert counted(view.read_model) == {"bob": 8}
    database.command("collMod", "score_grants", validator={})
    assert ledger.unpark().streams == 1
    assert assert_equal_to_the_events(scoring, view.read_model) == 12


def test_a_stream_that_stays_parked_says_what_is_wrong_with_it_now(
    scoring: Scoring, view: MongoScoreView, ledger: ScoreLedger, tmp_path: Path
) -> None:
    """Whoever has mended one fault is not told of it again, but of the next in the same place."""
    receipt = grant(scoring, 1, "bob")
    with damaged(tmp_path / EVENTS, receipt.position):
        parking(scoring, view).catch_up()
    (first,) = view.parking.streams()
    assert first.parked_at is not None

    def in_words(state: bytes) -> bytes:
        return json.dumps(json.loads(state) | {"amount": "many"}).encode()

    with damaged(tmp_path / EVENTS, receipt.position, by=in_words):
        (still,) = ledger.unpark().still_parked
    assert (still.position, still.parked_at) == (first.position, first.parked_at)
    assert "amount cannot be 'many'" in still.reason
    assert ledger.status().parked_streams == [still]


@pytest.mark.parametrize("second_fault", [False, True], ids=["to its end", "up to a fault"])
def test_unparking_waits_while_a_switch_holds_the_position(
    scoring: Scoring,
    view: MongoScoreView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    second_fault: bool,
) -> None:
    """Nothing is committed that could straddle the renames; released, it goes on by itself."""
    monkeypatch.setattr("projections.mongo.switch.SILENT_HOLD_SECONDS", 60.0)
    receipts = [grant(scoring, number, "bob") for number in range(6)]
    with damaged(tmp_path / EVENTS, receipts[2].position):
        parking(scoring, view).catch_up()
    still = [receipts[4].position] if second_fault else []
    building = view.read_model.of_generation(2)
    switch = Switch(view.read_model, building, scoring.name)
    outcomes: list[Unparked] = []
    with damaged(tmp_path / EVENTS, *still):
        unparking = Thread(
            target=lambda: outcomes.append(Unparker(scoring, view).run([*view.parking.streams()]))
        )
        assert switch.hold()
        unparking.start()
        try:
            unparking.join(0.5)
            assert unparking.is_alive()
            assert counted(view.read_model) == {"bob": 2}
            assert [parked.position for parked in view.parking.streams()] == [receipts[2].position]
        finally:
            switch.release()
            unparking.join()
    (outcome,) = outcomes
    assert [parked.position for parked in outcome.still_parked] == still
    assert outcome.grants == counted(view.read_model)["bob"] - 2 == (2 if second_fault else 4)


def test_unparking_lifts_a_hold_that_has_fallen_silent(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does: a rebuild that died while it held the position is not waited for."""
    monkeypatch.setattr("projections.mongo.switch.SILENT_HOLD_SECONDS", 0.3)
    receipt = grant(scoring, 1, "bob")
    with damaged(tmp_path / EVENTS, receipt.position):
        parking(scoring, view).catch_up()
    assert Switch(view.read_model, view.read_model.of_generation(2), scoring.name).hold()
    assert Unparker(scoring, view).run(view.parking.streams()).streams == 1
    assert assert_equal_to_the_events(scoring, view.read_model) == 1


def test_what_somebody_else_has_unparked_meanwhile_is_not_unparked_again(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path
) -> None:
    """Wholly, or up to another fault: what was read of the list before is then not true."""
    receipts = [grant(scoring, number, ("ada", "bob")[number % 2]) for number in range(12)]
    faults = [receipts[2].position, receipts[3].position]
    with damaged(tmp_path / EVENTS, *faults):
        parking(scoring, view).catch_up()
    before = view.parking.streams()
    assert [parked.position for parked in before] == faults
    with damaged(tmp_path / EVENTS, receipts[9].position):
        first = Unparker(scoring, view).run(before)
        assert (first.streams, first.grants, len(first.still_parked)) == (1, 8, 1)
        second = Unparker(scoring, view).run(before)
        assert (second.streams, second.grants, second.still_parked) == (1, 0, first.still_parked)
        assert counted(view.read_model) == {"ada": 6, "bob": 4}
    last = Unparker(scoring, view).run(before)
    assert (last.streams, last.grants, last.still_parked) == (2, 2, [])
    assert assert_equal_to_the_events(scoring, view.read_model) == 12


def test_an_event_that_becomes_a_fault_while_its_stream_is_taken_off_the_list_parks_it_again(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker passes it between the reading of the stream and the hold of the position."""
    first = grant(scoring, 1, "bob")
    with damaged(tmp_path / EVENTS, first.position):
        parking(scoring, view).catch_up()
    hold, faults = view.positions.hold, list[int]()

    def hold_after_a_worker(*arguments: Any) -> Tracked:
        if not faults:
            faults.append(grant(scoring, 2, "bob").position)
            broken.enter_context(damaged(tmp_path / EVENTS, *faults))
            with closing(MongoScoreView(view.read_model)) as own:
                parking(scoring, own).catch_up()
        return hold(*arguments)

    monkeypatch.setattr(view.positions, "hold", hold_after_a_worker)
    with ExitStack() as broken:
        outcome = Unparker(scoring, view).run(view.parking.streams())
        assert [parked.position for parked in outcome.still_parked] == faults
        assert (outcome.grants, counted(view.read_model)) == (1, {"bob": 1})
    assert Unparker(scoring, view).run(outcome.still_parked).streams == 1
    assert assert_equal_to_the_events(scoring, view.read_model) == 2


def test_buckets_of_a_stream_are_unparked_from_the_one_it_is_parked_at(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path
) -> None:
    """They lie side by side in the event store, without claims between them."""
    for points in (1, 2, 3, 4):
        scoring.contribute("bob", "a", "x", "s", points)
    positions = [notification.id for notification in scoring.recorder.select_notifications(2, 9)]
    with damaged(tmp_path / EVENTS, positions[2]):
        parking(scoring, view).catch_up()
    outcome = Unparker(scoring, view).run(view.parking.streams())
    assert (outcome.streams, outcome.grants) == (1, 2)
    user = view.read_model.users.find_one({"_id": "bob"}) or {}
    assert (user["recomputedTotal"], user["version"]) == (4, 5)


def test_unparking_that_is_stopped_says_what_is_left(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two transactions, and between two streams."""
    monkeypatch.setattr("projections.worker.unparker._CHUNK", 2)
    receipts = [grant(scoring, number, ("ada", "bob")[number % 2]) for number in range(12)]
    with damaged(tmp_path / EVENTS, receipts[0].position, receipts[1].position):
        parking(scoring, view).catch_up()
    ada, bob = view.parking.streams()
    stop, told = Event(), list[int]()

    def stop_after_two(grants: int) -> None:
        told.append(grants)
        if len(told) == 2:
            stop.set()

    outcome = Unparker(scoring, view, stop=stop, on_grants=stop_after_two).run([ada, bob])
    assert (outcome.streams, outcome.grants, told) == (0, 4, [2, 2])
    assert [parked.position for parked in outcome.still_parked] == [
        receipts[8].position,
        receipts[1].position,
    ]
    assert view.parking.streams() == outcome.still_parked[::-1]


@pytest.mark.parametrize("second_fault", [False, True], ids=["to its end", "up to a fault"])
def test_foreign_documents_that_unparking_meets_are_counted(
    scoring: Scoring,
    ledger: ScoreLedger,
    view: MongoScoreView,
    tmp_path: Path,
    *,
    second_fault: bool,
) -> None:
    """As those that a worker meets are: their grants are missing, and status must say so."""
    receipts = [grant(scoring, number, "bob") for number in range(6)]
    with damaged(tmp_path / EVENTS, receipts[1].position):
        parking(scoring, view).catch_up()
    view.read_model.grants.insert_many(
        [{"_id": 10**6, "grantId": "grant-2"}, {"_id": receipts[3].position, "grantId": "theirs"}]
    )
    with damaged(tmp_path / EVENTS, *([receipts[5].position] if second_fault else [])):
        ledger.unpark()
    assert ledger.status().foreign_grants == 2
    assert counted(view.read_model) == {"bob": 3 if second_fault else 4}


def test_faults_beside_what_mongo_refuses_stay_on_their_side_of_a_halved_batch(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path
) -> None:
    """Each stream is parked at its own, whether it lies before or behind the one refused."""
    users = ("ada", "bob", "cyd")
    receipts = [grant(scoring, number, users[number % 3]) for number in range(12)]
    view.read_model.database.command(
        "collMod", "score_grants", validator={"grantId": {"$ne": "grant-4"}}
    )
    with damaged(tmp_path / EVENTS, receipts[0].position, receipts[11].position):
        parking(scoring, view).catch_up()
    assert [(parked.stream, parked.position) for parked in view.parking.streams()] == [
        (stream_of("ada"), receipts[0].position),
        (stream_of("bob"), receipts[4].position),
        (stream_of("cyd"), receipts[11].position),
    ]
    assert counted(view.read_model) == {"bob": 1, "cyd": 3}


def test_a_stream_with_two_faults_is_parked_at_the_first_whichever_is_found_first(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path
) -> None:
    """That an event cannot be decoded is seen at once; what MongoDB refuses, only when sent."""
    receipts = [grant(scoring, number, "bob") for number in range(2)]
    view.read_model.database.command(
        "collMod", "score_grants", validator={"grantId": {"$ne": "grant-0"}}
    )
    with damaged(tmp_path / EVENTS, receipts[1].position):
        parking(scoring, view).catch_up()
    assert [parked.position for parked in view.parking.streams()] == [receipts[0].position]


def test_unparking_beside_busy_workers_loses_and_doubles_nothing(
    scoring: Scoring, view: MongoScoreView, mongo_uri: str, tmp_path: Path
) -> None:
    """A worker passes the stream's events at the very moment it is taken off the list."""
    receipts = [grant(scoring, number, f"user-{number % 3}") for number in range(30)]
    streams = [stream_of(f"user-{number}") for number in range(3)]
    with damaged(tmp_path / EVENTS, *(receipt.position for receipt in receipts[:3])):
        parking(scoring, view).catch_up()
    assert view.parking.count() == 3

    def write(_: Event) -> None:
        for number in range(30, 630):
            grant(scoring, number, f"user-{number % 3}")

    with meanwhile(parking(scoring, view, batch_size=5).follow):
        with meanwhile(write), closing(MongoScoreView(view.read_model)) as own:
            for stream in streams:
                found = own.parking.find(stream)
                assert found is not None
                assert Unparker(scoring, own).run([found]).streams == 1
        view.wait("Scoring", scoring.recorder.max_notification_id(), timeout=60)
    assert assert_equal_to_the_events(scoring, view.read_model) == 630


def test_parking_ends_where_single_events_cannot_be_the_cause(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the list stays short, and a fault of everything does not look like progress."""
    monkeypatch.setattr("projections.mongo.parking.MAX_PARKED", 3)
    receipts = [grant(scoring, number, f"user-{number}") for number in range(6)]
    with (
        damaged(tmp_path / EVENTS, *(receipt.position for receipt in receipts)),
        pytest.raises(TooManyParked, match="unpark"),
    ):
        parking(scoring, view, batch_size=1).catch_up()
    assert view.parking.count() == 3


def test_only_parked_streams_can_be_unparked(ledger: ScoreLedger) -> None:
    """A mistyped id is an error, not a success with nothing done."""
    with pytest.raises(ValueError, match="is not parked"):
        ledger.unpark(["nobody"])
