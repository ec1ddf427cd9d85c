"""``Grant``: one immutable award of points, valid by construction."""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter
from typing import Any, Final

from scoring.errors import InvalidGrant
from scoring.identity import derived_grant_id, is_grant_shaped
from scoring.rules import (
    DERIVED_ID_RULE,
    MAX_GRANT_ID_LENGTH,
    RULES,
    Amount,
    CheckedModel,
    GrantId,
    Key,
    Label,
    UserId,
    UtcDatetime,
)


class Grant(CheckedModel):
    """One award of points.

    Every instance satisfies the rules of ``scoring.rules``: ids are NFC-normalised, and
    ``granted_at`` is in UTC, truncated to milliseconds. Types are strict: ``True``, ``5.0`` and
    ``"5"`` are not amounts.

    Raises:
        InvalidGrant: naming the field, the value and the rule that it breaks.
    """

    user_id: UserId
    grant_id: GrantId
    key: Key
    category: Label
    source: Label
    amount: Amount
    granted_at: UtcDatetime

    def __init__(
        self,
        *,
        user_id: str,
        grant_id: str,
        key: str,
        category: str,
        source: str,
        amount: int,
        granted_at: datetime,
    ) -> None:
        """Check and normalise every field.

        Args:
            user_id: Who is scored; 1 to 128 code points.
            grant_id: Chosen by the caller, unique in the whole ledger; the idempotency key.
            key: What was rewarded, e.g. ``content:feed-post:8812``.
            category: Flat label, e.g. ``content``.
            source: Flat label, e.g. ``feed``.
            amount: Points, 1 to 1,000,000,000.
            granted_at: When the award was earned; timezone-aware.
        """
        super().__init__(
            user_id=user_id,
            grant_id=grant_id,
            key=key,
            category=category,
            source=source,
            amount=amount,
            granted_at=granted_at,
        )
        self._check_grant_id()

    def _check_grant_id(self) -> None:
        if is_grant_shaped(self.key):
            if self.grant_id != derived_grant_id(self.user_id, self.key):
                raise InvalidGrant(field="grant_id", value=self.grant_id, rule=DERIVED_ID_RULE)
            return
        if len(self.grant_id) > MAX_GRANT_ID_LENGTH:
            raise InvalidGrant(field="grant_id", value=self.grant_id, rule=RULES["grant_id"])
        # Nobody may take the derived id of a grant that is still to come.
        _, slash, tail = self.grant_id.rpartition("/")
        if slash and is_grant_shaped(tail):
            raise InvalidGrant(field="grant_id", value=self.grant_id, rule=DERIVED_ID_RULE)


_FIELDS: Final = tuple(Grant.model_fields)
_values_of: Final = attrgetter(*_FIELDS)


def are_same_grant(one: object, other: object) -> bool:
    """Tell whether two awards say the same, each a ``Grant`` or the event that recorded one.

    Their fields decide: an embedder's subclass never equals a ``Grant``, and what was recorded need
    not keep the rules of today.
    """
    same: bool = _values_of(one) == _values_of(other)
    return same


def payload_of(awarded: object) -> dict[str, Any]:
    """Return the fields of a grant by name, of a ``Grant`` or of the event that recorded one."""
    return dict(zip(_FIELDS, _values_of(awarded), strict=True))
