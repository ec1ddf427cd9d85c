"""``score-ledger grant`` and ``score-ledger contribute``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from projections.cli.console import FolderOption, JsonOption, err, out, print_json, shown
from projections.cli.jsonl import parse_integer, parse_time
from projections.cli.ledgers import open_events
from scoring import ContributionReceipt, Grant, GrantReceipt, GrantStatus
from scoring.contributions import Contribution


def grant(
    user_id: Annotated[str, typer.Option(help="Who is scored.")],
    grant_id: Annotated[
        str, typer.Option(help="Your id for this award, unique for ever: the idempotency key.")
    ],
    key: Annotated[str, typer.Option(help="What was rewarded, e.g. quiz:history:7.")],
    category: Annotated[str, typer.Option(help="Label, e.g. content.")],
    source: Annotated[str, typer.Option(help="Label, e.g. feed.")],
    amount: Annotated[str, typer.Option(metavar="POINTS", help="An integer from 1 to 1000000000.")],
    granted_at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it was earned, ISO 8601 with offset. Default: now."
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Award points once.

    Running it again with the same grant id adds nothing: it answers DUPLICATE, or CONFLICT (and
    exit code 1) if anything else differs. Give --granted-at when you may have to run it again.
    """
    # Checked before a store is made for it.
    award = Grant(
        user_id=user_id,
        grant_id=grant_id,
        key=key,
        category=category,
        source=source,
        amount=parse_integer(amount, "amount"),
        granted_at=datetime.now(UTC) if granted_at is None else parse_time(granted_at),
    )
    with open_events(folder) as scoring:
        receipt = scoring.grant(**dict(award))
    _print(
        receipt,
        f"{receipt.total_before:,} → {receipt.total_after:,}",
        json=json,
        conflict="this grant id was recorded before with another user, key, label, amount or time "
        "(which is now, unless --granted-at gives it); nothing changed: use a new id for a new "
        "award",
    )


def contribute(
    user_id: Annotated[str, typer.Option(help="Who is scored.")],
    key: Annotated[str, typer.Option(help="Whose bucket is set, e.g. telemetry:activity.")],
    category: Annotated[str, typer.Option(help="Label, e.g. telemetry.")],
    source: Annotated[str, typer.Option(help="Label, e.g. app.")],
    points: Annotated[
        str,
        typer.Option(
            metavar="POINTS", help="What the bucket holds from now on: an integer from 0."
        ),
    ],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it was earned, ISO 8601 with offset. Default: now."
        ),
    ] = None,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Set the bucket of a key, the old way.

    It overwrites what was there, so the recomputed total may go down; the same again changes
    nothing. A key content:feed-post:<id> or award:badge:<id> becomes a grant the first time, and
    answers CONFLICT (and exit code 1) if the ledger keeps other points than the bucket then has.
    """
    contribution = Contribution(
        user_id=user_id,
        key=key,
        category=category,
        source=source,
        points=parse_integer(points, "points"),
        at=None if at is None else parse_time(at, field="at"),
    )
    with open_events(folder) as scoring:
        receipt = scoring.contribute(**dict(contribution))
    _print(
        receipt,
        f"recomputed total {receipt.recomputed_before:,} → {receipt.recomputed_after:,}",
        json=json,
        conflict="this key was granted before with other points or labels: the bucket has what "
        "you gave, the ledger keeps the grant",
    )


def _print(
    receipt: GrantReceipt | ContributionReceipt, change: str, *, json: bool, conflict: str
) -> None:
    """Print a receipt; exit with 1 if it is a conflict."""
    if json:
        print_json(receipt)
    else:
        out.print(
            f"[bold]{receipt.status}[/]  {shown(receipt.user_id)}: {change} points  "
            f"[dim](position {receipt.position})[/]"
        )
    if receipt.status is GrantStatus.CONFLICT:
        err.print(f"[bold red]error:[/] {conflict}")
        raise typer.Exit(1)
