"""The load of a generation: filling it without what only readers need, which is made at the end.

While a generation is built nobody reads it. So it has no indexes and no counts of ranks: MongoDB
takes half the time then, and nothing has to be read of a user who changes. Once it has caught up,
both are made from what is there, and what is added afterwards is indexed and counted as always.
Until then the document of its position has ``loading`` for a shape, and no switch accepts it.

Nor does an index keep a grant id from being there twice, as the event store does that. Should it
have failed to, or somebody have inserted a document, then the index cannot be made: a generation is
built once more that has it from the beginning, in which the first of them counts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import pymongo
from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from projections.errors import ProjectionError
from projections.mongo.collections import LOADING
from projections.mongo.errors import in_words, translated
from projections.mongo.ranks import RANKED, first_pages, page_document, scores_of
from projections.mongo.sessions import in_session
from projections.mongo.transactions import find_server, in_transaction

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel


# However little a client may take for an operation: of a long history an index takes a while.
_MAX_SECONDS: Final = 3600.0


class GrantIdTwice(ProjectionError):
    """Two of the documents that were loaded have the same grant id."""


def finish_load(building: ReadModel, application_name: str) -> None:
    """Make the indexes and counts that a generation was filled without, unless that is done.

    It may be killed and called again, and others may fill the generation or do the same meanwhile.

    Raises:
        GrantIdTwice: if an index cannot be made for that.
        ReadModelDamaged: if a collection of the generation is gone.
        ReadModelUnavailable: if MongoDB failed.
        RebuildSuperseded: if the generation is not being built any more.
    """
    loading = {"_id": building.position_id(application_name), "shape": LOADING}

    def count(session: ClientSession) -> tuple[Document, list[Document]]:
        # Looked up first: whatever is added after that changes its mark.
        position = building.positions.find_one(loading, session=session) or {}
        return {**loading, "mark": position.get("mark")}, [
            page_document(total, page)
            for total in RANKED
            for page in first_pages(scores_of(building, total, session, way=1))
        ]

    # With a limit the driver waits as long for a server, too.
    seconds = None if building.client.options.timeout is None else _MAX_SECONDS
    with translated(), pymongo.timeout(seconds):
        find_server(building.client)
        while building.positions.find_one(loading) is not None:
            try:
                building.inventory.create_indexes()
            except DuplicateKeyError as error:
                raise GrantIdTwice(in_words(error)) from error
            counted, pages = in_session(building.client, count, causal_consistency=True)
            in_transaction(building, partial(_put, building, counted, pages))


def _put(
    building: ReadModel, counted: Document, pages: list[Document], session: ClientSession
) -> None:
    done = {"$set": {"shape": building.shape, "mark": ObjectId()}}
    if building.positions.update_one(counted, done, session=session).matched_count and pages:
        building.ranks.insert_many(pages, session=session)
