"""Measuring in turns, and the table that comes out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.table import Table


@dataclass
class Report:
    """Rows of: what was measured, against what, the ratio, and what is wanted."""

    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def add(
        self, what: str, *, measured: str, reference: str, ratios: list[float], wanted: str
    ) -> None:
        spread = f"{median(ratios):.2f}"
        if len(ratios) > 1:
            spread += f"  ({min(ratios):.2f} to {max(ratios):.2f})"
        self.rows.append((what, measured, reference, spread, wanted))

    def table(self) -> Table:
        table = Table(title="Benchmarks", title_justify="left")
        for title in ("what", "measured", "reference", "ratio: median (range)", "wanted"):
            table.add_column(title)
        for row in self.rows:
            table.add_row(*row)
        return table


def peak_memory_kb() -> int:
    """Peak resident memory of this process since it began, from ``/proc``.

    Not ``ru_maxrss``: on Linux a program begins with the peak of the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise LookupError("the peak memory of a process is known from Linux only")


def seconds(work: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started


def in_turns(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turns, so that a machine that slows down slows both."""
    # The inputs were made beforehand; the collector must not walk them again in every round.
    gc.collect()
    gc.freeze()
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        turn = [(mine, first), (theirs, second)]
        # Whoever goes first finds the caches cold, so they take turns in that too.
        for times, work in turn if number % 2 else reversed(turn):
            times.append(seconds(work, clock=clock))
    return mine, theirs
