"""The library's own cases for recorders, run against MongoDB.

All that it ships are run, but for two: those of transcoders, which know of no store, and
``TaggedDecisionCountersProjectionTestCase``, which is of ``eventsourcing.dcb``, where events have
tags instead of streams and recorders another interface. On three nodes are those that an election
in between does not make fail by a time limit of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.application import Application, ProcessingEvent
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate, DomainEventProtocol
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    ProcessRecorder,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.projection import ProjectionRunner
from eventsourcing.system import (
    MultiThreadedRunner,
    ProcessApplication,
    Runner,
    SingleThreadedRunner,
    System,
)
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import projection as projection_cases
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
from projections.mongo.event_store.documents import collection_of
from replica_set import ReplicaSet
from support import mongo_env


class OnMongo:
    """A database of its own for each case."""

    client: MongoClient[dict[str, object]]
    database: str

    @pytest.fixture
    def uri(self, mongo_uri: str) -> str:
        """One node."""
        return mongo_uri

    @pytest.fixture(autouse=True)
    def _database(self, uri: str) -> Iterator[None]:
        self.client = connect(uri)
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
    def _env(self, _database: None, uri: str) -> None:
        self.env = Environment("TestCase", mongo_env(uri, self.database))

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
    def _variables(self, _database: None, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSISTENCE_MODULE", "projections.mongo")
        monkeypatch.setenv("MONGO_URI", uri)
        monkeypatch.setenv("MONGO_DATABASE", self.database)


class TestExampleApplication(InTheEnvironment, application_cases.ExampleApplicationTestCase):
    """An application of the library's, with snapshots."""

    expected_factory_topic = get_topic(MongoFactory)


class TestApplication(InTheEnvironment, application_cases.ApplicationTestCase):
    """What holds of every application."""


class EventCounters(MongoTrackingRecorder, projection_cases.EventCountersView):
    """A view of an application's own, as the library's cases want one."""

    def __init__(self, client: MongoClient[Any], database: str, prefix: str) -> None:
        super().__init__(client, database, prefix)
        self._counters = collection_of(client, database, f"{prefix}_counters")

    def get_created_event_counter(self) -> int:
        return self._count("created")

    def get_subsequent_event_counter(self) -> int:
        return self._count("subsequent")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self._increment("created", tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self._increment("subsequent", tracking)

    def _count(self, name: str) -> int:
        found = self._counters.find_one({"_id": name})
        return 0 if found is None else int(found["n"])

    def _increment(self, name: str, tracking: Tracking) -> None:
        self.insert_tracking_with(
            tracking,
            lambda session: self._counters.update_one(
                {"_id": name}, {"$inc": {"n": 1}}, upsert=True, session=session
            ),
        )


class TestEventCountersView(OnMongo, projection_cases.EventCountersViewTestCase):
    """What a view shows and its position are written together."""

    def construct_event_counters_view(self) -> projection_cases.EventCountersView:
        return EventCounters(self.client, self.database, "test")


@contextmanager
def given_time(owner: type, name: str) -> Iterator[None]:
    """Have a method take a minute where the library's cases allow a second, or five."""
    method = getattr(owner, name)

    def take_time(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **{**kwargs, "timeout": 60.0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, take_time)
        yield


class TestProjection(InTheEnvironment, projection_cases.AggregateEventCountersProjectionTestCase):
    """The library's runner, which subscribes."""

    view_class = EventCounters

    def test_event_counters_projection(self) -> None:
        """On a busy machine, too."""
        with given_time(TrackingRecorder, "wait"):
            super().test_event_counters_projection()

    def test_run_forever_raises_projection_error(self) -> None:
        """Likewise."""
        with given_time(ProjectionRunner, "run_forever"):
            super().test_run_forever_raises_projection_error()


class TestEventSourcedProjection(InTheEnvironment, projection_cases.EventSourcedProjectionTestCase):
    """An application that processes the events of another one."""

    def test_event_sourced_projection(self) -> None:
        """On a busy machine, too."""
        with given_time(TrackingRecorder, "wait"):
            super().test_event_sourced_projection()


class Upstream(Application[UUID]):
    """Leads."""


class Counting(ProcessApplication[UUID]):
    """Follows, and records an aggregate for each that is created upstream."""

    @singledispatchmethod
    def policy(
        self, domain_event: DomainEventProtocol[UUID], processing_event: ProcessingEvent[UUID]
    ) -> None:
        """Do nothing."""

    @policy.register
    def _(self, _: Aggregate.Created, processing_event: ProcessingEvent[UUID]) -> None:
        processing_event.collect_events(Aggregate())


@pytest.mark.parametrize("runner_class", [SingleThreadedRunner, MultiThreadedRunner])
def test_a_system_of_applications_keeps_each_ones_events_apart(
    runner_class: type[Runner[UUID]], mongo_uri: str
) -> None:
    """The library ships no cases for systems; this is its way of running them."""
    database = f"events_{uuid4().hex[:8]}"
    env = mongo_env(mongo_uri, database)
    with runner_class(System(pipes=[[Upstream, Counting]]), env=env) as runner:
        upstream, counting = runner.get(Upstream), runner.get(Counting)
        for _ in range(20):
            upstream.save(Aggregate())
        counting.recorder.wait("Upstream", 20, timeout=60)
        assert counting.recorder.max_notification_id() == 20
    with connect(mongo_uri) as client:
        names = set(client[database].list_collection_names())
        assert {"upstream_events", "counting_events", "counting_tracking"} <= names
        client.drop_database(database)


class OnThreeNodes:
    """The same on a replica set of three."""

    @pytest.fixture
    def uri(self, replica_set: ReplicaSet) -> str:
        """Three nodes."""
        return replica_set.uri


class TestAggregateRecorderOnThreeNodes(OnThreeNodes, TestAggregateRecorder):
    """Events or snapshots without positions."""


class TestApplicationRecorderOnThreeNodes(OnThreeNodes, TestApplicationRecorder):
    """Events with positions."""


class TestNonInterleavingOnThreeNodes(OnThreeNodes, TestNonInterleaving):
    """Positions of one commit follow each other."""


class TestTrackingRecorderOnThreeNodes(OnThreeNodes, TestTrackingRecorder):
    """Positions of other applications."""


class TestProcessRecorderOnThreeNodes(OnThreeNodes, TestProcessRecorder):
    """Events together with positions of other applications."""


class TestExampleApplicationOnThreeNodes(OnThreeNodes, TestExampleApplication):
    """An application of the library's, with snapshots."""


class TestProjectionOnThreeNodes(OnThreeNodes, TestProjection):
    """The library's runner, which subscribes."""


class TestFactoryOnThreeNodes(OnThreeNodes, TestFactory):
    """What the persistence module constructs."""


class TestEventCountersViewOnThreeNodes(OnThreeNodes, TestEventCountersView):
    """What a view shows and its position are written together."""
