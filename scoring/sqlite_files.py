"""Whether the files of a SQLite store are those that were opened under their names.

SQLite goes on with a file that was removed or replaced, and what it commits there is gone.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from scoring.errors import ScoringError

if TYPE_CHECKING:
    from pathlib import Path

SETTLED_AFTER_NANOSECONDS: Final = 2_500_000_000
"""What changes in a folder later than this after its last change gives it another time of change,
however coarse the clock of the file system is."""

_CHECK_HOLDS_SECONDS: Final = 0.001
"""No more than what passes between a look at the folder and the commit it is for."""

_FileId = tuple[int, int]
_FolderState = tuple[int, int, int]


class OpenFiles:
    """A store's file and its log, as they were when they were opened."""

    def __init__(self, path: str, file: Path) -> None:
        """Look at nothing yet; ``file`` is what ``path`` leads to."""
        self._path, self._log_path, self._folder = path, f"{file}-wal", str(file.parent)
        # Where links are followed, what changes may lie in another folder.
        self._is_direct = os.path.abspath(path) == str(file)  # noqa: PTH100
        self._file: _FileId | None = None
        self._log: _FileId | None = None
        # What the folder was like when both were found in it.
        self._settled: _FolderState | None = None
        self._checked_until = 0.0

    def make_private(self) -> None:
        """Make an empty file that nobody else may read; SQLite gives its log the same mode."""
        with suppress(OSError):  # as it is there already, or cannot be made, which SQLite says
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def opened(self) -> None:
        """Take the file for the one that is open, unless one was already."""
        if self._file is None:
            self._file = _file_id(self._path)

    def log_closed(self) -> None:
        """Forget the log, which SQLite removes with its last connection."""
        self._log = None

    def are_in_settled_folder(self) -> bool:
        """Tell, soon, whether nothing has changed in the folder since both were found in it.

        False where it is not known. Asking for the log itself, which was just written, takes a
        sixth of a grant on a disk.
        """
        is_known = self._settled is not None and self._settled == _folder_state(self._folder)
        if is_known:
            self._checked_until = time.monotonic() + _CHECK_HOLDS_SECONDS
        return is_known

    def check_file(self) -> None:
        """Check that the file is in its place, unless that was done less than a millisecond ago.

        Raises:
            ScoringError: if it was removed, renamed or replaced.
        """
        if time.monotonic() > self._checked_until and not self.are_in_settled_folder():
            self._check_file()

    def check(self, *, log_may_be_gone: bool) -> None:
        """Check that the file and its log are in their places.

        Raises:
            ScoringError: if one of them was removed, renamed or replaced.
        """
        folder = _folder_state(self._folder)
        self._check_file()
        log = _file_id(self._log_path)
        if self._log is None:
            self._log = log
        elif log != self._log and not log_may_be_gone:
            raise _replaced(self._log_path)
        if folder is not None and self._is_direct:
            *_, changed_at = folder
            is_settled = time.time_ns() - changed_at > SETTLED_AFTER_NANOSECONDS
            self._settled = folder if is_settled else None

    def _check_file(self) -> None:
        if self._file not in {None, _file_id(self._path)}:
            raise _replaced(self._path)


def _replaced(path: str) -> ScoringError:
    return ScoringError(
        f"{path} was removed, renamed or replaced while it was in use, so what was recorded "
        "since then may be lost: put it back, or open the event store again on what is there"
    )


def _file_id(path: str) -> _FileId | None:
    found = _stat(path)
    return found and (found.st_dev, found.st_ino)


def _folder_state(path: str) -> _FolderState | None:
    # The time that nobody can set: whoever restores a backup may set the other one back, too.
    found = _stat(path)
    return found and (found.st_dev, found.st_ino, found.st_ctime_ns)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - a Path takes several times as long to ask
    except OSError:
        return None
