"""Measuring drift by streaming: three sorted streams are merged user by user, page by page."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from heapq import heappush, heapreplace, nlargest
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from projections.drift.causes import (
    MAX_CAUSES,
    OTHER_CATEGORIES,
    OTHER_KEYS,
    Cause,
    Reason,
    UserDrift,
    described,
)
from projections.drift.keys import BothWays, UserKeys, kind_of, read_users
from projections.drift.places import BOARDS, Places, Totals
from projections.drift.report import Drift, LargestDifference, TimelinePoint
from projections.drift.tolerance import Tolerance
from projections.mongo.errors import translated
from projections.mongo.sessions import in_snapshot
from scoring.identity import is_grant_shaped

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.client_session import ClientSession

    from projections.mongo.read_model import ReadModel

LARGEST: Final = 20
"""So many of the largest differences are listed."""

_DAYS_SHOWN_SINGLY: Final = 400
_MONTHS_SHOWN_SINGLY: Final = 400
_RANKED_BY: Final = ("recomputedTotal", "totalScore")

_Causes = dict[tuple[Reason, str, str], Cause]


def measure_drift(
    read_model: ReadModel,
    *,
    tolerance: Tolerance | None = None,
    on_user: Callable[[UserDrift], None] | None = None,
    on_progress: Callable[[Drift], None] | None = None,
) -> Drift:
    """Compare every user's two totals, and explain the difference; see ``ScoreLedger.drift``.

    Users, buckets and grants are read sorted by user and merged, so memory does not grow with
    history. Workers may go on: each user is compared as they are at one instant.
    """
    drift = Drift(measured_at=datetime.now(UTC), tolerance=tolerance or Tolerance())
    causes: _Causes = {}
    largest: list[tuple[int, int, LargestDifference]] = []
    with translated():
        places = Places(*in_snapshot(read_model.client, partial(_both_boards, read_model)))
        for found in read_users(read_model):
            user = _of_user(found)
            _count(drift, user)
            places.add(user.old, user.new)
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
    drift.boards, drift.climbs, drift.falls = places.boards(), places.climbs(), places.falls()
    return drift


def _both_boards(read_model: ReadModel, session: ClientSession) -> list[list[Totals]]:
    return [_first_rows(read_model, field, session) for field in _RANKED_BY]


def _first_rows(read_model: ReadModel, field: str, session: ClientSession) -> list[Totals]:
    found = read_model.users.find(
        {"_id": {"$type": "string"}}, {"recomputedTotal": 1, "totalScore": 1}, session=session
    )
    return [
        (document["_id"], int(document["recomputedTotal"]), int(document["totalScore"]))
        for document in found.sort([(field, -1), ("_id", 1)]).limit(BOARDS[-1])
    ]


def _count(drift: Drift, user: UserDrift) -> None:
    drift.users += 1
    drift.same += user.difference == 0
    drift.lower += user.difference < 0
    drift.higher += user.difference > 0
    drift.old += user.old
    drift.new += user.new
    if user.difference:
        drift.beyond += not drift.tolerance.covers(old=user.old, new=user.new)
        drift.staying += any(cause.reason.stays for cause in user.causes.values())
        drift.noticed_points.add(abs(user.difference))
        if user.old:
            drift.noticed_percent.add(10_000 * abs(user.difference) // user.old)
        else:
            drift.new_to_points += 1
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


def _of_user(found: UserKeys) -> UserDrift:
    user = UserDrift(found.user_id, found.old, found.new)
    seen_old = seen_new = 0
    for key in found.keys:
        old, new = key.old, key.new
        seen_old += old
        seen_new += new
        _compare(user, key, old, new)
    if (seen_old, seen_new) != (found.old, found.new):
        _add(
            *(user.causes, Reason.UNEXPLAINED, "", ""),
            *(found.old - seen_old, found.new - seen_new),
        )
    return user


def _compare(user: UserDrift, key: BothWays, old: int, new: int) -> None:
    if key.bucket is not None:
        _add_category(user.categories, key.bucket.category, old, 0)
    for label, amount in key.granted.items():
        _add_category(user.categories, label, 0, amount)
    if old == new:
        return
    if not key.granted:
        reason = Reason.NOT_GRANTED
    elif key.bucket is None:
        reason = Reason.LEDGER_ONLY
    elif is_grant_shaped(key.key):
        reason = Reason.AWARDED_AGAIN
    else:
        reason = Reason.SHRUNK if old < new else Reason.GROWN
    label = key.bucket.category if key.bucket is not None else next(iter(key.granted))
    _add(user.causes, reason, kind_of(key.key), label, old, new)


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
