"""Opening and closing the embedded server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from projections.embedded.binary import find_mongod
from projections.embedded.diagnosis import Postmortem
from projections.embedded.errors import MongoUnavailable, translated
from projections.embedded.launch import Launch, ServerDied, free_port
from projections.embedded.layout import Layout
from projections.embedded.lease import Lease
from projections.embedded.locks import Deadline, FileLock
from projections.embedded.processes import running_mongod, runs_elsewhere, supervisor_runs
from projections.embedded.replica_set import await_primary
from projections.embedded.supervisor import Order

if TYPE_CHECKING:
    from collections.abc import Sequence

_POLL_SECONDS: Final = 0.05
_ATTEMPTS: Final = 5
_NOTE_SECONDS: Final = 1.0


class EmbeddedServer:
    """One user's hold on a folder's server; close it, or use it as a context manager.

    Attributes:
        folder: The folder, absolute.
        uri: The server's address for a MongoDB client, password included. It stays valid until
            ``close()``.
    """

    def __init__(self, layout: Layout, lease: Lease, *, uri: str) -> None:
        """Hold a lease that was taken; use ``open_server()`` instead."""
        self.folder = layout.folder
        self.uri = uri
        self._lease = lease

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop using the server. The last user stops it and returns when it is gone.

        A second call does nothing, and neither does one in a forked child.

        Raises:
            MongoUnavailable: if the folder's files cannot be used any more.
        """
        with translated():
            self._lease.release()


def open_server(
    folder: Path,
    *,
    mongod: str | None = None,
    extra_args: Sequence[str] = (),
    timeout_seconds: float = 120.0,
) -> EmbeddedServer:
    """Join the server that runs on ``folder``, or start one there.

    Args:
        folder: Where the data is or shall be; made if it does not exist. On a local disk.
        mongod: Path of the program to run; see ``find_mongod``.
        extra_args: Further mongod options. They count for the one who starts the server.
        timeout_seconds: How long to wait for others who are starting or stopping it, and for the
            server itself, which after a crash with much data may need a while.

    Raises:
        MongoUnavailable: if there is no server to be had; the message says why and what helps.
    """
    if not Path("/proc/self/cmdline").exists():
        raise MongoUnavailable("the embedded MongoDB needs Linux: set MONGO_URI to a replica set")
    program = find_mongod(mongod)
    deadline = Deadline(timeout_seconds)
    with translated():
        layout = Layout.create(folder)
        lease = Lease.take(layout, deadline)
        try:
            uri = _join_or_start(layout, str(program), tuple(extra_args), deadline)
        except BaseException:
            # Ctrl-C included: whatever was started would run on with nobody to use it.
            lease.release()
            raise
    return EmbeddedServer(layout, lease, uri=uri)


def _join_or_start(
    layout: Layout, program: str, extra_args: tuple[str, ...], deadline: Deadline
) -> str:
    with FileLock(layout.start_lock) as turn:
        # One at a time; those who wait find the server there when their turn comes.
        if turn.wait_exclusive(deadline):
            return _try_to_join_or_start(layout, program, extra_args, deadline)
    raise MongoUnavailable(
        f"somebody else has been starting the MongoDB in {layout.folder} for more than "
        f"{deadline.seconds:g} s: see {layout.log}"
    )


def _try_to_join_or_start(
    layout: Layout, program: str, extra_args: tuple[str, ...], deadline: Deadline
) -> str:
    attempts = 0
    while attempts < _ATTEMPTS and not deadline.passed:
        postmortem = Postmortem(layout)
        try:
            if supervisor_runs(layout):
                joined = _join(layout, deadline)
            else:
                # A port that was lost to somebody else is not tried again.
                preferred = None if attempts else layout.read_record().get("port")
                attempts += 1
                order = Order(program, free_port(preferred), extra_args)
                joined = _start(layout, order, deadline)
        except ServerDied as death:
            if attempts >= _ATTEMPTS or not (death.unexplained or postmortem.port_was_taken()):
                raise MongoUnavailable(postmortem.explain(death, program=program)) from None
            joined = None
        if joined is not None:
            return joined
        time.sleep(_POLL_SECONDS)
    raise MongoUnavailable(
        f"the MongoDB in {layout.folder} was neither joined nor started in {attempts} attempts "
        f"and {deadline.seconds:g} s: see {layout.log} and {layout.supervisor_log}"
    )


def _join(layout: Layout, deadline: Deadline) -> str | None:
    """Wait for the server of a supervisor that is there; ``None`` if it has none at present."""
    running = running_mongod(layout)
    if running is None:
        _check_that_it_can_be_seen(layout)
        return None

    def check() -> None:
        if not running.alive:
            raise ServerDied

    try:
        return await_primary(running, layout, check=check, deadline=deadline)
    except ServerDied:
        return None  # its supervisor starts it again, or ends; then it is our turn


def _check_that_it_can_be_seen(layout: Layout) -> None:
    if not runs_elsewhere(layout):
        return
    # The note may be an old run's, with a new supervisor that has not written its own yet.
    time.sleep(_NOTE_SECONDS)
    if runs_elsewhere(layout) and supervisor_runs(layout):
        raise MongoUnavailable(
            f"the MongoDB in {layout.folder} is run by a process that cannot be seen from here, as "
            "one in another container: set MONGO_URI to a server that both can reach, or give each "
            "a folder of its own"
        )


def _start(layout: Layout, order: Order, deadline: Deadline) -> str | None:
    """Start a supervisor; ``None`` if somebody else's was faster."""
    with Launch(layout, order) as launch:
        running = launch.mongod(deadline)
        if running is None:
            return None
        return await_primary(running, layout, check=launch.check, deadline=deadline)
