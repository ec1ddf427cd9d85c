"""Which classes a stored topic may name: events and aggregates that the application has imported.

A topic is stored text, and the library imports whatever module it names. Importing runs that
module's code, so a row that somebody else wrote would run theirs.
"""

from __future__ import annotations

import sys
from inspect import get_annotations, getattr_static
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from eventsourcing import utils
from eventsourcing.domain import CanSnapshotAggregate, HasOriginatorIDVersion
from eventsourcing.persistence import Mapper
from eventsourcing.utils import TopicError, register_topic

if TYPE_CHECKING:
    from eventsourcing.domain import DomainEventProtocol
    from eventsourcing.persistence import StoredEvent

_ABSENT: Final = object()


class ImportedTopicsMapper(Mapper[UUID]):
    """The library's mapper, which resolves a topic only to an event's class that is imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resolved: set[str] = set()

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[UUID]:
        """Convert a stored event, as the library does.

        Raises:
            TopicError: if its topic, or that of a snapshot's aggregate, names anything else.
        """
        topic = stored_event.topic
        if topic not in self._resolved:
            if not _is_event(imported_class(topic)):
                raise TopicError(f"the topic {topic!r} is not that of an event")
            self._resolved.add(topic)
        event = super().to_domain_event(stored_event)
        if isinstance(event, CanSnapshotAggregate):
            imported_class(event.topic)
        return event


def imported_class(topic: str) -> type:
    """Return the class that a topic names, which must be imported or registered already.

    Raises:
        TopicError: if there is none.
    """
    found = utils._topic_cache.get(topic) or _search(topic)  # noqa: SLF001 - it has no other reader
    if not isinstance(found, type):
        raise TopicError(
            f"the topic {topic!r} names no class that this process has imported: import its module "
            "before the event store is read"
        )
    register_topic(topic, found)
    return found


def _search(topic: str) -> object:
    module_name, _, path = topic.partition(":")
    names = path.split(".")
    # An old name of a class may be registered, and its events are then found under that.
    for length in range(len(names) - 1, 0, -1):
        registered = utils._topic_cache.get(f"{module_name}:{'.'.join(names[:length])}")  # noqa: SLF001
        if registered is not None:
            return _attribute(registered, names[length:])
    return _attribute(_module(module_name), names)


def _module(name: str) -> object:
    head, dot, tail = name, "", ""
    while True:  # likewise an old name of a module or a package
        registered = utils._topic_cache.get(head)  # noqa: SLF001
        if isinstance(registered, ModuleType):
            return sys.modules.get(f"{registered.__name__}{dot}{tail}")
        head, dot, last = head.rpartition(".")
        if not dot:
            return sys.modules.get(name)
        tail = f"{last}.{tail}" if tail else last


def _attribute(found: object, names: list[str]) -> object:
    # Looked up without running anything, as a module's __getattr__ or a descriptor would.
    for name in names:
        found = getattr_static(found, name, _ABSENT)
    return found


def _is_event(cls: type) -> bool:
    return issubclass(cls, HasOriginatorIDVersion) or any(
        "originator_id" in get_annotations(base) for base in cls.__mro__
    )
