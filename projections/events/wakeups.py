"""Knowing early that something was recorded, where that can be known."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, Protocol

from eventsourcing.popo import POPOApplicationRecorder
from eventsourcing.sqlite import SQLiteRecorder

from scoring.retries import in_words
from scoring.sqlite_pool import PatientConnectionPool

if TYPE_CHECKING:
    from typing import Self

    from scoring import Scoring

logger = logging.getLogger(__name__)

_LISTEN_SECONDS: Final = 0.5
_PAUSE_AFTER_ERROR_SECONDS: Final = 1.0
_GLANCE_SECONDS: Final = 0.015


class Listeners(Protocol):
    """Sets events when something was recorded by any process, and now and then if in doubt."""

    def add(self, listener: Event) -> None:
        """Set this event from now on."""

    def discard(self, listener: Event) -> None:
        """Set it no more."""


class WakeUps:
    """Tells when an application has recorded something; a context manager.

    What this process records through the same ``Scoring`` is known at once, for every store. What
    other processes record is known at once on PostgreSQL, by its ``LISTEN``, and on MongoDB, by a
    change stream; within a few hundredths of a second on SQLite, by a glance at its files; for the
    others the caller has to look, now and then. The library's ``subscribe()`` is not used: it reads
    every event a second time, and SQLite does not have it.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._recorded = Event()
        self._closed = Event()
        self._channel = _channel_of(scoring.recorder)
        self._thread: Thread | None = None
        # Of a recorder that hears of other processes itself, as the one for MongoDB does.
        self._listeners: Listeners | None = getattr(scoring.recorder, "listeners", None)
        self._files = _files_of(scoring.recorder)
        self._stamps = _stamps(self._files)
        self._covers_all_writers = (
            bool(self._files)
            or self._listeners is not None
            or isinstance(scoring.recorder, POPOApplicationRecorder)
        )

    @property
    def covers_all_writers(self) -> bool:
        """Whether commits of all processes wake it, so that its caller need hardly poll."""
        return self._covers_all_writers

    def __enter__(self) -> Self:
        self._scoring.listen(self._recorded)
        if self._listeners is not None:
            self._listeners.add(self._recorded)
        if self._channel is not None:
            self._thread = Thread(
                target=self._listen,
                args=(self._channel,),
                name="score-ledger-listener",
                daemon=True,
            )
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._scoring.unlisten(self._recorded)
        if self._listeners is not None:
            self._listeners.discard(self._recorded)
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until something is recorded; false if nothing was heard of in time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            step = min(remaining, _GLANCE_SECONDS) if self._files else remaining
            if self._recorded.wait(step) or self._files_have_changed():
                self._recorded.clear()
                return True
            if step == remaining:
                return False

    def _files_have_changed(self) -> bool:
        before, self._stamps = self._stamps, _stamps(self._files)
        return self._stamps != before

    def _listen(self, channel: str) -> None:
        while not self._closed.is_set():
            try:
                self._listen_on_a_connection(channel)
            except Exception as error:  # noqa: BLE001 - until the store is back, looking must do
                logger.info("not listening to the event store for now: %s", in_words(error))
            self._covers_all_writers = False
            self._closed.wait(_PAUSE_AFTER_ERROR_SECONDS)

    def _listen_on_a_connection(self, channel: str) -> None:
        from psycopg.sql import SQL, Identifier  # noqa: PLC0415 - an optional dependency

        recorder: Any = self._scoring.recorder
        with recorder.datastore.get_connection() as connection:
            connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
            try:
                self._covers_all_writers = True
                # What was recorded before we listened has to be looked for once more.
                self._recorded.set()
                while not self._closed.is_set():
                    for _ in connection.notifies(timeout=_LISTEN_SECONDS, stop_after=1):
                        self._recorded.set()
            finally:
                connection.execute("UNLISTEN *")


def _channel_of(recorder: Any) -> str | None:
    """Return the channel that can be listened to: only the library's PostgreSQL has one.

    Listening takes a connection for good, so with a pool of one nobody could read or write.
    """
    channel: str | None = getattr(recorder, "channel_name", None)
    return None if channel is None or recorder.datastore.pool.max_size < 2 else channel  # noqa: PLR2004


def _files_of(recorder: object) -> tuple[Path, ...]:
    """Return the files of a SQLite store that change with every commit of any process."""
    pool = recorder.datastore.pool if isinstance(recorder, SQLiteRecorder) else None
    if not isinstance(pool, PatientConnectionPool) or pool.is_sqlite_memory_mode:
        return ()
    return pool.file, Path(f"{pool.file}-wal")


def _stamps(files: tuple[Path, ...]) -> list[tuple[int, int] | None]:
    # Asking SQLite takes twenty times as long. Two commits within one tick of the clock may leave
    # the same stamps behind, if the log is at its begin again: so the caller still looks at times.
    stamps: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size))
    return stamps
