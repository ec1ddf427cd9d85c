"""Grants as JSON lines: one object a line, with the field names of ``Grant``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from scoring import Grant, InvalidGrant
from scoring.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

MAX_LINE_BYTES: Final = 1 << 20
"""A grant has a few kilobytes at most; a longer line is something else."""

_CAMEL_HUMP: Final = re.compile(r"(?<=[a-z])([A-Z])")
_FIELDS: Final = tuple(Grant.model_fields)


class BadLine(ValueError):  # noqa: N818 - what it is, in the words of the import
    """A line is not a grant; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was read.

    Attributes:
        number: Counted from 1.
        raw: Its bytes, with the line end.
        end: Offset in the input just after it, in bytes.
    """

    number: int
    raw: bytes
    end: int


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    """Yield the lines that are not blank, in bounded memory.

    A line of more than ``MAX_LINE_BYTES`` is cut there; ``parse_grant`` refuses it.
    """
    number = end = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        end += len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while rest := stream.readline(MAX_LINE_BYTES):
                end += len(rest)
                if rest.endswith(b"\n"):
                    break
        if raw.strip():
            yield Line(number, raw, end)


def parse_grant(raw: bytes) -> Grant:
    """Return the grant of a line.

    Field names may be in snake_case or camelCase; ``granted_at`` is ISO 8601 with an offset.

    Raises:
        BadLine: if it is not a JSON object with just the fields of a grant.
        InvalidGrant: naming the field that breaks its rule.
    """
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
        raise BadLine("not a grant: nested too deeply") from None
    except ValueError as error:
        raise BadLine(str(error)) from None
    if not isinstance(value, dict):
        raise BadLine("not a JSON object")
    unknown = [name for name in value if name not in _FIELDS]
    if unknown:
        raise BadLine(f"unknown field {unknown[0]!a}: a grant has {', '.join(_FIELDS)}")
    missing = [name for name in _FIELDS if name not in value]
    if missing:
        raise BadLine(f"missing field {missing[0]!r}: a grant has {', '.join(_FIELDS)}")
    return Grant(**{**value, "granted_at": parse_moment(value["granted_at"])})


def parse_moment(text: object, *, field: str = "granted_at") -> datetime:
    """Return the datetime of an ISO 8601 string, e.g. ``2026-11-22T13:50:00Z``.

    Raises:
        InvalidGrant: if it is not one; whether it has an offset is checked by ``Grant``.
    """
    try:
        if isinstance(text, str):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidGrant(field=field, value=text, rule=f"{RULES['granted_at']}, in ISO 8601")


def parse_amount(text: str) -> int:
    """Return the integer of a command-line argument, strictly: no ``1_000``, no ``5.0``.

    Raises:
        InvalidGrant: if it is not one.
    """
    return _parse_integer(text, "amount")


def parse_points(text: str) -> int:
    """Return the integer of a command-line argument, likewise.

    Raises:
        InvalidGrant: if it is not one.
    """
    return _parse_integer(text, "points")


def _parse_integer(text: str, field: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,30}", text, re.ASCII) is None:
        raise InvalidGrant(field=field, value=text, rule=RULES[field])
    return int(text)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        snake = _CAMEL_HUMP.sub(lambda hump: "_" + hump[1].lower(), name)
        if snake in fields:
            # Which of the two was meant is not ours to guess.
            raise ValueError(f"field {snake!a} is given twice")
        fields[snake] = value
    return fields
