"""``score-ledger import``: grants or contributions from JSON lines, or from an old collection."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from projections.cli.console import (
    FolderOption,
    JsonOption,
    err,
    print_json,
    progress_bar,
    shown,
)
from projections.cli.importer import (
    Import,
    ImportSummary,
    Rejects,
    import_all,
    parsed,
    print_counts,
)
from projections.cli.interrupts import stop_on_signals
from projections.cli.jsonl import Line, parse_contribution, parse_grant, parse_time, read_lines
from projections.cli.ledgers import open_events
from projections.cli.old_collection import (
    FieldOption,
    GrantedAtOption,
    LabelMapOption,
    LabelsOption,
    OldUriOption,
    RoundOptionOption,
    UsersAsTextOption,
    described,
)
from projections.cli.old_import import import_old, preflight_old, say_what_was_left
from projections.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_STANDARD_INPUT = "-"


def import_(
    file: Annotated[
        str | None,
        typer.Argument(help="A file of JSON lines, or - for standard input.", show_default=False),
    ] = None,
    contributions: Annotated[
        bool,
        typer.Option("--contributions", help="The lines are contributions, not grants."),
    ] = False,
    from_mongo: Annotated[
        str | None,
        typer.Option(
            "--from-mongo",
            metavar="FILE.toml|[DATABASE.]COLLECTION",
            help="Import the buckets of an old collection: a file that describes it, or its name.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="With --from-mongo: say what would be taken, and write nothing."
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Set buckets that are in the ledger with other points or labels, too, instead of "
            "leaving them.",
        ),
    ] = False,
    reject: Annotated[
        Path | None,
        typer.Option(
            "--reject",
            help="Keep what was not imported in this file, to be mended and imported.",
        ),
    ] = None,
    granted_at: GrantedAtOption = None,
    old_uri: OldUriOption = None,
    field: FieldOption = None,
    labels: LabelsOption = None,
    label_map: LabelMapOption = None,
    round_: RoundOptionOption = None,
    users_as_text: UsersAsTextOption = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Import grants, contributions, or an old collection.

    Grants and contributions are lines, one JSON object each; gzip is unpacked.

    Fields of a grant: user_id, grant_id, key, category, source, amount, granted_at (ISO 8601 with
    offset); of a contribution: user_id, key, category, source, points, and at where the key is
    grant-shaped. camelCase is taken too, an unknown field is an error. A bad line
    is reported with its number and does not stop the others. Importing a file again adds nothing,
    so an import that was interrupted is simply run again. Exit code 1 if anything is not in the
    ledger afterwards that should be.

    Contributions, from a file or an old collection, set the buckets that the ledger does not have.
    One that it has with other points or labels is left and counted: traffic may have written it
    since. --overwrite sets it.

    The file of --reject is written at the end and as a whole: an import that fails or is
    interrupted leaves an old one as it was, and finds the same lines again when it is repeated.
    """
    old_options = (field, labels, label_map, round_, users_as_text or None, dry_run or None)
    _check(
        file=file is not None,
        contributions=contributions,
        from_mongo=from_mongo is not None,
        old_options=any(option is not None for option in old_options),
        bucket_options=overwrite or granted_at is not None,
    )
    if from_mongo is not None:
        old = described(
            from_mongo,
            field=field,
            labels=labels,
            label_map=label_map,
            round_=round_,
            users_as_text=users_as_text,
            granted_at=granted_at,
        )
        if dry_run:
            preflight_old(old, uri=old_uri, reject=reject, folder=folder, json=json)
        else:
            import_old(
                old, uri=old_uri, overwrite=overwrite, reject=reject, folder=folder, json=json
            )
        return
    assert file is not None  # noqa: S101 - for the type checker
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


def _check(
    *, file: bool, contributions: bool, from_mongo: bool, old_options: bool, bucket_options: bool
) -> None:
    """Refuse options that mean nothing together."""
    if file == from_mongo:
        raise typer.BadParameter("give a file of JSON lines, or --from-mongo", param_hint="FILE")
    if old_options and not from_mongo:
        raise typer.BadParameter(
            "--dry-run, --field, --labels, --label-map, --round and --users-as-text are about an "
            "old collection: give --from-mongo",
            param_hint="FILE",
        )
    if bucket_options and not (contributions or from_mongo):
        raise typer.BadParameter(
            "--overwrite and --granted-at are about contributions: give --contributions",
            param_hint="FILE",
        )


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
