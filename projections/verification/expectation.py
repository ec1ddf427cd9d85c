"""What the read model should say, worked out from events, without holding it in memory.

The sums are added up here on their own, not by the code that projects: a mistake over there would
otherwise be made, and found right, here too.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Self

from projections.events.model import BucketEvent, GrantEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

_TABLES: Final = """
CREATE TABLE users (user_id TEXT PRIMARY KEY, total INTEGER, grants INTEGER, last INTEGER,
    version INTEGER, events INTEGER) WITHOUT ROWID;
CREATE TABLE labels (user_id TEXT, field TEXT, points INTEGER,
    PRIMARY KEY (user_id, field)) WITHOUT ROWID;
CREATE TABLE buckets (user_id TEXT, key TEXT, category TEXT, source TEXT, points INTEGER,
    PRIMARY KEY (user_id, key)) WITHOUT ROWID;
"""
_ADD_USER: Final = """
INSERT INTO users VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET
    total = total + excluded.total, grants = grants + excluded.grants, events = events + 1,
    last = max(ifnull(last, excluded.last), ifnull(excluded.last, last)),
    version = max(version, excluded.version)
"""
_ADD_LABEL: Final = """
INSERT INTO labels VALUES (?, ?, ?) ON CONFLICT DO
    UPDATE SET points = points + excluded.points
"""
_SET_BUCKET: Final = "INSERT OR REPLACE INTO buckets VALUES (?, ?, ?, ?, ?)"
_USERS: Final = """
SELECT users.*, ifnull(recomputed, 0) FROM users LEFT JOIN
    (SELECT user_id, sum(points) AS recomputed FROM buckets GROUP BY user_id) USING (user_id)
    ORDER BY user_id
"""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Expectation:
    """Adds up events, in order, into users and buckets; a context manager.

    Kept in SQLite's private temporary database, which spills to a file that has no name.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_TABLES)

    def __enter__(self) -> Self:
        """Return the expectation itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Throw it away."""
        self._database.close()

    def add(self, events: Iterable[GrantEvent | BucketEvent]) -> None:
        """Add grants and buckets, which follow those added before."""
        users: list[tuple[str, int, int, int | None, int]] = []
        labels, buckets = [], []
        for event in events:
            version = event.originator_version
            if isinstance(event, BucketEvent):
                bucket = event.data
                users.append((bucket.user_id, 0, 0, None, version))
                buckets.append(
                    (bucket.user_id, bucket.key, bucket.category, bucket.source, bucket.points)
                )
                continue
            grant = event.data
            milliseconds = (grant.granted_at - _EPOCH) // _MILLISECOND
            users.append((grant.user_id, grant.amount, 1, milliseconds, version))
            labels += [
                (grant.user_id, f"categoryTotals.{grant.category}", grant.amount),
                (grant.user_id, f"sourceTotals.{grant.source}", grant.amount),
            ]
            if grant.replaced_points is not None:
                buckets.append(
                    (grant.user_id, grant.key, grant.category, grant.source, grant.amount)
                )
        self._database.execute("BEGIN")
        self._database.executemany(_ADD_USER, users)
        self._database.executemany(_ADD_LABEL, labels)
        self._database.executemany(_SET_BUCKET, buckets)
        self._database.execute("COMMIT")

    def counts(self) -> tuple[int, int]:
        """Return how many users and buckets there are."""
        query = "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM buckets)"
        users, buckets = self._database.execute(query).fetchone()
        return users, buckets

    def users(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each user with the fields of their document, sorted by user id."""
        labels = self._database.execute("SELECT * FROM labels ORDER BY user_id")
        groups = groupby(labels, key=itemgetter(0))
        group = next(groups, None)
        rows = self._database.execute(_USERS)
        for user_id, total, grants, last, version, _, recomputed in rows:
            fields = {
                "totalScore": total,
                "grantCount": grants,
                "recomputedTotal": recomputed,
                "lastGrantAt": None if last is None else _EPOCH + last * _MILLISECOND,
                "version": version,
            }
            if group is not None and group[0] == user_id:
                fields |= {field: points for _, field, points in group[1]}
                group = next(groups, None)
            yield user_id, fields

    def users_short_of_events(self) -> Iterator[str]:
        """Yield users with fewer events than their newest version and its opening event say."""
        rows = self._database.execute("SELECT user_id FROM users WHERE events < version - 1")
        for (user_id,) in rows:
            yield user_id

    def buckets(self) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
        """Yield each bucket's user id and key with its fields, sorted."""
        rows = self._database.execute("SELECT * FROM buckets ORDER BY user_id, key")
        for user_id, key, category, source, points in rows:
            yield (user_id, key), {"category": category, "source": source, "points": points}
