"""``OldScores``: an old collection of scores, described once and read only, a user at a time."""

from __future__ import annotations

import re
import unicodedata
from threading import Event
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from bson import ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo.errors import ConfigurationError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from projections.errors import ProjectionError, ReadModelUnavailable
from projections.migration.old_description import OldDescription
from projections.migration.old_documents import BY_BYTES, OldDocuments
from projections.migration.old_values import MISSING
from projections.mongo.collections import Document
from projections.mongo.errors import translated
from projections.retries import retries_until

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from pymongo import MongoClient
    from pymongo.collection import Collection as MongoCollection

    from projections.migration.old_glance import OldGlance
    from projections.migration.old_users import OldUser

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


class OldScores(OldDescription):
    """Old scores that are described, and read as they are. Nothing is ever written there.

    Its attributes are those of the description.
    """

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
        in_documents = OldDocuments(self, collection)
        retries = retries_until(Event())
        last: Any = MISSING
        while True:
            try:
                with translated():
                    documents = self._find(collection, where, after=last)
                    for raw, glance in in_documents.glances(documents):
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
            .collation(BY_BYTES)
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
