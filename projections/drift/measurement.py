"""Measuring drift by streaming: three sorted streams are merged user by user."""

from __future__ import annotations

from datetime import UTC, datetime
from heapq import heappush, heapreplace, nlargest
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from projections.drift.report import (
    MAX_CAUSES,
    OTHER_CATEGORIES,
    OTHER_KEYS,
    Cause,
    Drift,
    LargestDifference,
    Reason,
    TimelinePoint,
    UserDrift,
    described,
)
from projections.mongo.errors import translated
from projections.mongo.joins import outer_join
from scoring.identity import is_grant_shaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from projections.mongo.read_model import ReadModel

LARGEST: Final = 20
"""So many of the largest differences are listed."""

_DAYS_SHOWN_SINGLY: Final = 400
_MONTHS_SHOWN_SINGLY: Final = 400
_KEPT_SEGMENTS: Final = 2

# The driver holds one answer of the server at a time, which might be 16 MB.
_BATCH_SIZE: Final = 2000

# Key, old points, new points, category of the bucket, points by category of the grants.
_Causes = dict[tuple[Reason, str, str], Cause]
_Key = tuple[str, int, int, str | None, dict[str, int]]


def measure_drift(
    read_model: ReadModel,
    *,
    lag_events: int = 0,
    on_user: Callable[[UserDrift], None] | None = None,
    on_progress: Callable[[Drift], None] | None = None,
) -> Drift:
    """Compare every user's recomputed total with their balance, and explain the difference.

    Users, buckets and grants are read sorted by user and merged, so memory does not grow with
    history. What is projected meanwhile may be seen in one of them only, and is then reported as
    unexplained: measure while nothing is being projected.

    Args:
        read_model: Where to read.
        lag_events: How far it is behind, for the verdict.
        on_user: Told of every user, in the order of user ids.
        on_progress: Told after every user.

    Raises:
        ReadModelUnavailable: if MongoDB failed.
    """
    drift = Drift(measured_at=datetime.now(UTC), lag_events=lag_events)
    causes: _Causes = {}
    largest: list[tuple[int, int, LargestDifference]] = []
    with translated():
        for user in _users(read_model):
            _count(drift, user)
            _explain(causes, user)
            _keep_largest(largest, user, drift.users)
            if on_user is not None:
                on_user(user)
            if on_progress is not None:
                on_progress(drift)
        drift.timeline_unit, drift.timeline = _timeline(read_model)
    drift.causes = sorted(causes.values(), key=lambda c: (-abs(c.difference), c.keys, c.reason))
    drift.categories = dict(
        sorted(drift.categories.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0]))
    )
    drift.largest = [row for *_, row in sorted(largest, key=itemgetter(0, 1), reverse=True)]
    return drift


def kind_of(key: str) -> str:
    """Return the kind of a key: what looks like an id is a ``*``.

    An id is what follows the second segment, or has a digit in it.
    """
    if is_grant_shaped(key):
        return f"{key.rpartition(':')[0]}:*"
    kept = [
        "*" if index >= _KEPT_SEGMENTS or any(c.isdigit() for c in segment) else segment
        for index, segment in enumerate(key.split(":"))
    ]
    return ":".join(kept[: _KEPT_SEGMENTS + 1])


def _count(drift: Drift, user: UserDrift) -> None:
    drift.users += 1
    drift.same += user.difference == 0
    drift.lower += user.difference < 0
    drift.higher += user.difference > 0
    drift.old += user.old
    drift.new += user.new
    drift.spread.add(user.difference)
    drift.histogram.add(user.difference)
    drift.scatter.add(user.old, user.new)
    for name, (old, new) in user.categories.items():
        _add_category(drift.categories, name, old, new)


def _explain(causes: _Causes, user: UserDrift) -> None:
    for part in user.causes.values():
        _cause(causes, part.reason, part.keys, part.category).users += 1
        _add(causes, part.reason, part.keys, part.category, part.old, part.new)


def _keep_largest(
    largest: list[tuple[int, int, LargestDifference]], user: UserDrift, number: int
) -> None:
    size = abs(user.difference)
    # Of equals, those who come first are kept.
    if not size or (len(largest) >= LARGEST and size <= largest[0][0]):
        return
    main = nlargest(1, user.causes.values(), key=lambda cause: abs(cause.difference))
    row = LargestDifference(user.user_id, user.old, user.new, described(main[0]) if main else "")
    if len(largest) < LARGEST:
        heappush(largest, (size, -number, row))
    else:
        heapreplace(largest, (size, -number, row))


