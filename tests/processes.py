"""Which processes there are, and waiting for their end."""

from __future__ import annotations

import os
from pathlib import Path

from concurrency import until
from projections.embedded.processes import _command_line


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
