"""Hearing what a client sends to MongoDB, and doing something in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)


class HeardCommands(CommandListener):
    """Every command that a client sends, in order, but for logins, which the driver keeps secret.

    A subclass may do something else.
    """

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    @property
    def names(self) -> list[str]:
        return [next(iter(command)) for command in self.sent]

    @property
    def targets(self) -> list[str]:
        """Names with collections, e.g. ``find score_grants``."""
        return [f"{name} {command[name]}" for command in self.sent for name in [*command][:1]]

    def started(self, event: CommandStartedEvent) -> None:
        if event.command:
            self.sent.append(dict(event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


class Overtaken(HeardCommands):
    """Has something done once, before a client sends a command for the n-th time."""

    def __init__(
        self, overtake: Callable[[], object], *, command: str = "listCollections", nth: int = 1
    ) -> None:
        super().__init__()
        self._overtake = overtake
        self._command = command
        self._nth = nth

    def started(self, event: CommandStartedEvent) -> None:
        super().started(event)
        if event.command_name == self._command and self.names.count(self._command) == self._nth:
            self._overtake()
