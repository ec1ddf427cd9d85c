"""A connection to SQLite that is known from before it is opened until it is closed.

Whatever interrupts it in between: files that stay open with a connection of which nobody knows
would be inherited by a process that is forked then.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from eventsourcing.sqlite import SQLiteConnection, SQLiteCursor

if TYPE_CHECKING:
    from pathlib import Path

open_connections: dict[SQLiteConnection, Path] = {}
"""The file of each connection to one, from before it is opened until it is closed."""


class PooledConnection(SQLiteConnection):
    """A connection that its pool knows before it is opened, and may open again.

    Attributes:
        closed: Whether it has to be opened.
    """

    closed = True
    _cursor: sqlite3.Cursor | None = None

    def __init__(self) -> None:
        super().__init__(None, max_age=None)  # type: ignore[arg-type]

    def connect(self, name: str, **options: Any) -> sqlite3.Connection:
        """Connect to a file, as SQLite does."""
        # What is opened must be known before: dropped, it would stay open until it is collected.
        self._sqlite_conn = sqlite3.Connection.__new__(sqlite3.Connection)
        sqlite3.Connection.__init__(self._sqlite_conn, name, **options)
        return self._sqlite_conn

    def cursor(self) -> SQLiteCursor:
        """Return a cursor, for until the next one is asked for."""
        self._cursor = self._sqlite_conn.cursor()
        return SQLiteCursor(self._cursor)

    def rollback(self) -> None:
        """End statement and transaction, wherever an exception, a signal handler's, say, left them.

        A transaction keeps all other processes from writing, and this one from beginning anything.
        A statement lasts as long as a traceback that has its cursor, and with it SQLite does not
        close the files.
        """
        if self._cursor is not None:
            self._cursor.close()
        self._sqlite_conn.rollback()

    def _close(self) -> None:
        self.closed = True
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
        try:
            if self._sqlite_conn is not None:
                self._sqlite_conn.close()
        except sqlite3.ProgrammingError:
            pass  # it was not opened
        finally:
            open_connections.pop(self, None)
