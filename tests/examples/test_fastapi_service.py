"""The FastAPI example, over real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from concurrency import until
from examples.fastapi_service import create_app
from projections import ScoreLedger
from projections.mongo import connect
from support import sqlite_env
from telemetry import Telemetry

AWARD = {
    "user_id": "ada",
    "key": "quiz:history:7",
    "category": "learning",
    "source": "quiz",
    "amount": 25,
    "granted_at": "2026-11-22T09:30:00Z",
}


@pytest.fixture
def http(tmp_path: Path, mongo_uri: str) -> Iterator[httpx.Client]:
    """A client of the service, which listens on loopback in a thread."""
    database = f"test_{uuid4().hex}"

    def open_ledger() -> ScoreLedger:
        return ScoreLedger.open(
            mongo=mongo_uri,
            mongo_database=database,
            event_store=sqlite_env(tmp_path / "events.sqlite"),
        )

    config = uvicorn.Config(create_app(open_ledger), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        with connect(mongo_uri) as mongo:
            mongo.drop_database(database)


def award(http: httpx.Client, idempotency_key: str, **changes: Any) -> httpx.Response:
    return http.post(
        "/grants",
        params={"wait_seconds": 10},
        headers={"Idempotency-Key": idempotency_key},
        json={**AWARD, **changes},
    )


def test_an_award_is_counted_once_however_often_it_is_sent(http: httpx.Client) -> None:
    """Created, then known, and unprocessable when the key comes with another payload."""
    first = award(http, "quiz-7-ada")
    assert (first.status_code, first.json()) == (
        201,
        {"status": "RECORDED", "total_before": 0, "total_after": 25, "visible": True},
    )
    again = award(http, "quiz-7-ada")
    assert (again.status_code, again.json()["status"]) == (200, "DUPLICATE")
    other = award(http, "quiz-7-ada", amount=50)
    assert (other.status_code, other.json()["status"]) == (422, "CONFLICT")
    assert http.get("/users/ada").json()["total"] == 25


def test_a_bad_award_names_the_field_and_the_rule(http: httpx.Client) -> None:
    """And one without a key is told to choose one."""
    bad = award(http, "k", amount=0)
    assert (bad.status_code, bad.json()["field"]) == (422, "amount")
    assert http.post("/grants", json=AWARD).status_code == 400


def test_a_user_page_is_read_page_by_page(http: httpx.Client) -> None:
    """Newest first, with any user id that the ledger takes."""
    for number in range(5):
        award(http, f"g{number}", user_id="a/b ü", key=f"quiz:{number}")
    first = http.get("/users/a/b ü", params={"limit": 3}).json()
    assert [grant["grant_id"] for grant in first["grants"]] == ["g4", "g3", "g2"]
    rest = http.get("/users/a/b ü", params={"limit": 3, "before": first["next_page"]}).json()
    assert [grant["grant_id"] for grant in rest["grants"]] == ["g1", "g0"]
    assert rest["next_page"] is None
    assert rest["by_category"] == {"learning": 125}
    assert http.get("/users/nobody").status_code == 404


def test_leaderboard_health_and_lag(http: httpx.Client) -> None:
    """What a page and a monitor ask for."""
    award(http, "a", user_id="ada", amount=10)
    award(http, "b", user_id="bob", amount=30)
    assert http.get("/leaderboard", params={"n": 2}).json() == [
        {"rank": 1, "user_id": "bob", "score": 30},
        {"rank": 2, "user_id": "ada", "score": 10},
    ]
    assert http.get("/leaderboard", params={"by": "nothing"}).status_code == 422
    health = http.get("/health")
    assert (health.status_code, health.json()["healthy"]) == (200, True)
    lag = http.get("/lag").json()
    assert lag["newest_position"] - lag["tracked_position"] == lag["lag_events"]
    assert lag["tracked_position"] >= 5


def test_one_trace_leads_from_the_client_to_the_projection(
    http: httpx.Client, telemetry: Telemetry
) -> None:
    """The request continues the caller's trace, and the projected batch links into it."""
    headers = {"Idempotency-Key": "traced"}
    with trace.get_tracer("client").start_as_current_span("client") as span:
        propagate.inject(headers)
    answer = http.post("/grants", params={"wait_seconds": 10}, headers=headers, json=AWARD)
    assert answer.status_code == 201

    def linked() -> list[ReadableSpan]:
        return [batch for batch in telemetry.spans_named("project score_grants") if batch.links]

    # Both end after what they are about can be seen.
    until(lambda: telemetry.spans_named("POST /grants") and linked())
    request = telemetry.spans_named("POST /grants")
    (insert,) = telemetry.spans_named("INSERT stored_events")
    (batch,) = linked()
    assert request[0].kind is SpanKind.SERVER
    assert request[0].parent is not None
    assert request[0].parent.span_id == span.get_span_context().span_id
    assert insert.context.trace_id == span.get_span_context().trace_id
    assert [link.context.span_id for link in batch.links] == [insert.context.span_id]
