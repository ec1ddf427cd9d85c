"""Counts of users by ranges of scores, so that any rank costs a few reads.

For each of the two totals, all scores are cut into ranges, and a document of ``score_ranks`` has a
run of them, like a leaf of a B-tree:

    {_id: {total: "totalScore", to: 499}, from: 200, above: 12,
     tops: [250, 251, 499], users: [10, 3000, 31]}

Ten users have 200 to 250 points, 3,000 just 251, and 31 from 252 to 499; 12 users have more than
499. So the users above a score are those above the document it is in, those in later ranges of
the document, and those between the score and the top of its own range: these alone are counted in
the index of ``user_scores``, and they are few. A range that gets more than ``MAX_USERS`` is cut,
unless all of them are tied; neighbours that are left with few are joined. However the scores are
spread, there are about as many ranges as there are users divided by half of that.

The documents are written in the transaction that changes the totals. Two transactions that count
at the same time always meet in one document, so that MongoDB lets only one of them commit.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Final

import bson
from bson.int64 import Int64

from projections.errors import ReadModelDamaged
from projections.mongo.collections import RANKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel

RANKED: Final = ("totalScore", "recomputedTotal")
"""The fields of a user's document that rank."""

MAX_USERS: Final = 256
"""In a range of several scores; a read counts so many index entries at most."""

FEW_USERS: Final = MAX_USERS // 2
"""Neighbouring ranges that have no more together are joined, and ranges are cut into such."""

MAX_RANGES: Final = 256
"""In a document."""

FEW_RANGES: Final = MAX_RANGES // 2
"""Neighbouring documents that have no more together are joined."""

LOWEST: Final = -(2**63)
HIGHEST: Final = 2**63 - 1

_MAX_DOCUMENTS: Final = 1000  # of a reply: each has a few kilobytes
_MAX_SCORES: Final = 100_000  # likewise


@dataclass(slots=True)
class RankPage:
    """One document: consecutive ranges, the lowest first.

    Attributes:
        low: The lowest score of the first range.
        above: Users with more points than the last range has.
        tops: The highest score of each range.
        users: The users in each range.
    """

    low: int
    above: int
    tops: list[int]
    users: list[int]

    @property
    def to(self) -> int:
        """The highest score of the last range."""
        return self.tops[-1]

    def above_range_of(self, score: int) -> tuple[int, int]:
        """Return how many users are above the range of a score, and the top of that range."""
        place = bisect_left(self.tops, score)
        return self.above + sum(self.users[place + 1 :]), self.tops[place]


def rank_page(document: Document) -> RankPage:
    """Return what a document of ``score_ranks`` says.

    Raises:
        ReadModelDamaged: if it does not say it.
    """
    try:
        page = RankPage(document["from"], document["above"], document["tops"], document["users"])
        numbers = [page.low, page.above, *page.tops, *page.users]
        if (
            [*document["_id"]] == ["total", "to"]  # in this order, as it is sorted
            and document["_id"]["to"] == page.to
            and len(page.tops) == len(page.users)
            and set(map(type, numbers)) <= {int, Int64}
        ):
            return page
    except (IndexError, KeyError, TypeError):
        pass
    raise ReadModelDamaged([f"the document {document['_id']} of {RANKS} is not as it was made"])


def pages_from(total: str, score: int) -> Document:
    """Return the query for the documents from that of a score upwards, to be sorted by ``_id``."""
    return {"_id": {"$gte": _page_id(total, score), "$lte": _page_id(total, HIGHEST)}}


def scores_of(
    read_model: ReadModel, total: str, session: ClientSession, *, way: int
) -> Iterator[int]:
    """Yield what all users have of one total, from its index; ``way`` is 1 or -1, as to sort by."""
    users = read_model.users.find(
        {total: {"$gte": Int64(LOWEST)}},
        {total: 1, "_id": 0},
        sort=[(total, way), ("_id", -way)],
        batch_size=_MAX_SCORES,
        session=session,
    )
    return (user[total] for user in users)


def first_pages(scores: Iterable[int]) -> list[RankPage]:
    """Return documents for users who have these scores, the lowest first; likewise the result."""
    ranges = list(_ranges_of(scores, LOWEST, HIGHEST))
    return _pages_of(_parts(ranges), LOWEST, 0) if any(users for _, users in ranges) else []


