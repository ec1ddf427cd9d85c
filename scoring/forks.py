"""What a forked child inherits of its parent, and must not touch."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_to_be_called: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def keep_for_ever(value: object) -> None:
    """Never let this object be collected, not even when the interpreter ends.

    Connections that a child inherited are its parent's: closing them here would say goodbye to the
    servers in the parent's name, and a garbage collector closes what nobody refers to.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def call_in_child(owner: T, method: Callable[[T], None]) -> None:
    """Have an object's method called in every child that is forked, for as long as it is there.

    To make new locks, above all: a thread of the parent may have held one, and in the child it
    never lets go.
    """
    _to_be_called[owner] = method


def _after_in_child() -> None:
    for owner, method in list(_to_be_called.items()):
        method(owner)


for _ in range(2):  # for an exception that comes there, a signal handler's, say, ends only one
    os.register_at_fork(after_in_child=_after_in_child)
