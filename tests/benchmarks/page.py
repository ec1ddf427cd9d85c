"""The page of figures: kept part by part, drawn anew from all that is kept."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil, floor, log10
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from pydantic import BaseModel

from measuring import TITLES, Curve, Report, short

HEADER = """\
# Figures

Made by `python tests/benchmarks --page docs`; nothing on this page is written by hand.

Machines differ, and a shared one differs from minute to minute. So read **ratios**: of what was
measured to its reference, both taken in turns within one run. What is counted a second is faster
with a ratio above 1, what takes milliseconds or memory is better below. Rates and times say the
order of magnitude only. Both axes of a plot are logarithmic: what is level does not depend on how
much there is.
"""


class Part(BaseModel):
    """What one part of the benchmarks measured, when, on what and beside what."""

    about: str
    measured_at: datetime
    machine: str
    load: float
    report: Report


class Kept(BaseModel):
    """All that was measured, by the name of the part."""

    parts: dict[str, Part] = {}


def keep(folder: Path, name: str, about: str, report: Report) -> None:
    """Put one part's figures in place of its older ones, and draw the page anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "figures" / "figures.json"
    kept = Kept.model_validate_json(file.read_text()) if file.exists() else Kept()
    kept.parts[name] = Part(
        about=about,
        measured_at=datetime.now(UTC).replace(microsecond=0),
        machine=_machine(),
        load=round(os.getloadavg()[2], 1),
        report=report,
    )
    file.parent.mkdir(exist_ok=True)
    file.write_text(kept.model_dump_json(indent=1) + "\n")
    parts = sorted(kept.parts.items())
    sections = [_section(file.parent, name, part) for name, part in parts]
    (folder / "figures.md").write_text("\n".join([HEADER, _missed(parts), *sections]))


def _missed(parts: list[tuple[str, Part]]) -> str:
    rows = [
        (f"[{name}](#{name})", row.what, row.reference, row.ratio_and_range(), row.wanted())
        for name, part in parts
        for row in part.report.rows
        if row.is_missed()
    ]
    bounds = sum(row.wanted() != "" for _, part in parts for row in part.report.rows)
    return "\n".join(
        [
            "## Missed",
            "",
            f"Of {bounds} bounds that were set beforehand, these are not held:",
            "",
            *_as_table(("part", "what", "reference", "ratio (range)", "wanted"), rows),
            "",
        ]
    )


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"eventsourcing {version('eventsourcing')}, pymongo {version('pymongo')}"
    )


def _section(folder: Path, name: str, part: Part) -> str:
    lines = [f"## {name}", "", part.about, ""]
    for curve in part.report.curves.values():
        drawing = folder / f"{re.sub(r'[^a-z0-9]+', '-', f'{name} {curve.title}'.lower())}.svg"
        _draw(curve, drawing)
        lines += [f"![{curve.title}]({folder.name}/{drawing.name})", "", *_points(curve), ""]
    if part.report.rows:
        lines += [*_as_table(TITLES, [row.cells() for row in part.report.rows]), ""]
    load = f"load average {part.load} (its own included)"
    lines += [f"{part.measured_at:%Y-%m-%d}, {load}: {part.machine}.", ""]
    return "\n".join(lines)


def _points(curve: Curve) -> list[str]:
    sizes = curve.sizes()
    return _as_table(
        (curve.unit, *(f"{curve.over}: {size:,}" for size in sizes)),
        [
            (name, *(short(line[size]) if size in line else "" for size in sizes))
            for name, line in curve.lines.items()
        ],
    )


def _as_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ("---",) * len(titles), *rows)]


def _draw(curve: Curve, file: Path) -> None:
    """A line for each, with both axes logarithmic: what is flat does not grow."""
    # Text stays text, and the same figures make the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "score-ledger"})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, line in curve.lines.items():
        sizes = sorted(line)
        axes.plot(sizes, [line[size] for size in sizes], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel=curve.over, ylabel=curve.unit, title=curve.title)
    axes.set_xticks(curve.sizes())
    # Whole powers of ten, so that what is nearly flat looks so.
    values = [value for line in curve.lines.values() for value in line.values()]
    axes.set_ylim(10 ** floor(log10(min(values))), 10 ** ceil(log10(max(values))))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, metadata={"Date": None, "Creator": None})
