"""What verifying reports: differences, the first of them in full."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

MAX_DIFFERENCES: Final = 20
"""So many differences are reported in full; the rest are counted."""

DOCUMENT: Final = "document"
"""``Difference.what`` where a whole document is missing, foreign or in the place of another."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in the read model that is not what it should be.

    Attributes:
        user_id: Whose it is, if it is anybody's.
        what: The field, e.g. ``categoryTotals.content``, or ``document`` for all of it.
        expected: What the grants or the events say; ``None`` if there should be nothing.
        found: What the read model says; ``None`` if there is nothing.
        position: The position of the grant, if it is about one.
        grant_id: Its id, likewise.
        key: The key of the bucket, if it is about one.
    """

    user_id: str | None
    what: str
    expected: Any
    found: Any
    position: int | None = None
    grant_id: str | None = None
    key: str | None = None


@dataclass(slots=True)
class Verification:
    """The outcome of verifying.

    Attributes:
        users: Users compared.
        grants: Grants compared.
        buckets: Buckets compared.
        differences: The first differences, in full.
        difference_count: All differences.
        parked_streams: Streams that are parked, so that what is in them is left out.
    """

    users: int = 0
    grants: int = 0
    buckets: int = 0
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

    def add(self, other: Verification) -> None:
        """Take over what another part of the verification has found."""
        self.users += other.users
        self.grants += other.grants
        self.buckets += other.buckets
        self.difference_count += other.difference_count
        room = MAX_DIFFERENCES - len(self.differences)
        self.differences += other.differences[:room]


@dataclass(frozen=True, slots=True)
class VerificationProgress:
    """How far verifying has come.

    Attributes:
        stage: What is compared at the moment: ``grants``, ``users`` or ``buckets``.
        done: How far that is: a position for grants, else a number of documents.
        total: How far there is to go, as far as that is known.
    """

    stage: str
    done: int
    total: int


def compare_fields(
    outcome: Verification,
    expected: dict[str, Any],
    found: dict[str, Any],
    *,
    user_id: str | None,
    position: int | None = None,
    grant_id: str | None = None,
    key: str | None = None,
) -> None:
    """Report each field in which two documents differ; a field that is missing is ``None``."""
    if expected == found:  # nearly always
        return
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            outcome.report(
                Difference(
                    *(user_id, name, expected.get(name), found.get(name)), position, grant_id, key
                )
            )


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """Return a user's document with its totals as fields of their own; sums of zero say nothing."""
    fields = {name: value for name, value in document.items() if name != "_id"}
    for totals in ("categoryTotals", "sourceTotals"):
        labels = fields.pop(totals, {})
        if isinstance(labels, dict):
            fields |= {f"{totals}.{label}": amount for label, amount in labels.items() if amount}
        else:
            fields[totals] = labels
    return fields
