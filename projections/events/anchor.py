"""What a read model knows of its event store: how far it has come, and on which events.

A position alone says nothing about whose it is: a store that was put back to an earlier state, or
another one, has events under the same numbers. So the document of a position keeps an anchor, too:
which event is the last one known up to there, by a hash.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from projections.errors import ForeignDocument


@dataclass(frozen=True, slots=True)
class Anchor:
    """One event of an event store, and which store it is of.

    Attributes:
        identity: Hash of the first event of the store, which a copy of the store keeps.
        position: The event's position.
        stream: Its originator id.
        version: Its originator version.
        hash: Hash of all that is stored of it, its position included.
    """

    identity: str
    position: int
    stream: str
    version: int
    hash: str

    def __str__(self) -> str:
        return f"version {self.version} of stream {self.stream} at position {self.position}"


@dataclass(frozen=True, slots=True)
class Tracked:
    """How far a read model has come, and on which events.

    Attributes:
        position: The tracked position; ``None`` before the first batch.
        anchor: The last event known at or before it. ``None`` if none is, as before the first batch
            and in documents of releases that kept none.
    """

    position: int | None = None
    anchor: Anchor | None = None

    @classmethod
    def of(cls, document: dict[str, Any] | None) -> Tracked:
        """Return what the document of a position says.

        Raises:
            ForeignDocument: if nobody here has written it.
        """
        document = document or {}
        position, anchor = document.get("position"), document.get("anchor")
        try:
            return cls(
                None if position is None else int(position),
                None if anchor is None else Anchor(**anchor),
            )
        except (TypeError, ValueError) as error:
            raise ForeignDocument(
                collection="score_positions", document_id=document.get("_id")
            ) from error

    def matching(self) -> dict[str, Any]:
        """Return what the document of the position matches as long as nobody has moved it."""
        # A field that is not there must stay away from an upsert, which would make it.
        anchor: dict[str, Any] = {"anchor": {"$exists": False}}
        if self.anchor is not None:
            anchor = {"anchor.hash": self.anchor.hash}
        return {"position": self.position, **anchor}

    def fields(self) -> dict[str, Any]:
        """Return what to set in the document; an anchor that is not known leaves the last one."""
        anchor = {} if self.anchor is None else {"anchor": asdict(self.anchor)}
        return {"position": self.position, **anchor}
