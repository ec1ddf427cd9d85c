"""Opening balances: grants for what buckets have beyond the grants of their keys.

They bring the two totals together where the old way counted before the ledger did. The id of an
opening balance is made from the user, the key, and the points that the key had been granted before.
As those only grow, at most one can ever be recorded on top of the same grants: whoever runs it
twice, beside another, or from a read model that is behind, adds nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from projections.drift.keys import kind_of, read_users
from projections.mongo.errors import translated
from scoring import BatchFailed, Grant, GrantStatus, InvalidGrant, StreamHasGap, make_grant_id
from scoring.identity import is_grant_shaped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from datetime import datetime
    from threading import Event

    from projections.drift.keys import BothWays
    from projections.mongo.read_model import ReadModel
    from scoring import GrantReceipt
    from scoring.contributions import Bucket

_GRANTS_AT_ONCE: Final = 1000
_REFUSED_SHOWN: Final = 20
_OTHER_KINDS: Final = "(other keys)"
_MAX_KINDS: Final = 1000


@dataclass(slots=True)
class OpenedBalances:
    """What was granted, or would be.

    Attributes:
        dry_run: Whether it only says what it would do.
        users: Users looked at.
        grants: Opening balances that were recorded.
        points: Their points.
        opened_before: Those that were recorded already, though the read model did not have them.
        kinds: By kind of key, how many were recorded, and their points.
        grant_shaped: Buckets of posts and badges that differ from their grant, which are left
            alone: their grants are those of ``contribute``.
        position: Position of the newest one; 0 if there is none.
        refused_count: Those that the ledger does not take.
        refused: User, key and reason of the first of them.
        interrupted: Whether it was stopped before the end.
    """

    dry_run: bool = False
    users: int = 0
    grants: int = 0
    points: int = 0
    opened_before: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)
    grant_shaped: int = 0
    position: int = 0
    refused_count: int = 0
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    interrupted: bool = False

    def refuse(self, *, user_id: str, key: str, reason: str) -> None:
        """Count one that the ledger does not take, and keep it if it is one of the first."""
        self.refused_count += 1
        if len(self.refused) < _REFUSED_SHOWN:
            self.refused.append((user_id, key, reason))


def open_balances(
    read_model: ReadModel,
    grant_many: Callable[[Iterable[Grant]], list[GrantReceipt]],
    *,
    granted_at: datetime,
    kinds: Collection[str] | None = None,
    dry_run: bool = False,
    stop: Event | None = None,
    on_progress: Callable[[OpenedBalances], None] | None = None,
) -> OpenedBalances:
    """Grant what each bucket has beyond the grants of its key, but for grant-shaped keys.

    Buckets and grants are read at one instant for each user; ``grant_many`` records as that of
    ``Scoring`` does. See ``ScoreLedger.open_balances``.
    """
    opened = OpenedBalances(dry_run=dry_run)
    pending: list[Grant] = []
    with translated():
        for user in read_users(read_model):
            if stop is not None and stop.is_set():
                opened.interrupted = True
                break
            opened.users += 1
            for key in user.keys:
                if key.bucket is None or (kinds is not None and kind_of(key.key) not in kinds):
                    continue
                missing = key.bucket.points - key.new
                if is_grant_shaped(key.key):
                    opened.grant_shaped += missing != 0
                elif missing > 0:
                    try:
                        pending.append(_opening(user.user_id, key, key.bucket, granted_at))
                    except InvalidGrant as error:  # a rule is stricter than when it was recorded
                        opened.refuse(user_id=user.user_id, key=key.key, reason=str(error))
                if len(pending) >= _GRANTS_AT_ONCE:
                    _record(pending, grant_many, opened)
            if on_progress is not None:
                on_progress(opened)
    _record(pending, grant_many, opened)
    return opened


def _opening(user_id: str, key: BothWays, bucket: Bucket, granted_at: datetime) -> Grant:
    return Grant(
        user_id=user_id,
        grant_id=make_grant_id("opening-balance", user_id, key.key, key.new),
        key=key.key,
        category=bucket.category,
        source=bucket.source,
        amount=bucket.points - key.new,
        granted_at=granted_at,
    )


def _record(
    pending: list[Grant],
    grant_many: Callable[[Iterable[Grant]], list[GrantReceipt]],
    opened: OpenedBalances,
) -> None:
    """Record what is pending, and leave none of it pending."""
    for grant, receipt in _receipts(pending, grant_many, opened):
        if receipt is not None and receipt.status is not GrantStatus.RECORDED:
            # Of another size perhaps, since the bucket has moved; the next run grants the rest.
            opened.opened_before += 1
            continue
        opened.grants += 1
        opened.points += grant.amount
        if receipt is not None:
            opened.position = max(opened.position, receipt.position)
        kind = kind_of(grant.key)
        if kind not in opened.kinds and len(opened.kinds) >= _MAX_KINDS:
            kind = _OTHER_KINDS
        sums = opened.kinds.setdefault(kind, [0, 0])
        sums[0] += 1
        sums[1] += grant.amount
    pending.clear()


def _receipts(
    grants: list[Grant],
    grant_many: Callable[[Iterable[Grant]], list[GrantReceipt]],
    opened: OpenedBalances,
) -> Iterator[tuple[Grant, GrantReceipt | None]]:
    if opened.dry_run:
        yield from ((grant, None) for grant in grants)
        return
    left = list(grants)
    while left:
        try:
            receipts = grant_many(left)
        except BatchFailed as failed:
            # One user who cannot take it must not stop the others.
            if not isinstance(failed.__cause__, InvalidGrant | StreamHasGap):
                raise
            grant = left.pop(failed.index)
            opened.refuse(user_id=grant.user_id, key=grant.key, reason=failed.reason)
            receipts = failed.receipts_so_far
        yield from zip(left, receipts, strict=False)
        left = left[len(receipts) :]