def _users(read_model: ReadModel) -> Iterator[UserDrift]:
    """Yield everybody who has a document, buckets or grants, sorted by user id."""
    documents = (
        (document["_id"], (int(document["recomputedTotal"]), int(document["totalScore"])))
        for document in read_model.users.find(
            {}, {"recomputedTotal": 1, "totalScore": 1}, batch_size=_BATCH_SIZE
        ).sort("_id", 1)
    )
    keys = groupby(_keys(read_model), key=itemgetter(0))
    for user_id, totals, some in outer_join(documents, keys):
        old, new = totals or (0, 0)
        user = UserDrift(user_id, old, new)
        seen_old = seen_new = 0
        for _, key in some or ():
            seen_old += key[1]
            seen_new += key[2]
            _compare(user, key)
        if (seen_old, seen_new) != (old, new):
            _add(user.causes, Reason.UNEXPLAINED, "", "", old - seen_old, new - seen_new)
        yield user


def _compare(user: UserDrift, key: _Key) -> None:
    name, old, new, category, granted = key
    if category is not None:
        _add_category(user.categories, category, old, 0)
    for label, amount in granted.items():
        _add_category(user.categories, label, 0, amount)
    if old == new:
        return
    if not granted:
        reason = Reason.NOT_GRANTED
    elif category is None:
        reason = Reason.LEDGER_ONLY
    else:
        reason = Reason.SHRUNK if old < new else Reason.GROWN
    label = category if category is not None else next(iter(granted))
    _add(user.causes, reason, kind_of(name), label, old, new)


def _add(causes: _Causes, reason: Reason, keys: str, category: str, old: int, new: int) -> None:
    cause = _cause(causes, reason, keys, category)
    cause.old += old
    cause.new += new


def _cause(causes: _Causes, reason: Reason, keys: str, category: str) -> Cause:
    place = (reason, keys, category)
    if place not in causes and len(causes) >= MAX_CAUSES:
        place = (reason, OTHER_KEYS, "")
    return causes.setdefault(place, Cause(*place))


def _add_category(categories: dict[str, list[int]], name: str, old: int, new: int) -> None:
    if name not in categories and len(categories) >= MAX_CAUSES:
        name = OTHER_CATEGORIES
    sums = categories.setdefault(name, [0, 0])
    sums[0] += old
    sums[1] += new


def _keys(read_model: ReadModel) -> Iterator[tuple[str, _Key]]:
    """Yield every key of every user with its points both ways, sorted by user and key."""
    buckets = (
        ((document["_id"]["userId"], document["_id"]["key"]), document)
        for document in read_model.buckets.find(batch_size=_BATCH_SIZE).sort("_id", 1)
    )
    cells = read_model.grants.aggregate(
        [
            {
                "$group": {
                    "_id": {"u": "$userId", "k": "$key", "c": "$category"},
                    "amount": {"$sum": "$amount"},
                }
            },
            {"$sort": {"_id": 1}},
        ],
        allowDiskUse=True,
        batchSize=_BATCH_SIZE,
    )
    grants = groupby(cells, key=lambda cell: (cell["_id"]["u"], cell["_id"]["k"]))
    for (user_id, key), bucket, some in outer_join(buckets, grants):
        granted = {cell["_id"]["c"]: int(cell["amount"]) for cell in some or ()}
        points = int(bucket["points"]) if bucket else 0
        category = bucket["category"] if bucket else None
        yield user_id, (key, points, sum(granted.values()), category, granted)


def _timeline(read_model: ReadModel) -> tuple[str, list[TimelinePoint]]:
    """Return the unit and the ledger's total at the end of each unit that has grants."""
    ends = {"first": {"$min": "$grantedAt"}, "last": {"$max": "$grantedAt"}}
    found = next(iter(read_model.grants.aggregate([{"$group": {"_id": None, **ends}}])), None)
    if found is None:
        return "day", []
    days = (found["last"] - found["first"]).days
    unit = "day" if days <= _DAYS_SHOWN_SINGLY else "month"
    unit = unit if days <= 30 * _MONTHS_SHOWN_SINGLY else "year"
    start = {"$dateTrunc": {"date": "$grantedAt", "unit": unit}}
    cells = read_model.grants.aggregate(
        [{"$group": {"_id": start, "amount": {"$sum": "$amount"}}}, {"$sort": {"_id": 1}}]
    )
    total, points = 0, []
    for cell in cells:
        total += int(cell["amount"])
        points.append(TimelinePoint(cell["_id"], total))
    return unit, points
