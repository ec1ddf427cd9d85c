"""One bound and one pace for what is tried again on the read side."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from projections.errors import ReadModelUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
"""How long a failure that may pass is put up with before it is raised."""

_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.5


class Patience:
    """Counts the failures in a row, waits longer after each, and says when it has been enough."""

    def __init__(self, stop: Event) -> None:
        """Have all of it; every pause ends when ``stop`` is set."""
        self._stop = stop
        self._attempts = 0
        self._failing_since: float | None = None

    def restored(self) -> None:
        """Something went well: begin anew."""
        self._attempts = 0
        self._failing_since = None

    def is_exhausted(self) -> bool:
        """Tell of something that failed whether to raise it: for the time, or because of ``stop``.

        Time counts from the first failure since something went well, not from that: whatever goes
        well may take its time, or be waited for.
        """
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        return self._stop.is_set() or now - self._failing_since > RETRY_SECONDS

    def pause(self) -> None:
        """Wait, longer each time and never in step with others."""
        self._attempts += 1
        longest = _FIRST_PAUSE_SECONDS * 2 ** min(self._attempts, 10)
        longest = min(_LONGEST_PAUSE_SECONDS, longest)
        self._stop.wait(random.uniform(longest / 2, longest))  # noqa: S311 - jitter, not a secret

    def sit_out(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, called again as long as MongoDB's failures may pass.

        Raises:
            ReadModelUnavailable: if one cannot, or has not for too long.
        """
        while True:
            try:
                result = work()
            except ReadModelUnavailable as error:
                if not error.transient or self.is_exhausted():
                    raise
                logger.info("trying again: %s", error)
                self.pause()
            else:
                self.restored()
                return result
