"""Which processes there are, and having them stand still, go on and end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from concurrency import until
from projections.embedded.processes import _command_line, _stands_still


def processes_naming(*words: str | Path) -> list[int]:
    """Return those that live and have each of the words on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # A process that is about to end is waited for, since it still has its locks and ports.
        line = b"\0".join(_command_line(int(entry.name)))
        if all(os.fsencode(word) in line for word in words):
            found.append(int(entry.name))
    return found


def await_end_of_those_naming(folder: Path) -> None:
    """Wait until there are none; one that is just ending may be seen."""
    until(lambda: not processes_naming(folder), every_seconds=0.02)


# Whoever sends a signal goes on before it has any effect: on a busy machine by so much that a
# server which was told to stand still, or to end, answers whoever asks it next.


def freeze(pid: int) -> None:
    """SIGSTOP: its connections stay open and are not answered."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: _stands_still(pid))


def thaw(pid: int) -> None:
    """SIGCONT."""
    os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Have them stand still while the block runs."""
    try:
        for pid in pids:
            freeze(pid)
        yield
    finally:
        for pid in pids:
            thaw(pid)


def kill(pid: int) -> None:
    """SIGKILL; its files and ports are free afterwards."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: not any(_command_line(pid)))
