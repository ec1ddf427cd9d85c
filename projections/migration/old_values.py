"""Single values of an old collection: what each is taken for, or why it is not."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final, Literal
from uuid import UUID

from bson import Decimal128, ObjectId

from projections.migration.old_users import RejectReason
from scoring.contributions import Contribution
from scoring.errors import InvalidGrant
from scoring.rules import MAX_POINTS, normalised_user_id

MISSING: Final = object()
"""What stands at a path that a document does not have."""

Rounding = Literal["refuse", "whole", "nearest"]

_VALID: Final[dict[str, Any]] = {
    **dict.fromkeys(("user_id", "key", "category", "source"), "a"),
    "points": 0,
}


class Refused(Exception):
    """A value cannot be taken.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: RejectReason) -> None:
        self.reason = reason
        super().__init__(reason)


def value_at(document: Any, path: str) -> Any:
    """Return what stands at a path of names joined by dots, or ``MISSING``; arrays have no path."""
    value = document
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value


def is_missing(value: Any) -> bool:
    """Tell whether there is nothing: no field, or a null."""
    return value is MISSING or value is None


def user_of(value: Any, *, as_text: bool) -> str:
    """Return the user id that the ledger knows a user under.

    Args:
        value: What stands in the user field.
        as_text: Take an ``ObjectId``, an integer or a UUID as its usual text.

    Raises:
        Refused: if it is not one.
    """
    if is_missing(value):
        raise Refused(RejectReason.USER_MISSING)
    text = value if isinstance(value, str) else _usual_text(value) if as_text else None
    if text is None:
        raise Refused(RejectReason.USER_NOT_TEXT)
    try:
        return normalised_user_id(text)
    except InvalidGrant:
        raise Refused(RejectReason.USER_INVALID) from None


def _usual_text(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # MongoDB holds both for the same
    if isinstance(value, ObjectId | UUID) or (
        isinstance(value, int) and not isinstance(value, bool)
    ):
        return str(value)
    return None


def points_of(value: Any, rounding: Rounding) -> int:
    """Return points as the ledger takes them.

    Raises:
        Refused: if they are no such number.
    """
    if is_missing(value):
        raise Refused(RejectReason.POINTS_MISSING)
    points = integer_of(value, rounding)
    if points > MAX_POINTS:
        raise Refused(RejectReason.POINTS_TOO_LARGE)
    return points


def integer_of(value: Any, rounding: Rounding) -> int:
    """Return a number from 0 as an integer, rounded as far as that is wanted.

    Raises:
        Refused: if it is not one.
    """
    if isinstance(value, Decimal128):
        value = value.to_decimal()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Refused(RejectReason.POINTS_NOT_A_NUMBER)
    if not math.isfinite(value):
        raise Refused(RejectReason.POINTS_NOT_A_NUMBER)
    if value < 0:
        raise Refused(RejectReason.POINTS_NEGATIVE)
    if isinstance(value, int):
        return int(value)  # of the driver's 64-bit class perhaps
    if value == int(value):
        if rounding == "refuse":
            raise Refused(RejectReason.POINTS_WHOLE)
        return int(value)
    if rounding != "nearest":
        raise Refused(RejectReason.POINTS_FRACTION)
    return int(Decimal(value).to_integral_value(ROUND_HALF_UP))


def time_of(value: Any) -> datetime | None:
    """Return when something was earned; ``None`` if nothing says so.

    Raises:
        Refused: if it is neither a date, nor a text in ISO 8601 with offset, nor an ``ObjectId``.
    """
    if is_missing(value):
        return None
    if isinstance(value, ObjectId):
        return value.generation_time
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise Refused(RejectReason.TIME_UNREADABLE) from None
    # Beyond what Python can express, the driver returns a class of its own.
    if not isinstance(moment, datetime) or breaks_its_rule("at", moment):
        raise Refused(RejectReason.TIME_UNREADABLE)
    return moment


def breaks_its_rule(field: str, value: Any) -> bool:
    """Tell whether a field of a contribution does not take this value."""
    try:
        Contribution(**{**_VALID, field: value})
    except InvalidGrant:
        return True
    return False
