"""Knowing early that something was recorded, where that can be known."""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final

from eventsourcing.popo import POPOApplicationRecorder

if TYPE_CHECKING:
    from typing import Self

    from scoring import Scoring

logger = logging.getLogger(__name__)

_LISTEN_SECONDS: Final = 0.5
_PAUSE_AFTER_ERROR_SECONDS: Final = 1.0


class WakeUps:
    """Tells when an application has recorded something; a context manager.

    What this process records through the same ``Scoring`` is known at once, for every store. What
    other processes record is known at once on PostgreSQL, by its ``LISTEN``; for the others the
    caller has to look, now and then. The library's ``subscribe()`` is not used: it reads every
    event a second time, and SQLite does not have it.
    """

    def __init__(self, app: Scoring) -> None:
        """Listen to this application and, if it can be, to its store."""
        self._app = app
        self._recorded = Event()
        self._closed = Event()
        # Only the library's PostgreSQL recorder notifies a channel.
        self._channel: str | None = getattr(app.recorder, "channel_name", None)
        self._thread: Thread | None = None
        self._hears_others = isinstance(app.recorder, POPOApplicationRecorder)

    @property
    def hears_all(self) -> bool:
        """Whether nothing can be recorded without being heard of here."""
        return self._hears_others

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._app.listen(self._recorded)
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
        """Stop listening."""
        self._app.unlisten(self._recorded)
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until something is recorded; false if nothing was heard of in time."""
        heard = self._recorded.wait(timeout_seconds)
        self._recorded.clear()
        return heard

    def _listen(self, channel: str) -> None:
        while not self._closed.is_set():
            try:
                self._listen_on_a_connection(channel)
            except Exception as error:  # noqa: BLE001 - until the store is back, looking must do
                logger.info("not listening to the event store for now: %s", error)
            self._hears_others = False
            self._closed.wait(_PAUSE_AFTER_ERROR_SECONDS)

    def _listen_on_a_connection(self, channel: str) -> None:
        from psycopg.sql import SQL, Identifier  # noqa: PLC0415 - an optional dependency

        recorder: Any = self._app.recorder
        with recorder.datastore.get_connection() as connection:
            connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
            try:
                self._hears_others = True
                # What was recorded before we listened has to be looked for once more.
                self._recorded.set()
                while not self._closed.is_set():
                    for _ in connection.notifies(timeout=_LISTEN_SECONDS, stop_after=1):
                        self._recorded.set()
            finally:
                connection.execute("UNLISTEN *")
