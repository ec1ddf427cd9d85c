"""Commands of several threads in one commit: each is answered as truthfully as if it were alone."""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from eventsourcing.persistence import DataError, IntegrityError, OperationalError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace

import scoring.commit_queue
import scoring.retries
from command_line import run_python
from concurrency import at_once, lasting_at_most, until
from group_commit import Watched, commit_under_way, failing, together
from interrupts import interrupted
from receipts_check import check_receipts, read_ledger
from scoring import Grant, GrantReceipt, GrantStatus, InvalidGrant, Scoring, ScoringError, UserScore
from scoring.checkout import CheckOutCache
from scoring.command_handler import commit_together
from scoring.grant_handler import GrantHandler
from scoring.identity import claim_stream_id
from scoring.user_score import GrantClaimed
from support import NOON, make_grant
from telemetry import Telemetry

T = TypeVar("T")


@pytest.fixture
def app(new_env: Callable[[], dict[str, str]]) -> Iterator[Watched]:
    with Watched(new_env()) as app:
        yield app


@pytest.fixture(autouse=True)
def _nobody_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not woken goes on alone after half a minute, which shows in the commits."""
    monkeypatch.setattr(scoring.commit_queue, "_LOOK_AGAIN_SECONDS", 600.0)


def gather_for(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let a commit wait so long for those of the one before, however slow the machine is."""
    monkeypatch.setattr(scoring.commit_queue, "_GATHER_SECONDS_EACH", seconds)
    monkeypatch.setattr(scoring.commit_queue, "_MAX_GATHER_SECONDS", seconds)


def granting(app: Scoring, grant: Grant) -> Callable[[], GrantReceipt]:
    return partial(app.grant, **grant.model_dump())


def grants_in(events: list[Any]) -> list[str]:
    return [event.grant_id for event in events if isinstance(event, UserScore.GrantRecorded)]


def granted_together(app: Watched, grants: list[Grant]) -> list[GrantReceipt | BaseException]:
    answers = together(app, [granting(app, grant) for grant in grants])
    return [each.exception() or each.result() for each in answers]


def all_recorded(app: Watched, grants: list[Grant], answers: list[Any]) -> bool:
    recorded = check_receipts(read_ledger(app), zip(grants, answers, strict=True))
    return recorded == {grant.grant_id: 1 for grant in grants}


# --- together ------------------------------------------------------------------------------------


def test_what_waits_for_a_commit_goes_into_the_next_one(app: Watched) -> None:
    """Commands of all kinds, for one user and for several."""
    grants = [make_grant(number) for number in range(9)]
    answers = together(
        app,
        [
            *(granting(app, grant) for grant in grants),
            partial(app.contribute, "user-1", "profile", "any", "any", 5, NOON),
            partial(app.feed_post, "user-2", "8", 7, NOON),
            partial(app.award_badge, "a new one", "9", 3, NOON),
        ],
    )
    assert len(app.commits) == 1
    assert [each.result().status for each in answers] == [GrantStatus.RECORDED] * 12
    receipts = [each.result() for each in answers]
    ledger = read_ledger(app)
    assert len(check_receipts(ledger, zip(grants, receipts[:9], strict=True))) == 9
    changes = [(each.recomputed_before, each.recomputed_after) for each in receipts[9:]]
    assert changes == [(0, 5), (0, 7), (0, 3)]
    assert receipts[11].position == ledger.positions["a new one/award:badge:9"]


def test_totals_of_one_user_follow_each_other_within_a_commit(app: Watched) -> None:
    grants = [make_grant(number, user_id="hot", amount=number + 1) for number in range(32)]
    answers: list[Any] = granted_together(app, grants)
    assert len(app.commits) == 1
    befores, afters = zip(*((each.total_before, each.total_after) for each in answers), strict=True)
    assert befores == (0, *afters[:-1])
    assert all_recorded(app, grants, answers)


