"""Importing grants or contributions into a ledger, a thousand to a transaction, wherever from."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from projections.cli.console import err, out, shown
from projections.cli.files import written
from projections.cli.interrupts import Interrupted, Stop
from projections.cli.jsonl import BadLine, Line
from projections.cli.ledgers import store_files
from scoring import BatchFailed, Grant, GrantStatus, InvalidGrant, ScoringError, StreamHasGap
from scoring.batches import COMMANDS_PER_COMMIT
from scoring.contributions import Contribution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from rich.progress import Progress

    from projections.settings import Settings
    from scoring import ContributionReceipt, GrantReceipt

# Several transactions to a call, which learns from one what to expect of the next.
_ENTRIES_AT_ONCE = 5 * COMMANDS_PER_COMMIT
_PLACES_SHOWN = 10

CONFLICT = "CONFLICT: this grant id was recorded before with another payload"


class Place(Protocol):
    """Where something that is imported stands."""

    def __str__(self) -> str:
        """Return it in words, e.g. ``line 7``."""
        ...

    @property
    def raw(self) -> bytes:
        """What stands there, as a line of JSON to be mended and imported."""
        ...


C = TypeVar("C", Grant, Contribution)
P = TypeVar("P", bound=Place)


class ImportFailed(ScoringError):
    """The event store failed; the message has the places and the cure."""


@dataclass
class ImportSummary:
    """What an import did.

    Attributes:
        lines: Lines, or buckets of an old collection, that were read, blank ones aside.
        recorded: Grants, or buckets, that were new.
        duplicate: Grants that were recorded before, word for word; buckets that are so already.
        conflict: Grants whose id was recorded before with another payload. Buckets that are others
            in the ledger and were left; or with ``--overwrite`` set, beside a grant that stays.
        rejected: Lines or buckets that cannot be taken.
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


@dataclass
class Import(Generic[P, C]):
    """Imports what it is given into a ledger.

    Attributes:
        record: Records so many at once, e.g. ``Scoring.grant_many``.
        on_reject: Told of everything that is not in the ledger afterwards, and why.
        conflict_is_failure: Whether a conflict is one of these; otherwise it is only counted.
        on_progress: Told after every chunk.
    """

    record: Callable[[Iterable[C]], Sequence[GrantReceipt | ContributionReceipt]]
    on_reject: Callable[[P, str], None]
    conflict_is_failure: bool = True
    on_progress: Callable[[ImportSummary], None] = lambda _summary: None
    summary: ImportSummary = field(default_factory=ImportSummary)

    def run(self, entries: Iterable[tuple[P, C | str]], *, stop: Stop) -> ImportSummary:
        """Import all entries, a thousand to a transaction, until the end or until ``stop``.

        Args:
            entries: What to record, or why it cannot be, with its place.
            stop: Set by a signal.

        Raises:
            ImportFailed: if the event store failed; ``summary`` has what was done until then.
        """
        started = time.monotonic()
        iterator = iter(entries)
        try:
            while chunk := self._read(iterator, stop):
                self._import(chunk, stop)
                self.summary.seconds = time.monotonic() - started
                self.on_progress(self.summary)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        return self.summary

    @property
    def ok(self) -> bool:
        """Whether everything is in the ledger now that should be."""
        summary = self.summary
        failed = summary.rejected or (self.conflict_is_failure and summary.conflict)
        return not (failed or summary.interrupted)

    @staticmethod
    def _read(entries: Iterator[tuple[P, C | str]], stop: Stop) -> list[tuple[P, C | str]]:
        with stop.waiting():
            return list(islice(entries, _ENTRIES_AT_ONCE))

    def _import(self, chunk: list[tuple[P, C | str]], stop: Stop) -> None:
        self.summary.lines += len(chunk)
        good: list[tuple[P, C]] = []
        for place, command in chunk:
            if isinstance(command, str):
                self._reject(place, command)
            else:
                good.append((place, command))
        while good:
            failed: BatchFailed[Any] | None = None
            receipts: Sequence[GrantReceipt | ContributionReceipt]
            try:
                receipts = self.record(_until(stop, good))
            except BatchFailed as error:
                failed, receipts = error, error.receipts_so_far
            for (place, _), receipt in zip(good, receipts, strict=False):
                self._count(place, receipt.status)
            good = good[len(receipts) :]
            if failed is None:
                return  # with all of them, or as far as it was to go
            # One that its user cannot take must not stop the others.
            if not isinstance(failed.__cause__, InvalidGrant | StreamHasGap):
                last, _ = good[:COMMANDS_PER_COMMIT][-1]
                raise ImportFailed(
                    f"{good[0][0]} to {last} were not imported, nor any after them: "
                    f"{failed.reason}; mend the cause and run the same import again, nothing "
                    "counts twice"
                ) from failed
            place, _ = good.pop(failed.index - len(receipts))
            self._reject(place, failed.reason)

    def _count(self, place: P, status: GrantStatus) -> None:
        if status is GrantStatus.RECORDED:
            self.summary.recorded += 1
        elif status is GrantStatus.DUPLICATE:
            self.summary.duplicate += 1
        else:
            self.summary.conflict += 1
            if self.conflict_is_failure:
                self.on_reject(place, CONFLICT)

    def _reject(self, place: P, reason: str) -> None:
        self.summary.rejected += 1
        self.on_reject(place, reason)


