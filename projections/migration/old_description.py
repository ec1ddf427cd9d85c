"""How a site's old collection of scores is described: where it is, and how it is spelt."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from projections.migration.old_values import Rounding
from scoring.rules import RULES, Label, UtcDatetime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike


def _checked_path(path: str) -> str:
    if not all(name and not name.startswith("$") and "\0" not in name for name in path.split(".")):
        raise ValueError(f"{path!a} is not a path: names joined by dots, as in stats.points")
    return path


FieldPath = Annotated[str, AfterValidator(_checked_path)]


class LabelDefault(BaseModel):
    """The labels of keys whose buckets have none.

    Attributes:
        keys: A pattern: ``*`` stands for any characters, ``?`` for one; ``telemetry:*``.
        category: The category of these.
        source: The source of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: str
    category: Label
    source: Label


class OldDescription(BaseModel):
    """Where a site keeps its old scores, and how they are spelt.

    Buckets are a map or an array in the user's document, found at ``buckets``, or without that a
    document each. A bucket in a map may be a bare number: its points. Fields are paths of names
    joined by dots: ``user``, ``buckets``, ``total`` from the document on, the others from the
    bucket on, which is the document where each bucket is one.

    Attributes:
        collection: Name of the collection.
        database: Its database; default, the one that the URI of the client names in its path.
        user: Path of the user's id.
        buckets: Path of the map (key to bucket) or array of a user's buckets; ``None`` if each
            bucket is a document of its own.
        key: Path of the key in a bucket of an array, or that is a document.
        points: Path of the points.
        category: Path of the category.
        source: Path of the source.
        at: Path of the time when it was earned, if there is one: a date, a text in ISO 8601 with
            offset, or an ``ObjectId``, whose second is taken.
        total: Path of the old total in the user's document, if it is kept.
        labels: Labels for buckets that have none, by pattern of the key; the first that matches.
        label_map: What to take for labels that the ledger does not accept, or for others.
        round: ``"refuse"`` takes integers only, ``"whole"`` also what is whole (12.0),
            ``"nearest"`` also fractions, rounded to the nearest and halves up.
        users_as_text: Take users that are ``ObjectId``, integer or UUID as their usual text.
        granted_at: When what becomes a grant was earned, if its bucket has no time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: Annotated[str, Field(min_length=1)]
    database: Annotated[str, Field(min_length=1)] | None = None
    user: FieldPath = "_id"
    buckets: FieldPath | None = None
    key: FieldPath = "key"
    points: FieldPath = "points"
    category: FieldPath = "category"
    source: FieldPath = "source"
    at: FieldPath | None = None
    total: FieldPath | None = None
    labels: tuple[LabelDefault, ...] = ()
    label_map: dict[str, Label] = Field(default_factory=dict)
    round: Rounding = "refuse"
    users_as_text: bool = False
    granted_at: UtcDatetime | None = None

    @model_validator(mode="after")
    def _a_total_needs_a_users_document(self) -> Self:
        if self.total is not None and self.buckets is None:
            raise ValueError(
                "total is a field of a user's document, and where each bucket is a document there "
                "is none: leave it out, or name the field of the buckets"
            )
        return self

    @classmethod
    def from_toml(cls, file: str | PathLike[str], **changes: Any) -> Self:
        """Read a description from a TOML file, whose names are those of the attributes.

        Args:
            file: Its path.
            changes: Attributes that beat those of the file.

        Raises:
            ValueError: naming the file and what is wrong in it.
        """
        try:
            values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{file} is not TOML: {error}") from None
        return cls.described({**values, **changes}, where=str(file))

    @classmethod
    def described(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Make one of values from outside.

        Args:
            values: The attributes.
            where: What they came from, for the error.

        Raises:
            ValueError: naming ``where`` and the first thing that is wrong, in one sentence.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            if first["type"] == "string_pattern_mismatch":
                said = f"a label is {RULES['category']}; got {first['input']!a}"
            raise ValueError(f"{where}: {name + ': ' if name else ''}{said}") from None
