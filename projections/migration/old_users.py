"""What is read from an old collection: users with their buckets, and what cannot be taken."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scoring.contributions import Contribution


class RejectReason(StrEnum):
    """Why something of an old collection cannot be taken, in words."""

    USER_MISSING = "no user"
    USER_NOT_TEXT = "a user that is not text"
    USER_INVALID = "a user that breaks the rule of user_id"
    USER_TWICE = "a user who is there in another spelling, too"
    BUCKETS_UNREADABLE = "buckets that are neither a map nor an array"
    BUCKET_UNREADABLE = "a bucket that is not a document"
    KEY_MISSING = "no key"
    KEY_INVALID = "a key that breaks the rule of key"
    KEY_TWICE = "a key that the user has more than once"
    POINTS_MISSING = "no points"
    POINTS_NOT_A_NUMBER = "points that are not a number"
    POINTS_WHOLE = "points that are whole, but not stored as an integer"
    POINTS_FRACTION = "points with a fraction"
    POINTS_NEGATIVE = "negative points"
    POINTS_TOO_LARGE = "points beyond the limit"
    LABEL_MISSING = "no label"
    LABEL_INVALID = "a label that breaks the rule of labels"
    TIME_MISSING = "no time for a key that becomes a grant"
    TIME_UNREADABLE = "a time that is not one"
    TOTAL_UNREADABLE = "a total that is not an integer"


@dataclass(frozen=True, slots=True)
class OldReject:
    """One thing that cannot be taken as it stands in the old collection.

    A bucket may have several: one for each of its fields that is not right.

    Attributes:
        reason: Why.
        value: What stands there; ``None`` if nothing does.
        document_id: The ``_id`` of the document.
        place: Path of the bucket in it; empty if that is the document.
        path: Path of the value in it.
        field: Which field of a contribution it would be, e.g. ``"points"`` or ``"source"``.
        user_id: Whose it is, as text; ``None`` if that is what is wrong.
        key: Of which bucket, if it is of one; as it stands there.
        bucket: What stands there for the fields of a contribution, to be mended.
    """

    reason: RejectReason
    value: Any
    document_id: Any
    place: str
    path: str
    field: str
    user_id: str | None = None
    key: Any = None
    bucket: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(slots=True)
class OldUser:
    """One user of an old collection.

    Attributes:
        user_id: The user as the ledger would know them; ``None`` if the user cannot be taken, and
            then nothing of theirs is.
        buckets: What can be taken, by key: ready to be contributed, and ``.bucket`` of each is
            what the ledger's is to be compared with. ``at`` is ``None`` where there is no time.
        total: The old total in points, if the description has a field for it and it is there.
        rejects: What cannot be taken.
        untimed: Of ``buckets``, by key, those that would become grants and have no time: they can
            be compared, but not be brought in.
    """

    user_id: str | None
    buckets: dict[str, Contribution] = dataclasses.field(default_factory=dict)
    total: int | None = None
    rejects: list[OldReject] = dataclasses.field(default_factory=list)
    untimed: dict[str, OldReject] = dataclasses.field(default_factory=dict)