def test_whoever_is_alone_commits_at_once(watched: Watched) -> None:
    """With no other thread to do it, and none to wait for."""
    before = threading.active_count()
    for number in range(3):
        watched.grant(**make_grant(number).model_dump())
    assert threading.active_count() <= before  # one of an earlier test may end meanwhile
    assert [grants_in(events) for events in watched.commits] == [
        ["grant-0"],
        ["grant-1"],
        ["grant-2"],
    ]


def test_no_more_than_a_thousand_go_together(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched._queue, "_max_members", 4)
    gather_for(monkeypatch, 0.05)
    grants = [make_grant(number) for number in range(10)]
    answers = granted_together(watched, grants)
    assert [len(grants_in(events)) for events in watched.commits] == [4, 4, 2]
    assert all_recorded(watched, grants, answers)


def test_others_may_begin_to_wait_while_the_garbage_collector_runs(watched: Watched) -> None:
    """It may run while a leader looks who is next, and finalisers let other threads run."""
    waiting = watched._queue._waiting
    begun: list[object] = []

    def begin(phase: str, _: object) -> None:
        begun.append(phase)
        waiting.append(over)

    over = scoring.commit_queue._Ticket[Any](None, keeps_time=False)
    over.is_over = True
    waiting.extend([over] * 100)
    threshold = gc.get_threshold()
    gc.callbacks.append(begin)
    try:
        for allocations in range(1, 5):  # after which it runs
            gc.collect()
            gc.set_threshold(allocations)
            watched._queue._wake_next()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(begin)
    assert begun


def test_nobody_waits_for_more_than_two_commits(watched: Watched) -> None:
    """The one that was under way, and the next one."""
    begun: dict[str, int] = {}
    recorded: dict[str, int] = {}

    class Waiting(deque[Any]):
        """Notes after which commit somebody began to wait."""

        def append(self, ticket: Any) -> None:
            super().append(ticket)
            begun[ticket.member._commands[0].grant_id] = len(watched.commits)

    watched._queue._waiting = Waiting()

    def note(commit: Callable[[], Any]) -> Any:
        number = len(watched.commits)
        recorded.update(dict.fromkeys(grants_in(watched.commits[-1]), number))
        watched.instead.append(note)
        return commit()

    watched.instead.append(note)

    def keep_granting(thread: int) -> list[tuple[Grant, GrantReceipt]]:
        answers = []
        for number in range(40):
            grant = make_grant(number, grant_id=f"{thread}-{number}", user_id=f"user-{thread % 5}")
            answers.append((grant, watched.grant(**grant.model_dump())))
        return answers

    with ThreadPoolExecutor(16) as threads:
        answers = [each for some in threads.map(keep_granting, range(16)) for each in some]
    assert len(check_receipts(read_ledger(watched), answers)) == 640
    assert len(watched.commits) < 320
    assert max(recorded[grant_id] - begun[grant_id] for grant_id in begun) <= 2


def test_a_batch_lets_those_go_first_who_wait(watched: Watched) -> None:
    """A chunk is a commit of its own, behind which nobody has to wait for another chunk."""
    batch = [make_grant(number) for number in range(100, 300)]
    grants = [make_grant(number) for number in range(3)]
    with ThreadPoolExecutor(5) as threads:
        with commit_under_way(watched):
            many = [threads.submit(watched.grant_many, some) for some in (batch[:100], batch[100:])]
            few = [threads.submit(granting(watched, grant)) for grant in grants]
            until(lambda: len(watched._queue._waiting) == 3)
        answers = [each.result() for each in few]
        receipts = [receipt for each in many for receipt in each.result()]
    assert sorted(map(len, map(grants_in, watched.commits))) == [3, 100, 100]
    assert len(grants_in(watched.commits[0])) == 3
    assert all_recorded(watched, [*grants, *batch], [*answers, *receipts])


