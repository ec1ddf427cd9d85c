"""Hypothesis strategies for what is accepted, field by field, and for whole grants."""

from __future__ import annotations

import string
import unicodedata
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st

from scoring.grants import Grant
from scoring.identity import derived_grant_id, is_grant_shaped
from scoring.rules import MAX_AMOUNT, MAX_GRANT_ID_LENGTH, MAX_USER_ID_LENGTH

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

# Text that naive code trips over: joined emoji, decomposed letters, right to left, a slash.
_ODD_IDS: Final = (
    "jane",
    "Zoe\u0308",
    "\u1112\u1161\u11ab",
    "👩\u200d🚀",
    "שלום עולם",
    "a/b:c",
    "jane/award:badge:1",
    "$set.x",
    "\ufb2c",
    "0",
    "null",
)
_ANY_CHARACTER: Final = st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp"))
_LETTERS: Final = string.ascii_letters + string.digits + "._~@-"
_FEW_LABELS: Final = st.sampled_from(("content", "feed", "telemetry", "award"))
_FEW_KEYS: Final = st.sampled_from(
    ("telemetry:activity", "content:comment:17", "content:feed-post:1:2", "award:badge:a/b")
)


@cache
def user_ids() -> SearchStrategy[str]:
    """Return a strategy for valid user ids, not always in NFC, of every length allowed."""
    return _ids(MAX_USER_ID_LENGTH)


@cache
def grant_ids() -> SearchStrategy[str]:
    """Return a strategy for valid grant ids that are nobody's derived ones."""
    return _ids(MAX_GRANT_ID_LENGTH).filter(lambda text: not _squats(text))


@cache
def keys() -> SearchStrategy[str]:
    """Return a strategy for valid keys that are not grant-shaped."""
    segments = st.lists(st.text(_LETTERS + "/", min_size=1, max_size=12), min_size=1, max_size=4)
    return st.one_of(_FEW_KEYS, segments.map(":".join)).filter(lambda key: not is_grant_shaped(key))


@cache
def grant_shaped_keys() -> SearchStrategy[str]:
    """Return a strategy for ``content:feed-post:<id>`` and ``award:badge:<id>``."""
    return st.builds(
        "{}:{}".format,
        st.sampled_from(("content:feed-post", "award:badge")),
        st.text(_LETTERS, min_size=1, max_size=12),
    )


@cache
def labels() -> SearchStrategy[str]:
    """Return a strategy for valid categories and sources, mostly from a few, so that sums meet."""
    first = st.sampled_from(string.ascii_lowercase)
    others = st.text(string.ascii_lowercase + string.digits + "-", max_size=31)
    return st.one_of(_FEW_LABELS, st.builds("{}{}".format, first, others))


@cache
def amounts() -> SearchStrategy[int]:
    """Return a strategy for valid amounts, in points."""
    return st.integers(1, MAX_AMOUNT)


@cache
def moments() -> SearchStrategy[datetime]:
    """Return a strategy for aware datetimes of any fixed offset that UTC can express."""
    offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timedelta(minutes=minutes))
    return st.datetimes(
        min_value=datetime(1, 1, 3),  # noqa: DTZ001 - hypothesis adds the timezone
        max_value=datetime(9999, 12, 29),  # noqa: DTZ001 - likewise
        timezones=offsets.map(timezone),
    )


@st.composite
def grants(
    draw: DrawFn,
    *,
    users: SearchStrategy[str] | None = None,
    ids: SearchStrategy[str] | None = None,
    ledger_keys: SearchStrategy[str] | None = None,
) -> Grant:
    """Draw a valid grant; a grant-shaped key comes with its derived id.

    Args:
        draw: Passed by hypothesis.
        users: Strategy for the user id; ``user_ids()`` by default.
        ids: Strategy for the ids of grants whose key is not grant-shaped; ``grant_ids()`` by
            default.
        ledger_keys: Strategy for the key; by default one in four is grant-shaped.
    """
    user_id = draw(user_ids() if users is None else users)
    key = draw(_any_keys() if ledger_keys is None else ledger_keys)
    if is_grant_shaped(key):
        grant_id = derived_grant_id(unicodedata.normalize("NFC", user_id), key)
    else:
        grant_id = draw(grant_ids() if ids is None else ids)
    return Grant(
        user_id=user_id,
        grant_id=grant_id,
        key=key,
        category=draw(labels()),
        source=draw(labels()),
        amount=draw(amounts()),
        granted_at=draw(moments()),
    )


@cache
def _any_keys() -> SearchStrategy[str]:
    return st.integers(0, 3).flatmap(lambda number: keys() if number else grant_shaped_keys())


def _ids(max_length: int) -> SearchStrategy[str]:
    text = st.text(_ANY_CHARACTER, min_size=1, max_size=24).map(str.strip)
    longest = st.sampled_from("aé字").map(lambda letter: letter * max_length)
    return st.one_of(st.sampled_from(_ODD_IDS), text, longest).filter(
        lambda value: 1 <= len(unicodedata.normalize("NFC", value)) <= max_length
    )


def _squats(grant_id: str) -> bool:
    _, slash, tail = grant_id.rpartition("/")
    return bool(slash) and is_grant_shaped(tail)
