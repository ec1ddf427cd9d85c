"""What goes wrong with the embedded server, said once for all callers."""

from projections.errors import ReadModelUnavailable


class MongoUnavailable(ReadModelUnavailable):
    """There is no MongoDB server to work with; the message says why and what helps."""
