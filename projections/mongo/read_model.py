"""The read model: collections, which generation of them is live, and whether they are whole."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from projections.errors import ReadModelDamaged
from projections.mongo.client import check_server
from projections.mongo.collections import Collections
from projections.mongo.generations import Generations
from projections.mongo.inventory import Inventory

if TYPE_CHECKING:
    from pymongo import MongoClient

    from projections.mongo.collections import Document


class ReadModel(Collections):
    """The collections of one generation, with what keeps them together."""

    def __init__(
        self, client: MongoClient[Document], database: str, *, generation: int | None = None
    ) -> None:
        """Name the database, and the generation unless it is the live one; nothing is sent yet."""
        super().__init__(client, database, generation=generation)
        self.generations = Generations(self)
        self.inventory = Inventory(self, self.generations)

    def prepare(self) -> None:
        """Check that the server can do transactions, and create what is missing.

        Raises:
            NameTaken: if a collection has the name of one of these and is not the ledger's.
            ReadModelUnavailable: if the server is not there, or is not of a replica set.
        """
        check_server(self.client)
        with suppress(ReadModelDamaged):  # which stops workers, and has to be open to be rebuilt
            self.inventory.check()

    def check(self) -> None:
        """Check all that can be checked without writing anything.

        Raises:
            NameTaken: if a collection has the name of one of these and is not the ledger's.
            ReadModelGone: if there is no read model.
            ReadModelUnavailable: if the server is not there, or is not of a replica set.
        """
        check_server(self.client)
        self.inventory.check_existence()

    def counts(self) -> tuple[int, int]:
        """Return the numbers of users and grants, from the collections' metadata."""
        return self.generations.consistently(
            lambda _: (
                self.users.estimated_document_count(),
                self.grants.estimated_document_count(),
            ),
            any_shape=True,
        )
