"""``make_grant_id``: ids composed of parts that nobody can make mean something else."""

from __future__ import annotations

import unicodedata
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scoring import Grant, make_grant_id
from scoring.rules import MAX_GRANT_ID_LENGTH
from scoring.testing import grant_shaped_keys
from support import NOON

# Text that composing by hand trips over: separators, escapes, NFC, what is refused in ids.
text = st.one_of(
    st.text(st.characters(codec=None), min_size=1, max_size=12),
    st.text("/:%#~ae\u0308\u0301\u00e9 \n\ud800", min_size=1, max_size=6),
    grant_shaped_keys(),
    st.sampled_from(["a", "字"]).map(lambda letter: letter * 300),
)
parts = st.lists(st.one_of(text, st.integers()), min_size=1, max_size=4)


def texts(given_parts: list[str | int]) -> list[str]:
    """What the parts mean."""
    return [unicodedata.normalize("NFC", str(part)) for part in given_parts]


@given(parts)
@example(["ada", "award:badge:1"])
@example(["x" * 254, "award:badge:1"])
def test_what_parts_make_is_a_valid_grant_id_and_never_a_derived_one(
    given_parts: list[str | int],
) -> None:
    """``Grant`` takes it as it is, with any key that is not grant-shaped."""
    grant_id = make_grant_id(*given_parts)
    assert grant_id.isascii()
    assert len(grant_id) <= MAX_GRANT_ID_LENGTH
    grant = Grant(
        user_id="ada",
        grant_id=grant_id,
        key="quiz:1",
        category="x",
        source="s",
        amount=1,
        granted_at=NOON,
    )
    assert grant.grant_id == grant_id


@given(parts)
def test_the_parts_can_be_read_back_from_an_id(given_parts: list[str | int]) -> None:
    """So no two lists of parts make one id, unless a hash had to stand for what is too long."""
    grant_id = make_grant_id(*given_parts)
    if "#" not in grant_id:
        read = [unquote(part, errors="surrogatepass") for part in grant_id.split("/")]
        assert read == texts(given_parts)
    else:
        assert len(grant_id) == MAX_GRANT_ID_LENGTH


@given(parts, parts)
@example(["a/b", "c"], ["a", "b/c"])
@example(["a", "b"], ["a/b"])
@example(["a%2Fb"], ["a/b"])
@example(["a" * 300], ["a" * 301])
@example(["a" * 300, "b"], ["a" * 300 + "/b"])
@example(["zoe\u0308"], ["zo\u00eb"])
@example([7], ["7"])
def test_other_parts_make_another_id(first: list[str | int], second: list[str | int]) -> None:
    """And the same ones the same, however they are spelt."""
    equal = make_grant_id(*first) == make_grant_id(*second)
    assert equal == (texts(first) == texts(second))


def test_the_ids_of_a_release_are_those_of_the_next() -> None:
    """An id that changed would let a grant count twice."""
    assert make_grant_id("quiz", 7, "ada") == "quiz/7/ada"
    assert make_grant_id("-1.a_b~", -1) == "-1.a_b~/-1"
    assert make_grant_id("liked", "a/b", "zoë @x") == "liked/a%2Fb/zo%C3%AB%20%40x"
    assert make_grant_id("award:badge:1") == "award%3Abadge%3A1"
    assert make_grant_id("字" * 40, "ada") == (
        "%E5%AD%97" * 21 + "%E#f3ee176473972381d09e21c063b6db4e0999a69bad9d564945616d715f254605"
    )


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ([], ValueError),
        (["quiz", ""], ValueError),
        (["quiz", None], TypeError),
        (["quiz", True], TypeError),
        (["quiz", 1.5], TypeError),
        (["quiz", b"ada"], TypeError),
    ],
)
def test_what_names_nothing_is_refused(bad: list[Any], error: type[Exception]) -> None:
    """A missing user must not become the user 'None'."""
    with pytest.raises(error, match="grant id"):
        make_grant_id(*bad)
