"""A FastAPI service around a ledger: award points, show a user, a leaderboard, health and lag.

Try it, in an environment with ``score-ledger[embedded,tracing]``, ``fastapi`` and ``uvicorn``::

    uvicorn --factory examples.fastapi_service:create_app
    curl -X POST localhost:8000/grants -H 'Idempotency-Key: quiz-7-ada' \
        -H 'Content-Type: application/json' -d '{"user_id": "ada", "key": "quiz:history:7",
        "category": "learning", "source": "quiz", "amount": 25,
        "granted_at": "2026-11-22T09:30:00Z"}'

What is worth copying:

* The client's ``Idempotency-Key`` is the grant id, so a client may send again whatever it is unsure
  of. As in the IETF's draft of that header, the same key with another payload is answered with 422.
* The ledger is opened once, when the application starts, in the process that uses it: a server that
  forks its workers after that would hand them a ledger that says so and refuses.
* The endpoints are plain functions. FastAPI runs those in threads, so that the event loop never
  waits for a database, and takes the current span along.
* FastAPI makes every request a span of the caller's trace, named by its route. The ledger's spans
  lie within it, and the batch that projects the grant, later and in another thread, links to them.
  Which SDK takes them, and where to, is up to whoever starts the process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from projections import GrantRow, LeaderboardRow, LedgerError, ScoreLedger
from scoring import GrantStatus, InvalidGrant

MAX_LAG_EVENTS = 10_000
"""A read model that is further behind is not healthy."""

_HTTP_STATUS = {
    GrantStatus.RECORDED: 201,
    GrantStatus.DUPLICATE: 200,
    GrantStatus.CONFLICT: 422,
}


class Award(BaseModel):
    """What a client sends; the ledger checks the values."""

    user_id: str
    key: str
    category: str
    source: str
    amount: int
    granted_at: datetime


class Answer(BaseModel):
    """What became of it."""

    status: GrantStatus
    total_before: int
    total_after: int
    visible: bool
    """Whether readers see it already."""


class UserPage(BaseModel):
    """One user, as of the projection."""

    user_id: str
    total: int
    by_category: dict[str, int]
    grants: list[GrantRow]
    next_page: int | None
    """Give this as ``before`` for the page that follows."""


def create_app(open_ledger: Callable[[], ScoreLedger] = ScoreLedger.open) -> FastAPI:
    """Return the application; ``open_ledger`` is called when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_ledger() as ledger:
            app.state.ledger = ledger
            yield

    app = FastAPI(title="Points", lifespan=lifespan)
    app.exception_handler(InvalidGrant)(_invalid)
    app.exception_handler(LedgerError)(_unavailable)
    app.post("/grants")(award)
    app.get("/users/{user_id:path}")(user_page)
    app.get("/leaderboard")(leaderboard)
    app.get("/health")(health)
    app.get("/lag")(lag)
    return app


def _ledger(request: Request) -> ScoreLedger:
    ledger: ScoreLedger = request.app.state.ledger
    return ledger


Ledger = Annotated[ScoreLedger, Depends(_ledger)]


def award(
    award: Award,
    ledger: Ledger,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
    wait_seconds: Annotated[float, Query(ge=0, le=10)] = 0,
) -> Answer:
    """Award points once; with ``wait_seconds``, answer when readers see them."""
    if idempotency_key is None:
        raise HTTPException(400, "the header Idempotency-Key is missing: choose a unique one")
    receipt = ledger.grant(grant_id=idempotency_key, **award.model_dump())
    response.status_code = _HTTP_STATUS[receipt.status]
    visible = False
    if wait_seconds:
        try:
            ledger.wait(receipt, timeout=wait_seconds)
            visible = True
        except TimeoutError:
            pass  # the points are safe, only not to be seen yet
    return Answer(
        status=receipt.status,
        total_before=receipt.total_before,
        total_after=receipt.total_after,
        visible=visible,
    )


def user_page(
    user_id: str,
    ledger: Ledger,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> UserPage:
    """Show a user's totals and grants, newest first."""
    totals = ledger.totals(user_id)
    if not totals.version:
        raise HTTPException(404, "this user has no points yet")
    grants = ledger.history(user_id, before=before, limit=limit)
    return UserPage(
        user_id=totals.user_id,
        total=totals.total_score,
        by_category=totals.category_totals,
        grants=grants,
        next_page=grants[-1].position if len(grants) == limit else None,
    )


def leaderboard(
    ledger: Ledger,
    n: Annotated[int, Query(ge=1, le=100)] = 10,
    by: Literal["recomputed", "ledger"] = "ledger",
) -> list[LeaderboardRow]:
    """Show who leads."""
    return ledger.leaderboard.top(n, by=by)


def health(ledger: Ledger, response: Response) -> dict[str, Any]:
    """Say whether both stores answer and the projection keeps up; 503 if not."""
    status = ledger.status()  # raises, and is answered with 503, if a store does not answer
    lag = status.lag_events  # None if the event store is not the one that was projected
    healthy = status.worker_error is None and lag is not None and lag <= MAX_LAG_EVENTS
    response.status_code = 200 if healthy else 503
    return {"healthy": healthy, "worker_error": status.worker_error}


def lag(ledger: Ledger) -> dict[str, int | None]:
    """Say how far the projection is behind, in events."""
    status = ledger.status()
    return {
        "lag_events": status.lag_events,
        "newest_position": status.newest_position,
        "tracked_position": status.tracked_position,
    }


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, InvalidGrant)
    return JSONResponse({"field": error.field, "rule": error.rule}, status_code=422)


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    del request
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})
