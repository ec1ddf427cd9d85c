"""A real ``mongod`` for a folder: the first who needs it starts it, the last to leave ends it.

The server is a replica set of one node on loopback, because only a replica set has transactions.
Several processes may open the same folder at once and then share one server:

    with open_server(Path(".score-ledger/mongo")) as server:
        client = MongoClient(server.uri)

How sharing works, file by file in the folder:

- ``users.lock``: every user holds it shared. The kernel drops a dead process's locks, so a killed
  user can neither keep the server running nor stop it for the others. Its text is the wish of the
  last to leave: until when the supervisor is to keep the server, standing still, for the next user.
- ``release.lock``: held by whoever finds out whether it was the last, one at a time.
- ``start.lock``: held by whoever looks for the server and starts it if there is none.
- ``supervisor.lock``: held by the small process that owns mongod, restarts it when it dies and
  stops it when the last user is gone without having closed.
- ``key``: the password, random, for the folder's owner alone; ``uri`` carries it.
- ``server.json``: the last run's port, so that a restart keeps the address where it can.
- ``data/``, ``mongod.log``, ``mongod.out``, ``supervisor.log``: what the names say.

It may import ``projections.errors`` and, for the codes of the server, ``projections.mongo.errors``;
but the supervisor, ``layout``, ``locks`` and ``processes`` import nothing but the standard library.
"""

from projections.embedded.binary import find_mongod
from projections.embedded.errors import MongoUnavailable
from projections.embedded.server import EmbeddedServer, open_server

__all__ = ["EmbeddedServer", "MongoUnavailable", "find_mongod", "open_server"]
