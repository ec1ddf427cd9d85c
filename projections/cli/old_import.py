"""Importing an old collection, and saying beforehand what of it can be imported."""

from __future__ import annotations

import json as json_lines
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from projections.cli.console import err, out, print_json, progress_bar, shown
from projections.cli.importer import (
    Import,
    ImportSummary,
    Rejects,
    import_all,
    print_counts,
    say_what_was_left,
)
from projections.cli.interrupts import stop_on_signals
from projections.cli.ledgers import open_events
from projections.cli.old_collection import old_client
from projections.migration import Preflight, rejected_buckets
from projections.settings import Settings
from scoring.contributions import Contribution

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from projections.migration import OldReject, OldScores, OldUser

_MAX_VALUE = 60


class OldBucket(NamedTuple):
    """A bucket of an old collection, or a whole user of whom nothing can be taken."""

    user_id: str | None
    key: Any
    values: Mapping[str, Any] | Contribution

    def __str__(self) -> str:
        return f"{self.key} of {self.user_id}"

    @property
    def raw(self) -> bytes:
        """The bucket as a line for ``score-ledger import --contributions``, to be mended."""
        fields = {"user_id": self.user_id, "key": self.key, **dict(self.values)}
        return json_lines.dumps(fields, ensure_ascii=False, default=_plain).encode(
            errors="backslashreplace"
        )


def preflight_old(
    old: OldScores, *, uri: str | None, reject: Path | None, folder: Path | None, json: bool
) -> None:
    """Say what of an old collection would be taken and what not; exit with 1 if anything is not."""
    preflight = Preflight()
    settings = Settings.from_environment(folder=folder)
    with ExitStack() as stack:
        rejects = Rejects(reject, settings, stack)
        client = stack.enter_context(old_client(uri, settings))
        bar = stack.enter_context(progress_bar("buckets"))
        task = bar.add_task("reading", total=old.count(client), done=0)
        for _ in _tallied(old.read(client), preflight, rejects):
            if not preflight.users % 100:
                bar.update(task, completed=_documents(old, preflight), done=preflight.buckets)
        bar.update(task, completed=_documents(old, preflight), done=preflight.buckets)
    if json:
        print_json(preflight.to_json())
    else:
        print_preflight(preflight)
        out.print("nothing was written")
    if not preflight.ok:
        raise typer.Exit(1)


def import_old(
    old: OldScores,
    *,
    uri: str | None,
    overwrite: bool,
    reject: Path | None,
    folder: Path | None,
    json: bool,
) -> None:
    """Import what of an old collection can be taken; exit with 1 if anything cannot."""
    preflight = Preflight()
    settings = Settings.from_environment(folder=folder)
    with ExitStack() as stack:
        rejects = Rejects(reject, settings, stack)
        client = stack.enter_context(old_client(uri, settings))
        documents = old.count(client)
        scoring = stack.enter_context(open_events(folder))
        record = partial(scoring.contribute_many, overwrite=overwrite)
        importer: Import[OldBucket, Contribution]
        importer = Import(record, rejects.add, conflict_is_failure=False)
        stop = stack.enter_context(stop_on_signals())
        bar = stack.enter_context(progress_bar("buckets"))
        task = bar.add_task(f"importing {shown(old.collection)}", total=documents, done=0)
        importer.on_progress = lambda summary: bar.update(
            task, completed=_documents(old, preflight), done=summary.lines
        )
        entries = (
            (OldBucket(each.user_id, each.key, each), each)
            for user in _tallied(old.read(client), preflight, rejects)
            for key, each in user.buckets.items()
            if key not in user.untimed
        )
        show = partial(_print, preflight, json=json)
        summary = import_all(importer, entries, rejects, stop=stop, bar=bar, show=show)
    show(summary)
    say_what_was_left(summary, overwrite=overwrite)
    if not (preflight.ok and importer.ok):
        if reject is not None:
            err.print(f"what was not imported is in {shown(str(reject))}")
        raise typer.Exit(1)


def print_preflight(preflight: Preflight) -> None:
    """Print what can be taken and, by reason, what cannot."""
    out.print(
        f"[bold]{preflight.buckets:,}[/] buckets of [bold]{preflight.users:,}[/] users can be "
        f"taken, {preflight.points:,} points; [bold]{preflight.grants:,}[/] of them become grants"
    )
    if preflight.other_totals:
        out.print(
            f"{preflight.other_totals:,} users have an old total other than the sum of the buckets "
            "that can be taken"
        )
    if preflight.refusals:
        out.print("What cannot be taken:")
    for refusal in preflight.in_order():
        # Lines, not a table: paths and options are to be read and copied whole.
        out.print(f"  [bold]{refusal.count:,}[/] [yellow]{refusal.reason}[/]")
        out.print(f"    choice: {shown(refusal.choice)}")
        for each in refusal.examples:
            out.print(f"    e.g. {_example(each)}")


def _example(reject: OldReject) -> str:
    value = repr(reject.value)
    if len(value) > _MAX_VALUE:
        value = f"{value[: _MAX_VALUE - 1]}…"
    return shown(f"_id {reject.document_id}: {reject.path} = {value}")


def _tallied(users: Iterator[OldUser], preflight: Preflight, rejects: Rejects) -> Iterator[OldUser]:
    for user in users:
        preflight.add(user)
        for each in rejected_buckets(user):
            rejects.keep(OldBucket(user.user_id or str(each.value), each.key, each.bucket))
        yield user


def _documents(old: OldScores, preflight: Preflight) -> int:
    """Return about how many documents have been read, for a progress bar."""
    if old.buckets is None:
        return preflight.buckets + preflight.rejected
    return preflight.users


def _print(preflight: Preflight, summary: ImportSummary, *, json: bool) -> None:
    done = replace(summary, rejected=preflight.rejected + summary.rejected)
    if json:
        # Lines are buckets, which the preflight has counted.
        counts = {name: value for name, value in vars(done).items() if name != "lines"}
        print_json({**preflight.to_json(), **counts, "seconds": round(done.seconds, 3)})
    else:
        print_preflight(preflight)
        print_counts(done, ("there already", "others in the ledger", "buckets"))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
