"""A projection of one's own: announce each threshold a user crosses, once, also under replay.

It reads the ledger's grants with the classes of ``eventsourcing``: a ``Projection`` that says what
an event means, and a view that is a tracking recorder, so that what is derived and the position up
to which it was derived are committed together. A grant that is delivered again raises
``IntegrityError`` and changes nothing.

The view keeps two kinds of data apart. Running totals are *derived*: a replay forgets them and
makes them again, for instance with other thresholds. Announcements are *facts*: people have read
them, so a replay leaves them alone, and their primary key, user and threshold, lets none happen
twice.

Try it on the grants of this folder's ledger::

    python examples/tier_ups.py            # announce what is new
    python examples/tier_ups.py --replay   # forget the totals and make them again: nothing is new
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import Tracking
from eventsourcing.projection import Projection
from eventsourcing.sqlite import SQLiteDatastore, SQLiteTrackingRecorder

from projections import ScoreGrantsProjection
from scoring import Scoring, UserScore

THRESHOLDS = (100, 1_000, 10_000)

PAGE = 1_000


@dataclass(frozen=True)
class TierUp:
    """A user came to have at least ``threshold`` points, by the grant at ``position``."""

    user_id: str
    threshold: int
    position: int


class TierUps(SQLiteTrackingRecorder):
    """The view, in a SQLite file of its own."""

    def construct_create_table_statements(self) -> list[str]:
        """Return the library's statements and those of two tables more."""
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE IF NOT EXISTS totals (user_id TEXT PRIMARY KEY, total INTEGER)",
            """
            CREATE TABLE IF NOT EXISTS tier_ups (
                user_id TEXT, threshold INTEGER, position INTEGER, announced INTEGER DEFAULT 0,
                PRIMARY KEY (user_id, threshold)
            )
            """,
        ]

    def add(
        self, user_id: str, amount: int, tracking: Tracking, thresholds: tuple[int, ...]
    ) -> None:
        """Add points, note the thresholds that they cross, and track the position: all or nothing.

        Raises:
            IntegrityError: if the position was tracked before.
        """
        with self.datastore.transaction(commit=True) as c:
            self._insert_tracking(c, tracking)
            c.execute(
                "INSERT INTO totals VALUES (?, ?) "
                "ON CONFLICT (user_id) DO UPDATE SET total = total + excluded.total "
                "RETURNING total",
                (user_id, amount),
            )
            total = c.fetchone()["total"]
            for threshold in thresholds:
                if total - amount < threshold <= total:
                    c.execute(
                        "INSERT OR IGNORE INTO tier_ups (user_id, threshold, position) "
                        "VALUES (?, ?, ?)",
                        (user_id, threshold, tracking.notification_id),
                    )

    def announce(self, tell: Callable[[TierUp], None]) -> int:
        """Tell what has not been told, in order, and return how many that were.

        Each is marked as told after ``tell`` returned. If the process dies between the two it is
        told once more, so what sends e-mails should pass user and threshold on as the message's
        idempotency key.
        """
        with self.datastore.transaction(commit=False) as c:
            c.execute("SELECT * FROM tier_ups WHERE NOT announced ORDER BY position, threshold")
            new = [TierUp(r["user_id"], r["threshold"], r["position"]) for r in c.fetchall()]
        for tier_up in new:
            tell(tier_up)
            with self.datastore.transaction(commit=True) as c:
                c.execute(
                    "UPDATE tier_ups SET announced = 1 WHERE user_id = ? AND threshold = ?",
                    (tier_up.user_id, tier_up.threshold),
                )
        return len(new)

    def forget_what_is_derived(self, application_name: str) -> None:
        """Begin again from position zero, announcements aside."""
        with self.datastore.transaction(commit=True) as c:
            c.execute("DELETE FROM totals")
            c.execute("DELETE FROM tracking WHERE application_name = ?", (application_name,))


class TierUpsProjection(Projection[TierUps]):
    """What the ledger's events mean for the view."""

    topics = ScoreGrantsProjection.topics
    thresholds: tuple[int, ...] = THRESHOLDS

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Move over what is not a grant."""
        del domain_event
        self.view.insert_tracking(tracking)

    @process_event.register
    def _(self, domain_event: UserScore.GrantRecorded, tracking: Tracking) -> None:
        self.view.add(domain_event.user_id, domain_event.amount, tracking, self.thresholds)


def open_view(file: Path) -> TierUps:
    """Open the view, creating its tables if there are none."""
    view = TierUps(SQLiteDatastore(str(file)))
    view.create_table()
    return view


def catch_up(scoring: Scoring, projection: TierUpsProjection) -> None:
    """Process the grants that were recorded since the tracked position.

    On PostgreSQL the library's ``ProjectionRunner`` does this and goes on; a SQLite store cannot be
    subscribed to, so it is asked.
    """
    while True:
        notifications = scoring.recorder.select_notifications(
            start=projection.view.max_tracking_id(scoring.name),
            inclusive_of_start=False,
            limit=PAGE,
            topics=projection.topics,
        )
        if not notifications:
            return
        for notification in notifications:
            event = scoring.mapper.to_domain_event(notification)
            projection.process_event(event, Tracking(scoring.name, notification.id))


def replay(scoring: Scoring, projection: TierUpsProjection) -> None:
    """Make the totals again from the first grant on."""
    projection.view.forget_what_is_derived(scoring.name)
    catch_up(scoring, projection)


def main() -> None:
    """Announce the tier-ups of this folder's ledger."""
    folder = Path(".score-ledger")
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "SQLITE_DBNAME": str(folder / "events.sqlite"),
    }
    folder.mkdir(exist_ok=True)
    projection = TierUpsProjection(open_view(folder / "tier-ups.sqlite"))
    with Scoring(env) as scoring:
        (replay if "--replay" in sys.argv else catch_up)(scoring, projection)
    told = projection.view.announce(
        lambda tier_up: print(f"{tier_up.user_id} has reached {tier_up.threshold:,} points")
    )
    print(f"{told} announcements")


if __name__ == "__main__":
    main()
