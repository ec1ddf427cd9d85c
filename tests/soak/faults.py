"""What is done to the processes of the soak, at random moments but by a seed."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random
from threading import Thread

from pymongo.errors import PyMongoError

from replica_set import Node
from soak.event_stores import Backup, Restore, StoreInUse
from soak.fleet import Fleet
from soak.processes import Program

Action = Callable[[], None]

REBUILDS_AT_ONCE = 2


class Agenda:
    """Actions and when they are due; all are done by the thread that asks for it."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def after(self, seconds: float, action: Action) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), action))

    def run_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    def run_all(self) -> None:
        """Undo everything now."""
        while self._due:
            heapq.heappop(self._due)[2]()


class Faults:
    """Picks a fault, does it, and puts on the agenda how it ends."""

    def __init__(self, fleet: Fleet, randomness: Random) -> None:
        self.counts: Counter[str] = Counter()
        self.agenda = Agenda()
        self._fleet = fleet
        self._random = randomness
        self._node_out: Node | None = None
        self._backup: Backup | None = None
        self._restoring: Restoring | None = None
        self._faults: dict[Action, int] = {
            self._kill_a_node: 3,
            self._freeze_a_node: 3,
            self._step_down: 3,
            self._kill_a_program: 5,
            self._freeze_a_program: 5,
            self._rebuild: 3,
            self._kill_a_rebuild: 1,
            self._freeze_a_rebuild: 1,
            self._drop_old: 1,
            self._back_up: 2,
            self._restore: 2,
        }

    def do_one(self) -> None:
        faults, weights = zip(*self._faults.items(), strict=True)
        self._random.choices(faults, weights)[0]()

    def end_all(self) -> None:
        """Everything runs again, and what was begun is finished."""
        if self._restoring is not None:
            self._fleet.thaw()  # The restore may be waiting for a lock that one of them holds.
            self._restoring.join()
        self.agenda.run_all()

    def _kill_a_node(self) -> None:
        node = self._choose_node()
        if node is None:
            return
        self.counts[f"SIGKILL of a {self._role_of(node)} mongod"] += 1
        self._fleet.replica_set.kill(node)
        self._until_it_is_back(node, self._fleet.replica_set.restart, longest_seconds=6)

    def _freeze_a_node(self) -> None:
        node = self._choose_node()
        if node is None:
            return
        self.counts[f"SIGSTOP of a {self._role_of(node)} mongod"] += 1
        self._fleet.replica_set.freeze(node)
        self._until_it_is_back(node, self._fleet.replica_set.thaw, longest_seconds=15)

    def _choose_node(self) -> Node | None:
        """One at a time, so that there is a majority; the primary as often as the others."""
        if self._node_out is not None:
            return None
        replica_set = self._fleet.replica_set
        primary = replica_set.primary()
        if self._random.random() < 0.6:
            return primary
        return self._random.choice([node for node in replica_set.nodes if node is not primary])

    def _role_of(self, node: Node) -> str:
        return "primary" if node is self._fleet.replica_set.primary() else "secondary"

    def _until_it_is_back(
        self, node: Node, bring_back: Callable[[Node], None], *, longest_seconds: float
    ) -> None:
        self._node_out = node

        def end() -> None:
            bring_back(node)
            self._node_out = None

        self.agenda.after(self._random.uniform(0.5, longest_seconds), end)

    def _step_down(self) -> None:
        if self._node_out is not None:
            return
        try:
            self._fleet.replica_set.step_down()
        except PyMongoError:
            return  # There was none just then, or it was busy with the last one.
        self.counts["step-down"] += 1

    def _kill_a_program(self) -> None:
        program = self._random.choice(self._fleet.programs)
        if program.process is None:
            return
        self.counts[f"SIGKILL of a {program.kind}"] += 1
        program.kill()
        self.agenda.after(self._random.uniform(0, 3), lambda: self._fleet.start(program))

    def _freeze_a_program(self) -> None:
        program = self._random.choice(self._fleet.programs)
        if program.process is None or program.frozen:
            return
        self.counts[f"SIGSTOP of a {program.kind}"] += 1
        self._freeze(program, longest_seconds=10)

    def _freeze(self, program: Program, *, longest_seconds: float) -> None:
        program.freeze()
        self.agenda.after(self._random.uniform(0.2, longest_seconds), program.thaw)

    def _rebuild(self) -> None:
        if len(self._fleet.rebuilds) < REBUILDS_AT_ONCE and not self._fleet.is_being_cured:
            self.counts["rebuild begun"] += 1
            rebuild = self._fleet.start_rebuild()
            if self._random.random() < 0.3:
                self.agenda.after(self._random.uniform(0, 3), lambda: self._kill_rebuild(rebuild))

    def _kill_a_rebuild(self) -> None:
        if self._fleet.rebuilds:
            self._kill_rebuild(self._random.choice(self._fleet.rebuilds))

    def _kill_rebuild(self, rebuild: Program) -> None:
        if rebuild.runs:
            self.counts["SIGKILL of a rebuild"] += 1
            rebuild.kill()

    def _freeze_a_rebuild(self) -> None:
        if self._fleet.rebuilds:
            rebuild = self._random.choice(self._fleet.rebuilds)
            if rebuild.runs and not rebuild.frozen:
                self.counts["SIGSTOP of a rebuild"] += 1
                self._freeze(rebuild, longest_seconds=6)

    def _drop_old(self) -> None:
        if not self._fleet.is_being_cured:
            self.counts["drop of old generations begun"] += 1
            self._fleet.start_drop()

    def _back_up(self) -> None:
        if self._restoring is None:
            self._backup = self._fleet.store.back_up()
            self.counts["backup"] += 1

    def _restore(self) -> None:
        backup = self._backup
        if backup is None or self._restoring is not None or self._fleet.is_being_cured:
            return
        self._backup = None  # What it holds is another history than what comes now.
        self._fleet.restore_begins()
        if self._random.random() < 0.3:
            self.counts["restore with everything stopped"] += 1
            self._fleet.stop_programs()
            self._restored(until_it_is_free(lambda: self._fleet.store.restore_unused(backup)))
            for program in self._fleet.programs:
                self._fleet.start(program)
            return
        self.counts["restore under living programs"] += 1
        # In a thread, since whoever holds a lock may be frozen until the agenda says otherwise.
        self._restoring = Restoring(lambda: self._fleet.store.restore(backup))
        self._restoring.start()
        self.agenda.after(0, self._await_restore)

    def _await_restore(self) -> None:
        assert self._restoring is not None
        if self._restoring.is_alive():
            self.agenda.after(0.1, self._await_restore)
            return
        assert self._restoring.done is not None, "nothing was put back"
        self._restored(self._restoring.done)
        self._restoring = None

    def _restored(self, restore: Restore) -> None:
        self._fleet.restored(restore)
        self.agenda.after(self._random.uniform(0, 5), self._cure)

    def _cure(self) -> None:
        self._fleet.start_cure()
        if self._random.random() < 0.3:
            self.agenda.after(self._random.uniform(0.3, 3), self._kill_the_cure)

    def _kill_the_cure(self) -> None:
        if self._fleet.kill_cure():
            self.counts["SIGKILL of a rebuild --adopt"] += 1


class Restoring(Thread):
    """Puts a backup back as soon as it can."""

    def __init__(self, restore: Callable[[], Restore]) -> None:
        super().__init__()
        self._restore = restore
        self.done: Restore | None = None

    def run(self) -> None:
        self.done = until_it_is_free(self._restore)


def until_it_is_free(restore: Callable[[], Restore]) -> Restore:
    while True:
        try:
            return restore()
        except StoreInUse:
            continue
