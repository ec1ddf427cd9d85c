"""What goes wrong with the embedded server, said once for all callers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from projections.embedded.layout import FolderUnusable
from projections.errors import ReadModelUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


class MongoUnavailable(ReadModelUnavailable):
    """There is no MongoDB server to work with; the message says why and what helps."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn ``FolderUnusable`` into ``MongoUnavailable``, for what callers of the package call."""
    try:
        yield
    except FolderUnusable as error:
        raise MongoUnavailable(str(error)) from error
