"""Buckets that differed when they were last looked at, however many, without holding them."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TABLE: Final = """
CREATE TABLE suspects (user_id TEXT, key TEXT, seen TEXT, looks INTEGER, repairs INTEGER,
    PRIMARY KEY (user_id, key)) WITHOUT ROWID
"""
_PER_PAGE: Final = 500


class Suspect(NamedTuple):
    """A bucket, or total, that differed.

    Attributes:
        user_id: Whose.
        key: Of which bucket; empty for the total.
        seen: What both sides held at the last look, as text; empty if that is to be found out.
        looks: How often it was looked at.
        repairs: How often the ledger was given the old side's value.
    """

    user_id: str
    key: str
    seen: str = ""
    looks: int = 0
    repairs: int = 0


class Suspects:
    """What has to be looked at again, sorted by user and key; a context manager.

    Kept in SQLite's private temporary database, which spills to a file that has no name.
    """

    def __init__(self) -> None:
        # One transaction to its end: nobody else sees it, and nothing of it is kept.
        self._database = sqlite3.connect("")
        self._database.execute(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM suspects").fetchone()
        return int(count)

    def clear(self) -> None:
        """Begin anew."""
        self._database.execute("DELETE FROM suspects")

    def put(self, suspects: Iterable[Suspect]) -> None:
        """Add some, or replace them as they were known before."""
        self._database.executemany(
            "INSERT OR REPLACE INTO suspects VALUES (?, ?, ?, ?, ?)", suspects
        )

    def drop(self, suspects: Iterable[Suspect]) -> None:
        """Forget some."""
        self._database.executemany(
            "DELETE FROM suspects WHERE user_id = ? AND key = ?",
            ((each.user_id, each.key) for each in suspects),
        )

    def pages(self) -> Iterator[list[Suspect]]:
        """Yield all of them in pages; what is behind a page may be changed meanwhile."""
        after = ("", "")
        query = "SELECT * FROM suspects WHERE (user_id, key) > (?, ?) ORDER BY 1, 2 LIMIT ?"
        while rows := self._database.execute(query, (*after, _PER_PAGE)).fetchall():
            page = [Suspect(*row) for row in rows]
            after = page[-1].user_id, page[-1].key
            yield page
