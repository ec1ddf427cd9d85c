"""Locks on files between processes, released by the kernel when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

from projections.embedded.layout import FolderUnusable

if TYPE_CHECKING:
    from pathlib import Path

_RETRY_SECONDS: Final = 0.02
_UNSUPPORTED: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NOT_NOW: Final = {errno.EAGAIN, errno.EACCES}


class Deadline:
    """A time limit, on a clock that nobody can set."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end


class FileLock:
    """An ``flock`` on an open file of its own: two of them exclude each other in one process too.

    Only the process that opened it holds it. A forked child has its copy closed at birth: the two
    would share one lock, and a child that outlives a killed parent would keep it.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, making it if need be, and take no lock yet.

        Raises:
            FolderUnusable: if the file cannot be opened for writing.
        """
        self.path = path
        self._owner = os.getpid()
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise FolderUnusable(
                f"the file {path} of the embedded MongoDB cannot be opened ({error.strerror}): "
                "choose a folder that can be written to"
            ) from error
        _open_locks.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def held_here(self) -> bool:
        """Whether this process still has the file open and is the one that opened it."""
        return not self._file.closed and self._owner == os.getpid()

    def try_exclusive(self) -> bool:
        """Take the lock alone; false if somebody has it."""
        return self._try(fcntl.LOCK_EX)

    def wait_exclusive(self, deadline: Deadline) -> bool:
        """Take the lock alone, waiting for its turn; false if the time ran out."""
        return self._wait(fcntl.LOCK_EX, deadline)

    def wait_shared(self, deadline: Deadline) -> bool:
        """Take the lock together with others, waiting for a single holder to release it."""
        return self._wait(fcntl.LOCK_SH, deadline)

    def unlock(self) -> None:
        """Release the lock and keep the file open."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock and close the file; a second time does nothing."""
        if self.held_here:
            # Closing alone would leave the lock with a copy made by a fork that Python did not see.
            with contextlib.suppress(OSError):
                self.unlock()
        self._file.close()

    def read(self) -> str:
        """Return the file's text."""
        self._file.seek(0)
        return self._file.read().decode()

    def write(self, text: str) -> None:
        """Replace the file's text; for a holder of the lock."""
        self._file.truncate(0)
        self._file.write(text.encode())

    def is_current(self) -> bool:
        """Tell whether the path still leads to the file that is locked here."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a file system that fails now and then has not lost the file
        return os.path.samestat(there, os.fstat(self._file.fileno()))

    def _wait(self, kind: int, deadline: Deadline) -> bool:
        # Asking again and again, since a blocking flock cannot be given a time limit.
        while not self._try(kind):
            if deadline.passed:
                return False
            time.sleep(_RETRY_SECONDS)
        return True

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NOT_NOW:
                return False
            if error.errno in _UNSUPPORTED:
                raise FolderUnusable(
                    f"the file system of {self.path.parent} does not support file locks (flock): "
                    "put the embedded MongoDB's folder on a local disk, or set MONGO_URI"
                ) from error
            raise
        return True


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_forget_in_child)
