"""What callers want recorded, and which of it goes together into one document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventsourcing.persistence import Tracking
    from pymongo.client_session import ClientSession

    from projections.mongo.event_store.documents import Document


@dataclass(eq=False, slots=True)
class Commit:
    """What one caller wants recorded, all or nothing.

    Attributes:
        events: As they are stored.
        tracking: The position of another application that goes with them.
        write: What else goes with them, in the same transaction; called once for each attempt.
        predecessors: By stream, the version that has to be stored for its first new event.
        newest: An event that has to be stored unchanged.
        first: The position of the first event, once it is recorded.
        error: What it failed with.
        is_over: Whether it is recorded or failed.
        tokens: Of its attempts, one for each leader that tried.
        is_unknown: Whether the outcome of one of them is not known.
        places: The streams and versions of its events.
    """

    events: list[Document]
    tracking: Tracking | None = None
    write: Callable[[ClientSession], object] | None = None
    predecessors: Mapping[UUID | str, int] = field(default_factory=dict)
    newest: tuple[bytes | str, int, bytes] | None = None
    first: int = 0
    error: BaseException | None = None
    is_over: bool = False
    tokens: set[bytes] = field(default_factory=set)
    is_unknown: bool = False
    places: set[tuple[bytes | str, int]] = field(init=False)

    def __post_init__(self) -> None:
        """Note where its events belong."""
        self.places = {(item["s"], item["v"]) for item in self.events}

    def succeed(self, first: int) -> None:
        """Be recorded, the first event at this position."""
        self.first, self.is_over = first, True

    def fail(self, error: BaseException) -> None:
        """Not be recorded, or not for certain."""
        self.error, self.is_over = error, True


def together(commits: Sequence[Commit], *, most_events: int) -> Iterator[list[Commit]]:
    """Yield the commits in groups that fit into one document; a larger one goes alone."""
    group: list[Commit] = []
    held: set[tuple[bytes | str, int]] = set()
    for commit in commits:
        # The index is unique across documents, not within one.
        if group and (
            len(held) + len(commit.places) > most_events
            or commit.tracking is not None
            or group[-1].tracking is not None
            or not held.isdisjoint(commit.places)
        ):
            yield group
            group, held = [], set()
        group.append(commit)
        held |= commit.places
    if group:
        yield group
