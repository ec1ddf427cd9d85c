"""Ctrl-C and SIGTERM: work stops between two transactions, everything else at once.

Work cannot stop there while a database does not answer, wherever it asks. Therefore whatever has
not stopped after a while is interrupted, and so is what it does to leave in order.
"""

from __future__ import annotations

import _thread
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, main_thread
from typing import Final, NoReturn

EXIT_CODE: Final = 128 + signal.SIGINT
"""Of a command that Ctrl-C ended, as shells have it."""

_PATIENCE_SECONDS: Final = 4.0
_LEAVING_SECONDS: Final = 0.5  # for each thing that is done on the way out

_SOON_SECONDS: Final = 0.02

_pressed = False


def interrupt(signum: int, frame: object) -> NoReturn:
    """End whatever is going on, as Ctrl-C does, and remember that it was asked for."""
    global _pressed  # noqa: PLW0603 - there is one keyboard
    del signum, frame
    _pressed = True
    raise KeyboardInterrupt


def heed_ignored(ignored: sys.UnraisableHookArgs) -> None:
    """Have Ctrl-C come once more if Python ignored it; to be ``sys.unraisablehook``.

    It does where no error can be raised, as in a finaliser or in what a library in C calls back.
    """
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        # Not here, where it would be ignored, too.
        _thread.start_new_thread(_interrupt_soon, ())
    elif not _pressed:  # or it may be the finaliser of something that is half made
        sys.__unraisablehook__(ignored)


def _interrupt_soon() -> None:
    time.sleep(_SOON_SECONDS)
    signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)


def was_interrupted() -> bool:
    """Tell whether an error may be no more than what became of Ctrl-C on its way up."""
    return _pressed


class Interrupted(Exception):
    """A signal stopped a command; the message says how to go on.

    Attributes:
        exit_code: 128 and the number of the signal, as shells have it.
    """

    def __init__(self, message: str, stop: Stop) -> None:
        self.exit_code = 128 + stop.signal
        super().__init__(message)


class Stop(Event):
    """Set by a signal, for work that looks at it.

    Attributes:
        signal: Its number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal = signal.SIGINT
        self._told = self._waiting = False

    def is_set(self) -> bool:
        """Tell whether it is set: from the signal on, though whoever waits is woken later."""
        return self._told or super().is_set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Have a signal end the block at once: it waits for input, not for a transaction."""
        self._waiting = True
        try:
            if self._told:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    def handle(self, signum: int, frame: object) -> None:
        """Stop soon at the first signal, and at once at the second or if that takes too long."""
        if signum == signal.SIGALRM:
            interrupt(signum, frame)
        again, self._told = self._told, True
        self.signal = signal.Signals(signum)
        # In a thread, since this one may hold the event's lock at this moment.
        _thread.start_new_thread(self.set, ())
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS, _LEAVING_SECONDS)
        if again or self._waiting:
            interrupt(signum, frame)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yield what SIGTERM and SIGINT set, so that work stops between two batches.

    Raises:
        Interrupted: at the second of them, or if work has not stopped after some seconds.
    """
    stop = Stop()
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    previous = {name: signal.signal(name, stop.handle) for name in names}
    try:
        yield stop
    except KeyboardInterrupt:
        raise Interrupted("interrupted: run it again to carry on", stop) from None
    finally:
        alarm = previous.pop(signal.SIGALRM)
        for name, old in previous.items():
            signal.signal(name, old)
        # Only when none of the others can set it any more.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
