"""What embedding costs: a ledger that could be traced, while nobody listens."""

from __future__ import annotations

import time
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import Report, in_turns
from projections.telemetry.tracing import Call, Store, is_listened_to, traced_methods
from scoring import Scoring
from write_side import grant_each, grants, opened

# The module, seen as one whose names may be replaced.
user_score: Any = import_module("scoring.user_score")


def tracing(folder: Path, report: Report) -> None:
    """``grant()`` through the traced repository, with the API and no SDK, against without any."""
    assert not is_listened_to()
    # In memory a grant costs least, so tracing shows most; a file is what a ledger really has.
    with Scoring() as app, Scoring() as bare:
        _tracing("in memory", app, bare, report, at_most=1.1)
    with opened(folder / "traced.sqlite") as app, opened(folder / "bare.sqlite") as bare:
        _tracing("SQLite", app, bare, report, at_most=1.05)


def _tracing(name: str, app: Scoring, bare: Scoring, report: Report, *, at_most: float) -> None:
    size, rounds = 100, 101
    stream = grants("ada")
    lookup = user_score.current_traceparent
    store = Store("sqlite", "", "stored_events", {"grant": Call("INSERT", "stored_events")})
    repository = traced_methods(app, store)

    def traced_grants() -> None:
        grant_each(repository, list(islice(stream, size)))

    def bare_grants() -> None:
        user_score.current_traceparent = lambda: None
        try:
            grant_each(bare, list(islice(stream, size)))
        finally:
            user_score.current_traceparent = lookup

    traced_grants()
    bare_grants()
    # Processor time: tracing never waits, and the machine may be busy with something else.
    mine, theirs = in_turns(traced_grants, bare_grants, rounds=rounds, clock=time.thread_time)
    what = f"tracing without an SDK, grant(), {name}"
    report.times(what, mine, "untraced", theirs, calls=size, at_most=at_most)
