"""The three plots of the drift page, as inline SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from projections.words import counted

if TYPE_CHECKING:
    from datetime import datetime

    from projections.drift.report import Drift

_WIDTH: Final = 640
_SIDE: Final = 460
_MARGIN: Final = 56
_ROW: Final = 22
_TIMELINE_HEIGHT: Final = 300
_Y_TICKS: Final = 4
_X_TICKS: Final = 4
_KILO: Final = 1000
_WHOLE: Final = 100
_MILLION: Final = 10**6


def scatter(drift: Drift) -> str:
    """Old against new, a dot for users of about the same totals, on logarithmic axes."""
    points = sorted(drift.scatter.points(), key=lambda point: -point[2])
    highest = max([10.0, *(max(old, new) for old, new, _ in points)])
    decades = math.ceil(math.log10(highest))
    length = _SIDE - _MARGIN - 20

    def at(value: float) -> float:
        return math.log10(1 + value) / math.log10(1 + 10**decades) * length

    def xy(old: float, new: float) -> tuple[float, float]:
        return _MARGIN + at(old), _SIDE - _MARGIN - at(new)

    parts = []
    for power in range(-1, decades + 1):
        value = 0 if power < 0 else 10**power
        x, y = xy(value, value)
        parts += [
            _line("grid", x, 20, x, _SIDE - _MARGIN),
            _line("grid", _MARGIN, y, _SIDE - 20, y),
            _text(x, _SIDE - _MARGIN + 18, short(value), "middle"),
            _text(_MARGIN - 8, y + 4, short(value), "end"),
        ]
    start, end = xy(0, 0), xy(10**decades, 10**decades)
    parts.append(_line("same-line", *start, *end))
    parts += [
        _text((_MARGIN + _SIDE - 20) / 2, _SIDE - 12, "recomputed total (old)", "middle"),
        f'<g transform="translate(14 {(_SIDE - _MARGIN + 20) / 2:.0f}) rotate(-90)">'
        + _text(0, 0, "ledger balance (new)", "middle")
        + "</g>",
    ]
    parts += [_dot(*xy(old, new), old, new, count) for old, new, count in points]
    description = (
        f"{drift.users:,} users by their two totals. Dots on the diagonal have the same score both "
        "ways, below it the ledger gives less, above it more. Larger dots stand for more users."
    )
    return _svg("Old total against ledger balance", description, _SIDE, _SIDE, parts)


def histogram(drift: Drift) -> str:
    """How many users differ by how much."""
    bars = drift.histogram.bars()
    most = max([1, *(count for *_, count in bars)])
    width_of_all, left, right = 480, 150, 60
    parts = []
    for index, (low, high, count) in enumerate(bars):
        y = 10 + index * _ROW
        width = count / most * (width_of_all - left - right)
        kind = "same" if low == 0 else "higher" if low > 0 else "lower"
        label = range_label(low, high)
        width = max(2.0, width) if count else 0.0
        parts += [
            _text(left - 10, y + 14, label, "end"),
            _bar(kind, left, y + 3, width, f"{label}: {counted(count, 'user')}"),
            _text(left + width + 8, y + 14, f"{count:,}", "start"),
        ]
    description = "Users by the difference of their totals, new less old, in points."
    height = 20 + len(bars) * _ROW
    return _svg("Differences", description, width_of_all, height, parts)


def timeline(drift: Drift) -> str:
    """The ledger's total over time, and the old total as it is today."""
    points, unit = drift.timeline, drift.timeline_unit
    first, last = points[0].at, points[-1].at
    highest = max(points[-1].total, drift.old, 1)
    left, right, top, bottom = 70, 20, 20, 40
    width, height = _WIDTH - left - right, _TIMELINE_HEIGHT - top - bottom
    seconds = max(1.0, (last - first).total_seconds())

    def x(at: datetime) -> float:
        return left + (at - first).total_seconds() / seconds * width

    def y(total: float) -> float:
        return top + height - total / highest * height

    # Points count from when they were earned, so the line climbs in steps.
    steps = " ".join(f"H {x(point.at):.1f} V {y(point.total):.1f}" for point in points)
    parts = []
    for value in _ticks(highest):
        parts += [
            _line("grid", left, y(value), left + width, y(value)),
            _text(left - 8, y(value) + 4, short(value), "end"),
        ]
    dates = [first + (last - first) * tick / _X_TICKS for tick in range(_X_TICKS + 1)]
    for at in {_date(at, unit): at for at in reversed(dates)}.values():
        anchor = "start" if at == first else "end" if at == last else "middle"
        parts.append(_text(x(at), _TIMELINE_HEIGHT - 14, _date(at, unit), anchor))
    parts += [
        f'<path class="total" d="M {left} {y(0):.1f} {steps} H {left + width}"/>',
        _line("old-line", left, y(drift.old), left + width, y(drift.old)),
        _text(left + 6, y(drift.old) - 6, f"recomputed total today: {drift.old:,}", "start"),
    ]
    description = (
        f"The sum of all grants by the {unit} in which they were earned: from "
        f"{_date(first, unit)} to {_date(last, unit)} it grows to {points[-1].total:,} points. "
        f"The dashed line is the recomputed total of today, {drift.old:,} points."
    )
    return _svg("The ledger's total over time", description, _WIDTH, _TIMELINE_HEIGHT, parts)


def short(value: float) -> str:
    """Return a number for an axis, e.g. ``20k``."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            scaled = value / size
            if scaled >= _KILO:
                return f"{scaled:.0e}{unit}".replace("e+", "e")
            return f"{scaled:.0f}{unit}" if scaled >= _WHOLE else f"{scaled:.3g}{unit}"
    return f"{value:.3g}"


def signed(value: int) -> str:
    """Return a difference in points with its sign, for people."""
    return f"{value:+,}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _ticks(highest: int) -> list[int]:
    """Round values from 0 to at most ``highest``, about four of them."""
    rough = max(1, highest // _Y_TICKS)
    size: int = 10 ** (len(str(rough)) - 1)
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    return list(range(0, highest + 1, step))


def _date(at: datetime, unit: str) -> str:
    day = at.date().isoformat()
    return {"day": day, "month": day[:7], "year": day[:4]}[unit]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def range_label(low: int, high: int) -> str:
    """Return a range of differences for people, e.g. ``+20 to +49``."""
    if max(-low, high) >= _MILLION:
        # Long numbers would leave no room for the bars; the upper end is one more, and round.
        near, far = sorted((abs(low), abs(high)))
        sign = "\N{MINUS SIGN}" if high < 0 else "+"
        return f"{sign}{short(near)} to {sign}{short(far + 1)}"
    return signed(low) if low == high else f"{signed(low)} to {signed(high)}"


def _dot(x: float, y: float, old: float, new: float, count: int) -> str:
    kind = "same" if old == new else "higher" if new > old else "lower"
    about = "" if count == 1 else "about "
    title = f"{counted(count, 'user')}: old {about}{old:,.0f}, new {about}{new:,.0f}"
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{3.5 + math.log2(count):.1f}"'
    return f'<circle class="{kind}" {place}><title>{title}</title></circle>'


def _bar(kind: str, x: float, y: float, width: float, title: str) -> str:
    place = f'x="{x}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" rx="2"'
    return f'<rect class="{kind}" {place}><title>{escape(title)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, description: str, width: int, height: int, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" style="max-width: {width}px">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
