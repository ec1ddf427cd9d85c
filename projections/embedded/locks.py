"""Locks on files between processes, let go of by the kernel when their holder dies."""

import contextlib
import errno
import fcntl
import os
import time
import weakref
from pathlib import Path
from types import TracebackType

from projections.embedded.layout import FolderUnusable

_RETRY_SECONDS = 0.02
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NOT_NOW = {errno.EAGAIN, errno.EACCES}


class Deadline:
    """A moment in the near future, on a clock that nobody can set."""

    def __init__(self, seconds: float) -> None:
        """Starts counting now."""
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
        """Opens the file, making it if need be, and takes no lock yet.

        Raises:
            FolderUnusable: The file cannot be opened for writing.
        """
        self.path = path
        self._owner = os.getpid()
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise FolderUnusable(
                f"The file {path} of the embedded MongoDB cannot be opened ({error.strerror});"
                " choose a folder that can be written to."
            ) from error
        _open_locks.add(self)

    def __enter__(self) -> "FileLock":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Lets go and closes."""
        self.close()

    @property
    def held_here(self) -> bool:
        """Whether this process still has the file open and is the one that opened it."""
        return not self._file.closed and self._owner == os.getpid()

    def try_exclusive(self) -> bool:
        """Takes the lock alone, if nobody has it."""
        return self._try(fcntl.LOCK_EX)

    def wait_exclusive(self, deadline: Deadline) -> bool:
        """Takes the lock alone, waiting for its turn; false if the time ran out."""
        return self._wait(fcntl.LOCK_EX, deadline)

    def wait_shared(self, deadline: Deadline) -> bool:
        """Takes the lock together with others, waiting for a single holder to let go."""
        return self._wait(fcntl.LOCK_SH, deadline)

    def unlock(self) -> None:
        """Lets go of the lock and keeps the file open."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of the lock and closes the file; a second time does nothing."""
        if self.held_here:
            # Closing alone would leave the lock with a copy made by a fork that Python did not see.
            with contextlib.suppress(OSError):
                self.unlock()
        self._file.close()

    def write(self, text: str) -> None:
        """Replaces the file's text; for the holder of the lock."""
        self._file.truncate(0)
        self._file.write(text.encode())

    def is_current(self) -> bool:
        """Whether the path still leads to the file that is locked here."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # A file system that stutters has not lost the file.
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
                    f"The file system of {self.path.parent} does not support file locks (flock);"
                    " put the embedded MongoDB's folder on a local disk or set MONGO_URI."
                ) from error
            raise
        return True


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_forget_in_child)
