"""The leaderboard at a million users and more: against a bare find, and what a rank costs."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bson.int64 import Int64
from redis import Redis

from measuring import Report, in_turns, seconds
from projections import Leaderboard, LeaderboardRow
from projections.embedded import open_server
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from ranks import fill_users

ROUNDS = 300
NEIGHBOURS = 50
INDEX = [("recomputedTotal", -1), ("_id", 1)]

_RANDOM = random.Random(1)

SPREADS: dict[str, Callable[[], int]] = {
    "many tied, some far ahead": lambda: min(int(10 * _RANDOM.paretovariate(0.5)), 2**62),
    "all within 100 points": lambda: 10**12 + _RANDOM.randrange(100),
    "all tied": lambda: 7,
    "hardly any tied": lambda: _RANDOM.randrange(10**12),
}


def leaderboard(folder: Path, report: Report) -> None:
    """Reads of users whose scores are spread in several ways, against bare ones, and Redis."""
    with (
        open_server(folder / "mongo") as server,
        connect(server.uri) as client,
        _redis(folder / "redis") as redis,
    ):
        for number, (spread, score) in enumerate(SPREADS.items()):
            read_model = ReadModel(client, f"benchmark{number}")
            read_model.prepare()
            redis.flushall()
            # The first spread is that of a site, the others are the worst that can be thought of.
            sizes = [report.scaled(200_000)] if number else report.sizes(1_000_000)
            filled = 0
            for users in sizes:
                _fill(read_model, redis, score, filled, users)
                filled = users
                if number == 0:
                    _draw(report, read_model, redis, users)
                if users in sizes[-2:]:
                    _read(report, read_model, redis, spread, users)
            client.drop_database(read_model.database.name)


def _draw(report: Report, read_model: ReadModel, redis: Redis, users: int) -> None:
    board = Leaderboard(read_model)
    last = _places(board, read_model, users)["last"].user_id
    ours, bare = in_turns(
        partial(board.rank_of, last),
        partial(read_model.users.find_one, {"_id": last}),
        rounds=ROUNDS,
    )
    zrevrank = partial(redis.zrevrank, "board", last)
    figures = {
        "rank_of": median(ours),
        "find_one of the user": median(bare),
        "ZREVRANK of Redis": median(seconds(zrevrank) for _ in range(ROUNDS)),
    }
    in_ms = {name: taken * 1000 for name, taken in figures.items()}
    report.draw("the rank of the last", "ms", "users", users, in_ms)


def _read(report: Report, read_model: ReadModel, redis: Redis, spread: str, users: int) -> None:
    board = Leaderboard(read_model)
    places = _places(board, read_model, users)

    def compare(
        what: str,
        ours: Callable[[], object],
        reference: str,
        bare: Callable[[], object],
        at_most: int | None,
    ) -> None:
        mine, theirs = ([median(each)] for each in in_turns(ours, bare, rounds=ROUNDS))
        report.times(f"{users:,} users, {spread}: {what}", mine, reference, theirs, at_most=at_most)

    for name, row in places.items():
        rank_of = partial(board.rank_of, row.user_id)
        find_one = partial(read_model.users.find_one, {"_id": row.user_id})
        compare(f"rank_of, {name}", rank_of, "find_one", find_one, 5)
        zrevrank = partial(redis.zrevrank, "board", row.user_id)
        compare(f"rank_of, {name}", rank_of, "ZREVRANK of Redis", zrevrank, None)
        start = _bare(read_model, row, NEIGHBOURS + 1, backwards=True)[-1]
        place = LeaderboardRow(0, start["_id"], start["recomputedTotal"])
        around = partial(board.around, row.user_id, NEIGHBOURS)
        find = partial(_bare, read_model, place, len(around()))
        compare(f"around(user, {NEIGHBOURS}), {name}", around, "find", find, 5)
        page = partial(board.page, after=row, limit=100)
        find = partial(_bare, read_model, row, 100)
        compare(f"page(after=row, limit=100), {name}", page, "find", find, 5)
    compare("top(100)", partial(board.top, 100), "find", partial(_bare, read_model, None, 100), 2)


def _fill(
    read_model: ReadModel, redis: Redis, score: Callable[[], int], filled: int, users: int
) -> None:
    """The same users in MongoDB, as a projection writes them, and in a sorted set of Redis."""

    def documents() -> Iterator[dict[str, Any]]:
        for start in range(filled, users, 10_000):
            scores = {
                f"user-{number:08d}": score() for number in range(start, min(start + 10_000, users))
            }
            redis.zadd("board", scores)
            for user_id, recomputed in scores.items():
                yield {
                    "_id": user_id,
                    "totalScore": Int64(_RANDOM.randrange(10**6)),
                    "categoryTotals": {"content": Int64(5)},
                    "sourceTotals": {"feed": Int64(5)},
                    "grantCount": Int64(1),
                    "recomputedTotal": Int64(recomputed),
                    "lastGrantAt": None,
                    "version": Int64(2),
                }

    fill_users(read_model, documents())


@contextmanager
def _redis(folder: Path) -> Iterator[Redis]:
    """A server with nothing in it, and nothing on disk; Debian's package ``redis-server``."""
    folder.mkdir()
    at = folder / "socket"
    options = ["--port", "0", "--unixsocket", str(at), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        try:
            while not at.exists():
                assert server.poll() is None
            with Redis(unix_socket_path=str(at)) as redis:
                yield redis
        finally:
            server.terminate()


def _places(board: Leaderboard, read_model: ReadModel, users: int) -> dict[str, LeaderboardRow]:
    order = [("recomputedTotal", -1), ("_id", 1)]
    names = {"first": 0, "middle": users // 2, "last": users - 1}
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
