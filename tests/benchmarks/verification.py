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
from read_side import served
from scoring import Scoring
from write_side import fill, opened


def against_a_bare_scan(folder: Path, report: Report) -> None:
    """Grants of 2,000 users, against reading every document and every event that counts."""
    file = folder / "events.sqlite"
    recorded = 0
    with opened(file) as app, served(folder) as mongo:
        for size in report.sizes(1_000_000):
            fill(app, size - recorded)
            recorded = size
            view = mongo.empty()
            ProjectionWorker(app, view).catch_up()
            model = view.read_model
            mine, theirs = in_turns(
                lambda: _verify(app, model),  # noqa: B023
                lambda: _scan(file, model),  # noqa: B023
                rounds=3,
            )
            bare = "bare scan of both sides"
            report.rates(f"verify of {size:,} grants", size, mine, bare, theirs, at_least=0.35)
            figures = {"verify": size / median(mine), bare: size / median(theirs)}
            report.draw("verifying", "grants/s", "grants", size, figures)


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
