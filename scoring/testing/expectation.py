"""The one assertion that this package makes, with a message that says what was compared."""

from __future__ import annotations


def expect(what: str, actual: object, expected: object) -> None:
    """Compare two values.

    Raises:
        AssertionError: if they differ.
    """
    if actual != expected:
        raise AssertionError(f"{what}: got {actual!r}, expected {expected!r}")
