"""Moving house: copying one event store into another, of whatever kind.

It may import ``projections.mongo`` and what is below it. ``event_copy`` has the order of things,
``stores`` what each kind of store does to give and take events with their positions.
"""

from projections.relocation.event_copy import CopyProgress, EventCopy, check_source, copy_events

__all__ = ["CopyProgress", "EventCopy", "check_source", "copy_events"]
