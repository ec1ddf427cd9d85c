"""The processes of the soak: each is one program, which is killed, frozen and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(eq=False)
class Program:
    """A program and the process that it runs in, if it runs.

    Attributes:
        kind: What it is called in the summary.
        arguments: Its command line.
        env: Beside the environment of the tests.
        log: Where what it says goes.
    """

    kind: str
    arguments: Sequence[str]
    env: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False
    _said_before: int = field(default=0, repr=False)

    def start(self) -> None:
        assert self.process is None, f"{self.kind} runs"
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # The kernel ends it with whoever runs the tests, however that ends.
                ["setpriv", "--pdeathsig", "KILL", *self.arguments],
                env={**os.environ, **self.env},
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def said(self) -> str:
        """What it has said since it was last started."""
        return self.log.read_bytes()[self._said_before :].decode(errors="replace").strip()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
        self.collect()

    def terminate(self) -> None:
        """SIGTERM, if it runs."""
        if self.process is not None:
            self.thaw()
            self.process.terminate()

    def collect(self, timeout: float = 60) -> int | None:
        """Wait until it has ended, and return its exit code; one that hangs has to say where."""
        if self.process is None:
            return None
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            code = self.process.wait()
        self.process, self.frozen = None, False
        return code

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)
            self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        self.frozen = False


def script(name: str, *arguments: str) -> list[str]:
    """Return the command line of a program of this folder."""
    return [sys.executable, str(Path(__file__).with_name(name)), *arguments]
