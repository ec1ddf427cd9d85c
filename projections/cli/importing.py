"""``score-ledger import``: grants from a file of JSON lines, as often as you like."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from projections.cli.console import (
    FolderOption,
    JsonOption,
    err,
    out,
    print_json,
    progress_bar,
    shown,
    stop_on_signals,
)
from projections.jsonl import BadLine, Line, parse_grant, read_lines
from projections.opening import open_scoring
from projections.settings import Settings
from scoring import BatchFailed, Grant, GrantStatus, InvalidGrant, Scoring, StreamHasGap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Event

_LINES_AT_ONCE = 1000


@dataclass
class ImportSummary:
    """What an import did.

    Attributes:
        lines: Lines read, blank ones aside.
        recorded: Grants that were new.
        duplicate: Grants that were recorded before, word for word.
        conflict: Grants whose id was recorded before with another payload.
        rejected: Lines that are not grants.
        seconds: How long it took.
        interrupted: Whether it was stopped before the end.
    """

    lines: int = 0
    recorded: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every line is in the ledger now."""
        return not (self.conflict or self.rejected or self.interrupted)


@dataclass
class GrantImport:
    """Imports lines into a ledger.

    Attributes:
        scoring: The ledger.
        on_bad_line: Told of every line that is not in the ledger afterwards, and why.
        on_progress: Told after every chunk, with the offset reached in bytes.
    """

    scoring: Scoring
    on_bad_line: Callable[[Line, str], None]
    on_progress: Callable[[ImportSummary, int], None] = lambda _summary, _offset: None
    summary: ImportSummary = field(default_factory=ImportSummary)

    def run(self, lines: Iterable[Line], *, stop: Event | None = None) -> ImportSummary:
        """Import all lines, a thousand to a transaction, until the end or until ``stop``."""
        started = time.monotonic()
        iterator = iter(lines)
        while chunk := list(islice(iterator, _LINES_AT_ONCE)):
            if stop is not None and stop.is_set():
                self.summary.interrupted = True
                break
            self._import(chunk)
            self.summary.seconds = time.monotonic() - started
            self.on_progress(self.summary, chunk[-1].end)
        return self.summary

    def _import(self, chunk: list[Line]) -> None:
        parsed: list[tuple[Line, Grant]] = []
        for line in chunk:
            self.summary.lines += 1
            try:
                parsed.append((line, parse_grant(line.raw)))
            except (BadLine, InvalidGrant) as error:
                self._reject(line, str(error))
        while parsed:
            try:
                receipts = self.scoring.grant_many([grant for _, grant in parsed])
            except BatchFailed as failed:
                # One grant that its user cannot take must not stop the others.
                if not isinstance(failed.__cause__, InvalidGrant | StreamHasGap):
                    raise
                line, _ = parsed.pop(failed.index)
                self._reject(line, failed.reason)
                receipts = failed.receipts_so_far
            for (line, _), receipt in zip(parsed, receipts, strict=False):
                if receipt.status is GrantStatus.RECORDED:
                    self.summary.recorded += 1
                elif receipt.status is GrantStatus.DUPLICATE:
                    self.summary.duplicate += 1
                else:
                    self.summary.conflict += 1
                    self.on_bad_line(
                        line, "CONFLICT: this grant id was recorded before with another payload"
                    )
            parsed = parsed[len(receipts) :]

    def _reject(self, line: Line, reason: str) -> None:
        self.summary.rejected += 1
        self.on_bad_line(line, reason)


def import_(
    file: Annotated[str, typer.Argument(help="A file of JSON lines, or - for standard input.")],
    reject: Annotated[
        Path | None,
        typer.Option(
            "--reject",
            help="Keep the lines that were not imported in this file, to be mended and imported.",
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Import grants, one JSON object a line.

    Fields: user_id, grant_id, key, category, source, amount, granted_at (ISO 8601 with offset);
    camelCase is taken too, an unknown field is an error. A bad line is reported with its number
    and does not stop the others. Importing a file again adds nothing, so an import that was
    interrupted is simply run again. Exit code 1 if any line is not in the ledger afterwards.

    Example line: {"user_id":"ada","grant_id":"quiz-7-ada","key":"quiz:history:7",
    "category":"content","source":"quiz","amount":25,"granted_at":"2026-11-22T09:30:00Z"}
    """
    with ExitStack() as stack:
        stream, size = _opened(file, stack)
        rejects = stack.enter_context(reject.open("wb")) if reject else None
        scoring = stack.enter_context(open_scoring(Settings.load(folder=folder)))
        stop = stack.enter_context(stop_on_signals())
        bar = stack.enter_context(progress_bar("grants"))
        task = bar.add_task(f"importing {shown(Path(file).name)}", total=size, done=0)

        def on_bad_line(line: Line, reason: str) -> None:
            err.print(f"[yellow]line {line.number}:[/] {shown(reason)}")
            if rejects is not None:
                rejects.write(line.raw if line.raw.endswith(b"\n") else line.raw + b"\n")

        def on_progress(summary: ImportSummary, offset: int) -> None:
            bar.update(task, completed=offset, done=summary.lines)

        summary = GrantImport(scoring, on_bad_line, on_progress).run(_lines(stream), stop=stop)
    _print_summary(summary, reject, json=json)
    if not summary.ok:
        raise typer.Exit(1)


def _opened(file: str, stack: ExitStack) -> tuple[BinaryIO, int | None]:
    if file == "-":
        return sys.stdin.buffer, None
    path = Path(file)
    try:
        return stack.enter_context(path.open("rb")), path.stat().st_size or None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _lines(stream: BinaryIO) -> Iterator[Line]:
    try:
        yield from read_lines(stream)
    except OSError as error:
        raise ValueError(f"the input cannot be read: {error.strerror}") from None


def _print_summary(summary: ImportSummary, reject: Path | None, *, json: bool) -> None:
    if json:
        values: dict[str, Any] = dict(vars(summary))
        print_json({**values, "seconds": round(summary.seconds, 3)})
        return
    rate = f", {summary.lines / summary.seconds:,.0f} lines/s" if summary.seconds else ""
    out.print(
        f"[bold]{summary.recorded:,}[/] recorded, [bold]{summary.duplicate:,}[/] duplicates, "
        f"[bold]{summary.conflict:,}[/] conflicts, [bold]{summary.rejected:,}[/] rejected "
        f"[dim]({summary.seconds:.1f} s{rate})[/]"
    )
    if summary.interrupted:
        err.print("interrupted: run the same import again to finish it; nothing counts twice")
    if reject is not None and (summary.rejected or summary.conflict):
        err.print(f"the lines that were not imported are in {shown(str(reject))}")
