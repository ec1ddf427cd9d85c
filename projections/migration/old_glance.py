"""A first look at a user of an old collection, before anything is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bson import Int64

from projections.migration.old_values import is_missing, value_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from projections.migration.old_description import OldDescription
    from projections.migration.old_users import OldUser
    from projections.mongo.collections import Document

Plain = dict[str, tuple[int, str, str]]
"""By key: points, category and source."""

_INTEGERS: Final = (int, Int64)


class OldGlance(NamedTuple):
    """One user of an old collection at a glance.

    Attributes:
        user_id: The user as the ledger would know them; ``None`` if the user cannot be taken.
        look: Returns the buckets, where all of them are spelt as the ledger spells them, otherwise
            ``None``; and the old total, if there is one. Unchecked: if they are those of the
            ledger, they obey its rules.
        take: Returns what can be taken of the user, checked, and what cannot.
    """

    user_id: str | None
    look: Callable[[], tuple[Plain | None, int | None]]
    take: Callable[[], OldUser]


class Glancing:
    """Looks at documents, as one description says."""

    def __init__(self, old: OldDescription, label: Callable[[str, Any, Any], Any]) -> None:
        """Take from ``label`` what stands for a label that is missing or mapped.

        It is given ``category`` or ``source``, what is there, and the key.
        """
        self._old = old
        self._label = label
        self._names = old.points, old.category, old.source
        self._is_plain = not any("." in name for name in self._names)

    def plain(self, documents: Iterable[Document]) -> tuple[Plain | None, int | None]:
        """Return a user's buckets and total; no buckets unless all are in plain sight."""
        plain: Plain = {}
        total: Any = None
        label, maps_labels = self._label, bool(self._old.label_map)
        points_name, category_name, source_name = self._names
        for document in documents if self._is_plain else ():
            if self._old.total is not None:
                total = value_at(document, self._old.total)
                total = None if is_missing(total) else total
                if total is not None and type(total) not in _INTEGERS:
                    return None, None
            for key, bucket in self._buckets(document):
                if isinstance(bucket, dict):
                    points: Any = bucket.get(points_name)
                    category: Any = bucket.get(category_name)
                    source: Any = bucket.get(source_name)
                else:
                    points, category, source = bucket, None, None
                if type(points) not in _INTEGERS or type(key) is not str or key in plain:
                    return None, None
                if maps_labels or not category:
                    category = label("category", category, key)
                if maps_labels or not source:
                    source = label("source", source, key)
                plain[key] = points, category, source
        return (plain if self._is_plain else None), total

    def _buckets(self, document: Document) -> Iterable[tuple[Any, Any]]:
        key, path = self._old.key, self._old.buckets
        if path is None:
            return ((value_at(document, key), document),)
        buckets = value_at(document, path)
        if isinstance(buckets, dict):
            return buckets.items()
        if isinstance(buckets, list):
            return ((value_at(bucket, key), bucket) for bucket in buckets)
        # What cannot be read is nothing that the ledger could have.
        return () if is_missing(buckets) else ((None, None),)
