"""MongoDB as a persistence module of the ``eventsourcing`` library, and the adapter behind it.

``SCOREGRANTSPROJECTION_PERSISTENCE_MODULE=projections.mongo`` with ``MONGO_URI`` and
``MONGO_DATABASE`` makes the library construct a ``MongoScoreView``. Events are not stored here.

Everything that knows MongoDB's documents, commands and errors is in this package. It may import
``projections.events``, ``projections.retries`` and ``projections.errors``.
"""

from projections.mongo.client import DEFAULT_DATABASE, close, connect, database_in_path
from projections.mongo.factory import MongoFactory
from projections.mongo.view import MongoScoreView

__all__ = [
    "DEFAULT_DATABASE",
    "MongoFactory",
    "MongoScoreView",
    "close",
    "connect",
    "database_in_path",
]
