"""What several test files need: settings, grants, and the next generation of a read model."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from projections import MongoScoreView, Progress, ProjectionWorker
from projections.mongo.load import finish_load
from projections.mongo.read_model import ReadModel
from projections.mongo.switch import Switch
from scoring import Grant, Scoring

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def sqlite_env(file: Path) -> dict[str, str]:
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(file)}


def mongo_env(uri: str, database: str) -> dict[str, str]:
    return {"PERSISTENCE_MODULE": "projections.mongo", "MONGO_URI": uri, "MONGO_DATABASE": database}


def worker_env(folder: Path, uri: str, database: str, *, batch_size: int) -> dict[str, str]:
    """Settings of a command on the events of the ``scoring`` fixture and on a read model."""
    return {
        **sqlite_env(folder / "events.sqlite"),
        "MONGO_URI": uri,
        "MONGO_DATABASE": database,
        "SCORE_LEDGER_BATCH_SIZE": str(batch_size),
    }


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


def grant_lines(*numbers: int, **changes: object) -> bytes:
    """Grants as a file has them that is imported, with these values instead of valid ones."""
    grants = [{**make_grant(number).model_dump(mode="json"), **changes} for number in numbers]
    return "".join(json.dumps(grant, ensure_ascii=False) + "\n" for grant in grants).encode()


def build_next(scoring: Scoring, live: ReadModel) -> Switch:
    """Build the next generation; return the switch to it."""
    building = live.of_generation(live.generations.begin())
    building.inventory.create_building(scoring.name)
    ProjectionWorker(scoring, MongoScoreView(building)).catch_up()
    finish_load(building, scoring.name)
    return Switch(live, building, scoring.name)


def worker_maker(
    scoring: Scoring, batch_size: int = 5000
) -> Callable[[MongoScoreView, Callable[[Progress], None]], ProjectionWorker]:
    """What a rebuild makes its worker with."""
    return lambda view, report: ProjectionWorker(
        scoring, view, batch_size=batch_size, on_progress=report
    )
