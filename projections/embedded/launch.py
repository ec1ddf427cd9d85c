"""The starter's end of a supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from projections.embedded.errors import MongoUnavailable
from projections.embedded.processes import SUPERVISOR_SCRIPT, Mongod

if TYPE_CHECKING:
    from projections.embedded.layout import Layout
    from projections.embedded.locks import Deadline
    from projections.embedded.supervisor import Order

_POLL_SECONDS: Final = 0.02
# Below what Linux gives to outgoing connections: one of those might have our port when we come
# again. Moving costs time: mongod first looks for itself at its old address, and if whoever listens
# there now accepts and keeps silent, it waits for half a minute.
_PORTS: Final = range(20_000, 30_000)


class ServerDied(Exception):
    """The mongod that was being started, or awaited, is no more.

    Attributes:
        exit_code: As ``subprocess`` has it (negative: a signal); ``None`` if it is not known.
        reason: Why it could not even be executed, where that was so.
    """

    def __init__(self, *, exit_code: int | None = None, reason: str | None = None) -> None:
        super().__init__(reason or f"exit code {exit_code}")
        self.exit_code = exit_code
        self.reason = reason

    @property
    def unexplained(self) -> bool:
        """Whether another process's end may be all there is to it, so that a new try is due."""
        return self.exit_code is None and self.reason is None


def free_port(preferred: int | None) -> int:
    """Return a loopback port that nobody has: the preferred one if it can be had."""
    candidates = random.sample(_PORTS, k=100)
    if preferred is not None:
        candidates.insert(0, preferred)
    for port in candidates:
        with contextlib.suppress(OSError, OverflowError):
            return _bind(port)
    return _bind(0)


def _bind(port: int) -> int:
    with socket.socket() as probe:
        # As mongod does it: connections of the last run that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        chosen: int = probe.getsockname()[1]
        return chosen


class Launch:
    """A supervisor while it is being started; in the ``with`` block it does not restart mongod.

    It takes over the folder's mongod where one runs, and starts one otherwise.
    """

    def __init__(self, layout: Layout, order: Order) -> None:
        """Start the supervisor, which detaches itself from this process."""
        script = Path(__file__).with_name(SUPERVISOR_SCRIPT)
        self._layout = layout
        self._pending = b""
        self._ended = False
        with layout.supervisor_log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own script under our own Python
                # Without site packages: the supervisor needs none, and starts the faster.
                [sys.executable, "-I", "-S", script, layout.folder, order.encode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C at the terminal is meant for its user only
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        """Leave the supervisor to itself; if nobody uses the server by then, it ends it."""
        self._process.__exit__(*exc_info)

    def mongod(self, deadline: Deadline) -> Mongod | None:
        """Return the mongod that the supervisor owns; ``None`` if there was another supervisor.

        Raises:
            ServerDied: if it could not be started.
            MongoUnavailable: if the supervisor did not answer in time.
        """
        while not deadline.passed:
            for report in self._reports(_POLL_SECONDS):
                return Mongod(
                    pid=report["pid"],
                    port=report["port"],
                    data=self._layout.data,
                    has_key=report["has_key"],
                )
            if self._ended:
                return None
        raise MongoUnavailable(
            f"the process that is to start MongoDB in {self._layout.folder} did not answer within "
            f"{deadline.seconds:g} s: see {self._layout.supervisor_log}"
        )

    def check(self) -> None:
        """Raise ``ServerDied`` as soon as the supervisor has said so."""
        for _ in self._reports(0):
            pass
        if self._ended:
            raise ServerDied

    def _reports(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """Return new reports of a server that runs; raise ``ServerDied`` on one of its end."""
        pipe = self._process.stdout
        if pipe is None or self._ended or not select.select([pipe], [], [], timeout_seconds)[0]:
            return []
        read = os.read(pipe.fileno(), 65536)
        self._ended = not read
        *lines, self._pending = (self._pending + read).split(b"\n")
        reports: list[dict[str, Any]] = [json.loads(line) for line in lines]
        for report in reports:
            if report["event"] != "started":
                raise ServerDied(exit_code=report.get("code"), reason=report.get("error"))
        return reports
