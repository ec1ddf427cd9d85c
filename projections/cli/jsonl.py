"""Grants and contributions as JSON lines: one object a line, with the field names of these."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from scoring import Grant, InvalidGrant
from scoring.contributions import Contribution
from scoring.identity import is_grant_shaped
from scoring.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

MAX_LINE_BYTES: Final = 1 << 20
"""A grant has a few kilobytes at most; a longer line is something else."""

_CAMEL_HUMP: Final = re.compile(r"(?<=[a-z])([A-Z])")
_GRANT_FIELDS: Final = tuple(Grant.model_fields)
_CONTRIBUTION_FIELDS: Final = tuple(Contribution.model_fields)
_GOOD_TIME: Final = "2026-11-22T09:30:00Z"

_GZIP: Final = b"\x1f\x8b"
_OTHERS: Final = {
    b"\xff\xfe": "text in UTF-16: iconv -f UTF-16 -t UTF-8 makes it UTF-8",
    b"\xfe\xff": "text in UTF-16: iconv -f UTF-16 -t UTF-8 makes it UTF-8",
    _GZIP: "compressed twice: gunzip it once",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"SQLite format 3": "a database of SQLite",
}
_LINES_OF_CSV: Final = 2
_CELLS: Final = re.compile(rb"[^{].*[,;\t]")
_FIRST_BYTES: Final = 4
_HEAD_BYTES: Final = 4096


class NotJsonLines(ValueError):
    """The input as a whole is something else; the message says what, and what to do."""


class BadLine(ValueError):
    """A line is not a grant; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was read.

    Attributes:
        number: Counted from 1.
        raw: Its bytes, with the line end.
    """

    number: int
    raw: bytes

    def __str__(self) -> str:
        return f"line {self.number:,}"


def read_lines(stream: BufferedReader) -> Iterator[Line]:
    """Yield the lines that are not blank, in bounded memory; gzip is unpacked.

    A line of more than ``MAX_LINE_BYTES`` is cut there; ``parse_grant`` refuses it.

    Raises:
        NotJsonLines: if the input is no JSON lines at all, or a damaged gzip file.
    """
    try:
        packed = stream.peek().startswith(_GZIP)
        text = gzip.GzipFile(fileobj=stream) if packed else stream
        head = text.peek(_HEAD_BYTES)
        something_else = next((_OTHERS[it] for it in _OTHERS if head.startswith(it)), _layout(head))
        if something_else is not None:
            raise NotJsonLines(f"the input is not one JSON object a line but {something_else}")
        number = 0
        while raw := text.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := text.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            if raw.strip():
                yield Line(number, raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise NotJsonLines(
            f"the input is a damaged gzip file ({error}): import it again when it is whole; "
            "nothing counts twice"
        ) from error


def _layout(head: bytes) -> str | None:
    """Return what text is laid out as, if it is not as lines of JSON."""
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    if b"\0" in head[:_FIRST_BYTES]:
        return "binary, or text in UTF-16: iconv -f UTF-16 -t UTF-8 makes it UTF-8"
    if not lines:
        return None
    first = lines[0].removeprefix(b"\xef\xbb\xbf")
    if first.startswith(b"["):
        return "an array: jq -c '.[]' FILE makes lines of it"
    if first == b"{":
        return "an object over several lines: jq -c . FILE makes lines of it"
    beginning = [first, *lines[1:_LINES_OF_CSV]]
    if len(beginning) == _LINES_OF_CSV and all(_CELLS.match(line) for line in beginning):
        return "lines of CSV: make an object of each, as score-ledger import --help shows"
    return None


def parse_grant(raw: bytes) -> Grant:
    """Return the grant of a line.

    Field names may be in snake_case or camelCase; ``granted_at`` is ISO 8601 with an offset.

    Raises:
        BadLine: if it is not a JSON object with just the fields of a grant.
        InvalidGrant: naming the field that breaks its rule.
    """
    value = _object(raw, "a grant", _GRANT_FIELDS)
    return Grant(**{**value, "granted_at": parse_time(value["granted_at"])})


def parse_contribution(raw: bytes, *, granted_at: datetime | None = None) -> Contribution:
    """Return the contribution of a line; ``at``, in ISO 8601 with an offset, may be left out.

    Args:
        raw: The line.
        granted_at: When what becomes a grant was earned, if the line does not say.

    Raises:
        BadLine: if it is not a JSON object with just the fields of a contribution, or would become
            a grant and nothing says when that was earned.
        InvalidGrant: naming the field that breaks its rule.
    """
    value = _object(raw, "a contribution", _CONTRIBUTION_FIELDS, optional="at")
    at = value.get("at")
    moment = None if at is None else parse_time(at, field="at")
    contribution = Contribution(**{**value, "at": moment})
    if moment is None and contribution.points and is_grant_shaped(contribution.key):
        if granted_at is None:
            raise BadLine(
                f"no time for the key {contribution.key!a}, which becomes a grant: give it in at, "
                "or one for all such lines by --granted-at"
            )
        return contribution.model_copy(update={"at": granted_at})
    return contribution


def _object(raw: bytes, what: str, fields: tuple[str, ...], optional: str = "") -> dict[str, Any]:
    """Return the JSON object of a line, with just these fields."""
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        # A byte order mark is what some editors put in front of a file.
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_fields)
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadLine(f"not {what}: nested too deeply") from None
    except ValueError as error:
        raise BadLine(str(error)) from None
    if not isinstance(value, dict):
        raise BadLine("not a JSON object")
    unknown = [name for name in value if name not in fields]
    if unknown:
        raise BadLine(f"unknown field {unknown[0]!a}: {what} has {', '.join(fields)}")
    missing = [name for name in fields if name not in value and name != optional]
    if missing:
        raise BadLine(f"missing field {missing[0]!r}: {what} has {', '.join(fields)}")
    return value


def parse_time(text: object, *, field: str = "granted_at") -> datetime:
    """Return the datetime of an ISO 8601 string, e.g. ``2026-11-22T13:50:00Z``.

    Raises:
        InvalidGrant: if it is not one, or has no offset.
    """
    with suppress(ValueError):
        if isinstance(text, str) and (time := datetime.fromisoformat(text)).tzinfo is not None:
            return time
    rule = f"{RULES['granted_at']}, in ISO 8601 as {_GOOD_TIME}"
    raise InvalidGrant(field=field, value=text, rule=rule)


def parse_integer(text: str, field: str) -> int:
    """Return the integer of a command-line argument, strictly: no ``1_000``, no ``5.0``.

    Raises:
        InvalidGrant: naming the field, if it is not one.
    """
    if re.fullmatch(r"-?[0-9]{1,30}", text, re.ASCII) is None:
        raise InvalidGrant(field=field, value=text, rule=RULES[field])
    return int(text)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        snake = _CAMEL_HUMP.sub(lambda hump: "_" + hump[1].lower(), name)
        if snake in fields:
            # Which of the two was meant is not ours to guess.
            raise ValueError(f"a field is given twice: {snake!a}")
        fields[snake] = value
    return fields
