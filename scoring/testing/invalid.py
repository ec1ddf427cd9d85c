"""A strategy for grants that must be refused, each with the field that is to blame."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from scoring.identity import derived_grant_id
from scoring.rules import MAX_AMOUNT, MAX_GRANT_ID_LENGTH, MAX_KEY_LENGTH, MAX_USER_ID_LENGTH
from scoring.testing.strategies import grant_ids, grant_shaped_keys, grants, keys, user_ids

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

_DERIVED: Final = "derived"
_NOT_TEXT: Final = (None, 7, b"jane", ("jane",), True)
_CONTROL_AND_LINE: Final = "\x00\x07\t\n\x1b\x7f\x85\u2028\u2029\ud800\udfff\ufdd0\U0010ffff"
_SPACES: Final = " \u00a0\u1680\u2003\u202f\u3000"

_BAD_LABELS: Final = (
    *_NOT_TEXT,
    "",
    "Content",
    "9lives",
    "-x",
    "a.b",
    "$inc",
    "a_b",
    "é",
    "feed\n",
    " feed",
    "a" * 33,
)
_BAD_AMOUNTS: Final = (
    *(0, -1, MAX_AMOUNT + 1, 2**63, 10**40),
    *(True, False, 5.0, math.nan, math.inf, "5", b"5", None, Decimal(5), 5 + 0j),
)
_BAD_TIMES: Final = (
    datetime(2024, 5, 1, 12),  # noqa: DTZ001 - naive is what is refused
    date(2024, 5, 1),
    "2024-05-01T12:00:00Z",
    1714564800,
    1714564800.5,
    None,
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
)


@st.composite
def invalid_grants(draw: DrawFn) -> tuple[dict[str, Any], str]:
    """Draw ``(kwargs, field)``: keyword arguments of a grant of which only ``field`` is wrong."""
    kwargs: dict[str, Any] = draw(grants(ledger_keys=keys())).model_dump()
    field = draw(st.sampled_from(sorted([*_BAD_VALUES, _DERIVED])))
    if field == _DERIVED:
        return {**kwargs, **draw(_squatting())}, "grant_id"
    return {**kwargs, field: draw(_BAD_VALUES[field])}, field


@st.composite
def _squatting(draw: DrawFn) -> dict[str, str]:
    """Draw user, id and key such that the id is not the user's derived one, but should be."""
    user_id, other = draw(st.sampled_from((("jane", "carl"), ("a", "a/b"), ("é", "e"))))
    shaped, plain = draw(grant_shaped_keys()), "telemetry:activity"
    grant_id, key = draw(
        st.sampled_from(
            (
                # A key that is grant-shaped under an id of the caller's own.
                ("mine", shaped),
                # The derived id of somebody else, with that key and with another.
                (derived_grant_id(other, shaped), shaped),
                (derived_grant_id(other, shaped), plain),
                # The user's own, taken ahead of time by another key.
                (derived_grant_id(user_id, shaped), plain),
                # The right user, and another badge.
                (derived_grant_id(user_id, shaped + "x"), shaped),
            )
        )
    )
    return {"user_id": user_id, "grant_id": grant_id, "key": key}


def _bad_ids(valid: SearchStrategy[str], max_length: int) -> SearchStrategy[object]:
    def spoilt(text: str) -> SearchStrategy[object]:
        middle = len(text) // 2
        return st.one_of(
            st.sampled_from(_CONTROL_AND_LINE).map(lambda c: text[:middle] + c + text[middle:]),
            st.sampled_from(_SPACES).map(lambda c: c + text),
            st.sampled_from(_SPACES).map(lambda c: text + c),
        )

    too_long = st.sampled_from("aé字").map(lambda letter: letter * (max_length + 1))
    return st.one_of(
        st.sampled_from((*_NOT_TEXT, "", " ", "\u3000", "a" * 5000)),
        too_long,
        valid.flatmap(spoilt),
    )


_BAD_KEYS: Final = (
    *_NOT_TEXT,
    *("", ":", "a:", ":a", "a::b", "a b", "a\n", "é", "🏅:badge:1", "a$b", "a\\b", "\ud800"),
    "a" * (MAX_KEY_LENGTH + 1),
)

_BAD_VALUES: Final[dict[str, SearchStrategy[object]]] = {
    "user_id": _bad_ids(user_ids(), MAX_USER_ID_LENGTH),
    "grant_id": _bad_ids(grant_ids(), MAX_GRANT_ID_LENGTH),
    "key": st.sampled_from(_BAD_KEYS),
    "category": st.sampled_from(_BAD_LABELS),
    "source": st.sampled_from(_BAD_LABELS),
    "amount": st.sampled_from(_BAD_AMOUNTS),
    "granted_at": st.sampled_from(_BAD_TIMES),
}
