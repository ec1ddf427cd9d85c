"""The old way of scoring: a bucket for each key, overwritten by contributions."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from scoring.errors import InvalidGrant
from scoring.identity import is_grant_shaped
from scoring.rules import (
    MAX_KEY_LENGTH,
    RULES,
    CheckedModel,
    Key,
    Label,
    Points,
    UserId,
    UtcDatetime,
)


class Bucket(NamedTuple):
    """What a reader of the old way sees under one key of one user."""

    points: int
    category: str
    source: str


class Contribution(CheckedModel):
    """Sets the bucket of ``key`` to ``points``; valid by construction, like a ``Grant``.

    Raises:
        InvalidGrant: naming the field, the value and the rule that it breaks.
    """

    user_id: UserId
    key: Key
    category: Label
    source: Label
    points: Points
    at: UtcDatetime | None

    def __init__(
        self,
        *,
        user_id: str,
        key: str,
        category: str,
        source: str,
        points: int,
        at: datetime | None = None,
    ) -> None:
        """Check and normalise every field.

        Args:
            user_id: Who is scored; 1 to 128 code points.
            key: What is scored, e.g. ``telemetry:activity``.
            category: Flat label, e.g. ``telemetry``.
            source: Flat label, e.g. ``app``.
            points: What the bucket holds from now on, 0 to 1,000,000,000.
            at: When it was earned; timezone-aware. Only a grant-shaped key has use for it.
        """
        super().__init__(
            user_id=user_id, key=key, category=category, source=source, points=points, at=at
        )

    @property
    def bucket(self) -> Bucket:
        """The bucket as it is to be."""
        return Bucket(self.points, self.category, self.source)


def grant_shaped_key(kind: str, *, field: str, value: object) -> str:
    """Return the key ``<kind>:<value>``, which is grant-shaped.

    Raises:
        InvalidGrant: naming ``field`` if the value is not an id that makes one.
    """
    key = f"{kind}:{value}"
    if not isinstance(value, str) or len(key) > MAX_KEY_LENGTH or not is_grant_shaped(key):
        raise InvalidGrant(field=field, value=value, rule=RULES[field])
    return key
