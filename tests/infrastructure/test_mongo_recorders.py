"""The library's own cases for recorders, run against MongoDB."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    ProcessRecorder,
    TrackingRecorder,
)
from eventsourcing.tests import application as application_cases
from eventsourcing.tests.persistence import (
    AggregateRecorderTestCase,
    ApplicationRecorderTestCase,
    InfrastructureFactoryTestCase,
    NonInterleavingNotificationIDsBaseCase,
    ProcessRecorderTestCase,
    TrackingRecorderTestCase,
)
from eventsourcing.utils import Environment, get_topic
from pymongo import MongoClient

from projections.mongo import MongoFactory, connect
from projections.mongo.event_store import (
    MongoAggregateRecorder,
    MongoApplicationRecorder,
    MongoProcessRecorder,
    MongoTrackingRecorder,
)


class OnMongo:
    """A database of its own for each case."""

    client: MongoClient[dict[str, object]]
    database: str

    @pytest.fixture(autouse=True)
    def _database(self, mongo_uri: str) -> Iterator[None]:
        self.client = connect(mongo_uri)
        self.database = f"events_{uuid4().hex[:8]}"
        yield
        self.client.drop_database(self.database)
        self.client.close()


class TestAggregateRecorder(OnMongo, AggregateRecorderTestCase):
    """Events or snapshots without positions."""

    def create_recorder(self) -> AggregateRecorder:
        recorder = MongoAggregateRecorder(self.client, self.database, "test_snapshots")
        recorder.prepare()
        return recorder


class TestAggregateRecorderWithTextIds(TestAggregateRecorder):
    """The same, with ids that are text."""

    def new_originator_id(self) -> UUID | str:
        return f"stream-{uuid4()}"


class TestApplicationRecorder(OnMongo, ApplicationRecorderTestCase[MongoApplicationRecorder]):
    """Events with positions."""

    def create_recorder(self) -> MongoApplicationRecorder:
        recorder = MongoApplicationRecorder(self.client, self.database, "test")
        recorder.prepare()
        return recorder

    def test_insert_subscribe(self) -> None:
        """The optional case, too."""
        self.optional_test_insert_subscribe()


class TestApplicationRecorderWithTextIds(TestApplicationRecorder):
    """The same, with ids that are text."""

    def new_originator_id(self) -> UUID | str:
        return f"stream-{uuid4()}"


class TestNonInterleaving(OnMongo, NonInterleavingNotificationIDsBaseCase):
    """Positions of one commit follow each other, however large it is."""

    def create_recorder(self) -> ApplicationRecorder:
        recorder = MongoApplicationRecorder(self.client, self.database, "test")
        recorder.prepare()
        return recorder


class TestTrackingRecorder(OnMongo, TrackingRecorderTestCase):
    """Positions of other applications."""

    def create_recorder(self) -> TrackingRecorder:
        return MongoTrackingRecorder(self.client, self.database, "test")


class TestProcessRecorder(OnMongo, ProcessRecorderTestCase):
    """Events together with positions of other applications."""

    def create_recorder(self) -> ProcessRecorder:
        recorder = MongoProcessRecorder(self.client, self.database, "test")
        recorder.prepare()
        return recorder


class TestProcessRecorderWithTextIds(TestProcessRecorder):
    """The same, with ids that are text."""

    def new_originator_id(self) -> UUID | str:
        return f"stream-{uuid4()}"


class OtherTrackingRecorder(MongoTrackingRecorder):
    """One that an application chooses."""


class TestFactory(OnMongo, InfrastructureFactoryTestCase[MongoFactory]):
    """What the persistence module constructs."""

    @pytest.fixture(autouse=True)
    def _env(self, _database: None, mongo_uri: str) -> None:
        self.env = Environment(
            "TestCase",
            {
                "PERSISTENCE_MODULE": "projections.mongo",
                "MONGO_URI": mongo_uri,
                "MONGO_DATABASE": self.database,
            },
        )

    def expected_factory_class(self) -> type[MongoFactory]:
        return MongoFactory

    def expected_aggregate_recorder_class(self) -> type[AggregateRecorder]:
        return MongoAggregateRecorder

    def expected_application_recorder_class(self) -> type[ApplicationRecorder]:
        return MongoApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[TrackingRecorder]:
        return MongoTrackingRecorder

    def tracking_recorder_subclass(self) -> type[TrackingRecorder]:
        return OtherTrackingRecorder

    def expected_process_recorder_class(self) -> type[ProcessRecorder]:
        return MongoProcessRecorder


class InTheEnvironment(OnMongo):
    """The persistence module is chosen by the variables of the process."""

    @pytest.fixture(autouse=True)
    def _variables(self, _database: None, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSISTENCE_MODULE", "projections.mongo")
        monkeypatch.setenv("MONGO_URI", mongo_uri)
        monkeypatch.setenv("MONGO_DATABASE", self.database)


class TestExampleApplication(InTheEnvironment, application_cases.ExampleApplicationTestCase):
    """An application of the library's, with snapshots."""

    expected_factory_topic = get_topic(MongoFactory)


class TestApplication(InTheEnvironment, application_cases.ApplicationTestCase):
    """What holds of every application."""
