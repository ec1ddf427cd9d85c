"""What is told of a batch while a worker applies it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from projections.errors import PositionMoved
from projections.events.model import GrantEvent
from projections.mongo.collections import GRANTS
from projections.telemetry.metrics import count_batch, count_conflict
from projections.telemetry.tracing import MONGODB, batch_span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from projections.mongo.batches import Batch


@contextmanager
def observed(batch: Batch, *, namespace: str) -> Iterator[None]:
    """Apply a batch in a span that links to the commands behind it, and measure it.

    Args:
        batch: Which one.
        namespace: The database that it goes to.
    """
    attributes: dict[str, str | int] = {
        "db.system.name": MONGODB,
        "db.namespace": namespace,
        "db.collection.name": GRANTS,
        "db.operation.name": "project",
        "score_ledger.batch.size": len(batch.events),
        "score_ledger.batch.position": batch.reaches.position or 0,
    }
    traceparents = (
        event.data.traceparent for event in batch.events if isinstance(event, GrantEvent)
    )
    started = time.monotonic()
    try:
        with batch_span(f"project {GRANTS}", attributes=attributes, traceparents=traceparents):
            yield
    except PositionMoved:
        count_conflict()
        raise
    count_batch(grants=len(batch.events), seconds=time.monotonic() - started)