class RankCounts:
    """Counts users again in one transaction, after their totals were changed in it.

    Attributes:
        updates: What is to be written: statements of MongoDB's ``update`` command, as BSON.
        deletes: Likewise, of its ``delete`` command.
        pages: Documents as they are once that is written, by total, the lowest scores first.
    """

    def __init__(
        self, read_model: ReadModel, session: ClientSession, known: dict[str, list[RankPage]]
    ) -> None:
        """Read what there is, and is not ``known``, in the transaction of this session."""
        self._read_model = read_model
        self._session = session
        self.pages = dict(known)
        self.updates: list[bytes] = []
        self.deletes: list[bytes] = []

    def move(self, total: str, gone: Sequence[int], come: Sequence[int]) -> None:
        """Count users by what they have, no more by what they had.

        Args:
            total: The field that has changed.
            gone: The scores that users had, those aside who had none.
            come: The scores that all these users have now.
        """
        if not come:
            return
        low, high = min(*gone, *come, HIGHEST), max(*gone, *come, LOWEST)
        before = self._known_pages(total, low, high)
        if before is None:
            before = self._pages(total, low, high, at_once=len(come) + 1)
        tops = [top for page in before for top in page.tops]
        users = [number for page in before for number in page.users]
        were = sum(users)
        for score in gone:
            users[bisect_left(tops, score)] -= 1
        for score in come:
            users[bisect_left(tops, score)] += 1
        after = self._regrouped(total, before, tops, users)
        there = {page.to: page for page in before}
        for page in after:
            was = there.pop(page.to, None)
            # One without users may be that of the beginning, which is not there.
            if was is None or page.tops != was.tops or not any(was.users):
                self.updates.append(_put(total, page))
            elif page != was:
                self.updates.append(_change(total, was, page))
        self.deletes += [_remove(total, to) for to in there]
        more = sum(sum(page.users) for page in after) - were
        if more and before[0].low > LOWEST:
            self.updates.append(_raise_below(total, before[0].low, more))
        known = self.pages.get(total, [])
        below = [page for page in known if page.to < before[0].low]
        if more:
            below = [replace(page, above=page.above + more) for page in below]
        self.pages[total] = [*below, *after, *(p for p in known if p.low > before[-1].to)]

    def _known_pages(self, total: str, low: int, high: int) -> list[RankPage] | None:
        """Return the documents from that of one score to that of another, if all are known."""
        known = self.pages.get(total, [])
        start = bisect_left(known, low, key=lambda page: page.to)
        end = bisect_left(known, high, key=lambda page: page.to)
        pages = known[start : end + 1]
        covers = end < len(known) and pages[0].low <= low
        if covers and all(page.to + 1 == after.low for page, after in pairwise(pages)):
            return pages
        return None

    def _pages(self, total: str, low: int, high: int, *, at_once: int) -> list[RankPage]:
        """Return the documents from that of one score to that of another."""
        pages: list[RankPage] = []
        limit = min(at_once, _MAX_DOCUMENTS)
        while not pages or pages[-1].to < high:
            start = pages[-1].to + 1 if pages else low
            found = [
                *self._find(
                    self._read_model.ranks.name,
                    pages_from(total, start),
                    sort={"_id": 1},
                    limit=limit,
                )
            ]
            if not found:  # as in the beginning
                low = start if pages else LOWEST
                return [*pages, RankPage(low, 0, [HIGHEST], [0])]
            pages += map(rank_page, found)
            limit = _MAX_DOCUMENTS
        return pages

    def _regrouped(
        self, total: str, pages: list[RankPage], tops: list[int], users: list[int]
    ) -> list[RankPage]:
        """Return documents for ranges with these numbers of users, none too large or too small."""
        groups: list[list[tuple[int, int]]] = []
        start = 0
        for page in pages:
            end = start + len(page.tops)
            ranges = self._ranges(total, page.low, tops[start:end], users[start:end])
            start = end
            if groups and len(groups[-1]) + len(ranges) <= FEW_RANGES:
                _join(groups[-1], ranges)
            else:
                groups.append(ranges)
        parts = (part for group in groups for part in _parts(group))
        return _pages_of(parts, pages[0].low, pages[-1].above)

    def _ranges(
        self, total: str, low: int, tops: list[int], users: list[int]
    ) -> list[tuple[int, int]]:
        """Return tops and numbers of users, with full ranges cut and empty ones joined."""
        lows = [low, *(top + 1 for top in tops)]
        ranges: list[tuple[int, int]] = []
        for is_full, run in groupby(
            range(len(tops)), lambda n: users[n] > MAX_USERS and lows[n] < tops[n]
        ):
            places = list(run)
            parts: Iterable[tuple[int, int]] = ((tops[n], users[n]) for n in places)
            if is_full:
                parts = self._cut(total, lows[places[0]], tops[places[-1]])
            _join(ranges, parts)
        return ranges

    def _cut(self, total: str, low: int, top: int) -> Iterator[tuple[int, int]]:
        """Yield smaller ranges in the place of those of a stretch, as its users are spread."""
        between = {total: {"$gte": Int64(low), "$lte": Int64(top)}}
        found = self._find(
            self._read_model.users.name, between, projection={total: 1, "_id": 0}, sort={total: 1}
        )
        return _ranges_of((user[total] for user in found), low, top)

    def _find(
        self, collection: str, query: Document, *, limit: int = 0, **options: Any
    ) -> Iterable[Document]:
        return self._read_model.database.cursor_command(
            {
                "find": collection,
                "filter": query,
                "limit": limit,
                "batchSize": limit or _MAX_SCORES,
                **options,
                **self._read_model.inventory.guard(collection),
            },
            session=self._session,
        )


