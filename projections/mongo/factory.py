"""``MongoFactory``: what the ``eventsourcing`` library constructs a view with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    ProcessRecorder,
)

from projections.mongo.client import close, connect, database_in_path
from projections.mongo.read_model import ReadModel
from projections.mongo.view import MongoScoreView
from scoring import InvalidSetting

if TYPE_CHECKING:
    from eventsourcing.utils import Environment, EnvType


class MongoFactory(InfrastructureFactory[MongoScoreView]):
    """Constructs views from ``MONGO_URI`` and ``MONGO_DATABASE``."""

    MONGO_URI = "MONGO_URI"
    MONGO_DATABASE = "MONGO_DATABASE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        """Connect to the server that the environment names.

        Raises:
            InvalidSetting: if ``MONGO_URI`` is not set or not usable.
        """
        super().__init__(env)
        uri = self.env.get(self.MONGO_URI)
        if not uri:
            raise InvalidSetting(
                self.MONGO_URI,
                "it is not set, and the persistence module projections.mongo needs the URI of a "
                "MongoDB replica set",
            )
        self._client = connect(uri)
        self._database = self.env.get(self.MONGO_DATABASE) or database_in_path(self._client)

    def tracking_recorder(
        self, tracking_recorder_class: type[MongoScoreView] | None = None
    ) -> MongoScoreView:
        """Construct the view, creating its collections and indexes.

        Raises:
            ShapeChanged: if its documents were made by a release that made others.
        """
        read_model = ReadModel(self._client, self._database)
        read_model.prepare()
        read_model.generations.check_shape()
        return (tracking_recorder_class or MongoScoreView)(read_model)

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Refuse: events are stored elsewhere."""
        del purpose
        _refuse_events()

    def application_recorder(self) -> ApplicationRecorder:
        """Refuse: events are stored elsewhere."""
        _refuse_events()

    def process_recorder(self) -> ProcessRecorder:
        """Refuse: events are stored elsewhere."""
        _refuse_events()

    def close(self) -> None:
        """Close the client."""
        close(self._client)


def _refuse_events() -> NoReturn:
    raise NotImplementedError(
        "projections.mongo keeps the read model only: choose an event store with PERSISTENCE_MODULE"
    )
