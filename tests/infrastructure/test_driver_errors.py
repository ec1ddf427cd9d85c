"""Every command that the library sends fails in every way, and no error of the driver gets out."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.server_api import ServerApi

from event_store import damaged
from fail_points import failing
from heard_commands import HeardCommands
from projections import (
    MongoScoreView,
    ProjectionError,
    ProjectionWorker,
    ReadModelUnavailable,
    ScoreLedger,
)
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch
from projections.queries.leaderboard import Leaderboard
from projections.settings import Settings
from projections.verification.events import verify_events
from scoring import Scoring
from support import make_grant, sqlite_env

INTERRUPTED, NOT_PRIMARY = 11601, 10107
FAILURES: dict[str, dict[str, Any]] = {
    "closed": {"closeConnection": True},
    "interrupted": {"errorCode": INTERRUPTED},
    "not-primary": {"errorCode": NOT_PRIMARY},
    "not-primary-labelled": {
        "errorCode": NOT_PRIMARY,
        "errorLabels": ["TransientTransactionError", "RetryableWriteError"],
    },
    "concern": {"writeConcernError": {"code": INTERRUPTED, "errmsg": "operation was interrupted"}},
}
OF_THE_DRIVER = "full error:|batch op errors"
NEVER_FAILED = {
    "hello",
    "ismaster",
    "endSessions",
    "configureFailPoint",
    "saslStart",
    "saslContinue",
}


class Case:
    """A ledger in a database of its own, with something to do for every call."""

    def __init__(self, uri: str, folder: Path, name: str, heard: HeardCommands) -> None:
        self.uri = uri
        self.file = folder / "events.sqlite"
        self.client: MongoClient[Any] = MongoClient(
            uri, appname="score-ledger", event_listeners=[heard], heartbeatFrequencyMS=500
        )
        self.settings = Settings(folder=folder, mongo_database=name)
        self.numbers = iter(range(1_000_000))
        self.patience_seconds = 30.0
        self.ledger = self.open()
        self.grant()
        self.ledger.catch_up()
        self.ledger.leaderboard.top(3)

    def open(self) -> ScoreLedger:
        return ScoreLedger.open(
            settings=self.settings,
            worker=False,
            event_store=sqlite_env(self.file),
            mongo=self.client,
        )

    def open_and_close(self) -> None:
        self.open().close()

    def grant(self) -> int:
        receipts = self.ledger.grant_many([make_grant(next(self.numbers)) for _ in range(5)])
        return receipts[0].position

    def catch_up(self) -> None:
        self.grant()
        self.ledger.catch_up()

    def lead(self) -> None:
        board = self.ledger.leaderboard
        rows = board.top(3)
        board.rank_of("user-1")
        board.around("user-1", 2)
        board.page(after=rows[0])
        board.rank_of("user-2", by="ledger")

    def pages(self) -> None:
        assert sum(len(page) for page in self.ledger.leaderboard.pages(size=2)) > 2

    def read_a_user(self) -> None:
        assert self.ledger.totals("user-1").total_score
        assert self.ledger.history("user-1")

    def wait(self) -> None:
        receipt = self.ledger.grant(**make_grant(0).model_dump())
        self.ledger.wait(receipt, timeout=self.patience_seconds)

    def status(self) -> None:
        self.ledger.status()

    def verify(self) -> None:
        assert self.ledger.verify().ok
        assert self.ledger.verify(events=False).ok

    def drift(self) -> None:
        self.ledger.drift()

    def rebuild(self) -> None:
        self.grant()
        outcome = self.ledger.rebuild()
        assert outcome.live, outcome

    def drop(self) -> None:
        self.ledger.rebuild()
        self.ledger.drop_kept_generations()

    def unpark(self) -> None:
        first = self.grant()
        with damaged(self.file, first):
            settings = self.settings.model_copy(update={"on_error": "park"})
            with ScoreLedger.open(
                settings=settings,
                worker=False,
                event_store=sqlite_env(self.file),
                mongo=self.client,
            ) as parking:
                parking.catch_up()
        self.ledger.unpark()


# What goes on by itself, after a failure that passes: workers, and what changes generations.
SAT_OUT = ("catch_up", "rebuild", "drop")
CALLS: dict[str, Callable[[Case], None]] = {
    call.__name__: call
    for call in (
        Case.open_and_close,
        Case.catch_up,
        Case.lead,
        Case.pages,
        Case.read_a_user,
        Case.wait,
        Case.status,
        Case.verify,
        Case.drift,
        Case.rebuild,
        Case.drop,
        Case.unpark,
    )
}


def one_kind(number: int) -> list[str]:
    """One way of failing for each command, so that every way has its turn."""
    return [list(FAILURES)[number % len(FAILURES)]]


def every_kind(number: int) -> list[str]:
    del number
    return list(FAILURES)


@pytest.mark.parametrize(
    "kinds", [one_kind, pytest.param(every_kind, marks=pytest.mark.soak)], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("call", CALLS)
def test_no_error_of_the_driver_escapes_whatever_command_fails_in_whatever_way(
    call: str,
    kinds: Callable[[int], list[str]],
    mongo_uri: str,
    read_model: ReadModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Twice, so that the driver's own second attempt does not hide it; workers sit it out.

    Nor do its texts get out, into an error of ours or the log, where the server gives a reason.
    """
    caplog.set_level("INFO", "projections")
    heard = HeardCommands()
    case = Case(mongo_uri, tmp_path, read_model.database.name, heard)
    with case.client, case.ledger:
        heard.sent.clear()
        CALLS[call](case)
        names = sorted({*heard.names} - NEVER_FAILED)
        assert names
        problems = []
        said = []
        for number, command in enumerate(names):
            for kind in kinds(number):
                try:
                    with failing(mongo_uri, command, mode={"times": 2}, **FAILURES[kind]):
                        CALLS[call](case)
                except ProjectionError as error:
                    said.append(str(error))
                    if call in SAT_OUT or not getattr(error, "transient", False):
                        problems.append(f"{command} {kind}: {type(error).__name__} {error}")
                except Exception as error:  # noqa: BLE001 - all of them are listed
                    problems.append(f"{command} {kind}: {type(error).__name__} {error}")
        case.ledger.catch_up()
        case.ledger.unpark()
        case.ledger.rebuild()
        assert case.ledger.verify().ok
    assert problems == []
    assert [text for text in [*said, *caplog.messages] if re.search(OF_THE_DRIVER, text)] == []


