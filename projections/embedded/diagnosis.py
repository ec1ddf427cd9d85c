"""Why a mongod did not start, and what helps, in words for the person in front of it."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from projections.embedded.launch import ServerDied
    from projections.embedded.layout import Layout

_TAIL_BYTES: Final = 200_000
_LINES_SHOWN: Final = 3
_LINE_LIMIT: Final = 400

_IN_USE: Final = re.compile(r"address already in use", re.IGNORECASE)
_LIBRARY: Final = re.compile(r"error while loading shared libraries: ([^\s:]+)")
_LIBRARY_PACKAGES: Final = (
    ("libcurl.so.4", "libcurl 4", "libcurl4"),
    ("libssl.so.3", "OpenSSL 3", "libssl3"),
    ("libcrypto.so.3", "OpenSSL 3", "libssl3"),
)
_CURES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), cure)
    for pattern, cure in (
        (
            r"DBPathInUse|another mongod instance is already running",
            "Another mongod is using the folder: stop it, or choose another folder.",
        ),
        (
            r"no space left on device|out of disk space|insufficient free space",
            "The disk is full: make room and try again.",
        ),
        (
            r"permission denied|read-only (directory|file system)|operation not permitted",
            "The folder cannot be written to: see its owner and permissions, or choose another.",
        ),
        (
            r"UPGRADE PROBLEM|featureCompatibilityVersion|incompatible|unsupported WiredTiger",
            "Another version of MongoDB wrote the data: use that one, or rebuild in a new folder.",
        ),
        (
            r"version [`'](GLIBC|GLIBCXX|CXXABI)_",
            "This mongod was built for a newer system: install one made for yours.",
        ),
        (
            r"(unrecognised|unknown|invalid) option|unknown --setParameter|parsing command line",
            "This mongod does not know what it was asked for: use version 6.0 or later.",
        ),
        (
            r"exec format error",
            "This mongod is not a program for this machine: install one made for it.",
        ),
    )
)


class Postmortem:
    """The traces of a mongod that died; made before it starts, to know where they begin."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._log_start = _size(layout)

    def port_was_taken(self) -> bool:
        """Tell whether it died because somebody else listens on its port."""
        return any(_IN_USE.search(line) for line in self._last_words())

    def explain(self, death: ServerDied, *, program: str) -> str:
        """Return a message: what ended, how, its own last words, and the cure if one is known."""
        words = self._last_words()
        if death.reason is not None:
            words.append(death.reason)
        said = "; ".join(words) or "it said nothing"
        cure = _cure(death.exit_code, said)
        return f"MongoDB did not start: {program} {_manner(death)}: {said.rstrip('.')}. {cure}"

    def _last_words(self) -> list[str]:
        errors = [text for line in self._log_lines() if (text := _error_in(line))]
        # What was printed matters where the log did not exist yet, or not any more.
        printed = [] if errors else _printed(self._layout)
        # The first error is the cause; what follows it is how it ended.
        unique = list(dict.fromkeys(errors or printed))
        return [line[:_LINE_LIMIT] for line in unique[:_LINES_SHOWN]]

    def _log_lines(self) -> list[str]:
        start = self._log_start if self._log_start <= _size(self._layout) else 0
        try:
            with self._layout.log.open("rb") as log:
                log.seek(max(start, _size(self._layout) - _TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()
        except OSError:
            return []


def _size(layout: Layout) -> int:
    try:
        return layout.log.stat().st_size
    except OSError:
        return 0


def _printed(layout: Layout) -> list[str]:
    try:
        text = layout.output.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        entry = _entry(line)
        # Some entries of the log are printed too; only those that tell of trouble are last words.
        words = line.strip() if entry is None else _error_in(line)
        if words:
            lines.append(words)
    return lines[-_LINES_SHOWN:]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "msg" in entry else None


def _error_in(line: str) -> str | None:
    """Return the text of a log entry that is an error; ``None`` for any other line."""
    entry = _entry(line)
    if entry is None or entry.get("s") not in ("E", "F"):
        return None
    detail = entry.get("attr") or {}
    for name in ("error", "message", "errmsg", "reason", "msg"):
        value = detail.get(name)
        if isinstance(value, dict):
            value = value.get("errmsg") or value.get("msg")
        if isinstance(value, str) and value:
            return f"{entry['msg']}: {value}"
    return f"{entry['msg']} {json.dumps(detail)}" if detail else str(entry["msg"])


def _manner(death: ServerDied) -> str:
    code = death.exit_code
    if death.reason is not None:
        return "could not be started"
    if code is None:
        return "ended"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _cure(exit_code: int | None, said: str) -> str:
    library = _LIBRARY.search(said)
    if library:
        for name, title, package in _LIBRARY_PACKAGES:
            if library[1] == name:
                return f"It needs {title} from the system: apt-get install {package}."
        return f"It needs the system library {library[1]}: install the package that contains it."
    if exit_code == -signal.SIGILL:
        return "MongoDB 5 and later need a CPU with AVX: set MONGO_URI to a server elsewhere."
    if exit_code == -signal.SIGKILL:
        return "It was killed, as happens when memory runs out: free some and try again."
    return next((cure for pattern, cure in _CURES if pattern.search(said)), "")
