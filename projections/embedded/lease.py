"""A user's lease of the server, and what the last user does on leaving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from projections.embedded.errors import MongoUnavailable
from projections.embedded.locks import Deadline, FileLock
from projections.embedded.processes import running_mongod, stop_supervisor

if TYPE_CHECKING:
    from projections.embedded.layout import Layout

# Longer than a slow stop by somebody else may take.
_RELEASE_PATIENCE_SECONDS: Final = 150.0


class Lease:
    """One user's hold on the server, which runs for as long as there is one."""

    def __init__(self, layout: Layout, users: FileLock) -> None:
        """Hold ``users``, a lock that was already taken; use ``take()`` instead."""
        self._layout = layout
        self._users = users

    @classmethod
    def take(cls, layout: Layout, deadline: Deadline) -> Self:
        """Become a user; wait while the last ones' server is being stopped.

        Raises:
            MongoUnavailable: if the stop did not end in time.
        """
        users = FileLock(layout.users_lock)
        try:
            joined = users.wait_shared(deadline)
        except BaseException:
            users.close()
            raise
        if joined:
            return cls(layout, users)
        users.close()
        raise MongoUnavailable(
            f"the MongoDB in {layout.folder} was being stopped by somebody else for more than "
            f"{deadline.seconds:g} s: see {layout.log}"
        )

    def release(self) -> None:
        """Stop being a user and, if nobody else is one, stop the server before returning.

        A second time, or in a forked child of the holder, it does nothing.
        """
        if not self._users.held_here:
            self._users.close()
            return
        try:
            self._leave()
        finally:
            self._users.close()

    def _leave(self) -> None:
        if not self._users.is_current():
            # The folder was removed, and what stands in its place is not ours to stop. The
            # supervisor sees it too, and ends a server that has lost its files.
            return
        with FileLock(self._layout.release_lock) as turn:
            # One leaver at a time. Two at once would each take the other for somebody who stays.
            if not turn.wait_exclusive(Deadline(_RELEASE_PATIENCE_SECONDS)):
                return
            self._users.unlock()
            if self._users.try_exclusive():
                stop_server(self._layout)


def stop_server(layout: Layout) -> None:
    """End the supervisor and the mongod of a folder; for whoever holds ``users.lock`` alone."""
    stop_supervisor(layout)
    # Still there only if the supervisor was killed, and nobody came by to start another one.
    orphan = running_mongod(layout)
    if orphan is not None:
        orphan.stop()
