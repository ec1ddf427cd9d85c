"""Strategies for sequences of commands in which ids repeat, truthfully and otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from scoring.identity import is_grant_shaped
from scoring.rules import MAX_AMOUNT, normalised_user_id
from scoring.testing.strategies import amounts, grants, keys, labels, user_ids

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    from scoring.grants import Grant

_FEWER_FIELDS: Final = st.sampled_from(("amount", "category", "source", "granted_at"))
_FIELDS: Final = st.sampled_from(("amount", "category", "source", "granted_at", "user_id", "key"))
_VALUES: Final[dict[str, SearchStrategy[Any]]] = {
    "amount": amounts(),
    "category": labels(),
    "source": labels(),
    "key": keys(),
}


@st.composite
def changed_payloads(
    draw: DrawFn, grant: Grant, *, users: SearchStrategy[str] | None = None
) -> Grant:
    """Draw a grant with the id of ``grant`` and one other field changed: a conflict with it.

    Args:
        draw: Passed by hypothesis.
        grant: The grant to contradict.
        users: Strategy for another user; ``user_ids()`` by default.
    """
    # A derived id names its user and key, so those must stay.
    field = draw(_FEWER_FIELDS if is_grant_shaped(grant.key) else _FIELDS)
    if field == "user_id":
        user_id = normalised_user_id(draw(user_ids() if users is None else users))
        if user_id != grant.user_id:
            return grant.model_copy(update={field: user_id})
        field = "amount"  # there may be no other user to draw
    if field == "granted_at":
        later = grant.granted_at < datetime(9000, 1, 1, tzinfo=UTC)
        step = timedelta(milliseconds=1 if later else -1)
        return grant.model_copy(update={field: grant.granted_at + step})
    changed = draw(_VALUES[field])
    if changed == getattr(grant, field):
        field, changed = "amount", grant.amount % MAX_AMOUNT + 1
    return grant.model_copy(update={field: changed})


@st.composite
def grant_sequences(
    draw: DrawFn, *, of: SearchStrategy[Grant] | None = None, max_size: int = 30
) -> list[Grant]:
    """Draw grants in which ids come again: duplicates, and conflicts with other payloads.

    Args:
        draw: Passed by hypothesis.
        of: Strategy for the grants that are new; ``grants()`` by default.
        max_size: The longest sequence.
    """
    new = grants() if of is None else of
    pool = draw(st.lists(new, min_size=1, max_size=max_size))
    sequence: list[Grant] = []
    for grant in pool:
        sequence.append(grant)
        for _ in range(draw(st.integers(0, 2))):
            earlier = draw(st.sampled_from(sequence))
            sequence.append(draw(st.one_of(st.just(earlier), changed_payloads(earlier))))
    return draw(st.permutations(sequence))[:max_size]
