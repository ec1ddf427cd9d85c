"""A replica set of three real mongods on loopback, whose members can be killed and frozen."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from concurrency import until
from processes import freeze, thaw
from projections import ReadModelUnavailable
from projections.embedded.binary import find_mongod
from projections.embedded.launch import free_port

NAME = "three"
_PATIENCE_SECONDS = 150.0
_POLL_SECONDS = 0.05

Document = dict[str, Any]
T = TypeVar("T")


@dataclass(eq=False)
class Node:
    """One mongod of the set; its address and its data outlive the process."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> MongoClient[Document]:
        """A client of this node alone, which waits for a busy one, and not for ever."""
        return MongoClient(
            self.address,
            directConnection=True,
            serverSelectionTimeoutMS=10_000,
            socketTimeoutMS=30_000,
        )

    def command(self, *command: Any, **values: Any) -> Document:
        with self.client() as client:
            return client.admin.command(*command, **values)


def sit_out(ask: Callable[[], T]) -> T:
    """Return the answer to what may be asked twice: a busy machine has elections of its own."""
    answers: list[T] = []

    def is_answered() -> bool:
        with suppress(ConnectionFailure, ReadModelUnavailable):
            answers.append(ask())
        return bool(answers)

    until(is_answered, every_seconds=_POLL_SECONDS)
    return answers[0]


