"""Opening and closing the embedded server."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from projections.embedded.binary import find_mongod
from projections.embedded.diagnosis import Postmortem
from projections.embedded.errors import MongoUnavailable, translated
from projections.embedded.launch import Launch, ServerDied, free_port
from projections.embedded.layout import Layout
from projections.embedded.lease import Lease
from projections.embedded.locks import Deadline, FileLock
from projections.embedded.processes import (
    running_mongod,
    runs_elsewhere,
    sees_supervisor,
    supervisor_runs,
    thaw_original,
)
from projections.embedded.replica_set import await_primary
from projections.embedded.supervisor import Order

if TYPE_CHECKING:
    from collections.abc import Sequence

_POLL_SECONDS: Final = 0.05
_ATTEMPTS: Final = 5


class EmbeddedServer:
    """One user's hold on a folder's server; close it, or use it as a context manager.

    Attributes:
        folder: The folder, absolute.
        uri: The server's address for a MongoDB client, password included. It stays valid until
            ``close()``.
    """

    def __init__(self, layout: Layout, lease: Lease, *, uri: str, linger_seconds: float) -> None:
        """Hold a lease that was taken; use ``open_server()`` instead."""
        self.folder = layout.folder
        self.uri = uri
        self._lease = lease
        self._linger_seconds = linger_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop using the server. The last user stops it and returns when it is gone.

        With ``linger_seconds`` it returns at once, and the server goes after that time.

        A second call does nothing, and neither does one in a forked child.

        Raises:
            MongoUnavailable: if the folder's files cannot be used any more.
        """
        with translated():
            self._lease.release(linger_seconds=self._linger_seconds)


def open_server(
    folder: Path,
    *,
    mongod: str | None = None,
    extra_args: Sequence[str] = (),
    timeout_seconds: float = 120.0,
    linger_seconds: float = 0.0,
) -> EmbeddedServer:
    """Join the server that runs on ``folder``, or start one there.

    Args:
        folder: Where the data is or shall be; made if it does not exist. On a local disk.
        mongod: Path of the program to run; see ``find_mongod``.
        extra_args: Further mongod options. Like ``mongod``, they count for the one who starts the
            server; one that nobody uses is started anew if it has others.
        timeout_seconds: How long to wait for others who are starting or stopping it, and for the
            server itself, which after a crash with much data may need a while.
        linger_seconds: How long the server is kept for the next user if this one is the last to
            close it. It stands still meanwhile. 0 stops it at once.

    Raises:
        MongoUnavailable: if there is no server to be had; the message says why and what helps.
        ValueError: if ``linger_seconds`` is negative or not finite.
    """
    if not (linger_seconds >= 0 and math.isfinite(linger_seconds)):
        raise ValueError(f"linger_seconds must be 0 or more, and finite, not {linger_seconds}")
    if not Path("/proc/self/cmdline").exists():
        raise MongoUnavailable("the embedded MongoDB needs Linux: set MONGO_URI to a replica set")
    program = find_mongod(mongod)
    deadline = Deadline(timeout_seconds)
    with translated():
        layout = Layout.create(folder)
        lease = Lease.take(layout, deadline)
        try:
            uri = _join_or_start(layout, lease, Order(str(program), 0, tuple(extra_args)), deadline)
        except BaseException:
            # Ctrl-C included: whatever was started would run on with nobody to use it.
            lease.release()
            raise
    return EmbeddedServer(layout, lease, uri=uri, linger_seconds=linger_seconds)


def _join_or_start(layout: Layout, lease: Lease, order: Order, deadline: Deadline) -> str:
    with FileLock(layout.start_lock) as turn:
        # One at a time; those who wait find the server there when their turn comes.
        if turn.wait_exclusive(deadline):
            return _try_to_join_or_start(layout, lease, order, deadline)
    raise MongoUnavailable(
        f"somebody else has been starting the MongoDB in {layout.folder} for more than "
        f"{deadline.seconds:g} s: see {layout.log}"
    )


def _try_to_join_or_start(layout: Layout, lease: Lease, order: Order, deadline: Deadline) -> str:
    attempts = 0
    while attempts < _ATTEMPTS and not deadline.passed:
        postmortem = Postmortem(layout)
        try:
            if supervisor_runs(layout):
                joined = _join(layout, lease, order, deadline)
            else:
                # A port that was lost to somebody else is not tried again.
                preferred = None if attempts else layout.read_record().get("port")
                attempts += 1
                joined = _start(layout, replace(order, port=free_port(preferred)), deadline)
        except ServerDied as death:
            if attempts >= _ATTEMPTS or not (death.unexplained or postmortem.port_was_taken()):
                raise MongoUnavailable(postmortem.explain(death, program=order.mongod)) from None
            joined = None
        if joined is not None:
            return joined
        time.sleep(_POLL_SECONDS)
    raise MongoUnavailable(
        f"the MongoDB in {layout.folder} was neither joined nor started in {attempts} attempts "
        f"within {deadline.seconds:g} s: see {layout.log} and {layout.supervisor_log}"
    )


def _join(layout: Layout, lease: Lease, order: Order, deadline: Deadline) -> str | None:
    """Wait for the server of a supervisor that is there; ``None`` if it has none at present."""
    running = running_mongod(layout)
    if running is None:
        if _cannot_be_seen(layout) and not lease.end_unused(deadline):
            raise MongoUnavailable(
                f"the MongoDB in {layout.folder} is run by a process that cannot be seen from "
                "here, as one in another container: set MONGO_URI to a server that both can reach, "
                "or give each a folder of its own"
            )
        return None
    if not _is_as_ordered(layout, order) and lease.end_unused(deadline):
        return None

    def check() -> None:
        if not running.alive:
            raise ServerDied

    try:
        return await_primary(running, layout, check=check, deadline=deadline)
    except ServerDied:
        return None  # its supervisor starts it again, or ends; then it is our turn


def _cannot_be_seen(layout: Layout) -> bool:
    # The note may be an old run's, with a supervisor from here that has not written its own yet.
    return runs_elsewhere(layout) and not sees_supervisor(layout) and supervisor_runs(layout)


def _is_as_ordered(layout: Layout, order: Order) -> bool:
    """Tell whether a new server would be no other than the one that runs."""
    return layout.read_record().get("order") == order.checksum(layout) and layout.key.exists()


def _start(layout: Layout, order: Order, deadline: Deadline) -> str | None:
    """Start a supervisor; ``None`` if somebody else's was faster."""
    thaw_original(layout)
    with Launch(layout, order) as launch:
        running = launch.mongod(deadline)
        if running is None:
            return None
        return await_primary(running, layout, check=launch.check, deadline=deadline)
