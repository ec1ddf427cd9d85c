"""A user's lease of the server, and what the last user does on leaving."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from projections.embedded.errors import MongoUnavailable
from projections.embedded.locks import Deadline, FileLock
from projections.embedded.processes import running_mongod, stop_supervisor, supervisor_runs

if TYPE_CHECKING:
    from projections.embedded.layout import Layout

# Longer than a slow stop by somebody else may take.
_RELEASE_PATIENCE_SECONDS: Final = 150.0
# Longer than a supervisor needs to look at its users, and to stop a server that nobody uses.
_UNSEEN_STOP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.02


class Lease:
    """One user's hold on the server, which runs for as long as there is one.

    The text of ``users.lock`` is what the last user to leave wishes: until when, on the monotonic
    clock, the supervisor is to keep the server for the next one. Whoever comes takes the wish away,
    so that a user that is killed wishes nothing.
    """

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
        lease = cls(layout, FileLock(layout.users_lock))
        try:
            lease._wait(deadline)
        except BaseException:
            lease._users.close()
            raise
        return lease

    def end_unused(self, deadline: Deadline) -> bool:
        """Have the server ended if nobody else uses it, and stay a user; false if it goes on.

        Raises:
            MongoUnavailable: if the stop did not end in time.
        """
        with FileLock(self._layout.release_lock) as turn:
            if not turn.wait_exclusive(deadline):
                return False
            self._users.unlock()
            alone = self._users.try_exclusive()
            if alone:
                stop_server(self._layout)
                self._users.unlock()
        if alone:
            # Its processes may not be seen from here, as those of another container.
            self._await_supervisors_end()
        self._wait(deadline)
        return not supervisor_runs(self._layout)

    def release(self, *, linger_seconds: float = 0.0) -> None:
        """Stop being a user and, if nobody else is one, stop the server before returning.

        A second time, or in a forked child of the holder, it does nothing.

        Args:
            linger_seconds: Have the server stand still, and leave the stop to the supervisor, which
                does it after that time unless somebody comes; 0 for a stop now.
        """
        if not self._users.held_here:
            self._users.close()
            return
        try:
            self._leave(linger_seconds)
        finally:
            self._users.close()

    def _wait(self, deadline: Deadline) -> None:
        if not self._users.wait_shared(deadline):
            raise MongoUnavailable(
                f"the MongoDB in {self._layout.folder} was being stopped by somebody else for more "
                f"than {deadline.seconds:g} s: see {self._layout.log}"
            )
        self._users.write("")  # what the one before wished is over

    def _await_supervisors_end(self) -> None:
        patience = Deadline(_UNSEEN_STOP_SECONDS)
        while supervisor_runs(self._layout) and not patience.passed:
            time.sleep(_POLL_SECONDS)

    def _leave(self, linger_seconds: float) -> None:
        if not self._users.is_current():
            # The folder was removed, and what stands in its place is not ours to stop. The
            # supervisor sees it too, and ends a server that has lost its files.
            return
        with FileLock(self._layout.release_lock) as turn:
            # One leaver at a time. Two at once would each take the other for somebody who stays.
            if not turn.wait_exclusive(Deadline(_RELEASE_PATIENCE_SECONDS)):
                return
            self._users.unlock()
            if not self._users.try_exclusive():
                return
            mongod = running_mongod(self._layout)
            # A server whose supervisor was killed would linger for ever.
            if linger_seconds and mongod is not None and supervisor_runs(self._layout):
                # While nobody can come who would have it go on.
                mongod.freeze()
                self._users.write(str(time.monotonic() + linger_seconds))
            else:
                stop_server(self._layout)


def stop_server(layout: Layout) -> None:
    """End the supervisor and the mongod of a folder; for whoever holds ``users.lock`` alone."""
    stop_supervisor(layout)
    # Still there only if the supervisor was killed, and nobody came by to start another one.
    orphan = running_mongod(layout)
    if orphan is not None:
        orphan.stop()
