"""Joining streams that MongoDB has sorted, in memory that does not grow with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

K = TypeVar("K", str, tuple[str, str])
L = TypeVar("L")
R = TypeVar("R")


def outer_join(
    left: Iterator[tuple[K, L]], right: Iterator[tuple[K, R]]
) -> Iterator[tuple[K, L | None, R | None]]:
    """Yield every key with what either side has for it; ``None`` where a side has nothing.

    Both sides are sorted by key, each key once. MongoDB sorts strings by code point, as Python
    does. Neither side is read further than to the next key.
    """
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None  # noqa: S101 - for the type checker
            yield a[0], a[1], None
            a = next(left, None)
        elif a is None or b[0] < a[0]:
            yield b[0], None, b[1]
            b = next(right, None)
        else:
            yield a[0], a[1], b[1]
            a, b = next(left, None), next(right, None)
