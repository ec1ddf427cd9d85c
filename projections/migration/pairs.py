"""What the two sides hold under one key, or as a total, and how that differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from projections.migration.comparison_report import DifferenceKind, ScoreDifference, ScoreSide
from projections.migration.old_users import OldReject, OldUser
from projections.migration.old_values import breaks_its_rule
from scoring.contributions import Bucket, Contribution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from projections.migration.key_history import KeyHistory
    from projections.migration.ledger_scores import LedgerUser


class BucketPair(NamedTuple):
    """What the two sides hold under one key."""

    user_id: str
    key: str
    old: Contribution | OldReject | None
    ledger: Bucket | None

    @property
    def old_bucket(self) -> Bucket | None:
        """The bucket of the old side, if it has one that is acceptable."""
        return self.old.bucket if isinstance(self.old, Contribution) else None

    @property
    def differs(self) -> bool:
        """Whether the two sides are not the same."""
        return isinstance(self.old, OldReject) or _differ(self.old_bucket, self.ledger)

    @property
    def seen(self) -> str:
        """What would be another text, were either side another."""
        old = self.old.value if isinstance(self.old, OldReject) else self.old_bucket
        return repr((old, self.ledger))

    def kind(self, history: KeyHistory) -> DifferenceKind:
        """Return how they differ, given what the ledger was told of the key."""
        old, ledger = self.old_bucket, self.ledger
        if isinstance(self.old, OldReject):
            return DifferenceKind.REJECTED
        if ledger is None or not ledger.points:
            return DifferenceKind.MISSING_IN_LEDGER
        if old is None or not old.points:
            return DifferenceKind.MISSING_IN_OLD
        if old.points == ledger.points:
            return DifferenceKind.LABEL
        return DifferenceKind.WRITE_ORDER if history.raced else DifferenceKind.OTHER_POINTS

    def difference(self, history: KeyHistory) -> ScoreDifference:
        """Return the difference as it is reported."""
        old = ledger = None
        reason = ""
        if isinstance(self.old, Contribution):
            old = ScoreSide(*self.old.bucket, self.old.at)
        elif isinstance(self.old, OldReject):
            reason = _rejected(self.old)
        if self.ledger is not None:
            ledger = ScoreSide(*self.ledger, history.at)
        kind = self.kind(history)
        return ScoreDifference(self.user_id, self.key, kind, old, ledger, reason=reason)


@dataclass(frozen=True, slots=True)
class TotalPair:
    """The two totals of one user, and what each has beyond the sum of its buckets."""

    user_id: str
    old: int
    ledger: int
    old_excess: int
    ledger_excess: int

    key: ClassVar[str] = ""

    @classmethod
    def of(cls, old: OldUser, ledger: LedgerUser) -> TotalPair:
        """Return the pair of a user, all of whose buckets were read."""
        summed = sum(contribution.points for contribution in old.buckets.values())
        # Nobody can say what a bucket that is not acceptable adds to its total.
        total = summed if old.total is None or old.rejects else old.total
        excess = total - summed, ledger.total - ledger.sum()
        return cls(old.user_id or "", total, ledger.total, *excess)

    @property
    def differs(self) -> bool:
        """Whether the two sides are not the same."""
        return bool(self.old_excess or self.ledger_excess)

    @property
    def seen(self) -> str:
        """What would be another text, were either side another."""
        return repr((self.old_excess, self.ledger_excess))

    def difference(self, _: KeyHistory) -> ScoreDifference:
        """Return the difference as it is reported; no event is about a total."""
        reason = "the ledger's total is not the sum of its buckets: run score-ledger verify"
        if self.old_excess:
            reason = (
                f"the old total is {self.old - self.old_excess:,} by its buckets: have the site "
                "sum them up again"
            )
        sides = ScoreSide(self.old), ScoreSide(self.ledger)
        return ScoreDifference(self.user_id, None, DifferenceKind.TOTAL, *sides, reason=reason)


Pair = BucketPair | TotalPair


def differing_pairs(old: OldUser, ledger: LedgerUser) -> Iterator[Pair]:
    """Yield what differs."""
    theirs = by_key(old)
    assert old.user_id is not None  # noqa: S101 - for the type checker
    for key in theirs.keys() | ledger.buckets.keys():
        found = ledger.buckets.get(key)
        pair = BucketPair(old.user_id, key, theirs.get(key), Bucket(*found) if found else None)
        if pair.differs:
            yield pair
    total = TotalPair.of(old, ledger)
    if total.differs:
        yield total


def by_key(old: OldUser) -> dict[str, Contribution | OldReject]:
    """Return what the old side holds under keys that the ledger may have, too."""
    rejects = ((comparable_key(reject), reject) for reject in old.rejects)
    return {**old.buckets, **{key: reject for key, reject in rejects if key is not None}}


def comparable_key(reject: OldReject) -> str | None:
    """Return the key that the ledger may have a bucket under, too, if it is of one."""
    key = reject.key
    return key if isinstance(key, str) and not breaks_its_rule("key", key) else None


def _differ(old: Bucket | None, ledger: Bucket | None) -> bool:
    # To whoever adds buckets up, one of 0 points is none.
    return old != ledger and any(bucket is not None and bucket.points for bucket in (old, ledger))


def repairing(pair: Pair) -> Contribution | None:
    """Return what gives the ledger the old side's value, if anything can."""
    if isinstance(pair, TotalPair) or isinstance(pair.old, OldReject):
        return None
    if pair.old is not None or pair.ledger is None:
        return pair.old
    _, category, source = pair.ledger
    return Contribution(
        user_id=pair.user_id, key=pair.key, category=category, source=source, points=0
    )


def _rejected(reject: OldReject) -> str:
    return f"{reject.reason}: {reject.value!r} in {reject.path} of document {reject.document_id!r}"


def without_place(reject: OldReject) -> ScoreDifference:
    """Return the difference of something under no user, or no key, that the ledger might have."""
    key = None if reject.key is None else str(reject.key)
    return ScoreDifference(
        reject.user_id, key, DifferenceKind.REJECTED, None, None, reason=_rejected(reject)
    )
