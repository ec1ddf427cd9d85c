"""``MongoFactory``: what the ``eventsourcing`` library constructs recorders and views with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from eventsourcing.persistence import InfrastructureFactory, ProgrammingError, TrackingRecorder
from eventsourcing.utils import resolve_topic, strtobool

from projections.mongo.client import close, connect, database_in_path, why_unusable
from projections.mongo.errors import translated
from projections.mongo.event_store import (
    MongoAggregateRecorder,
    MongoApplicationRecorder,
    MongoProcessRecorder,
    MongoTrackingRecorder,
)
from projections.mongo.event_store.aggregate_recorder import MongoRecorder
from projections.mongo.event_store.errors import persistence_errors
from projections.mongo.read_model import ReadModel
from projections.mongo.view import MongoScoreView
from scoring import InvalidSetting

if TYPE_CHECKING:
    from eventsourcing.utils import Environment, EnvType
    from pymongo import MongoClient

T = TypeVar("T")
RecorderT = TypeVar("RecorderT", bound=MongoRecorder)


class MongoFactory(InfrastructureFactory[TrackingRecorder]):
    """Constructs recorders and views from ``MONGO_URI`` and ``MONGO_DATABASE``.

    An application's events are in ``<name>_events``, its snapshots in ``<name>_snapshots`` and the
    positions that it has processed in ``<name>_tracking``, by its name in lower case. Like the
    library's other factories, this one is told other recorders by ``APPLICATION_RECORDER_TOPIC``,
    ``PROCESS_RECORDER_TOPIC`` and ``TRACKING_RECORDER_TOPIC``, and to create nothing by
    ``CREATE_TABLE=n``. If the server failed, or is not of a replica set, its methods raise
    ``PersistenceError``; if the database cannot be used, ``InvalidSetting``.
    """

    MONGO_URI: Final = "MONGO_URI"
    MONGO_DATABASE: Final = "MONGO_DATABASE"
    CREATE_TABLE: Final = "CREATE_TABLE"

    def __init__(
        self, env: Environment | EnvType | None, *, client: MongoClient[Any] | None = None
    ) -> None:
        """Connect to the server that the environment names, unless a client is lent.

        Raises:
            InvalidSetting: if ``MONGO_URI`` is needed and not set, or not usable.
        """
        super().__init__(env)
        self._own_client: MongoClient[Any] | None = None
        if client is None:
            uri = self.env.get(self.MONGO_URI)
            if not uri:
                raise InvalidSetting(
                    self.MONGO_URI,
                    "it is not set, and the persistence module projections.mongo needs the URI of "
                    "a MongoDB replica set",
                )
            client = self._own_client = connect(uri)
        self._client = client
        self._database = self.env.get(self.MONGO_DATABASE) or database_in_path(client)
        self._prefix = self.env.name.lower() or "stored"
        self._recorders: list[MongoRecorder] = []

    def aggregate_recorder(self, purpose: str = "events") -> MongoAggregateRecorder:
        """Construct a recorder of snapshots, or of events without positions."""
        name = f"{self._prefix}_{purpose}"
        return self._prepared(MongoAggregateRecorder(self._client, self._database, name))

    def application_recorder(self) -> MongoApplicationRecorder:
        """Construct a recorder of events."""
        chosen = self._chosen(self.APPLICATION_RECORDER_TOPIC, MongoApplicationRecorder)
        return self._prepared(chosen(self._client, self._database, self._prefix))

    def process_recorder(self) -> MongoProcessRecorder:
        """Construct a recorder of events and of the positions that they were made at."""
        chosen = self._chosen(self.PROCESS_RECORDER_TOPIC, MongoProcessRecorder)
        return self._prepared(chosen(self._client, self._database, self._prefix))

    def tracking_recorder(
        self, tracking_recorder_class: type[TrackingRecorder] | None = None
    ) -> TrackingRecorder:
        """Construct a recorder of positions, or a ``MongoScoreView`` if that is the class.

        A view's collections and indexes are created.

        Raises:
            PersistenceError: if the server failed.
            ReadModelUnavailable: likewise, for a view.
            ShapeChanged: if a view's documents were made by a release that made others.
        """
        chosen: type[Any] = tracking_recorder_class or self._chosen(
            self.TRACKING_RECORDER_TOPIC, MongoTrackingRecorder
        )
        if issubclass(chosen, MongoScoreView):
            read_model = ReadModel(self._client, self._database)
            read_model.prepare()
            read_model.generations.check_shape()
            return chosen(read_model)
        recorder: MongoTrackingRecorder = chosen(self._client, self._database, self._prefix)
        return self._prepared(recorder)

    def has_events(self) -> bool:
        """Tell whether there is a collection of the application's events.

        Raises:
            ReadModelUnavailable: if the server failed.
        """
        name = f"{self._prefix}_events"
        with translated():
            # A user need not be allowed to list those that it may not read.
            found = self._client[self._database].list_collection_names(
                filter={"name": name}, authorizedCollections=True
            )
        return name in found

    def close(self) -> None:
        """Close the recorders, and the client unless it was lent."""
        for recorder in self._recorders:
            recorder.close()
        # Once only: an application closes itself again as it is collected, and in a finaliser the
        # driver's time limits, which are context variables, can crash Python 3.11.
        client, self._own_client = self._own_client, None
        # An application that nobody closed is closed as the interpreter ends, when the driver
        # cannot start the threads any more that it says goodbye with.
        if client is not None and not sys.is_finalizing():
            close(client)

    def _chosen(self, variable: str, default: type[T]) -> type[T]:
        topic = self.env.get(variable)
        chosen: type[T] = resolve_topic(topic) if topic else default
        return chosen

    def _prepared(self, recorder: RecorderT) -> RecorderT:
        with persistence_errors():
            reason = why_unusable(self._client)
        if reason is not None:
            raise ProgrammingError(reason)
        if strtobool(self.env.get(self.CREATE_TABLE) or "yes"):
            recorder.prepare()
        self._recorders.append(recorder)
        return recorder
