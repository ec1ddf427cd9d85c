"""Reading from one generation only: what the guard costs beside the bare queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pymongo.client_session import ClientSession

from measuring import Report, in_turns
from projections import ProjectionWorker
from projections.mongo.generations import Generations
from projections.queries.history import UserHistory
from read_side import served
from support import make_grant
from write_side import opened

T = TypeVar("T")

GRANTS = 20_000
USERS = 2_000
READS = 500
ROUNDS = 5


class Unguarded(Generations):
    """Reads without asking which generation is live."""

    def consistently(
        self,
        read: Callable[[ClientSession], T],
        *,
        any_shape: bool = False,
        seconds: float | None = None,
    ) -> T:
        del any_shape, seconds
        with self._collections.client.start_session() as session:
            return read(session)


def guarded_reads(folder: Path, report: Report) -> None:
    """Pages of history, against the same without looking which generation is live."""
    with opened(folder / "events.sqlite") as app, served(folder) as mongo:
        view = mongo.empty()
        app.grant_many(
            make_grant(number, user_id=f"user-{number % USERS}") for number in range(GRANTS)
        )
        ProjectionWorker(app, view).catch_up()
        history, bare_history = UserHistory(view.read_model), UserHistory(view.read_model)
        bare_history._generations = Unguarded(view.read_model)

        def guarded() -> None:
            for _ in range(READS):
                history.history("user-7")

        def bare() -> None:
            for _ in range(READS):
                bare_history.history("user-7")

        ours, theirs = in_turns(guarded, bare, rounds=ROUNDS)
        reference = "without looking which is live"
        report.times("page of history", ours, reference, theirs, calls=READS)
