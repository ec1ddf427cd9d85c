"""Verifying that the collections and indexes of the read model are those it was made with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from projections.verification.report import Difference, Verification

if TYPE_CHECKING:
    from projections.mongo.read_model import ReadModel


def verify_collections(read_model: ReadModel) -> Verification:
    """Report each collection and index that is missing, or is another one.

    Raises:
        ReadModelUnavailable: if MongoDB failed.
    """
    outcome = Verification()
    for damage in read_model.inventory.damages():
        outcome.report(Difference(None, damage.what, damage.expected, damage.found))
    return outcome
