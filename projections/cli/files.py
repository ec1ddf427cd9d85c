"""Files that commands write: complete or absent, and never one that the command reads."""

from __future__ import annotations

import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STANDARD_INPUT = 0
_STANDARD_OUTPUTS = (1, 2)
_NEW_FILE_MODE = 0o666  # less the umask, as for any new file


class UnusableFile(ValueError):
    """A file cannot be written as asked; the message has the option, the file and the cure."""


class _Sink(io.FileIO):
    """Where the bytes go; a failure of its own cannot be taken for one of what is being written."""

    def __init__(self, descriptor: int, file: Path, option: str) -> None:
        super().__init__(descriptor, "wb")
        self._file, self._option = file, option

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unusable(self._file, self._option, error) from None


@contextmanager
def written(file: Path, option: str, *, others: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """Open a file that has everything when the block ends, or else is as it was before.

    It is written beside its place and renamed at the end; an error or Ctrl-C leaves what was there
    alone. A link stays a link, and a file that is replaced hands on its permissions. What cannot be
    replaced (a pipe, a device, the standard output) is written as it comes.

    Args:
        file: Where to.
        option: What the user calls it, e.g. ``--csv``.
        others: Files that the command reads or writes besides; the standard input is one anyway.

    Raises:
        UnusableFile: if it is one of the others, or cannot be written.
    """
    try:
        _refuse_others(file, option, others)
        found = file.stat() if file.exists() else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise UnusableFile(f"{option} {file} is a folder: name a file")
        descriptor = None if found is None else _as_it_comes(file, found)
    except OSError as error:
        raise _unusable(file, option, error) from None
    if descriptor is None:
        with _replacement(file, option, found) as stream:
            yield stream
    else:
        with io.BufferedWriter(_Sink(descriptor, file, option)) as stream:
            yield stream


@contextmanager
def written_text(file: Path, option: str, *, others: Iterable[Path] = ()) -> Iterator[TextIO]:
    """Open a text file in UTF-8 likewise; line ends are written as they are given."""
    with written(file, option, others=others) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        yield text
        text.detach()  # which flushes it


def _refuse_others(file: Path, option: str, others: Iterable[Path]) -> None:
    if file.exists() and not file.is_file():
        return  # a terminal or /dev/null may well be the input, too
    if file.exists() and os.path.samestat(file.stat(), os.fstat(_STANDARD_INPUT)):
        raise UnusableFile(f"{option} {file} is the standard input: name another file")
    for other in others:
        both_there = file.exists() and other.exists()
        if file.samefile(other) if both_there else file.resolve() == other.resolve():
            raise UnusableFile(
                f"{option} {file} is {other}, which this command needs: name another file"
            )


def _as_it_comes(file: Path, found: os.stat_result) -> int | None:
    """Open what must not be replaced; ``None`` for an ordinary file."""
    for number in _STANDARD_OUTPUTS:
        if os.path.samestat(found, os.fstat(number)):
            return os.dup(number)
    return None if stat.S_ISREG(found.st_mode) else os.open(file, os.O_WRONLY)


@contextmanager
def _replacement(file: Path, option: str, found: os.stat_result | None) -> Iterator[BinaryIO]:
    """Open a new file beside a file's place, and put it there when the block ends."""
    place = file.resolve()
    beside = place.with_name(f".score-ledger-{secrets.token_hex(6)}.part")
    try:
        try:
            if found is not None and not os.access(place, os.W_OK):
                raise PermissionError(None, "it is write-protected")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _NEW_FILE_MODE)
        except OSError as error:
            raise _unusable(file, option, error) from None
        stream = io.BufferedWriter(_Sink(descriptor, file, option))
        try:
            if found is not None:
                with suppress(PermissionError):
                    os.fchown(descriptor, found.st_uid, found.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
            yield stream
            stream.flush()
            try:
                os.fsync(descriptor)
                beside.replace(place)
                _sync(place.parent)
            except OSError as error:
                raise _unusable(file, option, error) from None
        finally:
            # What is still in its buffer after a failure cannot be written either.
            with suppress(UnusableFile, ValueError):
                stream.close()
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(file: Path, option: str, error: OSError) -> UnusableFile:
    return UnusableFile(
        f"{option} {file} cannot be written ({error.strerror}): name a file in a folder that "
        "exists, that you may write to, and that has room"
    )