def test_dropping_what_was_replaced_sits_out_an_election(
    mongo_uri: str, read_model: ReadModel, tmp_path: Path
) -> None:
    """The driver does not send a drop again by itself."""
    case = Case(mongo_uri, tmp_path, read_model.database.name, HeardCommands())
    with case.client, case.ledger:
        case.ledger.rebuild()
        with failing(mongo_uri, "drop", mode={"times": 3}, errorCode=NOT_PRIMARY):
            assert case.ledger.drop_kept_generations() == [1]
        assert case.ledger.status().kept_generations == []


def test_a_failure_that_stays_is_our_error_in_every_call(
    mongo_uri: str, read_model: ReadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a worker's patience cut short while it fails, and no longer."""
    monkeypatch.setattr("projections.mongo.generations.SILENT_SWITCH_SECONDS", 0.02)
    heard = HeardCommands()
    case = Case(mongo_uri, tmp_path, read_model.database.name, heard)
    case.patience_seconds = 1.0
    problems = []
    with case.client, case.ledger:
        for name, call in CALLS.items():
            heard.sent.clear()
            call(case)
            for command in sorted({*heard.names} - NEVER_FAILED):
                try:
                    with (
                        failing(mongo_uri, command, errorCode=INTERRUPTED),
                        monkeypatch.context() as impatient,
                    ):
                        impatient.setattr("projections.retries.RETRY_SECONDS", 0.05)
                        call(case)
                except (ReadModelUnavailable, AssertionError, TimeoutError):
                    pass
                except Exception as error:  # noqa: BLE001 - all of them are listed
                    problems.append(f"{name} {command}: {type(error).__name__} {error}")
                case.ledger.catch_up()
        case.ledger.catch_up()
        case.ledger.unpark()
        case.ledger.rebuild()
        assert case.ledger.verify().ok
    assert problems == []


@pytest.mark.parametrize("code", [11601, 50, 91, 189, 10107, 13, 8000])
def test_a_server_is_called_old_only_if_it_is(
    read_model: ReadModel, mongo_uri: str, code: int
) -> None:
    """Whatever it answers to the question whether it can guard a rename."""
    switch = Switch(read_model, read_model.of_generation(2), "Scoring")
    with (
        failing(mongo_uri, "renameCollection", errorCode=code),
        pytest.raises(ReadModelUnavailable) as refused,
    ):
        switch.check_server()
    assert "older" not in str(refused.value)
    assert refused.value.transient is (code not in {13, 8000})
    switch.check_server()


def test_a_strict_stable_api_has_a_sentence_of_its_own(
    mongo_uri: str, read_model: ReadModel, scoring: Scoring
) -> None:
    """Projecting and reading do without; a rebuild cannot, and says what to leave out."""
    scoring.grant_many([make_grant(number) for number in range(10)])
    with MongoClient[Any](mongo_uri, server_api=ServerApi("1", strict=True)) as client:
        strict = ReadModel(client, read_model.database.name)
        strict.prepare()
        with closing(MongoScoreView(strict)) as view:
            ProjectionWorker(scoring, view).catch_up()
        board = Leaderboard(strict)
        assert len(board.top(7)) == len(board.top(7)) == 7
        assert verify_events(scoring, strict).ok
        for unwilling in (
            Switch(strict, strict.of_generation(2), "Scoring").check_server,
            lambda: list(board.pages()),
        ):
            with pytest.raises(ReadModelUnavailable, match="ServerApi without strict=True"):
                unwilling()
