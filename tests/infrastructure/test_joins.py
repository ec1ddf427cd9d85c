"""Joining sorted streams: every key once, with what each side has for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from projections.joins import outer_join

sides = st.dictionaries(st.text(max_size=2), st.integers(), max_size=6)


@given(sides, sides)
def test_a_join_of_sorted_streams_is_that_of_two_dictionaries(
    left: dict[str, int], right: dict[str, int]
) -> None:
    """Sorted by key, and ``None`` for what a side does not have."""
    joined = list(outer_join(iter(sorted(left.items())), iter(sorted(right.items()))))
    assert joined == [(key, left.get(key), right.get(key)) for key in sorted({*left, *right})]
