"""What differs between event stores, seen from outside: one entry for each that is known by name.

Other persistence modules of the ``eventsourcing`` library work as well; less is said of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scoring import Scoring


@dataclass(frozen=True, slots=True)
class EventStoreKind:
    """A kind of event store.

    Attributes:
        module: The library's persistence module.
        system: The ``db.system.name`` of OpenTelemetry.
        database: The library's variable that names the database.
        place: The variables that say where events are, the former among them.
        cure: What to do if it cannot be opened.
    """

    module: str
    system: str = "other_sql"
    database: str = ""
    place: tuple[str, ...] = ()
    cure: str = "check what the library's variables say of it"

    def located(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return those variables of its place that are set."""
        # Not by index: an environment of the library finds prefixed names by get() only.
        found = {name: env.get(name) for name in self.place}
        return {name: value for name, value in found.items() if value}


SQLITE: Final = EventStoreKind(
    module="eventsourcing.sqlite",
    system="sqlite",
    database="SQLITE_DBNAME",
    place=("SQLITE_DBNAME",),
    cure="name a file that is SQLite's, or a new one in a folder that may be written to",
)
POSTGRES: Final = EventStoreKind(
    module="eventsourcing.postgres",
    system="postgresql",
    database="POSTGRES_DBNAME",
    place=("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DBNAME", "POSTGRES_SCHEMA"),
    cure="check that the server runs, and what the variables say of host, user and password",
)
MONGO: Final = EventStoreKind(
    module="projections.mongo",
    system="mongodb",
    database="MONGO_DATABASE",
    place=("MONGO_DATABASE",),
    cure="check that MONGO_URI names a replica set that runs, and what it says of the user",
)


Events = Literal["sqlite", "postgres", "mongo"]
"""The short name of a kind."""

KINDS: Final[dict[Events, EventStoreKind]] = {
    "sqlite": SQLITE,
    "postgres": POSTGRES,
    "mongo": MONGO,
}


def checked_events(events: object, *, argument: str) -> Events:
    """Return the short name of a kind that was given as an argument.

    Raises:
        ValueError: if there is none of that name.
    """
    for name in KINDS:
        if events == name:
            return name
    names = ", ".join(map(repr, get_args(Events)))
    raise ValueError(f"{argument} must be one of {names}; got {events!r}")


def place_of(scoring: Scoring) -> str:
    """Return where an application's events are: a file, or servers and database; no password."""
    kind = kind_of(scoring.env)
    if kind == MONGO:
        # Its URI may have a password, and may name any of the servers.
        recorder: Any = scoring.recorder
        place: str = recorder.place()
        return place
    return " ".join(kind.located(scoring.env).values())


def kind_of(env: Mapping[str, str]) -> EventStoreKind:
    """Return the kind of event store that the library's variables choose."""
    module = env.get("PERSISTENCE_MODULE") or ""
    known = {kind.module: kind for kind in KINDS.values()}
    return known.get(module) or EventStoreKind(module)
