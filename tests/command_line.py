"""The real command, as a process of its own."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

on_both_stores = pytest.mark.parametrize("cli", ["sqlite", "mongo"], indirect=True)
"""Has a test run with events in a file, and in MongoDB beside the read model."""

COMMAND = str(Path(sys.executable).with_name("score-ledger"))
PATIENT = (
    sys.executable,
    "-c",
    "from projections.cli import interrupts, main; interrupts._PATIENCE_SECONDS = 600.0; main()",
)
"""The same, which is not interrupted in its work, however long that takes to stop in order."""

_HERE = Path(__file__).parent


@cache
def ready_command() -> list[str]:
    """Return a command that does as ``score-ledger`` does, without half a second of imports."""
    folder = TemporaryDirectory(prefix="commands-")
    address = f"{folder.name}/socket"
    server = subprocess.Popen(
        [sys.executable, str(_HERE / "ready_commands.py"), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def end() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    return [sys.executable, "-I", "-S", str(_HERE / "ready_command.py"), address]


def run_python(
    *arguments: str | Path, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, with further variables of the environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@dataclass
class CommandLine:
    """Runs ``score-ledger`` in a folder.

    A call is served by a process that has the imports behind it; ``start`` runs what is installed.
    """

    cwd: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *args: str, stdin: bytes | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        changes = {"COLUMNS": "120", **self.env, **env}
        # What Python itself looks at, it looks at when it starts.
        as_installed = any(name.startswith("PYTHON") for name in changes)
        done = subprocess.run(
            [*([COMMAND] if as_installed else ready_command()), *args],
            cwd=self.cwd,
            env={**os.environ, **changes},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=400,
        )
        return subprocess.CompletedProcess(
            done.args,
            done.returncode,
            # A command may have been told to print in another encoding.
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def start(self, *args: str, program: tuple[str, ...] = (COMMAND,)) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*program, *args],
            cwd=self.cwd,
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
