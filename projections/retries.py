"""What the read side tries again: for how long and at what pace."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
)

from projections.errors import ReadModelUnavailable
from scoring.retries import PACE, STORE_ERRORS, Retries, in_words, is_hopeless

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
"""How long a failure that may pass is put up with before it is raised."""


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ReadModelUnavailable):
        return error.transient
    return isinstance(error, STORE_ERRORS) and not is_hopeless(error)


def retries_until(
    stop: Event,
    *,
    may_pass: Callable[[BaseException], bool] = _may_pass,
    in_words: Callable[[Any], str] = in_words,
) -> Retries:
    """Return retries for ``RETRY_SECONDS``; when ``stop`` is set, they and their pauses end.

    Args:
        stop: Set by whoever does not want to wait any longer.
        may_pass: Tells the failures after which to try again; default, those of MongoDB and of the
            event store that may pass by themselves.
        in_words: Tells what the log says of a failure.
    """

    def log(state: RetryCallState) -> None:
        if state.outcome is not None:
            logger.info("trying again: %s", in_words(state.outcome.exception()))

    return Retries(
        Retrying(
            retry=retry_if_exception(may_pass),
            # Time counts from the first failure since something went well, not from that: whatever
            # goes well may take its time, or be waited for.
            stop=stop_when_event_set(stop) | stop_after_delay(RETRY_SECONDS),
            wait=PACE,
            sleep=sleep_using_event(stop),
            before_sleep=log,
            reraise=True,
        )
    )
