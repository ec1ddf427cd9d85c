"""Measuring in turns, and the table that comes out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pydantic import BaseModel
from rich.table import Table


class Row(NamedTuple):
    """What was measured, against what, how many times as fast, and what is wanted."""

    what: str
    measured: str
    reference: str
    ratio: str
    wanted: str


class Curve(BaseModel):
    """How figures grow with the work: each line has a value for every size."""

    title: str
    unit: str
    over: str
    """What a size is a number of."""
    lines: dict[str, dict[int, float]] = {}


class Report(BaseModel):
    """What was measured."""

    rows: list[Row] = []
    curves: dict[str, Curve] = {}

    def add(
        self, what: str, *, measured: str, reference: str, ratios: list[float], wanted: str
    ) -> None:
        spread = f"{median(ratios):.2f}"
        if len(ratios) > 1:
            spread += f"  ({min(ratios):.2f} to {max(ratios):.2f})"
        self.rows.append(Row(what, measured, reference, spread, wanted))

    def draw(self, title: str, *, unit: str, over: str, size: int, **values: float) -> None:
        """Add a point to each of a curve's lines; lines are named with underscores for spaces."""
        curve = self.curves.setdefault(title, Curve(title=title, unit=unit, over=over))
        for name, value in values.items():
            curve.lines.setdefault(name.replace("_", " "), {})[size] = value

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
