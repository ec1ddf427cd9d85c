"""Real servers for all tests: one mongod for the run, one database for each test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from event_store_kinds import EVENT_STORES
from postgres_server import PostgresServer, running_postgres
from projections.embedded import open_server
from projections.mongo import MongoScoreView, connect
from projections.mongo.read_model import ReadModel
from replica_set import ReplicaSet, running_replica_set
from scoring import Scoring
from support import sqlite_env
from telemetry import Telemetry

# A busy machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


_SETTINGS = re.compile(
    r"(MONGO|SCORE_LEDGER|SCORING|SQLITE|POSTGRES|AGGREGATE|CIPHER|OTEL)_.*|PG[A-Z]+|\w+_TOPIC"
    r"|PERSISTENCE_MODULE|IS_SNAPSHOTTING_ENABLED|ORIGINATOR_ID_TYPE|CREATE_TABLE"
)
"""What we, the library, PostgreSQL's client and OpenTelemetry read from the environment."""

_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 6 * 1024**3
"""Three workers have up to four and a half gigabytes of MongoDB's journals between them."""


def _free_memory() -> int:
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return min(int(found[1]) * 1024 if found else 0, shutil.disk_usage(_MEMORY).free)


def pytest_configure(config: pytest.Config) -> None:
    """Keep files in memory where there is enough of it: no test takes the power away.

    A process that is killed loses nothing of what it wrote, there as on a disk. Long runs write
    more than memory should hold.
    """
    for name in filter(_SETTINGS.fullmatch, list(os.environ)):
        del os.environ[name]  # of whoever runs the tests
    # A test removes its folder, and leaves no server behind.
    os.environ["SCORE_LEDGER_LINGER_SECONDS"] = "0"
    # Whoever runs the tests in the background has Ctrl-C ignored, and so would what they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = "TMPDIR" in os.environ or config.option.basetemp or config.option.markexpr == "soak"
    if not chosen and _MEMORY.is_dir() and _free_memory() > _ENOUGH_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for servers, processes and times most of the time.

    Each worker has servers of its own.
    """
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on three nodes, so that one worker has them all and starts the nodes.

    And refuse names with an address in them: to parallel workers they would be different tests.
    """
    assert not [item.nodeid for item in items if " at 0x" in item.nodeid]
    items.sort(key=lambda item: "replica_set" not in getattr(item, "fixturenames", ()))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--mongo-uri`` names a replica set for all tests, which saves starting one for a few."""
    parser.addoption("--mongo-uri", help="of a replica set that is started with enableTestCommands")


@pytest.fixture(scope="session")
def mongo_uri(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A replica set of one node that serves the whole run."""
    if uri := request.config.getoption("--mongo-uri"):
        yield uri
        return
    folder = tmp_path_factory.mktemp("mongo")
    with open_server(folder, extra_args=["--setParameter", "enableTestCommands=1"]) as server:
        # Our clients give a server that hangs up after three seconds, and what was asked of it. One
        # that is only busy would be given up, too, and what a test asks itself is asked but once.
        yield f"{server.uri}&connectTimeoutMS=60000"


@pytest.fixture(scope="session")
def _replica_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    with running_replica_set(tmp_path_factory.mktemp("replica-set")) as replicas:
        yield replicas


@pytest.fixture
def replica_set(_replica_set: ReplicaSet) -> Iterator[ReplicaSet]:
    """Three nodes, healthy at the beginning of a test and again at its end."""
    _replica_set.await_healthy()
    yield _replica_set
    _replica_set.await_healthy()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real server that serves the whole run."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def database(mongo_uri: str) -> Iterator[Any]:
    """A database of an embedding application's own client."""
    with connect(mongo_uri) as client:
        name = f"test_{uuid4().hex}"
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def read_model(mongo_uri: str) -> Iterator[ReadModel]:
    """A prepared read model in a database of its own."""
    with connect(mongo_uri) as client:
        model = ReadModel(client, f"test_{uuid4().hex}")
        model.prepare()
        yield model
        # A transaction that was left open would hold up the dropping of the database.
        client.admin.command("killAllSessions", [])
        client.drop_database(model.database.name)


@pytest.fixture
def view(read_model: ReadModel) -> Iterator[MongoScoreView]:
    """A view on that database."""
    with closing(MongoScoreView(read_model)) as view:
        yield view


@pytest.fixture
def scoring(tmp_path: Path) -> Iterator[Scoring]:
    """The write side on a SQLite file."""
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as app:
        yield app


@pytest.fixture(params=EVENT_STORES)
def new_env(request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    """Make the settings of a new event store, of each kind in turn."""
    return EVENT_STORES[request.param](request)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources at hand."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--wheel-dir", str(folder))
    here = ("--no-index", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, *here, str(Path(__file__).parents[1])], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def _telemetry() -> Telemetry:
    """OpenTelemetry lets its providers be set once in a process."""
    return Telemetry()


@pytest.fixture
def telemetry(_telemetry: Telemetry) -> Iterator[Telemetry]:
    """The spans and metrics of one test."""
    with _telemetry.listening():
        yield _telemetry
