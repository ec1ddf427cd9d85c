"""Spans and metrics: what is told about a ledger, to whom, and that nobody needs to listen."""

from __future__ import annotations

import re
import runpy
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from command_line import run_python
from projections import Leaderboard, MongoScoreView, ProjectionWorker, ScoreLedger
from projections.errors import PositionMoved
from projections.events.anchor import Tracked
from projections.mongo.batches import Batch
from projections.mongo.read_model import ReadModel
from projections.telemetry.batches import observed
from projections.telemetry.tracing import MAX_LINKS
from scoring import InvalidGrant, Scoring, UserScore
from support import make_grant
from telemetry import Telemetry

ROOT = Path(__file__).parents[2]

TRACER = trace.get_tracer("a service")


@pytest.fixture
def ledger(scoring: Scoring, read_model: ReadModel) -> Iterator[ScoreLedger]:
    """A ledger whose grants are projected when asked."""
    with ScoreLedger.open(scoring=scoring, mongo=read_model.database, worker=False) as ledger:
        yield ledger


def attributes(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


def test_every_call_of_a_repository_is_a_span_with_the_field_s_attributes(
    ledger: ScoreLedger, telemetry: Telemetry, tmp_path: Path, read_model: ReadModel
) -> None:
    """Named and described by the semantic conventions for database clients."""
    grant = make_grant(1, user_id="ada")
    ledger.grant(**grant.model_dump())
    ledger.grant_many([make_grant(2)])
    ledger.score_of("ada")
    ledger.totals("ada")
    ledger.history("ada")
    ledger.leaderboard.top(3)
    ledger.leaderboard.rank_of("ada")
    assert [span.name for span in telemetry.spans] == [
        *("INSERT stored_events", "INSERT stored_events", "SELECT stored_events"),
        *("find user_scores", "find score_grants", "find user_scores", "find user_scores"),
    ]
    assert {span.kind for span in telemetry.spans} == {SpanKind.CLIENT}
    assert attributes(telemetry.spans[0]) == {
        "db.system.name": "sqlite",
        "db.namespace": str(tmp_path / "events.sqlite"),
        "db.collection.name": "stored_events",
        "db.operation.name": "INSERT",
        "code.function.name": "scoring.application.Scoring.grant",
    }
    assert attributes(telemetry.spans[4]) == {
        "db.system.name": "mongodb",
        "db.namespace": read_model.database.name,
        "db.collection.name": "score_grants",
        "db.operation.name": "find",
        "code.function.name": "projections.queries.history.UserHistory.history",
    }
    told = " ".join(str(attributes(span)) + span.name for span in telemetry.spans)
    assert "ada" not in told, "nothing may tell users apart"
    assert grant.grant_id not in told


def test_a_traced_leaderboard_is_a_leaderboard(ledger: ScoreLedger) -> None:
    """Whoever asks for its type gets the right answer."""
    assert isinstance(ledger.leaderboard, Leaderboard)


def test_an_error_is_recorded_with_its_type(ledger: ScoreLedger, telemetry: Telemetry) -> None:
    """The span has failed, says how, and carries the exception."""
    with pytest.raises(InvalidGrant):
        ledger.grant(**{**make_grant(1).model_dump(), "amount": -5})
    (span,) = telemetry.spans
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "InvalidGrant"
    (event,) = span.events
    assert event.name == "exception"
    assert dict(event.attributes or {})["exception.type"] == "scoring.errors.InvalidGrant"


def test_a_projected_batch_links_to_the_commands_behind_it(
    ledger: ScoreLedger, telemetry: Telemetry, read_model: ReadModel
) -> None:
    """The context travels in the events, so another process could have projected them."""
    with TRACER.start_as_current_span("request"):
        ledger.grant(**make_grant(1).model_dump())
    ledger.grant_many([make_grant(2), make_grant(3)])
    ledger.catch_up()
    one, many = telemetry.spans_named("INSERT stored_events")
    (request,) = telemetry.spans_named("request")
    (batch,) = telemetry.spans_named("project score_grants")
    assert one.parent is not None
    assert one.parent.span_id == request.context.span_id
    assert [(link.context.trace_id, link.context.span_id) for link in batch.links] == [
        (span.context.trace_id, span.context.span_id) for span in (one, many)
    ]
    assert batch.kind is SpanKind.CONSUMER
    assert attributes(batch) == {
        "db.system.name": "mongodb",
        "db.namespace": read_model.database.name,
        "db.collection.name": "score_grants",
        "db.operation.name": "project",
        "score_ledger.batch.size": 3,
        "score_ledger.batch.position": 9,
    }


def test_a_batch_has_a_bounded_number_of_links(ledger: ScoreLedger, telemetry: Telemetry) -> None:
    """However many commands are behind it."""
    for number in range(MAX_LINKS + 5):
        ledger.grant(**make_grant(number).model_dump())
    ledger.catch_up()
    (batch,) = telemetry.spans_named("project score_grants")
    assert len(batch.links) == MAX_LINKS


def stored_states(file: Path) -> list[bytes]:
    with sqlite3.connect(file) as database:
        rows = database.execute(
            "SELECT state FROM stored_events WHERE topic LIKE '%GrantRecorded'"
        ).fetchall()
    database.close()
    return [bytes(row[0]) for row in rows]


def test_without_a_span_nothing_about_traces_is_stored(scoring: Scoring, tmp_path: Path) -> None:
    """Such an event is byte for byte what it was before there were traces, and reads as None."""
    scoring.grant(**make_grant(1).model_dump())
    assert b"traceparent" not in stored_states(tmp_path / "events.sqlite")[0]
    assert [event.traceparent for event in granted(scoring)] == [None]


def granted(scoring: Scoring) -> list[UserScore.GrantRecorded]:
    notifications = scoring.recorder.select_notifications(start=None, limit=100)
    events = map(scoring.mapper.to_domain_event, notifications)
    return [event for event in events if isinstance(event, UserScore.GrantRecorded)]


def test_a_traceparent_is_that_of_the_recommendation(
    scoring: Scoring, telemetry: Telemetry
) -> None:
    """Version, trace, span and flags in hexadecimal; read back from the store."""
    with TRACER.start_as_current_span("request") as span:
        scoring.grant(**make_grant(1).model_dump())
    context = span.get_span_context()
    (event,) = granted(scoring)
    flags = f"{context.trace_flags:02x}"
    assert event.traceparent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"
    del telemetry


def test_a_traceparent_that_cannot_be_read_is_no_poison(
    ledger: ScoreLedger, scoring: Scoring, telemetry: Telemetry, tmp_path: Path
) -> None:
    """The batch is projected, with one link less."""
    with TRACER.start_as_current_span("request"):
        scoring.grant(**make_grant(1).model_dump())
    with sqlite3.connect(tmp_path / "events.sqlite") as database:
        database.execute(
            "UPDATE stored_events SET state = CAST(replace(state, '\"00-', '\"zz-') AS BLOB) "
            "WHERE topic LIKE '%GrantRecorded'"
        )
    database.close()
    assert b'"zz-' in stored_states(tmp_path / "events.sqlite")[0]
    assert ledger.catch_up() == 3
    (batch,) = telemetry.spans_named("project score_grants")
    assert list(batch.links) == []


def test_the_batches_of_a_rebuild_are_spans_too(ledger: ScoreLedger, telemetry: Telemetry) -> None:
    """A rebuild projects as a worker does, and takes longer."""
    ledger.grant_many([make_grant(1), make_grant(2)])
    ledger.catch_up()
    ledger.rebuild()
    live, rebuilt = telemetry.spans_named("project score_grants")
    assert attributes(rebuilt) == attributes(live)


def test_metrics_tell_statuses_batches_lag_and_conflicts(
    ledger: ScoreLedger, scoring: Scoring, telemetry: Telemetry, read_model: ReadModel
) -> None:
    """By status, and without anything that tells users apart."""
    ledger.grant_many([make_grant(1), make_grant(2), make_grant(1)])
    ledger.grant(**make_grant(2, amount=99).model_dump())
    here = {"db.namespace": read_model.database.name}
    seen = telemetry.metrics()
    assert {
        point.attributes["score_ledger.grant.status"]: point.value
        for point in seen["score_ledger.grants"]
    } == {"RECORDED": 2, "DUPLICATE": 1, "CONFLICT": 1}
    lags = [p.value for p in seen["score_ledger.projection.lag"] if p.attributes == here]
    assert lags == [6]
    ledger.catch_up()
    view, late = MongoScoreView(read_model), Batch("Scoring", Tracked(), Tracked(6))
    with pytest.raises(PositionMoved), observed(late, namespace=read_model.database.name):
        view.apply(late)
    seen = telemetry.metrics()
    assert [point.value for point in seen["score_ledger.projection.conflicts"]] == [1]
    (size,) = seen["score_ledger.projection.batch.size"]
    assert (size.count, size.sum) == (1, 2)
    (duration,) = seen["score_ledger.projection.batch.duration"]
    assert 0 < duration.sum < 60
    lags = [p.value for p in seen["score_ledger.projection.lag"] if p.attributes == here]
    assert lags == [0]
    view.close()
    ledger.close()
    closed = telemetry.metrics().get("score_ledger.projection.lag", [])
    assert here not in [point.attributes for point in closed]
    assert ProjectionWorker(scoring, view).catch_up() == 6


class Instruments:
    """A meter that notes which instruments are made, by name, and their kinds."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}

    def __getattr__(self, create: str) -> Callable[..., None]:
        kind = create.rpartition("_")[2]  # of create_observable_gauge, say
        return lambda name, **_: self.made.update({name: kind})


def test_every_metric_is_documented_and_none_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By name and kind, in the table of the page on embedding."""
    instruments = Instruments()
    monkeypatch.setattr("opentelemetry.metrics.get_meter", lambda *_, **__: instruments)
    for module in (ROOT / "projections" / "telemetry").glob("*.py"):
        # Once more, beside the modules in use, whose instruments were made long ago.
        runpy.run_path(str(module))
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(score_ledger\.\S+)` \| (\w+)", page, re.MULTILINE)
    assert dict(rows) == instruments.made
    assert len(rows) == len(instruments.made)


def test_a_store_that_is_away_has_no_value_and_stops_no_other_metric(
    ledger: ScoreLedger, scoring: Scoring, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """No value is better than a wrong one, or than a traceback with each that is collected."""
    ledger.grant(**make_grant(1).model_dump())
    scoring.close()
    seen = telemetry.metrics()
    assert "score_ledger.grants" in seen
    assert "score_ledger.projection.foreign_grants" not in seen
    here = threading.get_ident()  # and not what something of an earlier test has to say
    assert [record for record in caplog.records if record.thread == here] == []


def test_an_event_store_that_was_replaced_is_a_metric_and_has_no_lag(
    ledger: ScoreLedger, telemetry: Telemetry, read_model: ReadModel
) -> None:
    """Rather than one of 0."""
    here = {"db.namespace": read_model.database.name}

    def values(name: str) -> list[object]:
        points = telemetry.metrics().get(f"score_ledger.projection.{name}", [])
        return [point.value for point in points if point.attributes == here]

    ledger.grant(**make_grant(1).model_dump())
    ledger.catch_up()
    assert (values("event_store_replaced"), values("lag")) == ([0], [0])
    read_model.positions.update_one({}, {"$set": {"anchor.hash": "of another store"}})
    assert (values("event_store_replaced"), values("lag")) == ([1], [])


_UNHEARD = """
import sys
if sys.argv[2] == "without the API":
    sys.modules["opentelemetry"] = None
from datetime import UTC, datetime
from pathlib import Path
from projections import Leaderboard, ScoreLedger
from projections.telemetry.tracing import INSTALLED, Store, is_listened_to, traced

assert INSTALLED == (sys.argv[2] == "without an SDK")
assert not is_listened_to()
with ScoreLedger.open(mongo=sys.argv[1], mongo_database="unheard", worker=False) as ledger:
    ledger.grant("ada", "g", "k", "learning", "quiz", 5, datetime.now(UTC))
    ledger.catch_up()
    print(ledger.leaderboard.top(1, by="ledger")[0].score)
    ledger._view.read_model.client.drop_database("unheard")
if not INSTALLED:
    assert traced(Leaderboard, Store("mongodb", "", "", {})) is Leaderboard
    assert not any(name.startswith("opentelemetry") and sys.modules[name] for name in sys.modules)
assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
"""


@pytest.mark.parametrize("how", ["without the API", "without an SDK"])
def test_nobody_needs_to_listen(how: str, mongo_uri: str, tmp_path: Path) -> None:
    """The ledger works without OpenTelemetry, and makes no spans when nobody takes them."""
    done = run_python("-c", _UNHEARD, mongo_uri, how, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
