"""Making a lone mongod the writable primary of a replica set of one, with one user."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from projections.embedded.errors import MongoUnavailable
from projections.embedded.layout import REPLICA_SET, Layout
from projections.mongo.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from projections.embedded.locks import Deadline
    from projections.embedded.processes import Mongod

_POLL_SECONDS: Final = 0.02

_USER: Final = "score-ledger"
# What members of a set authenticate as with their key file. It needs no user to have been made, so
# a server that is new, or whose data has another key's user or none, is set up all the same.
_MEMBER: Final = "__system"


def uri(port: int, key: str | None) -> str:
    """Return the address for clients; direct, since the server may yet move to another port."""
    return _address(port, user=_USER, key=key, source="admin")


def _address(port: int, *, user: str, key: str | None, source: str) -> str:
    place = f"127.0.0.1:{port}/?directConnection=true"
    if key is None:
        return f"mongodb://{place}"
    return f"mongodb://{user}:{key}@{place}&authSource={source}"


def await_primary(
    mongod: Mongod, layout: Layout, *, check: Callable[[], None], deadline: Deadline
) -> str:
    """Return the address of ``mongod`` once it takes writes from there.

    Its replica set and its user are made where that is needed. One that was kept without a user
    stands still, and goes on from here.

    Args:
        mongod: A server that runs but need not listen yet.
        layout: Its folder.
        check: Called again and again; raises when waiting longer is useless.
        deadline: When to give up.

    Raises:
        MongoUnavailable: if it did not become writable in time.
    """
    trouble: Exception | None = None
    mongod.thaw()
    # Knocked at before a client is made: a client that finds nobody in rests for half a second.
    while not _listens(mongod.port):
        _pause(check, deadline, mongod, trouble)
    key = layout.read_key() if mongod.has_key else None
    client: MongoClient[dict[str, Any]] = MongoClient(
        _address(mongod.port, user=_MEMBER, key=key, source="local"),
        serverSelectionTimeoutMS=1000,
        connectTimeoutMS=1000,
        socketTimeoutMS=5000,
    )
    with client:
        while True:
            try:
                if _is_writable(client, mongod):
                    if key is not None:
                        _make_user(client, key)
                    return uri(mongod.port, key)
            except (ConnectionFailure, OperationFailure) as error:
                trouble = error
            _pause(check, deadline, mongod, trouble)


def _pause(
    check: Callable[[], None], deadline: Deadline, mongod: Mongod, trouble: Exception | None
) -> None:
    check()
    if deadline.passed:
        log = mongod.data.with_name("mongod.log")
        said = f" ({trouble})" if trouble else ""
        raise MongoUnavailable(
            f"the MongoDB in {mongod.data.parent} did not become writable within "
            f"{deadline.seconds:g} s{said}: see {log}"
        ) from trouble
    time.sleep(_POLL_SECONDS)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _is_writable(client: MongoClient[dict[str, Any]], mongod: Mongod) -> bool:
    options = client.admin.command("getCmdLineOpts")["parsed"]
    if options.get("storage", {}).get("dbPath") != str(mongod.data):
        return False  # somebody else has the port; ours is about to die of it
    hello = client.admin.command("hello")
    if hello.get("isWritablePrimary"):
        return True
    if not hello.get("setName"):
        _configure(client, host=f"127.0.0.1:{mongod.port}")
    return False


def _configure(client: MongoClient[dict[str, Any]], *, host: str) -> None:
    """Give a new server its replica set, or one that was moved its new address."""
    member = {"_id": 0, "host": host}
    try:
        config: Mapping[str, Any] = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != Code.NOT_YET_INITIALIZED:
            raise
        config = {"_id": REPLICA_SET, "members": [member]}
        try:
            client.admin.command("replSetInitiate", config)
        except OperationFailure as refusal:
            # Its stored configuration was only not loaded yet.
            if refusal.code != Code.ALREADY_INITIALIZED:
                raise
        return
    if [m["host"] for m in config["members"]] != [host]:
        # Forced, because a member that does not find itself in the set cannot be elected, and
        # without a primary there is no other way to change the set.
        moved = {**config, "members": [member]}
        client.admin.command("replSetReconfig", moved, force=True)


def _make_user(client: MongoClient[dict[str, Any]], key: str) -> None:
    """Make the one user, or give it this key: the folder may have been copied without its own."""
    known = client.admin.command("usersInfo", _USER)["users"]
    if known and known[0].get("customData") == {"key": _fingerprint(key)}:
        return
    client.admin.command(
        "updateUser" if known else "createUser",
        _USER,
        pwd=key,
        roles=["root"],
        mechanisms=["SCRAM-SHA-256"],
        customData={"key": _fingerprint(key)},
    )


def _fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
