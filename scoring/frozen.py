"""Making objects of frozen dataclasses by their attributes, as the library's mapper makes events.

A generated ``__init__`` assigns each field by a call of its own: for objects of many fields, or of
whose attributes a dictionary is needed anyway, that takes longer than all else there is to do.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

T = TypeVar("T")

_new: Final = object.__new__
_set: Final = object.__setattr__


def made_of(cls: type[T], attributes: dict[str, Any]) -> T:
    """Return an object of a dataclass without slots that has just these attributes.

    Every field has to be among them, in the order of the fields: events are stored in that order.
    """
    made = _new(cls)
    _set(made, "__dict__", attributes)
    return made
