"""What is in the documents of an old collection, taken as its description says."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cached_property, partial
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pymongo.collation import Collation

from projections.migration.old_glance import Glancing, OldGlance
from projections.migration.old_users import OldReject, OldUser, RejectReason
from projections.migration.old_values import (
    MISSING,
    Refused,
    breaks_its_rule,
    integer_of,
    is_missing,
    points_of,
    time_of,
    user_of,
    value_at,
)
from scoring.contributions import Contribution
from scoring.errors import InvalidGrant
from scoring.identity import is_grant_shaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pymongo.collection import Collection

    from projections.migration.old_description import OldDescription
    from projections.mongo.collections import Document

# Order and equality of users must not depend on the collection: what a collation takes for one
# user would be merged into one.
BY_BYTES: Final = Collation(locale="simple")


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


class OldDocuments:
    """Takes what is in documents, as one description says."""

    def __init__(self, old: OldDescription, collection: Collection[Document]) -> None:
        self._old = old
        self._collection = collection
        self._glancing = Glancing(old, self._label)
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
        found = self._collection.find_one({self._old.user: user}, {"_id": 1}, collation=BY_BYTES)
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