class ReplicaSet:
    """Three nodes with quick elections; made by ``running_replica_set``."""

    def __init__(self, folder: Path) -> None:
        self._program = find_mongod()
        self.nodes: list[Node] = []
        # Those of embedded servers are lower, and those of other processes that test are others:
        # none of these is taken while its node is down.
        first_port = 30_000 + 3 * (os.getpid() % 900)
        for number in range(3):
            port = free_port(first_port + number)
            node = Node(port=port, folder=folder / f"node-{number}")
            (node.folder / "db").mkdir(parents=True)
            self.nodes.append(node)
            # Started at once, so that the next node cannot choose the same port.
            self._start(node)

    @property
    def uri(self) -> str:
        addresses = ",".join(node.address for node in self.nodes)
        return f"mongodb://{addresses}/?replicaSet={NAME}"

    def initiate(self) -> None:
        config = {
            "_id": NAME,
            "members": [{"_id": i, "host": node.address} for i, node in enumerate(self.nodes)],
            "settings": {
                "electionTimeoutMillis": 2000,
                "heartbeatIntervalMillis": 500,
                "heartbeatTimeoutSecs": 2,
            },
        }
        for node in self.nodes:
            self._await(partial(node.command, "ping"))
        self.nodes[0].command("replSetInitiate", config)
        self.await_healthy()

    def primary(self) -> Node:
        """The node that takes writes; waits until there is one."""
        found: list[Node] = []

        def look() -> bool:
            # A primary that was frozen believes in itself for a moment: the newest term wins.
            terms = [(self._term(node), node) for node in self.nodes if self._writable(node)]
            found.extend(node for _, node in sorted(terms, key=lambda each: each[0])[-1:])
            return bool(found)

        self._await(look)
        return found[-1]

    def secondaries(self) -> list[Node]:
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]

    def step_down(self) -> Node:
        """Have the primary make way for another; returns the node that was primary."""
        stepped_down: list[Node] = []

        def ask() -> bool:
            node = self.primary()  # which may make way by itself before it is asked to
            # Secondaries that lag by more than a moment would have it refused.
            node.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=2, force=True)
            stepped_down.append(node)
            return True

        self._await(ask)
        return stepped_down[0]

    def kill(self, node: Node) -> None:
        """SIGKILL."""
        if node.process is not None:
            node.process.kill()
            node.process.wait()
        node.process, node.frozen = None, False

    def restart(self, node: Node) -> None:
        """Start a node that was killed, on its data; does not wait until it is healthy."""
        assert node.process is None, "kill it first"
        self._start(node)

    def freeze(self, node: Node) -> None:
        """SIGSTOP: its connections stay open and are not answered."""
        assert node.process is not None, "it does not run"
        freeze(node.process.pid)
        node.frozen = True

    def thaw(self, node: Node) -> None:
        """SIGCONT."""
        assert node.process is not None, "it does not run"
        thaw(node.process.pid)
        node.frozen = False

    def await_healthy(self) -> None:
        """Start and thaw what is not running, and wait for a primary and two secondaries."""
        for node in self.nodes:
            if node.frozen:
                self.thaw(node)
            if node.process is None:
                self.restart(node)
        self._await(self._healthy)

    def roll_back(self, write: Callable[[MongoClient[Document]], object]) -> None:
        """Have something written to the primary, and rolled back.

        Writes with a client of the primary alone; with ``WriteConcern(1)``, since no majority sees
        it. The old primary is killed, another elected, and the old one joins that again.
        """

        def attempt() -> bool:
            self.await_healthy()
            old = self.primary()  # which may make way by itself before it is written to
            others = [node for node in self.nodes if node is not old]
            try:
                for node in others:
                    self._set_fail_point(node, "stopReplProducer", "alwaysOn")
                with old.client() as client:
                    write(client)
                self.kill(old)
            finally:
                for node in others:
                    self._set_fail_point(node, "stopReplProducer", "off")
            return True

        self._await(attempt)
        self.primary()
        self.await_healthy()

    def stop(self) -> None:
        for node in self.nodes:
            self.kill(node)

    def _start(self, node: Node) -> None:
        # The kernel ends the nodes with whoever runs the tests, however that ends.
        with (node.folder / "output.log").open("ab") as output:
            node.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", str(self._program)),
                    *("--dbpath", str(node.folder / "db"), "--port", str(node.port)),
                    *("--bind_ip", "127.0.0.1", "--replSet", NAME),
                    *("--logpath", str(node.folder / "mongod.log"), "--logappend"),
                    *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "256"),
                    *("--setParameter", "enableTestCommands=1"),
                    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # A Ctrl-C at the terminal is the test's to handle.
            )
        node.frozen = False

    def _healthy(self) -> bool:
        # Each is asked itself: what nodes think of each other is a heartbeat or two old.
        said = [node.command("hello") for node in self.nodes]
        primaries = [
            node for node, hello in zip(self.nodes, said, strict=True) if hello["isWritablePrimary"]
        ]
        return (
            len(primaries) == 1
            and sum(hello["secondary"] for hello in said) == 2
            and {hello.get("primary") for hello in said} == {primaries[0].address}
            # What a node wrote last is of the newest term only when it has followed the primary of
            # it, and rolled back what was not the primary's.
            and {hello["lastWrite"]["opTime"]["t"] for hello in said} == {self._term(primaries[0])}
        )

    def _writable(self, node: Node) -> bool:
        if node.process is None or node.frozen:
            return False
        try:
            return bool(node.command("hello")["isWritablePrimary"])
        except (ConnectionFailure, OperationFailure):
            return False

    def _term(self, node: Node) -> int:
        try:
            return int(node.command("replSetGetStatus")["term"])
        except (ConnectionFailure, OperationFailure):
            return -1

    def _set_fail_point(self, node: Node, name: str, mode: str) -> None:
        node.command("configureFailPoint", name, mode=mode)

    def _await(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with suppress(ConnectionFailure, OperationFailure):
                if condition():
                    return
            ended = [node.folder for node in self.nodes if node.process and node.process.poll()]
            assert not ended, f"a mongod ended by itself: see the logs in {ended}"
            assert time.monotonic() < deadline, "the replica set did not become healthy"
            time.sleep(_POLL_SECONDS)


@contextmanager
def running_replica_set(folder: Path) -> Iterator[ReplicaSet]:
    """Run three nodes on data below ``folder``; all are gone at the end."""
    replicas = ReplicaSet(folder)
    try:
        replicas.initiate()
        yield replicas
    finally:
        replicas.stop()
