"""Which processes there are, and waiting for their end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from concurrency import until


def processes_naming(*words: str | Path) -> list[int]:
    """Return those that live and have each of the words on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # A zombie's command line is empty, so it counts as gone.
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if all(os.fsencode(word) in line for word in words):
                found.append(int(entry.name))
    return found


def await_end_of_those_naming(folder: Path) -> None:
    """Wait until there are none; one that is just ending may be seen."""
    until(lambda: not processes_naming(folder), every_seconds=0.02)
