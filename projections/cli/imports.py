"""``score-ledger import``: grants or contributions from JSON lines, or from an old collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from projections.cli.console import FolderOption, JsonOption
from projections.cli.line_import import import_lines
from projections.cli.old_collection import (
    FieldOption,
    GrantedAtOption,
    LabelMapOption,
    LabelsOption,
    OldUriOption,
    RoundOption,
    UsersAsTextOption,
    described,
)
from projections.cli.old_import import import_old, preflight_old


def import_(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A file of JSON lines, or - for standard input."),
    ] = None,
    contributions: Annotated[
        bool, typer.Option("--contributions", help="The lines are contributions, not grants.")
    ] = False,
    from_mongo: Annotated[
        str | None,
        typer.Option(
            "--from-mongo",
            metavar="FILE.toml|[DATABASE.]COLLECTION",
            help="Import the buckets of an old collection: a file that describes it, or its name.",
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
            metavar="FILE",
            help="Keep what was not imported in this file, to be mended and imported.",
        ),
    ] = None,
    granted_at: GrantedAtOption = None,
    old_uri: OldUriOption = None,
    field: FieldOption = None,
    labels: LabelsOption = None,
    label_map: LabelMapOption = None,
    round_: RoundOption = None,
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
    _check(
        file=file is not None,
        contributions=contributions,
        from_mongo=from_mongo is not None,
        old_options=any((field, labels, label_map, round_, users_as_text, dry_run)),
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
    import_lines(
        file,
        contributions=contributions,
        overwrite=overwrite,
        granted_at=granted_at,
        reject=reject,
        folder=folder,
        json=json,
    )


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
