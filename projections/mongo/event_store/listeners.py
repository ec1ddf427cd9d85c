"""Telling whoever waits for new events that there are some.

One change stream a recorder, open only while somebody listens, for it costs the server a little for
every document that is written anywhere. It only wakes up; events are read as always. While it
cannot be had, listeners are woken once a second.
"""

from __future__ import annotations

from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import PyMongoError

from scoring.forks import call_in_child

if TYPE_CHECKING:
    from pymongo.collection import Collection

_AWAIT_MILLISECONDS: Final = 250
_BREATH_SECONDS: Final = 0.005
_PAUSE_SECONDS: Final = 1.0


class Listeners:
    """Events that are set when something may have been recorded, by whomever."""

    def __init__(self, collection: Collection[dict[str, Any]]) -> None:
        self._collection = collection
        self.reset_after_fork()
        call_in_child(self, Listeners.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Forget the listeners, which in a child that was forked are the parent's."""
        self._lock = Lock()
        self._listeners: set[Event] = set()
        self._nobody = Event()

    def add(self, listener: Event) -> None:
        """Set this event from now on."""
        with self._lock:
            self._listeners.add(listener)
            if len(self._listeners) == 1:
                self._nobody = Event()
                Thread(
                    target=self._watch, args=(self._nobody,), name="event-watch", daemon=True
                ).start()

    def discard(self, listener: Event) -> None:
        """Set it no more."""
        with self._lock:
            self._listeners.discard(listener)
            if not self._listeners:
                self._nobody.set()

    def notify(self) -> None:
        """Set them all."""
        for listener in list(self._listeners):
            listener.set()

    def _watch(self, nobody: Event) -> None:
        while not nobody.is_set():
            try:
                with self._collection.watch(
                    [{"$match": {"operationType": "insert"}}, {"$project": {"_id": 1}}],
                    max_await_time_ms=_AWAIT_MILLISECONDS,
                ) as stream:
                    self.notify()  # of what came before it was open
                    while not nobody.is_set():
                        if stream.try_next() is not None:
                            self.notify()
                        else:
                            # The connection may be the only one: let others have it first.
                            nobody.wait(_BREATH_SECONDS)
            except PyMongoError:
                self.notify()
                nobody.wait(_PAUSE_SECONDS)
