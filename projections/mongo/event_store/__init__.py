"""MongoDB as an event store of the ``eventsourcing`` library, for any application of it.

A chain of documents keeps events in one order for everybody, with positions that have no gaps and
become visible in order; see ``documents`` for their shapes and ``chain`` for why that holds. It may
import ``catalog``, ``errors`` and ``sessions`` of ``projections.mongo``, and ``scoring``.
"""

from projections.mongo.event_store.aggregate_recorder import MongoAggregateRecorder
from projections.mongo.event_store.recorders import (
    GaplessMongoRecorder,
    MongoApplicationRecorder,
    MongoProcessRecorder,
    MongoTrackingRecorder,
)

__all__ = [
    "GaplessMongoRecorder",
    "MongoAggregateRecorder",
    "MongoApplicationRecorder",
    "MongoProcessRecorder",
    "MongoTrackingRecorder",
]
