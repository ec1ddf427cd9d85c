"""Verifying against a bare scan of both sides."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from statistics import median

from measuring import Report, in_turns
from projections import ProjectionWorker
from projections.events.model import TOPICS
from projections.mongo.read_model import ReadModel
from projections.verification.events import verify_events
from read_side import fill, served
from scoring import Scoring
from write_side import opened

SIZES = (10_000, 100_000, 400_000)


def against_a_bare_scan(folder: Path, report: Report) -> None:
    """Grants of 2,000 users, against reading every document and every event that counts."""
    file = folder / "events.sqlite"
    recorded = 0
    with opened(file) as app, served(folder) as empty:
        for size in SIZES:
            fill(app, size - recorded)
            recorded = size
            view = empty()
            ProjectionWorker(app, view).catch_up()
            model = view.read_model
            mine, theirs = in_turns(
                lambda: _verify(app, model),  # noqa: B023
                lambda: _scan(file, model),  # noqa: B023
                rounds=5,
            )
            report.add(
                f"verify of {size:,} grants",
                measured=f"{size / median(mine):,.0f}/s",
                reference=f"bare scan of both sides: {size / median(theirs):,.0f}/s",
                ratios=[b / a for a, b in zip(mine, theirs, strict=True)],
                wanted="≥ 0.35, and the same at every size",
            )
            report.draw(
                "verifying",
                unit="grants/s",
                over="grants",
                size=size,
                verify=size / median(mine),
                bare_scan_of_both_sides=size / median(theirs),
            )


def _verify(app: Scoring, model: ReadModel) -> None:
    assert verify_events(app, model).ok


def _scan(file: Path, model: ReadModel) -> None:
    for collection in (model.grants, model.users, model.buckets):
        for _ in collection.find():
            pass
    marks = ",".join("?" * len(TOPICS))
    with closing(sqlite3.connect(file)) as database:
        select = f"SELECT rowid, * FROM stored_events WHERE topic IN ({marks})"
        for _ in database.execute(select, TOPICS):
            pass
