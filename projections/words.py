"""Words that reports and commands have in common."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, e.g. ``1 grant`` or ``2,000 grants``."""
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"