def _ranges_of(scores: Iterable[object], low: int, top: int) -> Iterator[tuple[int, int]]:
    """Yield ranges from one score to another, for users who have these scores, the lowest first."""
    number = 0
    # Anything else than an integer, which only a foreign hand can have written, has no rank.
    for score, tied in groupby(score for score in scores if isinstance(score, int)):
        users = sum(1 for _ in tied)
        if number + users > FEW_USERS and low < score:
            yield score - 1, number
            low, number = score, 0
        number += users
        if users > FEW_USERS and score < top:
            yield score, number
            low, number = score + 1, 0
    yield top, number


def _pages_of(parts: Iterable[list[tuple[int, int]]], low: int, above: int) -> list[RankPage]:
    """Return a document for each part of the ranges from a score upwards.

    Args:
        parts: Consecutive tops and numbers of users, the lowest first.
        low: The lowest score of the first range.
        above: Users with more points than the last range has.
    """
    pages = []
    for ranges in parts:
        pages.append(RankPage(low, 0, [top for top, _ in ranges], [users for _, users in ranges]))
        low = pages[-1].to + 1
    for page in reversed(pages):
        page.above = above
        above += sum(page.users)
    return pages


def _join(ranges: list[tuple[int, int]], more: Iterable[tuple[int, int]]) -> None:
    """Append tops and numbers of users, each to the last range if that is left with few."""
    for top, number in more:
        if ranges and ranges[-1][1] + number <= FEW_USERS:
            ranges[-1] = (top, ranges[-1][1] + number)
        else:
            ranges.append((top, number))


def _parts(ranges: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the ranges of one document after the other."""
    size = len(ranges)
    if size > MAX_RANGES:
        size = -(-size // -(-size // FEW_RANGES))
    for start in range(0, len(ranges), size):
        yield ranges[start : start + size]


def _page_id(total: str, to: int) -> Document:
    return {"total": total, "to": Int64(to)}


def page_document(total: str, page: RankPage) -> Document:
    """Return the document of ``score_ranks`` that says this."""
    return {
        "_id": _page_id(total, page.to),
        "from": Int64(page.low),
        "above": Int64(page.above),
        "tops": list(map(Int64, page.tops)),
        "users": page.users,
    }


def _put(total: str, page: RankPage) -> bytes:
    document = page_document(total, page)
    return bson.encode({"q": {"_id": document["_id"]}, "u": document, "upsert": True})


def _change(total: str, was: RankPage, page: RankPage) -> bytes:
    """Return what to write where only numbers of users are others: few of them, mostly."""
    changes = {
        f"users.{place}": users
        for place, users in enumerate(page.users)
        if users != was.users[place]
    }
    statement = {"$set": {"from": Int64(page.low), "above": Int64(page.above), **changes}}
    return bson.encode({"q": {"_id": _page_id(total, page.to)}, "u": statement})


def _remove(total: str, to: int) -> bytes:
    return bson.encode({"q": {"_id": _page_id(total, to)}, "limit": 1})


def _raise_below(total: str, low: int, users: int) -> bytes:
    below = {"$gte": _page_id(total, LOWEST), "$lt": _page_id(total, low)}
    return bson.encode({"q": {"_id": below}, "u": {"$inc": {"above": Int64(users)}}, "multi": True})
