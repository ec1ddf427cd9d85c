"""What is accepted at every door, as pydantic types with the rule of each field in words.

The rules hold for new input only. Nothing here runs when stored events are replayed, so a rule
may be tightened later without making an old stream unloadable.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)

from scoring.errors import InvalidGrant

MAX_USER_ID_LENGTH: Final = 128
MAX_GRANT_ID_LENGTH: Final = 256
MAX_KEY_LENGTH: Final = 256
MAX_AMOUNT: Final = 1_000_000_000
MAX_POINTS: Final = 1_000_000_000
MAX_TOTAL: Final = 2**63 - 1

# A derived id is a user id, a slash and a key, so it may be longer than a given one.
_MAX_DERIVED_ID_LENGTH: Final = MAX_USER_ID_LENGTH + 1 + MAX_KEY_LENGTH

_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})

_LABEL_RULE: Final = (
    "1 to 32 characters: a lower-case letter, then lower-case letters, digits or hyphens"
)
_ID_RULE: Final = (
    "a string of 1 to {} code points after NFC, without white space at either end and without "
    "control characters, surrogates, unassigned code points or line separators"
)

RULES: Final = {
    "user_id": _ID_RULE.format(MAX_USER_ID_LENGTH),
    "grant_id": _ID_RULE.format(MAX_GRANT_ID_LENGTH),
    "key": (
        f"a string of 1 to {MAX_KEY_LENGTH} characters: segments of letters, digits and . _ ~ @ / -"
        " joined by colons"
    ),
    "category": _LABEL_RULE,
    "source": _LABEL_RULE,
    "amount": f"an integer from 1 to {MAX_AMOUNT}",
    "granted_at": "a timezone-aware datetime that UTC can express",
    "points": f"an integer from 0 to {MAX_POINTS}",
    "at": "a timezone-aware datetime that UTC can express, or None",
    "post_id": "a string of letters, digits and . _ ~ @ - that makes a key of at most 256",
    "badge_id": "a string of letters, digits and . _ ~ @ - that makes a key of at most 256",
}
"""The rule of each field, in the words that ``InvalidGrant`` uses."""

DERIVED_ID_RULE: Final = (
    "'<user_id>/<key>' when the key is grant-shaped (content:feed-post:<id> or award:badge:<id>), "
    "and must not end in '/<grant-shaped key>' otherwise"
)


def _plain_text(value: str, max_length: int) -> str:
    # Every ASCII string is in NFC already, and its printable characters are all allowed.
    if not (value.isascii() and value.isprintable()):
        # NFC shortens a string at most fourfold; reject before normalising, so that a megabyte
        # of input does not cost a megabyte of work.
        if len(value) > 4 * max_length:
            raise ValueError("too long")
        value = unicodedata.normalize("NFC", value)
        if not _FORBIDDEN_CATEGORIES.isdisjoint(map(unicodedata.category, value)):
            raise ValueError("forbidden character")
    if not 1 <= len(value) <= max_length:
        raise ValueError("length")
    if value[0].isspace() or value[-1].isspace():
        raise ValueError("white space at an end")
    return str(value)


def _utc_milliseconds(value: datetime) -> datetime:
    try:
        utc = value if value.tzinfo is UTC else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("outside the years that UTC can express") from None
    # A plain datetime: a subclass would not compare or serialise as one.
    return datetime(
        utc.year,
        utc.month,
        utc.day,
        utc.hour,
        utc.minute,
        utc.second,
        utc.microsecond // 1000 * 1000,
        UTC,
    )


UserId = Annotated[
    str, Strict(), AfterValidator(partial(_plain_text, max_length=MAX_USER_ID_LENGTH))
]
GrantId = Annotated[
    str, Strict(), AfterValidator(partial(_plain_text, max_length=_MAX_DERIVED_ID_LENGTH))
]
Key = Annotated[
    str,
    Strict(),
    Field(max_length=MAX_KEY_LENGTH, pattern=r"^[A-Za-z0-9._~@/-]+(?::[A-Za-z0-9._~@/-]+)*$"),
]
Label = Annotated[str, Strict(), Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Amount = Annotated[int, Strict(), Field(ge=1, le=MAX_AMOUNT)]
Points = Annotated[int, Strict(), Field(ge=0, le=MAX_POINTS)]
UtcDatetime = Annotated[AwareDatetime, Strict(), AfterValidator(_utc_milliseconds)]


_USER_ID: Final[TypeAdapter[str]] = TypeAdapter(UserId)


def normalised_user_id(value: object) -> str:
    """Return a user id in the form it is stored under, for commands and queries alike.

    Raises:
        InvalidGrant: if it breaks the rule of ``user_id``.
    """
    try:
        return _USER_ID.validate_python(value)
    except ValidationError:
        raise InvalidGrant(field="user_id", value=value, rule=RULES["user_id"]) from None


class CheckedModel(BaseModel):
    """Fields that satisfy their rules, however an object is made; it never changes.

    Raises:
        InvalidGrant: naming the first field that breaks its rule, the value and the rule.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = str(first["loc"][0])
            raise InvalidGrant(field=field, value=first["input"], rule=RULES[field]) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a changed copy, checked like any other."""
        del deep  # every field is immutable
        return type(self)(**{**self.model_dump(), **(update or {})})

    def copy(self, **kwargs: Any) -> Self:
        """Return a changed copy by the name that ``model_copy`` had once, checked all the same."""
        return self.model_copy(**kwargs)

    @classmethod
    def model_construct(  # type: ignore[override]  # the plugin types it by field
        cls, _fields_set: set[str] | None = None, **values: Any
    ) -> Self:
        """Return a checked object: there is no way to build an invalid one."""
        del _fields_set
        return cls(**values)
