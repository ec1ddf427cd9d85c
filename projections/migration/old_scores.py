"""``OldScores``: an old collection of scores, described once and read only, a user at a time."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from fnmatch import translate
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self
from uuid import UUID

from bson import ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pymongo.collation import Collation
from pymongo.errors import ConfigurationError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from projections.errors import ProjectionError, ReadModelUnavailable
from projections.migration.old_glance import Glancing, OldGlance
from projections.migration.old_users import OldReject, OldUser, RejectReason
from projections.migration.old_values import (
    MISSING,
    Refused,
    Rounding,
    breaks_its_rule,
    integer_of,
    is_missing,
    points_of,
    time_of,
    user_of,
    value_at,
)
from projections.mongo.errors import translated
from projections.retries import retries_until
from scoring.contributions import Contribution
from scoring.errors import InvalidGrant
from scoring.identity import is_grant_shaped
from scoring.rules import RULES, Label, UtcDatetime

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from os import PathLike

    from pymongo import MongoClient
    from pymongo.collection import Collection as MongoCollection

Document = dict[str, Any]

# The driver holds one answer of the server at a time, which might be 16 MB.
_BATCH_SIZE: Final = 1000
_USERS_AT_ONCE: Final = 1000

# Dates and texts that Python has no values for are for us to refuse, not for the driver to fail at.
_CODEC: Final = CodecOptions[Document](
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="surrogateescape",
)

# Order and equality of users must not depend on the collection: what a collation takes for one
# user would be merged into one.
_BY_BYTES: Final = Collation(locale="simple")


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


class OldScores(BaseModel):
    """Where a site keeps its old scores, and how they are spelt. Nothing is ever written there.

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

    def read(
        self, client: MongoClient[Any], *, users: Collection[str] | None = None
    ) -> Iterator[OldUser]:
        """Yield user after user, in the order of the user field, in memory for one user.

        An index that begins with the user field is used; without one MongoDB sorts, on its disk if
        need be. Read from the primary, what a majority has. What is written meanwhile may be seen
        or not, a user at a time where buckets are in the user's document. After an election or a
        lost connection it goes on after the last user that was yielded; a document without a user
        that can be taken may then come twice.

        Args:
            client: Of the server with the old collection; it is only read.
            users: Those only, by the ids that the ledger knows them under.

        Raises:
            ProjectionError: if the database is not named.
            ReadModelUnavailable: if MongoDB failed and stayed so.
        """
        if users is None:
            for glance in self.glance(client):
                yield glance.take()
            return
        collection = self.collection_of(client)
        wanted = sorted(users)
        for start in range(0, len(wanted), _USERS_AT_ONCE):
            ids = [
                id_ for user in wanted[start : start + _USERS_AT_ONCE] for id_ in self._ids(user)
            ]
            for glance in self._read(collection, {self.user: {"$in": ids}}):
                yield glance.take()

    def glance(self, client: MongoClient[Any]) -> Iterator[OldGlance]:
        """Yield user after user as ``read`` does, with their buckets unchecked, in half the time.

        That will do for who knows already what they should be.
        """
        yield from self._read(self.collection_of(client), {})

    def count(self, client: MongoClient[Any]) -> int:
        """Return about how many documents there are, for showing progress."""
        with translated():
            return self.collection_of(client).estimated_document_count()

    def collection_of(self, client: MongoClient[Any]) -> MongoCollection[Document]:
        """Return the collection, to be read: from the primary, what a majority has.

        Raises:
            ProjectionError: if neither this nor the client's URI names the database.
        """
        try:
            name = self.database or client.get_default_database().name
        except ConfigurationError:
            raise ProjectionError(
                f"nothing says in which database the old collection {self.collection} is: name it "
                "in its description, or in the path of the URI"
            ) from None
        with translated():
            return client.get_database(
                name,
                codec_options=_CODEC,
                read_preference=ReadPreference.PRIMARY,
                read_concern=ReadConcern("majority"),
            )[self.collection]

    def _read(self, collection: MongoCollection[Document], where: Document) -> Iterator[OldGlance]:
        taking = _Taking(self, collection)
        retries = retries_until(Event())
        last: Any = MISSING
        while True:
            try:
                with translated():
                    documents = self._find(collection, where, after=last)
                    for raw, glance in taking.glances(documents):
                        retries.reset()
                        if glance.user_id is not None:
                            last = raw
                        yield glance
                    return
            except ReadModelUnavailable as error:
                retries.back_off(error)  # and then go on after the last user

    def _find(
        self, collection: MongoCollection[Document], where: Document, *, after: Any
    ) -> Iterable[Document]:
        if after is not MISSING:
            # As an expression it compares across types, as sorting does.
            where = {**where, "$expr": {"$gt": [f"${self.user}", {"$literal": after}]}}
        return (
            collection.find(where, self._projection(), batch_size=_BATCH_SIZE)
            .sort(self.user, 1)
            .allow_disk_use(True)  # noqa: FBT003 - the driver's signature
            .collation(_BY_BYTES)
        )

    def _projection(self) -> Document:
        if self.buckets is None:
            paths = [self.user, self.key, self.points, self.category, self.source, self.at]
        else:
            paths = [self.user, self.buckets, self.total]
        wanted = {path for path in paths if path is not None}
        # MongoDB takes no path beside one that it lies in.
        return {
            path: 1 for path in wanted if not any(path.startswith(f"{other}.") for other in wanted)
        }

    def _ids(self, user_id: str) -> Iterator[Any]:
        """Yield what may stand in the user field for a user of the ledger."""
        yield user_id
        decomposed = unicodedata.normalize("NFD", user_id)
        if decomposed != user_id:
            yield decomposed
        if self.users_as_text:
            if ObjectId.is_valid(user_id):
                yield ObjectId(user_id)
            elif re.fullmatch(r"0|-?[1-9][0-9]{0,17}", user_id, re.ASCII):
                yield int(user_id)
            elif re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", user_id):
                yield UUID(user_id)


