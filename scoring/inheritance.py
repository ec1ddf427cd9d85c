"""What a forked child inherits of its parent, and must not touch."""

from __future__ import annotations

import ctypes


def keep_for_ever(value: object) -> None:
    """Never let this object be collected, not even when the interpreter ends.

    Connections that a child inherited are its parent's: closing them here would say goodbye to the
    servers in the parent's name, and a garbage collector closes what nobody refers to.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
