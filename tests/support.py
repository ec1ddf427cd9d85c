"""What several test files need: settings and grants."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from projections import MongoScoreView, Progress, ProjectionWorker
from scoring import Grant, Scoring

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def sqlite_env(file: Path) -> dict[str, str]:
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(file)}


def mongo_env(uri: str, database: str) -> dict[str, str]:
    return {"PERSISTENCE_MODULE": "projections.mongo", "MONGO_URI": uri, "MONGO_DATABASE": database}


def make_grant(number: int = 1, **changes: object) -> Grant:
    """A valid grant; the same number makes the same grant."""
    values: dict[str, object] = {
        "user_id": f"user-{number % 7}",
        "grant_id": f"grant-{number}",
        "key": f"quiz:history:{number}",
        "category": ("content", "learning", "activity")[number % 3],
        "source": ("feed", "quiz")[number % 2],
        "amount": number % 11 + 1,
        "granted_at": NOON + timedelta(minutes=number),
    }
    return Grant(**{**values, **changes})  # type: ignore[arg-type]


def worker_maker(
    scoring: Scoring, batch_size: int = 5000
) -> Callable[[MongoScoreView, Callable[[Progress], None]], ProjectionWorker]:
    """What a rebuild makes its worker with."""
    return lambda view, report: ProjectionWorker(
        scoring, view, batch_size=batch_size, on_progress=report
    )
