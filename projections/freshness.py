"""How far a read model is behind its event store, and waiting until it is not."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from eventsourcing.persistence import WaitInterruptedError

from projections.closed import CLOSED
from projections.errors import LedgerNotOpen, ReadModelUnavailable, StreamParked
from projections.events.anchored_store import AnchoredStore
from scoring.identity import user_stream_id
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from threading import Event

    from projections.events.anchor import Tracked
    from projections.mongo import MongoScoreView
    from scoring import ContributionReceipt, GrantReceipt, Scoring


class Freshness:
    """The read model of one ledger against its event store.

    Where it waits, it raises ``LedgerNotOpen`` once ``interrupt`` is set.
    """

    def __init__(self, scoring: Scoring, view: MongoScoreView, *, interrupt: Event) -> None:
        self._scoring = scoring
        self._view = view
        self._interrupt = interrupt

    def positions(self) -> tuple[int, int]:
        """Return the tracked position, and the newest one that is recorded."""
        newest = read_event_store(self._scoring.recorder.max_notification_id) or 0
        return self._view.max_tracking_id(self._scoring.name) or 0, newest

    def check_event_store(self) -> None:
        """Raise ``EventStoreReplaced`` unless the store is the one that was projected so far."""
        self._check(self._view.tracked(self._scoring.name))

    def await_position(self, position: int, timeout: float) -> None:
        """Wait until a position is tracked, or raise ``TimeoutError``."""
        try:
            self._view.wait(
                self._scoring.name,
                position,
                timeout=timeout,
                interrupt=self._interrupt,
                check=self._check,
            )
        except WaitInterruptedError as error:
            raise LedgerNotOpen(CLOSED) from error

    def await_recorded(self, timeout: float) -> tuple[int, int]:
        """Wait for what is recorded by now, and return what is tracked and how many events lack."""
        self.check_event_store()
        _, newest = self.positions()
        with suppress(TimeoutError):
            self.await_position(newest, timeout)
        tracked = self._view.max_tracking_id(self._scoring.name) or 0
        return tracked, max(0, newest - tracked)

    def await_receipt(self, receipt: GrantReceipt | ContributionReceipt, timeout: float) -> None:
        """Wait until the answer of a receipt is visible; see ``ScoreLedger.wait``."""
        try:
            self.await_position(receipt.position, timeout)
        except TimeoutError as error:
            failure: str | None = None
            with suppress(ReadModelUnavailable):
                self.check_event_store()
                failure = self._view.failure(self._scoring.name)
            if failure is None:
                raise
            raise TimeoutError(
                f"position {receipt.position} of {self._scoring.name} was not projected within "
                f"{timeout:g} s, since a worker gave up ({failure}): mend the cause, or park the "
                "stream with SCORE_LEDGER_ON_ERROR=park"
            ) from error
        # Asked afterwards: a stream is parked in the transaction that moves the position.
        parked = self._view.parking.find(str(user_stream_id(receipt.user_id)))
        if parked is not None and parked.position <= receipt.position:
            raise StreamParked(stream=parked.stream, position=parked.position, reason=parked.reason)

    def _check(self, tracked: Tracked) -> None:
        store = AnchoredStore(self._scoring, self._view.read_model)
        read_event_store(lambda: store.check(tracked))
