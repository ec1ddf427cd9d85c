"""The errors of the read side; each message is one sentence with the cure."""

from __future__ import annotations


class ProjectionError(Exception):
    """The read side cannot do what was asked."""


class ReadModelUnavailable(ProjectionError):  # noqa: N818 - a state, not a mistake
    """MongoDB cannot be reached, or cannot do what the read model needs."""


class LedgerNotOpen(ProjectionError):  # noqa: N818 - a state, not a mistake
    """The ledger was closed, or belongs to the process that forked this one."""


class PositionMoved(ProjectionError):  # noqa: N818 - a state, not a mistake
    """Another worker moved the tracked position first, so this batch was not applied."""


class PoisonEvent(ProjectionError):  # noqa: N818 - the field's term
    """An event cannot be decoded or applied.

    Attributes:
        position: Its notification id.
        stream: Its originator id.
        topic: The topic it was stored under.
        reason: What went wrong, in words.
    """

    def __init__(self, *, position: int, stream: str, topic: str, reason: str) -> None:
        """Name the event and the reason."""
        self.position = position
        self.stream = stream
        self.topic = topic
        self.reason = reason
        super().__init__(
            f"the event at position {position} (stream {stream}, topic {topic}) cannot be "
            f"projected: {reason}"
        )
