"""The leaderboard at 1,000,000 users: against a bare find, and what a rank costs."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bson.int64 import Int64

from measuring import Report, in_turns
from projections import Leaderboard, LeaderboardRow
from projections.embedded import open_server
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from ranks import insert_users

USERS = 1_000_000
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
    """Fill a read model with users, however their scores are spread, and read it in every way."""
    with open_server(folder / "mongo") as server, connect(server.uri) as client:
        for number, (spread, score) in enumerate(SPREADS.items()):
            read_model = ReadModel(client, f"benchmark{number}")
            read_model.prepare()
            filled = 0
            # The first spread is that of a site, the others are the worst that can be thought of.
            for users in (USERS // 100, USERS // 10, USERS) if number == 0 else (USERS // 5,):
                _fill(read_model, score, filled, users)
                filled = users
                if number == 0:
                    _draw(report, read_model, users)
            _read(folder, report, read_model, spread, filled)
            client.drop_database(read_model.database.name)


def _draw(report: Report, read_model: ReadModel, users: int) -> None:
    last = _places(Leaderboard(read_model), read_model, users)["last"].user_id
    ours, bare = in_turns(
        partial(Leaderboard(read_model).rank_of, last),
        partial(read_model.users.find_one, {"_id": last}),
        rounds=ROUNDS,
    )
    report.draw(
        "a rank",
        unit="ms",
        over="users",
        size=users,
        rank_of_the_last=median(ours) * 1000,
        find_one=median(bare) * 1000,
    )


def _read(folder: Path, report: Report, read_model: ReadModel, spread: str, users: int) -> None:
    board = Leaderboard(read_model)
    places = _places(board, read_model, users)
    for name, row in places.items():
        user_id = row.user_id
        _compare(
            report,
            f"rank_of(user), {name} of {users:,} users ({spread}), find_one by _id",
            partial(board.rank_of, user_id),
            partial(read_model.users.find_one, {"_id": user_id}),
            wanted=5,
        )
        size = NEIGHBOURS + 1 if name != "middle" else 2 * NEIGHBOURS + 1
        start = _bare(read_model, row, NEIGHBOURS + 1, backwards=True)[-1]
        place = LeaderboardRow(0, start["_id"], start["recomputedTotal"])
        _compare(
            report,
            f"around(user, {NEIGHBOURS}), {name} user ({spread}), bare find of the same rows",
            partial(board.around, user_id, NEIGHBOURS),
            partial(_bare, read_model, place, size),
            wanted=5,
        )
        _compare(
            report,
            f"page(after=row, limit=100), {name} user ({spread}), bare find of the same rows",
            partial(board.page, after=row, limit=100),
            partial(_bare, read_model, row, 100),
            wanted=5,
        )
    _compare(
        report,
        f"top(100) ({spread}), bare find of 100",
        partial(board.top, 100),
        partial(_bare, read_model, None, 100),
        wanted=2,
    )
    if shutil.which("redis-server"):
        with _redis(folder / "redis", read_model) as redis:
            for name, row in places.items():
                _compare(
                    report,
                    f"rank_of(user), {name} user ({spread}), ZREVRANK of Redis",
                    partial(board.rank_of, row.user_id),
                    partial(redis, f"ZREVRANK board {row.user_id}"),
                    wanted=None,
                )


def _fill(read_model: ReadModel, score: Callable[[], int], filled: int, users: int) -> None:
    for start in range(filled, users, 10_000):
        insert_users(
            read_model,
            (
                {
                    "_id": f"user-{number:07d}",
                    "totalScore": Int64(_RANDOM.randrange(10**6)),
                    "categoryTotals": {"content": Int64(5)},
                    "sourceTotals": {"feed": Int64(5)},
                    "grantCount": Int64(1),
                    "recomputedTotal": Int64(score()),
                    "lastGrantAt": None,
                    "version": Int64(2),
                }
                for number in range(start, start + 10_000)
            ),
        )


@contextmanager
def _redis(folder: Path, read_model: ReadModel) -> Iterator[Callable[[str], str]]:
    """A sorted set with the same users; called with a command, it returns the answer's line."""
    folder.mkdir(exist_ok=True)
    at = folder / "socket"
    options = ["--port", "0", "--unixsocket", str(at), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        try:
            while not at.exists():
                assert server.poll() is None
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(at))
                answers = connection.makefile("r")

                def send(command: str) -> str:
                    connection.sendall(f"{command}\r\n".encode())
                    return answers.readline()

                for user in read_model.users.find({}, {"recomputedTotal": 1}):
                    send(f"ZADD board {user['recomputedTotal']} {user['_id']}")
                yield send
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


def _compare(
    report: Report,
    what: str,
    ours: Callable[[], object],
    bare: Callable[[], object],
    *,
    wanted: int | None,
) -> None:
    measured, reference = in_turns(ours, bare, rounds=ROUNDS)
    report.add(
        what,
        measured=f"{median(measured) * 1000:.2f} ms",
        reference=f"{median(reference) * 1000:.2f} ms",
        ratios=[median(measured) / median(reference)],
        wanted="shown" if wanted is None else f"{wanted} at most",
    )
