"""Which processes serve a folder, told from the kernel's own records rather than from notes.

A pid in a file may have been given to another process since. Before one is believed, or signalled,
its command line must name the folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from projections.embedded.locks import Deadline, FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from projections.embedded.layout import Layout

SUPERVISOR_SCRIPT: Final = "run_supervisor.py"
MONGOD_PATIENCE_SECONDS: Final = 60.0
# The supervisor needs longer: it is waiting for mongod in its turn.
_SUPERVISOR_PATIENCE_SECONDS: Final = MONGOD_PATIENCE_SECONDS + 15.0
_POLL_SECONDS: Final = 0.01
_STARTING_SECONDS: Final = 30.0
_CHANGING_SECONDS: Final = 60.0
_STOPPING_SECONDS: Final = 10.0
_PF_KTHREAD: Final = 0x00200000  # of include/linux/sched.h


@dataclass(frozen=True)
class Mongod:
    """A mongod that runs on the data of an embedded folder."""

    pid: int
    port: int
    data: Path
    has_key: bool
    """Whether it asks for the folder's key; one that an earlier release started does not."""

    @property
    def alive(self) -> bool:
        """Whether that process, and no later one with its pid, still runs."""
        return _read_mongod(self.pid, self.data) is not None

    def stop(self) -> None:
        """Ask it to shut down, wait until it is gone, and kill it if it takes far too long."""
        _terminate(self.pid, lambda: self.alive, MONGOD_PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it at once; the journal keeps what was committed."""
        if self.alive:
            _signal(self.pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Have it stand still: it costs nothing then, and its files are as after a crash."""
        if self.alive:
            _signal(self.pid, signal.SIGSTOP)
            deadline = Deadline(_STOPPING_SECONDS)
            while not _stands_still(self.pid) and not deadline.passed:
                time.sleep(_POLL_SECONDS)

    def thaw(self) -> None:
        """Have it go on; one that does not stand still is not disturbed."""
        if self.alive:
            _signal(self.pid, signal.SIGCONT)


def running_mongod(layout: Layout) -> Mongod | None:
    """Return the mongod that runs on the folder's data, if there is one.

    The supervisor's note and mongod's own lock file are both asked: a supervisor that was killed
    at the wrong time may have left only the second. Both may have come with a copy of the folder,
    while the mongod that they name still has the files that were in its place before. One that was
    started a moment ago, and has not opened any yet, is waited for.
    """
    lock = layout.data / "mongod.lock"
    pids = [layout.read_record().get("pid")]
    with contextlib.suppress(OSError, ValueError):
        pids.append(int(lock.read_bytes()))
    for pid in pids:
        found = pid and _read_mongod(pid, layout.data)
        if found and _has_locked(found, lock):
            return found
    return None


def thaw_original(layout: Layout) -> None:
    """Have the server of the folder that this one was copied from go on, if it stands still.

    A mongod first asks at the address that is in its data, and waits for half a minute if whoever
    listens there keeps silent.
    """
    record = layout.read_record()
    pid, port = record.get("pid"), record.get("port")
    if pid and _option(_command_line(pid), b"--port") == str(port).encode():
        with contextlib.suppress(PermissionError):
            _signal(pid, signal.SIGCONT)


def pid_namespace() -> int:
    """Return a number for the processes that can be seen here: another container sees others."""
    return Path("/proc/self/ns/pid").stat().st_ino


def runs_elsewhere(layout: Layout) -> bool:
    """Tell whether the folder's server was started where its processes cannot be seen from here."""
    return layout.read_record().get("pid_namespace", pid_namespace()) != pid_namespace()


def supervisor_runs(layout: Layout) -> bool:
    """Tell whether somebody holds the supervisor's lock."""
    with FileLock(layout.supervisor_lock) as lock:
        return not lock.try_exclusive()


def sees_supervisor(layout: Layout) -> bool:
    """Tell whether one runs, or is about to, among the processes that can be seen from here."""
    return any(_is_supervisor(int(entry.name), layout) for entry in Path("/proc").glob("[0-9]*"))


def stop_supervisor(layout: Layout) -> None:
    """Have the supervisor, if there is one, stop its mongod and end; wait until it has."""
    try:
        pid = int(layout.supervisor_lock.read_bytes())
    except (OSError, ValueError):
        return
    _terminate(pid, lambda: _is_supervisor(pid, layout), _SUPERVISOR_PATIENCE_SECONDS)


def _is_supervisor(pid: int, layout: Layout) -> bool:
    words = _command_line(pid)
    return os.fsencode(layout.folder) in words and any(
        word.endswith(SUPERVISOR_SCRIPT.encode()) for word in words
    )


def _read_mongod(pid: int, data: Path) -> Mongod | None:
    words = _command_line(pid)
    if _option(words, b"--dbpath") != os.fsencode(data):
        return None
    try:
        port = int(_option(words, b"--port") or b"")
    except ValueError:
        return None
    return Mongod(pid=pid, port=port, data=data, has_key=_option(words, b"--keyFile") is not None)


def _has_locked(mongod: Mongod, lock: Path) -> bool:
    """Tell whether the lock that it has open is what is there, rather than what was there once."""
    deadline = Deadline(_STARTING_SECONDS)
    while mongod.alive and not deadline.passed:
        with contextlib.suppress(OSError):
            for opened in Path(f"/proc/{mongod.pid}/fd").iterdir():
                # Moved or deleted since, it is shown as being elsewhere, or as "... (deleted)".
                if opened.readlink().name.startswith(lock.name):
                    return lock.exists() and opened.samefile(lock)
        time.sleep(_POLL_SECONDS)
    return False


def _option(words: list[bytes], name: bytes) -> bytes | None:
    return next((value for word, value in pairwise(words) if word == name), None)


def _command_line(pid: int) -> list[bytes]:
    """Return the words of a process's command line; none for one that is gone or a zombie.

    A process has none while its program is being loaded, from a slow disk for a twentieth of a
    second. One that is about to end gives back its memory, and its command line with it, before its
    files and ports. Both are waited for.
    """
    deadline = Deadline(_CHANGING_SECONDS)
    while True:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return []
        if line or not _is_changing(pid) or deadline.passed:
            return line.split(b"\0")
        time.sleep(_POLL_SECONDS)


def _is_changing(pid: int) -> bool:
    """Tell whether a process that has no command line had one, or will have one in a moment."""
    try:
        fields = _stat(Path(f"/proc/{pid}"))
    except OSError:
        return False
    state, flags, threads = fields[0], int(fields[6]), int(fields[17])
    has_ended = state in {b"Z", b"X"} and threads <= 1
    return not has_ended and not flags & _PF_KTHREAD


def _stands_still(pid: int) -> bool:
    """Tell whether a signal to stop has reached all threads of a process, if there is one.

    On a busy machine some go on for a while: one has to get to run to tell the others.
    """
    try:
        states = [_stat(thread)[0] for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # some have just ended
        return not Path(f"/proc/{pid}").exists()
    return not set(states) - {b"T", b"t", b"Z", b"X"}


def _stat(process_or_thread: Path) -> list[bytes]:
    """Return what the kernel says of it, from its state on; OSError if there is none."""
    # The name, in brackets, may hold blanks and brackets.
    return (process_or_thread / "stat").read_bytes().rpartition(b") ")[2].split()


def _terminate(pid: int, still_there: Callable[[], bool], patience_seconds: float) -> None:
    for number, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, 10.0)):
        if not still_there():
            return
        _signal(pid, number)
        _signal(pid, signal.SIGCONT)  # who stands still hears nothing
        deadline = Deadline(patience)
        while still_there() and not deadline.passed:
            time.sleep(_POLL_SECONDS)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
