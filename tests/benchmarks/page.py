"""The page of figures: kept part by part, drawn anew from all that is kept."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil, floor, log10
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from pydantic import BaseModel

from measuring import Curve, Report, Row

HEADER = """\
# Figures

Made by `python tests/benchmarks --page docs`; nothing on this page is written by hand.

Machines differ, and a shared one differs from minute to minute. So read **ratios**: both sides
of a ratio were measured in turns within one run, and above 1 ours is the faster one, unless the
row is about memory, latency or a limit. Rates and times say the order of magnitude only.
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
    sections = [_section(file.parent, name, part) for name, part in sorted(kept.parts.items())]
    (folder / "figures.md").write_text("\n".join([HEADER, *sections]))


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
        lines += [*_rows(part.report.rows), ""]
    lines += [f"{part.measured_at:%Y-%m-%d}, load {part.load}: {part.machine}.", ""]
    return "\n".join(lines)


def _points(curve: Curve) -> list[str]:
    sizes = sorted({size for line in curve.lines.values() for size in line})
    return _as_table(
        [f"{curve.title}, {curve.unit}", *(f"{size:,} {curve.over}" for size in sizes)],
        [
            [name, *(_short(line[size]) if size in line else "" for size in sizes)]
            for name, line in curve.lines.items()
        ],
    )


def _rows(rows: list[Row]) -> list[str]:
    return _as_table(["what", "measured", "reference", "ratio (range)", "wanted"], rows)


def _as_table(titles: list[str], rows: list[list[str]] | list[Row]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw(curve: Curve, file: Path) -> None:
    """A line for each, with both axes logarithmic: what is flat does not grow."""
    # Text stays text, and the same figures make the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "score-ledger"})
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, line in curve.lines.items():
        sizes = sorted(line)
        axes.plot(sizes, [line[size] for size in sizes], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel=curve.over, ylabel=curve.unit, title=curve.title)
    # Whole powers of ten, so that what is nearly flat looks so.
    values = [value for line in curve.lines.values() for value in line.values()]
    axes.set_ylim(10 ** floor(log10(min(values))), 10 ** ceil(log10(max(values))))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, metadata={"Date": None, "Creator": None})
