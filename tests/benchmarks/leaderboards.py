"""The leaderboard at 1,000,000 users: against a bare find, and what a rank costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bson.int64 import Int64

from measuring import Report, in_turns, seconds
from projections import Leaderboard, LeaderboardRow
from projections.embedded import open_server
from projections.mongo import connect
from projections.mongo.read_model import ReadModel

USERS = 1_000_000
ROUNDS = 300
NEIGHBOURS = 50
INDEX = [("recomputedTotal", -1), ("_id", 1)]


def leaderboard(folder: Path, report: Report) -> None:
    """Fill a read model with users, many of them tied, and read it in every way."""
    with open_server(folder / "mongo") as server, connect(server.uri) as client:
        read_model = ReadModel(client, "benchmark")
        read_model.prepare()
        _fill(read_model)
        board = Leaderboard(read_model)
        top = [lambda: board.top(100), lambda: _bare(read_model, None, 100)]
        _compare(report, "top(100), bare find of 100", *top)
        for name, row in _places(board, read_model).items():
            size = NEIGHBOURS + 1 if name != "middle" else 2 * NEIGHBOURS + 1
            start = _bare(read_model, row, NEIGHBOURS + 1, backwards=True)[-1]
            place = LeaderboardRow(0, start["_id"], start["recomputedTotal"])
            _compare(
                report,
                f"around(row, {NEIGHBOURS}), {name} user, bare find of the same rows",
                partial(board.around, row, NEIGHBOURS),
                partial(_bare, read_model, place, size),
            )
            _compare(
                report,
                f"page(after=row, limit=100), {name} user, bare find of the same rows",
                partial(board.page, after=row, limit=100),
                partial(_bare, read_model, row, 100),
            )
            _rank(report, board, read_model, name, row)


def _fill(read_model: ReadModel) -> None:
    randomness = random.Random(1)
    for start in range(0, USERS, 20_000):
        read_model.users.insert_many(
            [
                {
                    "_id": f"user-{number:07d}",
                    "totalScore": Int64(randomness.randrange(10**6)),
                    "categoryTotals": {"content": Int64(5)},
                    "sourceTotals": {"feed": Int64(5)},
                    "grantCount": Int64(1),
                    "recomputedTotal": Int64(10 * randomness.paretovariate(0.5)),
                    "lastGrantAt": None,
                    "version": Int64(2),
                }
                for number in range(start, start + 20_000)
            ],
            ordered=False,
        )


def _places(board: Leaderboard, read_model: ReadModel) -> dict[str, LeaderboardRow]:
    order = [("recomputedTotal", -1), ("_id", 1)]
    names = {"first": 0, "middle": USERS // 2, "last": USERS - 1}
    rows = {}
    for name, place in names.items():
        found = read_model.users.find({}, {"recomputedTotal": 1}).sort(order).skip(place).limit(1)
        row = board.rank_of(next(iter(found))["_id"])
        assert row is not None
        rows[name] = row
    return rows


def _bare(
    read_model: ReadModel, start: LeaderboardRow | None, limit: int, *, backwards: bool = False
) -> list[dict[str, Any]]:
    order = [(name, -way if backwards else way) for name, way in INDEX]
    found = read_model.users.find({}, {"recomputedTotal": 1}).sort(order).limit(limit)
    if start is not None:
        bound: Sequence[tuple[str, int | str]] = [
            ("recomputedTotal", start.score),
            ("_id", start.user_id),
        ]
        found = found.hint(INDEX)
        # An upper bound is left out, a lower one is not.
        found = found.max(bound) if backwards else found.min(bound)
    rows = list(found)
    return rows or (
        [] if start is None else [{"_id": start.user_id, "recomputedTotal": start.score}]
    )


def _compare(
    report: Report, what: str, ours: Callable[[], object], bare: Callable[[], object]
) -> None:
    measured, reference = in_turns(ours, bare, rounds=ROUNDS)
    report.add(
        what,
        measured=f"{median(measured) * 1000:.2f} ms",
        reference=f"{median(reference) * 1000:.2f} ms",
        ratios=[median(measured) / median(reference)],
        wanted="2 at most",
    )


def _rank(
    report: Report, board: Leaderboard, read_model: ReadModel, name: str, row: LeaderboardRow
) -> None:
    """``rank_of`` and ``around`` by user id count the users above; a skip is what they replace."""
    skip = max(0, row.rank - 1 - NEIGHBOURS)

    def skipping() -> object:
        found = read_model.users.find({}, {"recomputedTotal": 1}).sort(INDEX).skip(skip)
        return list(found.limit(2 * NEIGHBOURS + 1))

    reference = median(seconds(skipping) for _ in range(5))
    for what, call in (
        (f"rank_of(user), {name} user (rank {row.rank:,})", lambda: board.rank_of(row.user_id)),
        (f"around(user, {NEIGHBOURS}), {name} user", lambda: board.around(row.user_id, NEIGHBOURS)),
    ):
        measured = median(seconds(call) for _ in range(5))
        report.add(
            what,
            measured=f"{measured * 1000:.1f} ms",
            reference=f"{reference * 1000:.1f} ms (find with skip)",
            ratios=[measured / reference],
            wanted="shown",
        )