class _Place(NamedTuple):
    """Where a bucket stands."""

    document_id: Any
    path: str
    user_id: str
    key: Any
    bucket: Mapping[str, Any] = MappingProxyType({})

    def reject(self, reason: RejectReason, field: str, value: Any, path: str = "") -> OldReject:
        parts = filter(None, (self.path, path))
        return OldReject(
            reason,
            None if value is MISSING else value,
            self.document_id,
            self.path,
            ".".join(parts),
            field,
            self.user_id,
            self.key,
            self.bucket,
        )


class _Taking:
    """Takes what is in documents, as one description says."""

    def __init__(self, old: OldScores, collection: MongoCollection[Document]) -> None:
        self._old = old
        self._collection = collection
        self._glancing = Glancing(
            buckets=old.buckets,
            key=old.key,
            names=(old.points, old.category, old.source),
            total=old.total,
            maps_labels=bool(old.label_map),
            label=self._label,
        )
        self._labels = [(re.compile(translate(each.keys)), each) for each in old.labels]

    def glances(self, documents: Iterable[Document]) -> Iterator[tuple[Any, OldGlance]]:
        """Yield each user with what stands in the user field; documents are sorted by that."""
        path = self._old.user
        for (_, raw), some in groupby(documents, key=lambda it: _typed(value_at(it, path))):
            try:
                user_id = self._user_id(raw)
            except Refused as refused:
                # There may be any number of these, so each is told by itself.
                value = None if raw is MISSING else raw
                for document in some:
                    reject = OldReject(
                        refused.reason, value, document.get("_id"), "", path, "user_id"
                    )
                    taken = partial(OldUser, None, rejects=[reject])
                    yield raw, OldGlance(None, lambda: (None, None), taken)
                continue
            theirs = list(some)
            look = partial(self._glancing.plain, theirs)
            yield raw, OldGlance(user_id, look, partial(self._taken, user_id, theirs))

    def _taken(self, user_id: str, documents: list[Document]) -> OldUser:
        user = OldUser(user_id)
        places: dict[str, _Place] = {}
        for document in documents:
            self._take(user, document, places)
        return user

    def _user_id(self, raw: Any) -> str:
        user_id = user_of(raw, as_text=self._old.users_as_text)
        if user_id != raw and self._is_there(user_id, beside=raw):
            raise Refused(RejectReason.USER_TWICE)
        return user_id

    def _is_there(self, user_id: str, *, beside: Any) -> bool:
        """Tell whether a user has documents under just this text, too."""
        if not isinstance(beside, str) and not self._has_texts:
            return False
        return self._has(user_id)

    @cached_property
    def _has_texts(self) -> bool:
        return self._has({"$type": "string"})

    def _has(self, user: Any) -> bool:
        found = self._collection.find_one({self._old.user: user}, {"_id": 1}, collation=_BY_BYTES)
        return found is not None

    def _take(self, user: OldUser, document: Document, places: dict[str, _Place]) -> None:
        assert user.user_id is not None  # noqa: S101 - for the type checker
        old, id_ = self._old, document.get("_id")
        if old.buckets is None:
            key = value_at(document, old.key)
            self._take_bucket(user, document, _Place(id_, "", user.user_id, key), places)
            return
        if old.total is not None:
            self._take_total(user, value_at(document, old.total), id_)
        buckets = value_at(document, old.buckets)
        whole = _Place(id_, old.buckets, user.user_id, None)
        if isinstance(buckets, dict):
            for key, bucket in buckets.items():
                place = _Place(id_, f"{old.buckets}.{key}", user.user_id, key)
                self._take_bucket(user, bucket, place, places)
        elif isinstance(buckets, list):
            for number, bucket in enumerate(buckets):
                path = f"{old.buckets}.{number}"
                if isinstance(bucket, dict):
                    place = _Place(id_, path, user.user_id, value_at(bucket, old.key))
                    self._take_bucket(user, bucket, place, places)
                else:
                    unreadable = RejectReason.BUCKET_UNREADABLE
                    user.rejects.append(whole._replace(path=path).reject(unreadable, "key", bucket))
        elif not is_missing(buckets):
            user.rejects.append(whole.reject(RejectReason.BUCKETS_UNREADABLE, "key", buckets))

    def _take_total(self, user: OldUser, raw: Any, document_id: Any) -> None:
        if is_missing(raw):
            return
        try:
            user.total = integer_of(raw, "nearest" if self._old.round == "nearest" else "whole")
        except Refused:
            place = _Place(document_id, self._old.total or "", user.user_id or "", None)
            user.rejects.append(place.reject(RejectReason.TOTAL_UNREADABLE, "total", raw))

    def _take_bucket(
        self, user: OldUser, bucket: Any, place: _Place, places: dict[str, _Place]
    ) -> None:
        raw = self._fields(bucket, place.key)
        place = place._replace(key=None if is_missing(place.key) else place.key, bucket=raw)
        values, rejects = self._values(raw, place, named=isinstance(bucket, dict))
        if not rejects:
            try:
                contribution = Contribution(user_id=place.user_id, **values)
            except InvalidGrant:
                pass  # which of them, and why, is found out below
            else:
                self._keep(user, contribution, place, places)
                return
        self._add_broken_rules(rejects, values, place)
        shaped = isinstance(place.key, str) and is_grant_shaped(place.key)
        timed = values["at"] is not None or any(reject.field == "at" for reject in rejects)
        if shaped and values.get("points") and not timed:
            rejects.append(place.reject(RejectReason.TIME_MISSING, "at", None))
        user.rejects += rejects

    def _fields(self, bucket: Any, key: Any) -> dict[str, Any]:
        """Return what stands in a bucket for the fields of a contribution."""
        if not isinstance(bucket, dict):
            return {"key": key, "points": bucket}
        old = self._old
        fields = {
            "key": key,
            "points": value_at(bucket, old.points),
            "category": value_at(bucket, old.category),
            "source": value_at(bucket, old.source),
            "at": MISSING if old.at is None else value_at(bucket, old.at),
        }
        return {name: value for name, value in fields.items() if value is not MISSING}

    def _values(
        self, raw: Mapping[str, Any], place: _Place, *, named: bool
    ) -> tuple[dict[str, Any], list[OldReject]]:
        """Return the fields that can be taken, and what is wrong with the others."""
        old, key = self._old, place.key
        values: dict[str, Any] = {"key": key, "at": None}
        rejects: list[OldReject] = []
        if key is None:
            rejects.append(place.reject(RejectReason.KEY_MISSING, "key", key, old.key))
        points = raw.get("points", MISSING)
        try:
            values["points"] = points_of(points, old.round)
        except Refused as refused:
            path = old.points if named else ""
            rejects.append(place.reject(refused.reason, "points", points, path))
        for field in ("category", "source"):
            label = self._label(field, raw.get(field), key)
            if label is None:
                missing, path = RejectReason.LABEL_MISSING, getattr(old, field)
                rejects.append(place.reject(missing, field, raw.get(field), path))
            else:
                values[field] = label
        shaped = isinstance(key, str) and is_grant_shaped(key)
        try:
            values["at"] = time_of(raw.get("at"))
        except Refused as refused:
            if shaped:
                rejects.append(place.reject(refused.reason, "at", raw["at"], old.at or ""))
        if values["at"] is None and shaped:
            values["at"] = old.granted_at
        return values, rejects

    def _label(self, field: str, raw: Any, key: Any) -> Any:
        if is_missing(raw) or raw == "":
            if not isinstance(key, str):
                return None
            found = (each for pattern, each in self._labels if pattern.match(key))
            return getattr(next(found, None), field, None)
        return self._old.label_map.get(raw, raw) if isinstance(raw, str) else raw

    def _add_broken_rules(
        self, rejects: list[OldReject], values: dict[str, Any], place: _Place
    ) -> None:
        reasons = {
            "key": (RejectReason.KEY_INVALID, ""),
            "category": (RejectReason.LABEL_INVALID, self._old.category),
            "source": (RejectReason.LABEL_INVALID, self._old.source),
        }
        for field, (reason, path) in reasons.items():
            value = values.get(field, MISSING)
            if not is_missing(value) and breaks_its_rule(field, value):
                rejects.append(place.reject(reason, field, value, path))

    @staticmethod
    def _keep(
        user: OldUser, contribution: Contribution, place: _Place, places: dict[str, _Place]
    ) -> None:
        key = contribution.key
        if key not in places:
            places[key] = place
            user.buckets[key] = contribution
            if contribution.at is None and contribution.points and is_grant_shaped(key):
                user.untimed[key] = place.reject(RejectReason.TIME_MISSING, "at", None)
            return
        # Which of them is meant is not ours to guess.
        found = [(place, contribution)]
        first = user.buckets.pop(key, None)
        if first is not None:
            found.insert(0, (places[key], first))
            user.untimed.pop(key, None)
        user.rejects += [
            where.reject(RejectReason.KEY_TWICE, "key", tuple(each.bucket)) for where, each in found
        ]


def _typed(raw: Any) -> tuple[bool, Any]:
    # For Python, True is 1; for MongoDB, it is another value.
    return isinstance(raw, bool), raw