def _until(stop: Stop, commands: Iterable[tuple[P, C]]) -> Iterator[C]:
    """Yield the commands, but no further transaction of them once it is to stop."""
    for number, (_, command) in enumerate(commands):
        if number % COMMANDS_PER_COMMIT == 0 and stop.is_set():
            return
        yield command


def parsed(lines: Iterable[Line], parse: Callable[[bytes], C]) -> Iterator[tuple[Line, C | str]]:
    """Yield each line with what it says, or with why it says nothing."""
    for line in lines:
        try:
            yield line, parse(line.raw)
        except (BadLine, InvalidGrant) as error:
            yield line, str(error)


class Rejects:
    """Says what is not imported: the first of each kind one by one, how many there are of the rest.

    Each is kept in ``file``, if there is to be one.
    """

    def __init__(
        self, file: Path | None, settings: Settings, stack: ExitStack, *others: Path
    ) -> None:
        """Open the file, which must not be one of the others or of the event store."""
        self.path = file
        self._file = None
        if file is not None:
            others = (*store_files(settings), *others)
            self._file = stack.enter_context(written(file, "--reject", others=others))
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def add(self, place: Place, reason: str) -> None:
        """Say and keep one."""
        # The words that are the same whatever is in the line.
        kind = " ".join(reason.split()[:2])
        self._first.setdefault(kind, str(place))
        self._counts[kind] += 1
        if self._counts[kind] <= _PLACES_SHOWN:
            err.print(f"[yellow]{shown(str(place))}:[/] {shown(reason)}")
        self.keep(place)

    def keep(self, place: Place) -> None:
        """Keep one without saying so."""
        if self._file is not None:
            self._file.write(place.raw if place.raw.endswith(b"\n") else place.raw + b"\n")

    def say_how_many(self) -> None:
        """Say how many there are of which not every one was said."""
        for kind, count in self._counts.items():
            if count > _PLACES_SHOWN:
                more = count - _PLACES_SHOWN
                err.print(f"[yellow]and {more:,} more[/] as {shown(self._first[kind])}")


def import_all(
    importer: Import[P, C],
    entries: Iterable[tuple[P, C | str]],
    rejects: Rejects,
    *,
    stop: Stop,
    bar: Progress,
    show: Callable[[ImportSummary], None],
) -> ImportSummary:
    """Import, and show what was done if that is not all.

    Raises:
        Interrupted: if it was stopped before the end.
    """
    try:
        summary = importer.run(entries, stop=stop)
    except Exception:
        bar.stop()
        if importer.summary.lines:
            show(importer.summary)
        raise
    finally:
        rejects.say_how_many()
    if summary.interrupted:
        bar.stop()
        show(summary)
        raise Interrupted(
            "interrupted: run the same import again to finish it; nothing counts twice"
            + ("" if rejects.path is None else f", and {rejects.path} is as it was"),
            stop,
        )
    return summary


def print_counts(summary: ImportSummary, words: tuple[str, str, str]) -> None:
    """Print what became of what was read, in words for what was there, conflicts and all."""
    there, others, unit = words
    rate = f", {summary.lines / summary.seconds:,.0f} {unit}/s" if summary.seconds else ""
    out.print(
        f"[bold]{summary.recorded:,}[/] recorded, [bold]{summary.duplicate:,}[/] {there}, "
        f"[bold]{summary.conflict:,}[/] {others}, [bold]{summary.rejected:,}[/] rejected "
        f"[dim]({summary.seconds:.1f} s{rate})[/]"
    )


def say_what_was_left(summary: ImportSummary, *, overwrite: bool) -> None:
    """Say what became of buckets that the ledger has with other points or labels."""
    if summary.conflict and overwrite:
        err.print(
            f"[yellow]note:[/] {summary.conflict:,} buckets were set, and the grants of their keys "
            "stay as they are in the ledger"
        )
    elif summary.conflict:
        err.print(
            f"[yellow]note:[/] {summary.conflict:,} buckets are in the ledger with other points or "
            "labels and were left, as traffic may have written them since; --overwrite sets them"
        )
