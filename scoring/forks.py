"""What a forked child inherits of its parent, and must not touch."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING
from weakref import WeakMethod

if TYPE_CHECKING:
    from collections.abc import Callable

_to_be_called: dict[WeakMethod[Callable[[], None]], None] = {}


def keep_for_ever(value: object) -> None:
    """Never let this object be collected, not even when the interpreter ends.

    Connections that a child inherited are its parent's: closing them here would say goodbye to the
    servers in the parent's name, and a garbage collector closes what nobody refers to.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def call_in_child(method: Callable[[], None]) -> None:
    """Have an object's method called in every child that is forked, for as long as it is there.

    To make its locks anew, above all: a thread of the parent may have held one, and in the child it
    never lets go.
    """
    _to_be_called[WeakMethod(method, _forget)] = None


def _forget(reference: WeakMethod[Callable[[], None]]) -> None:
    _to_be_called.pop(reference, None)


def _after_in_child() -> None:
    for reference in list(_to_be_called):
        method = reference()
        if method is not None:
            method()


os.register_at_fork(after_in_child=_after_in_child)
