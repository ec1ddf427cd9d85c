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
