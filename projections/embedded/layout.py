"""The files of an embedded folder."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

# Written into the data: a mongod under another name would not accept it as its own.
REPLICA_SET: Final = "score-ledger"


class FolderUnusable(Exception):
    """Files of the folder cannot be used; the message says why and what helps.

    Callers of the package see it as ``MongoUnavailable``. The supervisor must do without that: an
    error of the read side would load more than the standard library.
    """


class Layout:
    """Paths inside one embedded folder."""

    def __init__(self, folder: Path) -> None:
        """Name what is in a folder, whose path is absolute and free of symbolic links."""
        self.folder: Final = folder
        self.data: Final = folder / "data"
        """The data directory, which is all mongod's own."""
        self.users_lock: Final = folder / "users.lock"
        """Held shared by every user of the server."""
        self.release_lock: Final = folder / "release.lock"
        """Held by the one who finds out whether anybody still uses the server."""
        self.start_lock: Final = folder / "start.lock"
        """Held by the one who looks for the server and starts it."""
        self.supervisor_lock: Final = folder / "supervisor.lock"
        """Held by the supervisor for as long as it lives; its text is the supervisor's pid."""
        self.log: Final = folder / "mongod.log"
        """The log that mongod writes."""
        self.output: Final = folder / "mongod.out"
        """What the last mongod printed before it had a log: complaints of the loader, say."""
        self.supervisor_log: Final = folder / "supervisor.log"
        """What the supervisor had to say; empty as a rule."""
        self.record: Final = folder / "server.json"
        """A note on the last run: ``pid`` and ``port`` of its mongod."""
        self.key: Final = folder / "key"
        """The secret that the server asks for, which only the folder's owner can read."""

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make the folder, its parents and its data directory, and name what is in it.

        Raises:
            FolderUnusable: if the folder cannot be made.
        """
        try:
            # Its owner's alone: the key to the server is in it.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # One spelling per folder: the server is recognised by the path on its command line.
            layout = cls(folder.resolve(strict=True))
            layout.data.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise FolderUnusable(
                f"the folder {folder} for the embedded MongoDB cannot be used "
                f"({error.strerror or error}): choose one that can be written to"
            ) from error
        return layout

    def read_key(self) -> str:
        """Return the secret.

        Raises:
            FolderUnusable: if it cannot be read.
        """
        try:
            return self.key.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise FolderUnusable(
                f"the key of the embedded MongoDB, {self.key}, cannot be read ({error}): the "
                "folder is its owner's alone, so use it as that user, or choose another folder"
            ) from error

    def make_key(self) -> None:
        """Make the secret if there is none; complete or absent at any time."""
        if self.key.exists():
            self.key.chmod(0o600)  # mongod refuses one that a copy has opened to others
            return
        draft = self.key.with_suffix(".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(descriptor)
        draft.replace(self.key)

    def read_record(self) -> dict[str, int]:
        """Return the numbers of the last run; none if there was none or the note is unreadable."""
        try:
            found: Any = json.loads(self.record.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: value for name, value in found.items() if isinstance(value, int)}

    def write_record(self, **numbers: int) -> None:
        """Replace the note in one step, so that nobody ever reads half of one."""
        draft = self.record.with_suffix(".json.new")
        draft.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
        draft.replace(self.record)
