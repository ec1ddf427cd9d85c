"""Reads what a command stored, and checks that grants and claims pair up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsourcing.utils import get_topic

from scoring.identity import claim_stream_id
from scoring.user_score import GrantClaimed, UserScore

if TYPE_CHECKING:
    from scoring.application import Scoring
    from scoring.receipts import GrantReceipt


class StoreReader:
    """Follows one event store, command by command.

    Attributes:
        position: The newest position that was read.
        stored: By position, user, key and points of the grants and buckets that ``read`` returned
            or passed in its last call.
    """

    def __init__(self) -> None:
        self.position = 0
        self.stored: dict[int, tuple[str, str, int]] = {}
        self._positions: dict[str, int] = {}

    def read(self, scoring: Scoring) -> dict[str, int]:
        """Return the positions, by grant id, of the grants stored since the last call.

        Raises:
            AssertionError: if an id is stored twice, or a grant and its claim are not together.
        """
        notifications = scoring.recorder.select_notifications(
            start=self.position + 1,
            limit=2**31,
            topics=[
                get_topic(UserScore.GrantRecorded),
                get_topic(UserScore.BucketSet),
                get_topic(GrantClaimed),
            ],
        )
        self.stored = {}
        new: dict[str, int] = {}
        unclaimed: dict[object, object] = {}
        for notification in notifications:
            self.position = notification.id
            event = scoring.mapper.to_domain_event(notification)
            if isinstance(event, UserScore.GrantRecorded):
                if event.grant_id in self._positions or event.grant_id in new:
                    raise AssertionError(f"grant id {event.grant_id!r} is stored twice")
                new[event.grant_id] = notification.id
                self.stored[notification.id] = event.user_id, event.key, event.amount
                place = (event.user_id, event.originator_version)
                unclaimed[claim_stream_id(event.grant_id)] = place
            elif isinstance(event, UserScore.BucketSet):
                self.stored[notification.id] = event.user_id, event.key, event.points
            elif isinstance(event, GrantClaimed):
                place = (event.user_id, event.version)
                if unclaimed.pop(event.originator_id, None) != place:
                    raise AssertionError(f"{event} does not claim the grant stored before it")
        if unclaimed:
            raise AssertionError(f"grants stored without their claims: {unclaimed}")
        self._positions |= new
        return new

    def expect_visible(self, grant_id: str, receipt: GrantReceipt) -> None:
        """Check that projecting the receipt's position makes the original visible.

        Raises:
            AssertionError: if the original is after that position, or nothing is there yet.
        """
        if not self._positions[grant_id] <= receipt.position <= self.position:
            raise AssertionError(
                f"{receipt} must be from {self._positions[grant_id]} to {self.position}"
            )
