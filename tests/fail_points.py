"""Making a server fail, which mongod does for those who start it with ``enableTestCommands``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient


@contextmanager
def failing(uri: str, *commands: str, mode: object = "alwaysOn", **failure: Any) -> Iterator[None]:
    """The server fails these commands of our clients in this way inside the block."""
    data = {"failCommands": commands, "appName": "score-ledger", **failure}
    with MongoClient[Any](uri) as operator:
        operator.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})
        try:
            yield
        finally:
            operator.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@contextmanager
def transactions_of(seconds: int, client: MongoClient[Any]) -> Iterator[None]:
    """The server keeps a transaction for so long, and not for a minute, inside the block."""
    name = "transactionLifetimeLimitSeconds"
    usual = client.admin.command({"getParameter": 1, name: 1})[name]
    client.admin.command({"setParameter": 1, name: seconds})
    try:
        yield
    finally:
        client.admin.command({"setParameter": 1, name: usual})
