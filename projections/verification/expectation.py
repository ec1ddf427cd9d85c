"""What the read model should say, worked out from events, without holding it in memory.

The sums are added up here on their own, not by the code that projects: a mistake over there would
otherwise be made, and found right, here too.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Self

from projections.events.model import BucketEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from projections.events.model import GrantEvent

_TABLES: Final = """
CREATE TABLE sums (user_id TEXT, category TEXT, source TEXT, points INTEGER, grants INTEGER,
    last INTEGER, version INTEGER, events INTEGER,
    PRIMARY KEY (user_id, category, source)) WITHOUT ROWID;
CREATE TABLE buckets (user_id TEXT, key TEXT, category TEXT, source TEXT, points INTEGER,
    PRIMARY KEY (user_id, key)) WITHOUT ROWID;
"""
_ADD_SUMS: Final = """
INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    points = points + excluded.points, grants = grants + excluded.grants,
    last = max(ifnull(last, excluded.last), ifnull(excluded.last, last)),
    version = max(version, excluded.version), events = events + excluded.events
"""
_SET_BUCKET: Final = "INSERT OR REPLACE INTO buckets VALUES (?, ?, ?, ?, ?)"
_COUNTS: Final = """
SELECT (SELECT count(DISTINCT user_id) FROM sums), (SELECT count(*) FROM buckets)
"""
_SHORT_OF_EVENTS: Final = """
SELECT user_id FROM sums GROUP BY user_id HAVING sum(events) < max(version) - 1 ORDER BY user_id
"""
_USERS: Final = """
SELECT user_id, ifnull(recomputed, 0), category, source, sums.points, grants, last, version
    FROM sums LEFT JOIN
    (SELECT user_id, sum(points) AS recomputed FROM buckets GROUP BY user_id) USING (user_id)
    ORDER BY user_id
"""
_KEPT_IN_MEMORY: Final = 20_000
_MAX_INT64: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(slots=True)
class _Sums:
    """What events of one user, category and source add up to."""

    points: int = 0
    grants: int = 0
    last_grant_at: datetime | None = None
    version: int = 0
    events: int = 0


class Expectation:
    """Adds up events, in order, into users and buckets; a context manager.

    Kept in SQLite's private temporary database, which spills to a file that has no name. Before
    that, what is about the same users and buckets is added up in memory, up to a limit.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_TABLES)
        self._sums: dict[tuple[str, str, str], _Sums] = {}
        self._buckets: dict[tuple[str, str], tuple[str, str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._database.close()

    def add(self, events: Iterable[GrantEvent | BucketEvent]) -> None:
        """Add grants and buckets, which follow those added before."""
        for event in events:
            data = event.data
            place = data.user_id, data.category, data.source
            sums = self._sums.get(place)
            if sums is None:
                sums = self._sums[place] = _Sums()
            sums.events += 1
            sums.version = max(sums.version, event.originator_version)
            if isinstance(event, BucketEvent):
                bucket = data.category, data.source, event.data.points
                self._buckets[data.user_id, data.key] = bucket
                continue
            grant = event.data
            sums.points += grant.amount
            sums.grants += 1
            granted_at = grant.granted_at
            if sums.last_grant_at is None or granted_at > sums.last_grant_at:
                sums.last_grant_at = granted_at
            if grant.replaced_points is not None:
                self._buckets[data.user_id, data.key] = data.category, data.source, grant.amount
        if len(self._sums) + len(self._buckets) > _KEPT_IN_MEMORY:
            self._spill()

    def counts(self) -> tuple[int, int]:
        """Return how many users and buckets there are."""
        self._spill()
        users, buckets = self._database.execute(_COUNTS).fetchone()
        return users, buckets

    def users(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each user with the fields of their document, sorted by user id."""
        self._spill()
        rows = self._database.execute(_USERS)
        for (user_id, recomputed), sums in groupby(rows, key=itemgetter(0, 1)):
            total, grants, last, version = 0, 0, None, 0
            labels: dict[str, int] = {}
            for _, _, category, source, points, count, latest, newest in sums:
                total += points
                grants += count
                version = max(version, newest)
                if latest is not None and (last is None or latest > last):
                    last = latest
                for label in (f"categoryTotals.{category}", f"sourceTotals.{source}"):
                    labels[label] = labels.get(label, 0) + points
            yield (
                user_id,
                {
                    "totalScore": total,
                    "grantCount": grants,
                    "recomputedTotal": recomputed,
                    "lastGrantAt": None if last is None else _EPOCH + last * _MILLISECOND,
                    "version": version,
                    **{label: points for label, points in labels.items() if points},
                },
            )

    def users_short_of_events(self) -> Iterator[str]:
        """Yield users with fewer events than their newest version and its opening event say."""
        self._spill()
        for (user_id,) in self._database.execute(_SHORT_OF_EVENTS):
            yield user_id

    def buckets(self) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
        """Yield each bucket's user id and key with its fields, sorted."""
        self._spill()
        rows = self._database.execute("SELECT * FROM buckets ORDER BY user_id, key")
        for user_id, key, category, source, points in rows:
            yield (user_id, key), {"category": category, "source": source, "points": points}

    def _spill(self) -> None:
        """Move into the database what is in memory, in the order of its keys."""
        sums = (
            (
                *place,
                _number(s.points),
                s.grants,
                _milliseconds(s.last_grant_at),
                s.version,
                s.events,
            )
            for place, s in sorted(self._sums.items(), key=itemgetter(0))
        )
        buckets = ((*place, *bucket) for place, bucket in sorted(self._buckets.items()))
        self._database.execute("BEGIN")
        self._database.executemany(_ADD_SUMS, sums)
        self._database.executemany(_SET_BUCKET, buckets)
        self._database.execute("COMMIT")
        self._sums.clear()
        self._buckets.clear()


def _milliseconds(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // _MILLISECOND


def _number(points: int) -> int | float:
    # As SQLite does by itself when a sum is beyond its integers; no document has one.
    return points if abs(points) <= _MAX_INT64 else float(points)
