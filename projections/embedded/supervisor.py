"""The process that owns mongod: starts it, restarts it, and stops it when nobody uses it any more.

It runs apart from every user, so that none of them takes the server along when it dies. Nothing
outside the standard library and this package's own light modules is imported: the process lives as
long as the server and should cost next to nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import zlib
from collections import deque
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Self

from projections.embedded.layout import REPLICA_SET, Layout
from projections.embedded.locks import Deadline, FileLock
from projections.embedded.processes import Mongod, pid_namespace, running_mongod

_POLL_SECONDS: Final = 0.25
_START_POLL_SECONDS: Final = 0.02
_RESTARTS_PER_MINUTE: Final = 5
_LOG_LIMIT_BYTES: Final = 10_000_000
_LOG_CHECK_SECONDS: Final = 30.0
# Percentages of the cache that may be changed before pages are evicted, and writers have to help.
_EVICTION: Final = (
    "eviction_dirty_target=20,eviction_dirty_trigger=40,"
    "eviction_updates_target=15,eviction_updates_trigger=30"
)

_STOP_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT}
# Blocked and waited for, so that they end a pause early instead of interrupting work. A hang-up is
# among them to be ignored: the server outlives the terminal that it was started from.
_HEARD_SIGNALS: Final = {*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGHUP}


@dataclass(frozen=True)
class Order:
    """What a supervisor is to run."""

    mongod: str
    port: int
    extra_args: tuple[str, ...] = ()

    def encode(self) -> str:
        """Return it as one command line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what ``encode()`` made into an argument."""
        fields: dict[str, Any] = json.loads(text)
        return cls(fields["mongod"], fields["port"], tuple(fields["extra_args"]))

    def checksum(self, layout: Layout) -> int:
        """Return a number for the program, as it is on disk now, and its options but the port."""
        program = Path(self.mongod).stat()
        options = _command(self, layout, port=0)
        return zlib.crc32(repr((options, program.st_size, program.st_mtime_ns)).encode())


class _Presence(Enum):
    SOMEBODY = auto()
    NOBODY = auto()
    SOMEBODY_LEAVING = auto()


def main(folder: str, order: str) -> None:
    """Detach from the starter and supervise the folder's server until nobody needs it.

    While the starter keeps our standard input open it is still bringing the server up: until then
    a mongod that dies is reported on standard output and not restarted.
    """
    if os.fork():
        # The starter is not to be our parent: it would have to collect us, whenever we end.
        os._exit(0)
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD_SIGNALS)
    layout = Layout(Path(folder))
    with FileLock(layout.supervisor_lock) as lock:
        # Not at once: somebody may be trying the lock to see whether there is one of us.
        if not lock.wait_exclusive(Deadline(2.0)):
            return
        with FileLock(layout.users_lock) as users, FileLock(layout.release_lock) as release:
            supervisor = _Supervisor(
                layout, Order.decode(order), lock=lock, users=users, release=release
            )
            failure = supervisor.run()
    if failure is not None:
        # Only now that the lock is free, since the starter's next step may be to try again.
        _report(**failure)


class _Supervisor:
    def __init__(
        self, layout: Layout, order: Order, *, lock: FileLock, users: FileLock, release: FileLock
    ) -> None:
        self._layout = layout
        self._order = order
        self._lock = lock
        self._users = users
        self._release = release
        self._child: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque()
        self._log_checked = time.monotonic()

    def run(self) -> dict[str, Any] | None:
        """Return what to tell the starter, if the server did not come up."""
        try:
            self._lock.write(str(os.getpid()))
            if self._presence() is _Presence.NOBODY:
                return None  # the starter was killed before it asked for anything
            mongod = running_mongod(self._layout) or self._spawn(self._order.port)
        except OSError as error:
            return {"event": "unstartable", "error": error.strerror or str(error)}
        _report(event="started", pid=mongod.pid, port=mongod.port, has_key=mongod.has_key)
        if not self._starter_finishes(mongod):
            return {"event": "exited", "code": self._child and self._child.wait()}
        _close_standard_streams()
        self._watch(mongod)
        return None

    def _starter_finishes(self, mongod: Mongod) -> bool:
        """Wait until the starter is done, or dead; false if mongod died before that."""
        while mongod.alive:
            if select.select([sys.stdin], [], [], _START_POLL_SECONDS)[0]:
                return True
            if signal.sigpending() & _STOP_SIGNALS:
                return True  # the watch begins with obeying it
        return False

    def _watch(self, mongod: Mongod) -> None:
        while True:
            heard = signal.sigtimedwait(_HEARD_SIGNALS, _POLL_SECONDS)
            if heard is not None and heard.si_signo in _STOP_SIGNALS:
                mongod.stop()
                return
            if not self._users.is_current():
                # The folder was removed, and another may stand in its place. An orderly shutdown
                # would write old data into the new folder's files.
                mongod.kill()
                if self._child is not None:
                    self._child.wait()  # whoever has the folder now waits for our lock
                return
            presence = self._presence()
            if presence is _Presence.NOBODY and not self._lingers(mongod):
                mongod.stop()
                return
            if presence is _Presence.SOMEBODY and not mongod.alive:
                if not self._may_restart():
                    print(f"mongod died too often; see {self._layout.log}", file=sys.stderr)  # noqa: T201 - this stream is our log
                    return
                mongod = self._spawn(mongod.port)
            self._tend_log(mongod)

    def _presence(self) -> _Presence:
        """Tell who uses the server; after ``NOBODY``, arrivals wait until this process is gone."""
        if not self._release.try_exclusive():
            return _Presence.SOMEBODY_LEAVING
        if self._users.try_exclusive():
            return _Presence.NOBODY
        self._release.unlock()
        return _Presence.SOMEBODY

    def _lingers(self, mongod: Mongod) -> bool:
        """Tell, after ``NOBODY``, whether the last user wishes the server kept; let arrivals in."""
        wish = self._users.read()
        if not wish or time.monotonic() >= float(wish) or not mongod.alive:
            return False
        self._users.unlock()
        self._release.unlock()  # last: who has this one takes a locked users' lock for a user
        return True

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - 60:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) <= _RESTARTS_PER_MINUTE

    def _spawn(self, port: int) -> Mongod:
        if self._child is not None:
            self._child.wait()
        self._set_log_aside()
        self._layout.make_key()
        with self._layout.output.open("wb") as output:
            self._child = subprocess.Popen(  # noqa: S603 - the mongod that the user has or chose
                _command(self._order, self._layout, port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # mongod refuses to start under a locale that is named but not installed.
                env={**os.environ, "LC_ALL": "C"},
                # Signals that are blocked here would stay blocked in mongod. No other thread runs.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),  # noqa: PLW1509
            )
        self._layout.write_record(
            pid=self._child.pid,
            port=port,
            pid_namespace=pid_namespace(),
            order=self._order.checksum(self._layout),
        )
        return Mongod(pid=self._child.pid, port=port, data=self._layout.data, has_key=True)

    def _tend_log(self, mongod: Mongod) -> None:
        if time.monotonic() < self._log_checked + _LOG_CHECK_SECONDS:
            return
        self._log_checked = time.monotonic()
        if self._set_log_aside() and mongod.alive:
            os.kill(mongod.pid, signal.SIGUSR1)  # has mongod open its log again

    def _set_log_aside(self) -> bool:
        log = self._layout.log
        with contextlib.suppress(OSError):
            if log.stat().st_size > _LOG_LIMIT_BYTES:
                log.replace(log.with_name(log.name + ".1"))
                return True
        return False


def _command(order: Order, layout: Layout, port: int) -> list[str]:
    return [
        order.mongod,
        *("--dbpath", str(layout.data)),
        *("--port", str(port)),
        *("--bind_ip", "127.0.0.1"),
        *("--replSet", REPLICA_SET),
        # Between members it is their proof of being one, and for us a way in before there is a
        # user. Without the exception for loopback nobody else can make the first one.
        *("--keyFile", str(layout.key)),
        *("--setParameter", "enableLocalhostAuthBypass=false"),
        # What SCRAM repeats to make guessing dear, at every connection's begin. The key is random.
        *("--setParameter", "scramSHA256IterationCount=5000"),
        *("--logpath", str(layout.log)),
        *("--logappend", "--logRotate", "reopen"),
        *("--nounixsocket", "--quiet"),
        # By default half the machine's memory and a twentieth of its disk, which a guest in
        # somebody's application must not take.
        *("--wiredTigerCacheSizeGB", "1"),
        # By default pages are evicted when a twentieth of the cache is changed. Of so small a cache
        # one batch of a catch-up changes more, and its pages cannot go before it is committed:
        # trying all the same took half of the server's time.
        *("--wiredTigerEngineConfigString", _EVICTION),
        *("--oplogSize", "512"),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        # By default 15 seconds, for other members of the set, unless it is primary when it is told.
        *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
        *order.extra_args,
    ]


def _report(**fields: Any) -> None:
    with contextlib.suppress(OSError):  # the starter may be gone
        os.write(1, json.dumps(fields).encode() + b"\n")


def _close_standard_streams() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