def test_those_of_a_group_come_back_together(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is first waits for the others, and no longer; later on, whoever is alone for nobody."""
    granted_together(watched, [make_grant(number) for number in range(3)])
    gather_for(monkeypatch, 600.0)
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(granting(watched, make_grant(number))) for number in (3, 4)]
        until(lambda: watched._queue._waiting)  # one of them, for the other one and a third
        futures.append(threads.submit(granting(watched, make_grant(5))))
        for future in futures:
            future.result(timeout=60)
    gather_for(monkeypatch, 0.0)
    for number in (6, 7):
        watched.grant(**make_grant(number).model_dump())
        gather_for(monkeypatch, 600.0)
    assert [len(grants_in(events)) for events in watched.commits] == [3, 3, 1, 1]


def test_nobody_is_waited_for_soon_after_some_did_not_come_back(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under calls that come at any time, which have nothing to gain from it."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 600.0)
    granted_together(watched, [make_grant(number) for number in range(3)])
    gather_for(monkeypatch, 0.1)
    with lasting_at_most(60):
        watched.grant(**make_grant(3).model_dump())
        gather_for(monkeypatch, 600.0)
        granted_together(watched, [make_grant(number) for number in range(4, 7)])
        watched.grant(**make_grant(7).model_dump())
    assert [len(grants_in(events)) for events in watched.commits] == [3, 1, 3, 1]


def test_who_came_during_a_commit_waits_for_those_who_were_in_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two groups go on in turns for ever, each in the other's way."""
    gather_for(monkeypatch, 600.0)
    with ThreadPoolExecutor(3) as threads:

        def grant(number: int) -> Future[Any]:
            return threads.submit(granting(watched, make_grant(number)))

        def during(commit: Callable[[], Any]) -> Any:
            futures.append(grant(2))
            until(lambda: len(watched._queue._waiting) == 1)
            return commit()

        futures: list[Future[Any]] = []
        watched.instead.append(during)
        granted_together(watched, [make_grant(number) for number in range(2)])
        futures += [grant(3), grant(4)]
        for future in futures:
            future.result(timeout=60)
    assert [len(grants_in(events)) for events in watched.commits] == [2, 3]


def test_one_hot_user_of_32_threads(app: Watched) -> None:
    grants = [make_grant(number, user_id="hot") for number in range(160)]

    def grant_some(thread: int) -> list[tuple[Grant, GrantReceipt]]:
        return [(grant, app.grant(**grant.model_dump())) for grant in grants[thread::32]]

    answered = [each for some in at_once(32, grant_some) for each in some]
    recorded = check_receipts(read_ledger(app), answered)
    assert recorded == {grant.grant_id: 1 for grant in grants}
    assert len(app.commits) < 120


def test_a_score_is_read_while_others_commit(app: Watched) -> None:
    app.grant(**make_grant(1, user_id="ada", amount=3).model_dump())
    with commit_under_way(app):
        assert app.score_of("ada").total_score == 3
        assert app.score_of("bob").total_score == 0


def test_of_two_that_are_given_back_the_later_one_is_kept() -> None:
    """Whoever reads a score may come back after a commit of the same user."""
    cache = CheckOutCache(maxsize=10)
    earlier, later = (UserScore(user_id="ada") for _ in range(2))
    later.record(make_grant(1, user_id="ada"))
    for score in (later, earlier):
        cache.check_in([score])
    assert cache.check_out(["ada", "eve"]) == {"ada": later}


# --- each for its own ----------------------------------------------------------------------------


def test_whoever_is_refused_takes_nobody_along(
    app: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of a total, which is known only as it is decided."""
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", 9)
    grants = [
        *(make_grant(number, user_id="ada", amount=4) for number in range(2)),
        make_grant(2, user_id="ada", amount=4),
        make_grant(3, user_id="bob", amount=4),
        make_grant(4, user_id="ada", amount=1),
    ]
    *rest, refused = [*granted_together(app, grants)]
    refused, rest = rest[2], [*rest[:2], rest[3], refused]
    assert isinstance(refused, InvalidGrant)
    assert refused.field == "amount"
    del grants[2]
    assert all_recorded(app, grants, rest)
    assert len(app.commits) == 1


def test_whoever_has_a_taken_id_takes_nobody_along(
    app: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """And the conflict is logged by the thread that has it."""
    app.grant(**make_grant(1).model_dump())
    app.grant(**make_grant(2).model_dump())
    grants = [
        make_grant(0),
        make_grant(1),
        make_grant(2, amount=100),
        make_grant(3),
        make_grant(2, user_id="nobody yet"),
    ]
    threads: list[str] = []

    def grant(wanted: Grant) -> GrantReceipt:
        threads.append(threading.current_thread().name)
        return app.grant(**wanted.model_dump())

    with caplog.at_level(logging.WARNING):
        answers = [
            each.result() for each in together(app, [partial(grant, each) for each in grants])
        ]
    statuses = [answer.status.name for answer in answers]
    assert statuses == ["RECORDED", "DUPLICATE", "CONFLICT", "RECORDED", "CONFLICT"]
    check_receipts(read_ledger(app), zip(grants, answers, strict=True))
    assert {record.threadName for record in caplog.records} == {threads[2], threads[4]}
    assert app.score_of("nobody yet").version == 0
    assert len(app.commits) <= 4, "the others were committed together, at the second attempt"


def test_those_who_want_the_same_id_at_once_agree_on_who_has_it(app: Watched) -> None:
    grants = [
        *(make_grant(1) for _ in range(5)),
        make_grant(1, amount=77),
        make_grant(1, user_id="another one"),
    ]
    answers: list[Any] = granted_together(app, grants)
    assert [each.status.name for each in answers] == [
        "RECORDED",
        *["DUPLICATE"] * 4,
        *["CONFLICT"] * 2,
    ]
    check_receipts(read_ledger(app), zip(grants, answers, strict=True))
    assert len(app.commits) == 1


def test_contributions_to_one_key_at_once_come_one_after_another(app: Watched) -> None:
    points = [3, 3, 5, 0, 5]
    for key, wanted in {
        "profile": ["RECORDED", "DUPLICATE", "RECORDED", "RECORDED", "RECORDED"],
        "award:badge:1": ["RECORDED", "DUPLICATE", "CONFLICT", "CONFLICT", "CONFLICT"],
    }.items():
        answers = together(
            app, [partial(app.contribute, "ada", key, "any", "any", each, NOON) for each in points]
        )
        receipts = [each.result() for each in answers]
        assert [each.status.name for each in receipts] == wanted
        befores = [each.recomputed_before for each in receipts]
        assert [each.recomputed_after for each in receipts[:-1]] == befores[1:]
    assert len(app.commits) == 2
    assert app.score_of("ada").recomputed_total == 10
    assert app.score_of("ada").total_score == 3


def test_users_to_whom_another_process_has_granted_hold_nobody_up(
    new_env: Callable[[], dict[str, str]],
) -> None:
    """They are read again, all of them together."""
    env = new_env()
    with Watched(env) as app, Scoring(env) as other:
        before = [make_grant(number) for number in range(7)]
        answers: list[Any] = app.grant_many(before)
        for number in range(100, 104):
            before.append(make_grant(number))
            answers.append(other.grant(**make_grant(number).model_dump()))
        grants = [make_grant(number) for number in range(200, 207)]
        del app.commits[:]
        answers += granted_together(app, grants)
        assert all_recorded(app, [*before, *grants], answers)
        assert len(app.commits) == 2, "one that failed, and one with everything"


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    "error", [OperationalError("lost"), DataError("refused"), IntegrityError("tried again")]
)
def test_a_commit_that_fails_or_seems_to_is_found_out_about_by_each(
    app: Watched, *, error: Exception, done: bool
) -> None:
    grants = [make_grant(number) for number in range(6)]
    app.instead.append(failing(error, done=done))
    answers = granted_together(app, grants)
    assert all_recorded(app, grants, answers)
    again = 1 if isinstance(error, IntegrityError) else 6
    assert len(app.commits) == 1 + (0 if done else again)


def test_whoever_meets_damage_takes_nobody_along(app: Watched) -> None:
    """A claim whose grant is lost."""
    claim = GrantClaimed(claim_stream_id("grant-1"), 1, "somebody", 1, "a token")
    app.events.put([claim])
    grants = [make_grant(number) for number in range(5)]
    answers: list[Any] = granted_together(app, grants)
    assert "restore the right backup" in str(answers.pop(1))
    statuses = [answer.status for answer in answers]
    assert statuses == [GrantStatus.RECORDED] * 4
    assert [len(grants_in(events)) for events in app.commits[:2]] == [5, 4]


def test_a_store_that_refuses_one_refuses_that_one_only(watched: Watched) -> None:
    grants = [make_grant(number) for number in range(4)]

    def refuse(commit: Callable[[], Any]) -> Any:
        watched.instead.append(refuse)
        if "grant-2" in grants_in(watched.commits[-1]):
            raise DataError("this one is not for us")
        return commit()

    watched.instead.append(refuse)
    answers = granted_together(watched, grants)
    assert isinstance(answers.pop(2), ScoringError)
    del grants[2]
    assert all_recorded(watched, grants, answers)


def test_nobody_is_refused_for_points_that_others_did_not_get_in_the_end(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever met the limit behind the others of a commit is decided on again, alone."""
    monkeypatch.setattr("scoring.user_score.MAX_TOTAL", 9)
    grants = [make_grant(number, user_id="ada", amount=4) for number in range(3)]

    def refuse(commit: Callable[[], Any]) -> Any:
        watched.instead.append(refuse)
        if {"grant-0", "grant-1"} & set(grants_in(watched.commits[-1])):
            raise DataError("these are not for us")
        return commit()

    watched.instead.append(refuse)
    *failed, answer = granted_together(watched, grants)
    assert [type(each) for each in failed] == [ScoringError, ScoringError]
    assert all_recorded(watched, grants[2:], [answer])


def test_the_trace_of_each_caller_stays_with_its_own_event(
    watched: Watched, telemetry: Telemetry
) -> None:
    del telemetry  # whose providers are the process's
    tracer = trace.get_tracer("test")
    spans: dict[str, str] = {}

    def grant(number: int) -> None:
        if number % 3 == 0:
            watched.grant(**make_grant(number).model_dump())
            return
        with tracer.start_as_current_span(f"request {number}") as span:
            context = span.get_span_context()
            if number % 3 == 1:
                watched.grant(**make_grant(number).model_dump())
            else:
                watched.award_badge("ada", str(number), 3, NOON)
        grant_id = f"grant-{number}" if number % 3 == 1 else f"ada/award:badge:{number}"
        spans[grant_id] = f"{context.trace_id:032x}-{context.span_id:016x}"

    for each in together(watched, [partial(grant, number) for number in range(9)]):
        each.result()
    assert len(watched.commits) == 1
    assert {
        event.grant_id: event.traceparent[3:-3]
        for event in watched.commits[0]
        if isinstance(event, UserScore.GrantRecorded) and event.traceparent is not None
    } == spans


def test_the_clock_is_asked_by_the_callers_own_thread() -> None:
    """One that fails does not fail the others, nor one that knows whose request it is in."""
    asked: list[int] = []
    calling: list[int] = []

    def clock() -> datetime:
        asked.append(threading.get_ident())
        return NOON

    with Scoring(clock=clock) as app:

        def award(number: int) -> None:
            calling.append(threading.get_ident())
            app.award_badge(f"user-{number}", "7", 5)

        for each in together(app, [partial(award, number) for number in range(3)]):
            each.result()
    assert asked == calling


# --- interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("by a plugin")])
def test_who_is_interrupted_in_a_commit_leaves_the_others_unharmed(
    app: Watched, monkeypatch: pytest.MonkeyPatch, *, error: BaseException, done: bool
) -> None:
    """Another one takes over, and finds out whether the commit was done."""
    monkeypatch.setattr(scoring.retries, "MAX_SECONDS", 600.0)
    grants = [make_grant(number, user_id=f"user-{number % 2}") for number in range(6)]
    app.instead.append(failing(error, done=done))
    with lasting_at_most(60):  # and not until their time is over
        answered: list[Any] = granted_together(app, grants)
    assert answered.pop(0) is error
    ledger = read_ledger(app)
    assert ("grant-0" in ledger.events) is done
    assert len(check_receipts(ledger, zip(grants[1:], answered, strict=True))) == 5
    assert app.grant(**grants[0].model_dump()).status.name == ("DUPLICATE" if done else "RECORDED")


def test_whose_attempt_was_cut_short_finds_out_about_it_first(app: Watched) -> None:
    """Or it would take its own grant for somebody else's."""
    first, second, third = (
        GrantHandler(app._write_side, [make_grant(number)]) for number in range(3)
    )
    app.instead.append(failing(KeyboardInterrupt(), done=True))
    with pytest.raises(KeyboardInterrupt):
        commit_together([first, second])
    commit_together([first, second, third])
    assert [grants_in(events) for events in app.commits] == [["grant-0", "grant-1"], ["grant-2"]]
    receipts = [each.receipts()[0] for each in (first, second)]
    assert [each.status for each in receipts] == [GrantStatus.RECORDED] * 2


def _all_wait(app: Scoring, futures: list[Future[Any]]) -> bool:
    waiting = [ticket for ticket in app._queue._waiting if not ticket.is_over]
    return len(waiting) + sum(future.done() for future in futures) >= len(futures)


@pytest.mark.parametrize("victim", [0, 1], ids=["who leads", "who follows"])
def test_wherever_one_is_interrupted_the_others_are_answered(
    watched: Watched, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who leads and one who follows, in every place in turn."""
    monkeypatch.setattr(scoring.commit_queue, "_LOOK_AGAIN_SECONDS", 0.01)
    answers: list[tuple[Grant, GrantReceipt]] = []
    with ThreadPoolExecutor(3) as threads:
        for place in count(1):
            grants = [
                make_grant(place * 3 + number, user_id=f"user-{number % 2}") for number in range(3)
            ]
            calls = [granting(watched, grant) for grant in grants]
            calls[victim] = partial(interrupted, place, calls[victim])
            with commit_under_way(watched):
                futures = [threads.submit(call) for call in calls]
                until(partial(_all_wait, watched, futures))
            is_over = futures[victim].exception() is None
            answers += [
                (grant, future.result())
                for grant, future in zip(grants, futures, strict=True)
                if is_over or future is not futures[victim]
            ]
            if is_over:
                break
    assert place > 40
    recorded = check_receipts(read_ledger(watched), answers)
    assert recorded == {grant.grant_id: 1 for grant, _ in answers}


def test_wherever_one_is_interrupted_nothing_of_it_stays(
    watched: Watched,
) -> None:
    """As by a signal handler: a connection, without which nobody could write, or its time limit."""
    datastore: Any = watched.recorder
    pool = datastore.datastore.pool
    with ThreadPoolExecutor(1) as another:
        for place in count(1):
            grant, later = (make_grant(n, user_id=f"user-{n}") for n in (2 * place, 2 * place + 1))
            with suppress(KeyboardInterrupt):
                interrupted(place, granting(watched, grant))
                break
            assert not pool._in_use
            assert not pool._users
            assert scoring.retries.remaining_seconds() == scoring.retries.MAX_SECONDS
            answer = another.submit(granting(watched, later)).result(timeout=60)
            assert answer.status is GrantStatus.RECORDED
    assert place > 100


def test_whoever_stops_waiting_is_left_out(watched: Watched) -> None:
    """Nothing is recorded later for a caller who was told of an interrupt, nor is it waited for."""
    grants = [make_grant(number) for number in range(3)]
    calls = [granting(watched, grant) for grant in grants]

    def waiting() -> set[str]:
        return {ticket.member._commands[0].grant_id for ticket in watched._queue._waiting.copy()}

    class _Interrupted(scoring.commit_queue._Ticket[Any]):
        def wait(self, seconds: float) -> None:
            if self.member._commands[0].grant_id == "grant-1":
                raise KeyboardInterrupt
            super().wait(seconds)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as threads:
        patch.setattr(scoring.commit_queue, "_Ticket", _Interrupted)
        with commit_under_way(watched):
            futures = [threads.submit(call) for call in calls]
            until(lambda: waiting() == {"grant-0", "grant-2"} and futures[1].done())
    assert isinstance(futures[1].exception(), KeyboardInterrupt)
    assert futures[0].result().status is futures[2].result().status is GrantStatus.RECORDED
    assert read_ledger(watched).events.keys() == {"grant-0", "grant-2"}


def test_a_command_from_within_a_commit_is_done_in_it() -> None:
    """As by a signal handler, or by who is told of what was recorded."""

    class Nested(Scoring):
        def notify(self, events: Any) -> None:
            super().notify(events)
            if grants_in(events) == ["grant-1"]:
                assert self.grant(**make_grant(2).model_dump()).status is GrantStatus.RECORDED

    with Nested() as app:
        assert app.grant(**make_grant(1).model_dump()).status is GrantStatus.RECORDED
        assert app.grant(**make_grant(3).model_dump()).status is GrantStatus.RECORDED
        assert read_ledger(app).events.keys() == {"grant-1", "grant-2", "grant-3"}


# --- against a model -----------------------------------------------------------------------------

_COMMANDS = st.one_of(
    st.builds(
        lambda number, user, amount: ("grant", f"grant-{number}", user, amount),
        st.integers(0, 6),
        st.sampled_from(["ada", "bob"]),
        st.integers(1, 3),
    ),
    st.builds(
        lambda key, user, points: ("contribute", key, user, points),
        st.sampled_from(["profile", "award:badge:1", "content:feed-post:2"]),
        st.sampled_from(["ada", "bob"]),
        st.integers(0, 2),
    ),
)


def _call(app: Scoring, command: tuple[str, str, str, int], example: int) -> Callable[[], Any]:
    kind, what, user, points = command
    user_id = f"{user}-{example}"
    if kind == "grant":
        return partial(app.grant, user_id, f"{what}-{example}", "quiz", "any", "any", points, NOON)
    return partial(app.contribute, user_id, what, "any", "any", points, NOON)


def test_whatever_meets_is_answered_as_one_after_another(app: Watched) -> None:
    """Against an application of one thread that is given the same, in the order of the queue."""
    numbers = count()

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.lists(_COMMANDS, min_size=1, max_size=5), min_size=1, max_size=4))
    def check(groups: list[list[tuple[str, str, str, int]]]) -> None:
        example = next(numbers)
        for group in groups:
            calls = [_call(app, command, example) for command in group]
            answers = [each.result() for each in together(app, calls)]
            wanted = [_call(model, command, example)() for command in group]
            for answer, expected, (kind, _, user, _) in zip(answers, wanted, group, strict=True):
                assert answer.status is expected.status
                if kind == "contribute":
                    assert answer.recomputed_before == expected.recomputed_before
                    assert answer.recomputed_after == expected.recomputed_after
                elif answer.status is GrantStatus.RECORDED:
                    assert answer.total_before == expected.total_before
                    assert answer.total_after == expected.total_after
                else:
                    total = model.score_of(f"{user}-{example}").total_score
                    assert expected.total_after <= answer.total_after <= total
        for user in ("ada", "bob"):
            assert app.score_of(f"{user}-{example}") == model.score_of(f"{user}-{example}")

    with Scoring() as model:
        check()


# --- elsewhere -----------------------------------------------------------------------------------

_GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys
from threading import get_ident
import gevent
from scoring import Scoring
from support import make_grant

idents = set()
class Counting(Scoring):
    commits = 0
    def commit(self, processing_event):
        type(self).commits += 1
        gevent.sleep(0.001)  # as a database that is waited for lets others run
        return super().commit(processing_event)

with Counting({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": sys.argv[1]}) as app:
    def grant(worker):
        idents.add(get_ident())
        for number in range(worker, 320, 32):
            app.grant(**make_grant(number).model_dump())
    gevent.joinall([gevent.spawn(grant, worker) for worker in range(32)], raise_error=True)
    assert len(idents) == 32
    assert sum(app.score_of(f"user-{number}").grant_count for number in range(7)) == 320
    assert Counting.commits < 60, Counting.commits
print("done")
"""


def test_greenlets_commit_together(tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    file, tests = tmp_path / "events.sqlite", Path(__file__).parents[1]
    done = run_python("-c", _GREENLETS, file, cwd=tests)
    assert done.stdout == "done\n", done.stderr
