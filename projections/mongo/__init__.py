"""MongoDB as a persistence module of the ``eventsourcing`` library, and the adapter behind it.

``PERSISTENCE_MODULE=projections.mongo`` with ``MONGO_URI`` and ``MONGO_DATABASE`` keeps events,
snapshots and positions of any application of the library in MongoDB; see ``event_store``. The same
with the prefix of a projection, ``SCOREGRANTSPROJECTION_PERSISTENCE_MODULE``, makes the library
construct a ``MongoScoreView``.

The read model, from the outside in: ``view`` applies ``batches`` through ``writer``, which moves
``positions`` and counts ``ranks`` in the same transaction. ``read_model`` is one generation's
``collections``; ``generations`` and ``switch`` replace it by another, as ``control`` has it, and
``inventory`` knows which collections are ours. ``transactions``, ``sessions``, ``liveness`` and
``catalog`` do what the driver leaves to its users.

Everything that knows MongoDB's documents, commands and errors is in this package. It may import
``projections.events``, ``projections.retries`` and ``projections.errors``.
"""

from projections.mongo.client import (
    DEFAULT_DATABASE,
    check_server,
    close,
    connect,
    database_in_path,
)
from projections.mongo.factory import MongoFactory
from projections.mongo.view import MongoScoreView

__all__ = [
    "DEFAULT_DATABASE",
    "MongoFactory",
    "MongoScoreView",
    "check_server",
    "close",
    "connect",
    "database_in_path",
]
