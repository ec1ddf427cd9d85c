"""Measuring in turns and in processes, and the table that comes out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Final, ParamSpec, TypeVar

from pydantic import BaseModel
from rich.table import Table

P = ParamSpec("P")
T = TypeVar("T")

SPAWN: Final = get_context("spawn")
"""Makes processes that begin anew, as a command does, and inherit nothing."""


TITLES: Final = ("what", "measured", "reference", "ratio (range)", "wanted")


class Row(BaseModel):
    """What was measured, beside what; their ratio is the median of the rounds."""

    what: str
    unit: str
    measured: float
    reference: str
    against: float
    ratio: float
    lowest: float
    highest: float
    at_least: float | None = None
    at_most: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row of a table, a cell for each title."""
        against = f"{short(self.against)}{self.unit}"
        return (
            self.what,
            f"{short(self.measured)}{self.unit}",
            f"{self.reference}: {against}" if self.reference else against,
            self.ratio_and_range(),
            f"{self.wanted()}, missed" if self.is_missed() else self.wanted(),
        )

    def ratio_and_range(self) -> str:
        if self.lowest == self.highest:
            return f"{self.ratio:.2f}"
        return f"{self.ratio:.2f} ({self.lowest:.2f} to {self.highest:.2f})"

    def wanted(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def is_missed(self) -> bool:
        """As it is printed, so that nobody wonders at a 1.00 that is more than 1."""
        ratio = round(self.ratio, 2)
        return (self.at_least is not None and ratio < self.at_least) or (
            self.at_most is not None and ratio > self.at_most
        )


class Curve(BaseModel):
    """How figures grow with the work: each line has a value for every size."""

    title: str
    unit: str
    over: str
    """What a size is a number of."""
    lines: dict[str, dict[int, float]] = {}

    def sizes(self) -> list[int]:
        return sorted({size for line in self.lines.values() for size in line})


class Report(BaseModel):
    """What was measured."""

    scale: float = 1
    """How many times as much work as usual was done: less to try a part out, or more."""
    rows: list[Row] = []
    curves: dict[str, Curve] = {}

    def scaled(self, number: int) -> int:
        return max(1, round(number * self.scale))

    def sizes(self, most: int) -> list[int]:
        """From 10,000, each ten times the one before."""
        return [10**power for power in range(4, len(str(self.scaled(most))))] or [10_000]

    def rates(
        self,
        what: str,
        size: int,
        times: Sequence[float],
        reference: str,
        reference_times: Sequence[float],
        *,
        at_least: float | None = None,
    ) -> None:
        """Compare how much is done a second, from the seconds that each round took."""
        measured, against = ([size / each for each in some] for some in (times, reference_times))
        self.compare(what, "/s", measured, reference, against, at_least=at_least)

    def times(
        self,
        what: str,
        times: Sequence[float],
        reference: str,
        reference_times: Sequence[float],
        *,
        calls: int = 1,
        at_most: float | None = None,
    ) -> None:
        """Compare how long a call takes, from the seconds of some in each round."""
        measured, against = (
            [each / calls * 1000 for each in some] for some in (times, reference_times)
        )
        self.compare(what, " ms", measured, reference, against, at_most=at_most)

    def compare(
        self,
        what: str,
        unit: str,
        measured: Sequence[float],
        reference: str,
        against: Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add a row: what was measured in each round, and beside what."""
        ratios = [a / b for a, b in zip(measured, against, strict=True)]
        self.rows.append(
            Row(
                what=what,
                unit=unit,
                measured=median(measured),
                reference=reference,
                against=median(against),
                ratio=median(ratios),
                lowest=min(ratios),
                highest=max(ratios),
                at_least=at_least,
                at_most=at_most,
            )
        )

    def peaks(self, work: str, peaks: dict[int, float]) -> None:
        """Compare the peak memory of a process, in MiB, between little and much work."""
        (few, less), (many, more) = sorted(peaks.items())
        what = f"peak memory of {work}: {many:,}"
        self.compare(what, " MiB", [more], f"{few:,}", [less], at_most=1.2)

    def draw(self, title: str, unit: str, over: str, size: int, values: dict[str, float]) -> None:
        """Add a point to each of a curve's lines."""
        curve = self.curves.setdefault(title, Curve(title=title, unit=unit, over=over))
        for name, value in values.items():
            curve.lines.setdefault(name, {})[size] = value

    def table(self) -> Table:
        table = Table(*TITLES, title="Benchmarks", title_justify="left")
        for row in self.rows:
            table.add_row(*row.cells())
        return table


def short(value: float) -> str:
    """A figure with three digits, or more before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function of a module returns in a process of its own."""
    with ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_memory() -> float:
    """Peak resident memory of this process since it began, in MiB, from ``/proc``.

    Not ``ru_maxrss``: on Linux a program begins with the peak of the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
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
