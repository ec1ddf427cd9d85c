"""The options that describe an old collection, and the server that it is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pymongo import MongoClient

from projections.cli.jsonl import parse_time
from projections.cli.ledgers import await_mongo
from projections.embedded import open_server
from projections.errors import ProjectionError
from projections.migration import OldScores
from projections.migration.old_values import Rounding
from projections.mongo import close, connect
from projections.settings import Settings

_PATHS = ("user", "buckets", "key", "points", "category", "source", "at", "total")


OldUriOption = Annotated[
    str | None,
    typer.Option(
        "--old-uri",
        envvar="SCORE_LEDGER_OLD_URI",
        metavar="URI",
        help="Server of the old collection. Default: MONGO_URI, or the folder's own.",
    ),
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="NAME=PATH",
        help=f"Where something is in a document, if not under its own name: {', '.join(_PATHS)}.",
    ),
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="KEYS=CATEGORY/SOURCE",
        help="Labels for buckets that have none: telemetry:*=telemetry/app.",
    ),
]
LabelMapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label-map",
        metavar="OLD=NEW|FILE",
        help="What to take instead of a label: feed_post=feed-post; a file has one such a line.",
    ),
]
RoundOption = Annotated[
    Rounding | None,
    typer.Option(
        "--round",
        help="Take points that are whole but no integers (12.0), or all, rounded to the nearest.",
    ),
]
UsersAsTextOption = Annotated[
    bool,
    typer.Option(
        "--users-as-text", help="Take users that are ObjectId, integer or UUID as their usual text."
    ),
]
GrantedAtOption = Annotated[
    str | None,
    typer.Option(
        "--granted-at",
        metavar="TIME",
        help="When posts and badges were earned whose bucket does not say it, as they become "
        "grants: ISO 8601 with offset.",
    ),
]


def described(
    name: str,
    *,
    field: list[str] | None = None,
    labels: list[str] | None = None,
    label_map: list[str] | None = None,
    round_: Rounding | None = None,
    users_as_text: bool = False,
    granted_at: str | None = None,
) -> OldScores:
    """Return the description that options give, beside a file or without.

    Args:
        name: A file whose name ends in ``.toml``, or ``COLLECTION`` or ``DATABASE.COLLECTION``.
        field: ``NAME=PATH`` each.
        labels: ``KEYS=CATEGORY/SOURCE`` each.
        label_map: ``OLD=NEW`` or a file with such lines each.
        round_: Which points are taken.
        users_as_text: Whether users are taken as text.
        granted_at: ISO 8601.

    Raises:
        ValueError: naming the option or file that is wrong.
    """
    values: dict[str, Any] = {}
    for text in field or ():
        path, of = _pair(text, "--field", "NAME=PATH")
        if path not in _PATHS:
            raise ValueError(f"--field {text}: there is no {path}, only {', '.join(_PATHS)}")
        values[path] = of
    if labels:
        values["labels"] = [_labels(text) for text in labels]
    if label_map:
        values["label_map"] = _label_map(label_map)
    if round_ is not None:
        values["round"] = round_
    if users_as_text:
        values["users_as_text"] = True
    if granted_at is not None:
        values["granted_at"] = parse_time(granted_at)
    if name.endswith(".toml"):
        return OldScores.from_toml(name, **values)
    database, dot, collection = name.partition(".")
    named = {"database": database, "collection": collection} if dot else {"collection": database}
    return OldScores.described({**named, **values}, where=f"--from-mongo {name}")


@contextmanager
def old_client(uri: str | None, settings: Settings) -> Iterator[MongoClient[Any]]:
    """Open a client of the server with the old collection, which is only read.

    Raises:
        ProjectionError: if no server is named and the folder has none.
    """
    named_by = "--old-uri or SCORE_LEDGER_OLD_URI" if uri else "MONGO_URI"
    uri = uri or settings.mongo_uri
    if uri is not None:
        await_mongo(uri, named_by)
        with _connected(uri) as client:
            yield client
        return
    folder = settings.folder / "mongo"
    if not folder.is_dir():
        raise ProjectionError(
            "nothing says on which server the old collection is: name it by --old-uri, or "
            "SCORE_LEDGER_OLD_URI, or MONGO_URI if the read model is there, too"
        )
    linger = settings.linger_seconds
    with (
        open_server(folder, mongod=settings.mongod, linger_seconds=linger) as server,
        _connected(server.uri) as client,
    ):
        yield client


@contextmanager
def _connected(uri: str) -> Iterator[MongoClient[Any]]:
    client = connect(uri)
    try:
        yield client
    finally:
        close(client)


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    before, equals, after = text.rpartition("=")
    if not (before and equals and after):
        raise ValueError(f"{option} {text} is not {form}")
    return before.strip(), after.strip()


def _labels(text: str) -> dict[str, str]:
    keys, labels = _pair(text, "--labels", "KEYS=CATEGORY/SOURCE")
    category, slash, source = labels.partition("/")
    if not slash:
        raise ValueError(f"--labels {text} is not KEYS=CATEGORY/SOURCE")
    return {"keys": keys, "category": category, "source": source}


def _label_map(texts: list[str]) -> dict[str, str]:
    pairs: list[str] = []
    for text in texts:
        if "=" in text:
            pairs.append(text)
            continue
        try:
            lines = Path(text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--label-map {text} cannot be read: {error}") from None
        pairs += [line for line in lines if line.strip() and not line.startswith("#")]
    return dict(_pair(pair, "--label-map", "OLD=NEW") for pair in pairs)
