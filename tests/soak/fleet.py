"""All processes of one soak, and what becomes of those that end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from command_line import COMMAND
from replica_set import ReplicaSet
from soak.checking import paused
from soak.event_stores import Restore, SoakedStore
from soak.processes import Program, script
from soak.writer import THREADS

WRITERS = 2
WORKERS = 2
STORE_REPLACED = "score-ledger rebuild --adopt"
_LATE_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0


@dataclass
class Fleet:
    """Writers, workers, an application, and the commands that an operator runs beside them."""

    store: SoakedStore
    replica_set: ReplicaSet
    database: str
    folder: Path
    seed: int
    deviations: list[str] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    untold: list[tuple[int, int]] = field(default_factory=list)
    """From the beginning of each restore until its cure, when the ledger may refuse to answer."""

    def __post_init__(self) -> None:
        self.env = {
            **self.store.env,
            "MONGO_URI": self.replica_set.uri,
            "MONGO_DATABASE": self.database,
            "SCORE_LEDGER_BATCH_SIZE": "200",
            "SCORE_LEDGER_FOLDER": str(self.folder / "embedded"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONFAULTHANDLER": "1",  # so that a program that hangs can be asked where
        }
        self.outputs: dict[Program, Path] = {}
        self.writers = [
            self._printing("writer", "writer.py", f"writer-{number}") for number in range(WRITERS)
        ]
        self.application = self._printing("application", "application.py", "application")
        self.workers = [
            self._program("worker", [COMMAND, "project", "--follow"], log=f"worker-{number}.log")
            for number in range(WORKERS)
        ]
        self.rebuilds: list[Program] = []
        self._drops: list[Program] = []
        self._cure: Program | None = None
        self._uncured_since: int | None = None
        self._commands = 0

    @property
    def programs(self) -> list[Program]:
        """What runs all the time."""
        return [*self.writers, self.application, *self.workers]

    @property
    def is_being_cured(self) -> bool:
        """Whether a restore has begun that no ``rebuild --adopt`` has answered yet."""
        return self._uncured_since is not None

    def start(self, program: Program) -> None:
        if program.process is None:
            program.start()

    def stop_programs(self) -> None:
        """End everything well that uses the event store."""
        everything = [*self.programs, *self.rebuilds, *self._drops]
        for program in everything:
            program.terminate()
        # One that has hardly begun is ended by the signal itself, and rebuilds say that they are
        # not done.
        well = {None, 0, -signal.SIGTERM, 128 + signal.SIGTERM}
        for program in everything:
            code = program.collect()
            if code not in well:
                self._judge(program, code)
        self.rebuilds.clear()
        self._drops.clear()

    def thaw(self) -> None:
        for program in [*self.programs, *self.rebuilds, *self._drops]:
            program.thaw()

    def start_rebuild(self) -> Program:
        rebuild = self._start_command("rebuild", "rebuild")
        self.rebuilds.append(rebuild)
        return rebuild

    def start_drop(self) -> None:
        self._drops.append(self._start_command("drop", "rebuild", "--drop-old"))

    def restore_begins(self) -> None:
        self._uncured_since = time.monotonic_ns()

    def restored(self, restore: Restore) -> None:
        self.restores.append(restore)

    def start_cure(self) -> None:
        self._cure = self._start_command("rebuild --adopt", "rebuild", "--adopt")

    def kill_cure(self) -> bool:
        """Kill the cure and begin it anew; false if there is none."""
        if self._cure is None or not self._cure.runs:
            return False
        self._cure.kill()
        self.start_cure()
        return True

    def look(self) -> None:
        """Notice what has ended, judge it, and go on."""
        for program in self.programs:
            if program.process is not None and not program.runs:
                code = program.collect()
                self._judge(program, code)
                if not self.is_being_cured:
                    self.start(program)
        for commands in (self.rebuilds, self._drops):
            for command in commands.copy():
                if not command.runs:
                    commands.remove(command)
                    code = command.collect()
                    if code:
                        self._judge(command, code)
        if self._cure is not None and not self._cure.runs:
            self._end_cure()

    def _end_cure(self) -> None:
        assert self._cure is not None
        code = self._cure.collect()
        if code:
            self.deviations.append(f"rebuild --adopt ended with {code}: {self._cure.said}")
        self._cure = None
        assert self._uncured_since is not None
        self.untold.append((self._uncured_since, time.monotonic_ns()))
        self._uncured_since = None
        for program in self.programs:
            self.start(program)

    def _judge(self, program: Program, code: int | None) -> None:
        """Whoever ends by itself has to say that the event store is another one, and be right."""
        cured = self.untold[-1][1] if self.untold else 0
        is_late = time.monotonic_ns() - cured > _LATE_SECONDS * 10**9
        if STORE_REPLACED not in program.said or (is_late and not self.is_being_cured):
            self.deviations.append(f"a {program.kind} ended with {code}: {program.said[-5000:]}")

    def pause(self, token: str) -> None:
        """Make writers pause, between two calls."""
        # Whole or not at all, as somebody may be reading it.
        written = self._pause_file.with_suffix(".new")
        written.write_text(token)
        written.replace(self._pause_file)
        self._until(
            lambda: all(
                paused(output, token) >= (THREADS if program in self.writers else 1)
                for program, output in self.outputs.items()
            ),
            "writers did not pause",
        )

    def resume(self) -> None:
        self._pause_file.unlink()

    def settle(self) -> None:
        """Wait until all commands have ended."""
        self._until(
            lambda: not self.rebuilds and not self._drops and not self.is_being_cured,
            "commands did not end",
        )

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            self.look()
            if time.monotonic() > deadline:
                states = [(p.kind, p.runs, p.frozen) for p in [*self.programs, *self.rebuilds]]
                raise AssertionError(f"{what} within {_PATIENCE_SECONDS:g} s: {states}")
            time.sleep(0.1)

    def stacks(self) -> str:
        """Where all programs are; it ends them."""
        for program in self.programs:
            if program.process is not None:
                program.process.send_signal(signal.SIGABRT)
                program.process.wait()
        return "\n".join(f"{program.kind}: {program.said[-6000:]}" for program in self.programs)

    def kill_all(self) -> None:
        for program in [*self.programs, *self.rebuilds, *self._drops, self._cure]:
            if program is not None:
                program.kill()

    @property
    def _pause_file(self) -> Path:
        return self.folder / "pause"

    def _printing(self, kind: str, program_file: str, name: str) -> Program:
        output = self.folder / f"{name}.jsonl"
        output.touch()
        arguments = script(program_file, name, str(output), str(self._pause_file), str(self.seed))
        program = self._program(kind, arguments, log=f"{name}.log")
        self.outputs[program] = output
        return program

    def _start_command(self, kind: str, *arguments: str) -> Program:
        self._commands += 1
        program = self._program(kind, [COMMAND, *arguments], log=f"command-{self._commands}.log")
        program.start()
        return program

    def _program(self, kind: str, arguments: list[str], *, log: str) -> Program:
        return Program(kind, arguments, self.env, self.folder / log)
