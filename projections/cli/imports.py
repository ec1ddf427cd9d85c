"""``score-ledger import``: grants from a file of JSON lines, as often as you like."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from projections.cli.console import (
    FolderOption,
    JsonOption,
    err,
    out,
    print_json,
    progress_bar,
    shown,
)
from projections.cli.files import written
from projections.cli.interrupts import Interrupted, Stop, stop_on_signals
from projections.cli.jsonl import BadLine, Line, parse_grant, read_lines
from projections.cli.ledgers import open_events, store_files
from projections.settings import Settings
from scoring import (
    BatchFailed,
    Grant,
    GrantStatus,
    InvalidGrant,
    Scoring,
    ScoringError,
    StreamHasGap,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_STANDARD_INPUT = "-"
_LINES_AT_ONCE = 1000
_LINES_SHOWN = 10


class ImportFailed(ScoringError):  # noqa: N818 - what happened to it
    """The event store failed; the message has the lines and the cure."""


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
        on_progress: Told after every chunk.
    """

    scoring: Scoring
    on_bad_line: Callable[[Line, str], None]
    on_progress: Callable[[ImportSummary], None] = lambda _summary: None
    summary: ImportSummary = field(default_factory=ImportSummary)

    def run(self, lines: Iterable[Line], *, stop: Stop | None = None) -> ImportSummary:
        """Import all lines, a thousand to a transaction, until the end or until ``stop``.

        Raises:
            ImportFailed: if the event store failed; ``summary`` has what was done until then.
            NotJsonLines: if the input is something else altogether.
        """
        started = time.monotonic()
        iterator = iter(lines)
        try:
            while chunk := self._read(iterator, stop):
                self._import(chunk)
                self.summary.seconds = time.monotonic() - started
                self.on_progress(self.summary)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        return self.summary

    @staticmethod
    def _read(lines: Iterator[Line], stop: Stop | None) -> list[Line]:
        with nullcontext() if stop is None else stop.waiting():
            return list(islice(lines, _LINES_AT_ONCE))

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
                    first, last = parsed[0][0].number, parsed[-1][0].number
                    raise ImportFailed(
                        f"lines {first:,} to {last:,} were not imported, nor any after them: "
                        f"{failed.reason}; mend the cause and run the same import again, nothing "
                        "counts twice"
                    ) from failed
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
    camelCase is taken too, an unknown field is an error; gzip is unpacked. A bad line is reported
    with its number and does not stop the others. Importing a file again adds nothing, so an import
    that was interrupted is simply run again. Exit code 1 if any line is not in the ledger
    afterwards.

    The file of --reject is written at the end and as a whole: an import that fails or is
    interrupted leaves an old one as it was, and finds the same lines again when it is repeated.
    """
    name = shown(Path(file).name)
    with ExitStack() as stack:
        stream, size = _opened(file, stack)
        rejects = None
        if reject is not None:
            others = store_files(Settings.from_environment(folder=folder))
            if file != _STANDARD_INPUT:
                others.append(Path(file))
            rejects = stack.enter_context(written(reject, "--reject", others=others))
        scoring = stack.enter_context(open_events(folder))
        bad_lines = BadLines(rejects)
        importer = GrantImport(scoring, bad_lines.add)
        with stop_on_signals() as stop, progress_bar("grants") as bar:
            task = bar.add_task(f"importing {name}", total=size, done=0)

            def on_progress(summary: ImportSummary) -> None:
                completed = None if size is None else stream.tell()
                bar.update(task, completed=completed, done=summary.lines)

            importer.on_progress = on_progress
            try:
                summary = importer.run(_lines(stream), stop=stop)
            except Exception:
                if importer.summary.lines:
                    _print_summary(importer.summary, json=json)
                raise
            finally:
                bad_lines.say_how_many()
        if summary.interrupted:
            _print_summary(summary, json=json)
            raise Interrupted(
                "interrupted: run the same import again to finish it; nothing counts twice"
                + ("" if reject is None else f", and {reject} is as it was"),
                stop,
            )
    _print_summary(summary, json=json)
    if not summary.ok:
        if reject is not None:
            err.print(f"the lines that were not imported are in {shown(str(reject))}")
        raise typer.Exit(1)


class BadLines:
    """Says which lines are bad: the first of each kind one by one, how many there are of the rest.

    Each is kept in ``rejects``, if there are to be any.
    """

    def __init__(self, rejects: BinaryIO | None) -> None:
        """Begin with none."""
        self._rejects = rejects
        self._kinds: dict[str, _Kind] = {}

    def add(self, line: Line, reason: str) -> None:
        """Say and keep one."""
        # The words that are the same whatever is in the line.
        kind = self._kinds.setdefault(" ".join(reason.split()[:2]), _Kind(line.number))
        kind.count += 1
        if kind.count <= _LINES_SHOWN:
            err.print(f"[yellow]line {line.number}:[/] {shown(reason)}")
        if self._rejects is not None:
            self._rejects.write(line.raw if line.raw.endswith(b"\n") else line.raw + b"\n")

    def say_how_many(self) -> None:
        """Say how many there are of which not every one was said."""
        for kind in self._kinds.values():
            if kind.count > _LINES_SHOWN:
                more = kind.count - _LINES_SHOWN
                err.print(f"[yellow]and {more:,} more lines[/] as line {kind.first_line}")


@dataclass
class _Kind:
    first_line: int
    count: int = 0


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
        return
    rate = f", {summary.lines / summary.seconds:,.0f} lines/s" if summary.seconds else ""
    out.print(
        f"[bold]{summary.recorded:,}[/] recorded, [bold]{summary.duplicate:,}[/] duplicates, "
        f"[bold]{summary.conflict:,}[/] conflicts, [bold]{summary.rejected:,}[/] rejected "
        f"[dim]({summary.seconds:.1f} s{rate})[/]"
    )
