"""Verifying the read model against itself: totals against the sums of the grants behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from projections.driver_errors import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from projections.read_model import Document, ReadModel

MAX_DIFFERENCES: Final = 20
"""So many differences are reported in full; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not what the grants say.

    Attributes:
        user_id: Whose document it is.
        what: The field, e.g. ``categoryTotals.content``.
        expected: The sum over the user's grants.
        found: What the document says; ``None`` if there is nothing.
    """

    user_id: str
    what: str
    expected: int | None
    found: Any


@dataclass(slots=True)
class Verification:
    """The outcome of verifying.

    Attributes:
        users: Users compared.
        grants: Grants summed.
        differences: The first differences, in full.
        difference_count: All differences.
        parked_streams: Streams that are parked, so that what is in them may be missing.
    """

    users: int = 0
    grants: int = 0
    differences: list[Difference] = field(default_factory=list)
    difference_count: int = 0
    parked_streams: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing differs and nothing is parked."""
        return self.difference_count == 0 and self.parked_streams == 0

    def report(self, difference: Difference) -> None:
        """Count a difference and keep it if it is among the first."""
        self.difference_count += 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(difference)


def verify_totals(
    read_model: ReadModel, *, on_progress: Callable[[Verification], None] | None = None
) -> Verification:
    """Compare every user's totals, categories, sources and counts with the sum of their grants.

    Both sides are read sorted by user and merged, so memory does not grow with history. Run it
    while no worker is applying batches, or it may see a batch on one side only.

    Raises:
        ReadModelUnavailable: if MongoDB failed.
    """
    outcome = Verification()
    with translated():
        for user_id, expected, document in _merged(_sums(read_model), _documents(read_model)):
            outcome.users += 1
            outcome.grants += expected.get("grantCount", 0)
            _compare(user_id, expected, document, outcome)
            if on_progress is not None:
                on_progress(outcome)
    return outcome


def _sums(read_model: ReadModel) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield each user with the sums of their grants, by field, sorted by user id."""
    cells = read_model.grants.aggregate(
        [
            {
                "$group": {
                    "_id": {"u": "$userId", "c": "$category", "s": "$source"},
                    "amount": {"$sum": "$amount"},
                    "count": {"$sum": 1},
                }
            },
            {"$sort": {"_id.u": 1}},
        ],
        allowDiskUse=True,
    )
    for user_id, group in groupby(cells, key=lambda cell: cell["_id"]["u"]):
        sums: dict[str, int] = {"totalScore": 0, "grantCount": 0}
        for cell in group:
            for name, amount in (
                ("totalScore", cell["amount"]),
                ("grantCount", cell["count"]),
                (f"categoryTotals.{cell['_id']['c']}", cell["amount"]),
                (f"sourceTotals.{cell['_id']['s']}", cell["amount"]),
            ):
                sums[name] = sums.get(name, 0) + amount
        yield user_id, sums


def _documents(read_model: ReadModel) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each user's document as flat fields, sorted by user id."""
    for document in read_model.users.find().sort("_id", 1):
        yield document["_id"], _flat(document)


def _flat(document: Document) -> dict[str, Any]:
    fields = {name: document.get(name) for name in ("totalScore", "grantCount")}
    for totals in ("categoryTotals", "sourceTotals"):
        for label, amount in document.get(totals, {}).items():
            fields[f"{totals}.{label}"] = amount
    return fields


def _merged(
    sums: Iterator[tuple[str, dict[str, int]]], documents: Iterator[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, int], dict[str, Any]]]:
    """Join both sides by user id; MongoDB sorts strings by code point, as Python compares them."""
    left, right = next(sums, None), next(documents, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None  # noqa: S101 - for the type checker
            yield left[0], left[1], {}
            left = next(sums, None)
        elif left is None or right[0] < left[0]:
            yield right[0], {}, right[1]
            right = next(documents, None)
        else:
            yield left[0], left[1], right[1]
            left, right = next(sums, None), next(documents, None)


def _compare(
    user_id: str, expected: dict[str, int], found: dict[str, Any], outcome: Verification
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        # A user who only ever contributed has a document without grants: zeros are right there.
        if expected.get(name, 0) != found.get(name):
            outcome.report(Difference(user_id, name, expected.get(name, 0), found.get(name)))
