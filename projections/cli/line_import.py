"""Importing lines of JSON: grants, or contributions."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from projections.cli.console import err, print_json, progress_bar, shown
from projections.cli.importer import (
    Import,
    ImportSummary,
    Rejects,
    import_all,
    parsed,
    print_counts,
    say_what_was_left,
)
from projections.cli.interrupts import stop_on_signals
from projections.cli.jsonl import Line, parse_contribution, parse_grant, parse_time, read_lines
from projections.cli.ledgers import open_events
from projections.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_STANDARD_INPUT = "-"


def import_lines(
    file: str,
    *,
    contributions: bool,
    overwrite: bool,
    granted_at: str | None,
    reject: Path | None,
    folder: Path | None,
    json: bool,
) -> None:
    """Import what of a file can be taken; exit with 1 if anything cannot."""
    with ExitStack() as stack:
        stream, size = _opened(file, stack)
        inputs = [] if file == _STANDARD_INPUT else [Path(file)]
        rejects = Rejects(reject, Settings.from_environment(folder=folder), stack, *inputs)
        moment = None if granted_at is None else parse_time(granted_at)
        scoring = stack.enter_context(open_events(folder))
        importer: Import[Line, Any]
        if contributions:
            record = partial(scoring.contribute_many, overwrite=overwrite)
            importer = Import(record, rejects.add, conflict_is_failure=False)
            entries: Any = parsed(_lines(stream), partial(parse_contribution, granted_at=moment))
        else:
            importer = Import(scoring.grant_many, rejects.add)
            entries = parsed(_lines(stream), parse_grant)
        with stop_on_signals() as stop, progress_bar("lines") as bar:
            task = bar.add_task(f"importing {shown(Path(file).name)}", total=size, done=0)
            importer.on_progress = lambda summary: bar.update(
                task, completed=None if size is None else stream.tell(), done=summary.lines
            )
            show = partial(_print_summary, json=json)
            summary = import_all(importer, entries, rejects, stop=stop, bar=bar, show=show)
    show(summary)
    if contributions:
        say_what_was_left(summary, overwrite=overwrite)
    if not importer.ok:
        if reject is not None:
            err.print(f"the lines that were not imported are in {shown(str(reject))}")
        raise typer.Exit(1)


def _opened(file: str, stack: ExitStack) -> tuple[BufferedReader, int | None]:
    if file == _STANDARD_INPUT:
        return cast("BufferedReader", sys.stdin.buffer), None
    path = Path(file)
    try:
        return stack.enter_context(path.open("rb")), path.stat().st_size or None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _lines(stream: BufferedReader) -> Iterator[Line]:
    try:
        yield from read_lines(stream)
    except OSError as error:
        raise ValueError(f"the input cannot be read: {error.strerror}") from None


def _print_summary(summary: ImportSummary, *, json: bool) -> None:
    if json:
        values: dict[str, Any] = dict(vars(summary))
        print_json({**values, "seconds": round(summary.seconds, 3)})
    else:
        print_counts(summary, ("duplicates", "conflicts", "lines"))
