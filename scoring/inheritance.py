"""What a forked child inherits of its parent, and must not touch."""

from __future__ import annotations

import ctypes
import os
from typing import Protocol
from weakref import WeakSet


class _Locked(Protocol):
    def begin_anew(self) -> None: ...


_locked: WeakSet[_Locked] = WeakSet()


def keep_for_ever(value: object) -> None:
    """Never let this object be collected, not even when the interpreter ends.

    Connections that a child inherited are its parent's: closing them here would say goodbye to the
    servers in the parent's name, and a garbage collector closes what nobody refers to.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def begin_anew_in_child(locked: _Locked) -> None:
    """Have an object called in every child that is forked, to make its locks anew.

    A thread of the parent may have held one, and in the child it never lets go.
    """
    _locked.add(locked)


def _after_in_child() -> None:
    for locked in list(_locked):
        locked.begin_anew()


os.register_at_fork(after_in_child=_after_in_child)
