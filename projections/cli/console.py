"""What all commands share: where they print, and the options they have in common."""

from __future__ import annotations

import codecs
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from projections.words import counted

if TYPE_CHECKING:
    from projections.ledger import ScoreLedger

out = Console(highlight=False)
"""Results: in a terminal their lines end between words, elsewhere they are as long as they are."""

out.soft_wrap = not out.is_terminal

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress, notes and errors."""

SPINNER = "line"
"""The one that every terminal can show."""

_GAP = 2
"""Blanks between two columns of a table."""

_ENOUGH_COLUMNS = 10_000
_PLAIN = {"→": "->", "…": "...", "█": "#", "−": "-"}  # noqa: RUF001 - a minus sign

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="FOLDER",
        help="Embedded folder with the events and MongoDB's data, unless others are named. "
        "Default: $SCORE_LEDGER_FOLDER or .score-ledger.",
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        help="How long to wait for a worker to project what was recorded before.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


class _Stage(Protocol):
    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


class RateColumn(ProgressColumn):
    """How many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate, from the field ``done`` where the bar counts something else.

        The field ``begun`` has how much was done when the bar was begun.
        """
        done = task.fields.get("done", task.completed) - task.fields.get("begun", 0)
        seconds = task.finished_time or task.elapsed or 0
        rate = f"{done / seconds:,.0f}" if done and seconds else "-"
        return Text(f"{rate} {self._unit}/s", style="cyan")


def progress_bar(unit: str) -> Progress:
    """Return a progress bar with rate and time left, silent where nobody watches."""
    return Progress(
        SpinnerColumn(SPINNER),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err if err.is_terminal else Console(stderr=True, quiet=True),
    )


@contextmanager
def stage_bar(unit: str, first: str, verb: str = "") -> Iterator[Callable[[_Stage], None]]:
    """Show a progress bar that begins anew with each stage, and yield what is told of them."""
    with progress_bar(unit) as bar:
        task = bar.add_task(first, total=None)
        stage = ""

        def show(progress: _Stage) -> None:
            nonlocal stage
            # What was done before a stage is first told of is no part of its pace: its time is not
            # known, and perhaps it was done by a command that was interrupted.
            is_new = stage != progress.stage
            change = partial(bar.reset, begun=progress.done) if is_new else bar.update
            stage = progress.stage
            change(
                task,
                description=f"{verb}{stage}",
                completed=progress.done,
                total=progress.total or None,
            )

        yield show


def speak_plainly() -> None:
    """Have what a terminal's encoding lacks printed as what it has, instead of failing."""
    codecs.register_error("score-ledger", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="score-ledger")


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end


def new_table(title: str, *columns: str) -> Table:
    """Return a table without frames, so that there is room for what is in it.

    Columns that begin with # are of numbers, those with ~ of words.
    """
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for name in columns:
        table.add_column(name.lstrip("#~"), justify="right" if name.startswith("#") else "left")
    return table


def fits(table: Table, *, prose: Collection[str] = ()) -> bool:
    """Tell whether a table needs no more room than there is, if those columns go on below."""
    gaps = _GAP * (len(table.columns) - 1)
    return not out.is_terminal or gaps + sum(_least_widths(table, prose)) <= out.width


def print_table(table: Table, *, prose: Collection[str] = ()) -> None:
    """Print a table: in a terminal as wide as that is, elsewhere as wide as what is in it.

    Where a terminal is too narrow, the columns of prose go on in the next line, between words, and
    everything else is kept whole; only if that is not enough, ids and keys are broken, too. Nothing
    is cut.

    Args:
        table: The table.
        prose: The headings of the columns that are words to be read, not ids, keys or numbers.
    """
    whole = fits(table, prose=prose)
    for column, width in zip(table.columns, _least_widths(table, prose), strict=True):
        column.overflow = "fold"
        if column.header not in prose:
            column.no_wrap = whole or column.justify == "right"
        elif not whole:
            column.width = width
    if out.is_terminal:
        out.print(table)
        return
    out.width = _ENOUGH_COLUMNS
    with out.capture() as captured:
        out.print(table)
    # The last cells are filled up with blanks, as many as the longest has.
    out.out(*(line.rstrip() for line in captured.get().splitlines()), sep="\n", highlight=False)


def _least_widths(table: Table, prose: Collection[str]) -> list[int]:
    """The longest word of a column of prose, and the longest cell of any other."""
    options = out.options.update(width=_ENOUGH_COLUMNS)
    widths = []
    for column in table.columns:
        cells = (out.render_str(str(cell)) for cell in (column.header, *column.cells))
        measured = [Measurement.get(out, options, cell) for cell in cells]
        shortest = column.header in prose
        widths.append(max(cell.minimum if shortest else cell.maximum for cell in measured))
    return widths


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    # Escapes mean the same to JSON, and every terminal and pipe has the characters they need.
    only_ascii = not out.encoding.startswith("utf")
    out.out(json.dumps(value, default=_plain, ensure_ascii=only_ascii), highlight=False)


def shown(text: str) -> str:
    """Return text from outside in a form that cannot style, move or reorder the terminal."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def note_lag(ledger: ScoreLedger) -> None:
    """Say so if the read model is behind what is recorded, or stands for something else."""
    status = ledger.status()
    lag = status.lag_events
    if status.event_store_replaced is not None:
        err.print(f"[bold red]warning:[/] {shown(status.event_store_replaced)}")
    elif lag:
        err.print(
            f"[yellow]note:[/] the read model is {counted(lag, 'event')} behind: run "
            "score-ledger project"
        )


def _plain(value: object) -> object:
    """Return what JSON has for a value that it does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return str(value)  # a document that somebody else wrote may hold anything
