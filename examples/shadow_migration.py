"""A site moves from recomputed totals to the ledger, while its traffic goes on.

The story of a migration, from the old way to the day of the flip and the way back::

    python examples/shadow_migration.py            # in a temporary folder, with a mongod of its own
    python examples/shadow_migration.py --html drift.html   # and keep the last report as a page

1. There is a site on the old way: each user has buckets, and a total that is recomputed from them.
2. Its buckets are imported. Feed posts and badges become grants in passing, as they are written
   once by their nature; counts that are recomputed stay what they are.
3. The shadow is on: several clients send each call both ways, posts are edited for other points,
   and badges are given again. Users see the very same scores.
4. The kinds of keys that are recomputed are migrated one by one, with traffic: the application
   grants each event of the kind from now on, and opening balances grant what buckets had before.
5. The drift report says what is left: awards that were given again with other points. No grant can
   heal that, so the site decides how much of it nobody would mind.
6. Reads are flipped, which is one word in the application, and so is the way back.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Literal

from projections import Drift, OpenedBalances, ScoreLedger, Tolerance
from projections.drift import write_page
from projections.settings import Settings
from scoring import Contribution, make_grant_id

CLIENTS = 4
START = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


# --- the site as it was ------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """What the old site keeps for a key; ``changed_at`` is when it was last written."""

    points: int
    category: str
    source: str
    changed_at: datetime


@dataclass
class OldSite:
    """``contribute`` overwrites a bucket, and the total is the sum of the buckets."""

    buckets: dict[str, dict[str, Bucket]] = field(default_factory=lambda: defaultdict(dict))

    def contribute(
        self, user: str, key: str, category: str, source: str, points: int, at: datetime
    ) -> None:
        """Set the bucket of a key."""
        self.buckets[user][key] = Bucket(points, category, source, at)

    def total(self, user: str) -> int:
        """Recompute a user's total."""
        return sum(bucket.points for bucket in self.buckets[user].values())


def years_of_traffic() -> OldSite:
    """A small site with a past: posts, badges, and counts that are recomputed every night."""
    site = OldSite()
    for number in range(40):
        user, at = f"user-{number:02d}", START - timedelta(days=400 - 9 * number)
        for post in range(number % 4):
            key = f"content:feed-post:{number}-{post}"
            site.contribute(user, key, "content", "feed", 5, at)
        if number % 3 == 0:
            site.contribute(user, "award:badge:early-bird", "award", "badge", 20, at)
        site.contribute(user, "telemetry:activity", "telemetry", "app", 3 * number, at)
        if number % 2:
            site.contribute(user, "quiz:history", "learning", "quiz", 10 + number, at)
    return site


# --- the steps of the migration ----------------------------------------------------------------


def import_buckets(site: OldSite, ledger: ScoreLedger) -> int:
    """Bring the buckets along, as the very calls that the site will use from now on.

    A contribution knows which keys are grant-shaped, so nothing is decided here. It is safe to
    repeat while the old site stands still: a bucket that is the same already records nothing. Once
    traffic goes to the ledger, do not: an old file would overwrite newer buckets.
    """
    contributions = (
        Contribution(
            user_id=user,
            key=key,
            category=bucket.category,
            source=bucket.source,
            points=bucket.points,
            at=bucket.changed_at,
        )
        for user, buckets in site.buckets.items()
        for key, bucket in buckets.items()
    )
    return len(ledger.contribute_many(contributions))


class ShadowedSite:
    """The site's own calls, each of them sent both ways as long as the old site is still there.

    The only place that is changed when the shadow is turned on, and again when a kind of key is
    migrated. As before, the site works on one request of a user at a time; without that, two
    clients that write one bucket at once may arrive in different orders at the two places.
    """

    def __init__(self, old: OldSite, ledger: ScoreLedger) -> None:
        self._old = old
        self._ledger = ledger
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)
        self.activity_is_granted = False

    def post_is_published(self, user: str, post: str, points: int, at: datetime) -> None:
        """Published, delivered again, or edited and scored anew: the first points are granted."""
        with self._locks[user]:
            self._old.contribute(user, f"content:feed-post:{post}", "content", "feed", points, at)
            self._ledger.feed_post(user, post, points, at)

    def badge_is_earned(self, user: str, badge: str, points: int, at: datetime) -> None:
        """Earned, or awarded again by a job that forgot."""
        with self._locks[user]:
            self._old.contribute(user, f"award:badge:{badge}", "award", "badge", points, at)
            self._ledger.award_badge(user, badge, points, at)

    def user_is_active(self, user: str, event: str, at: datetime) -> None:
        """One more activity: the count goes up by one.

        Once activity is granted by the event, the ledger gets the grant before the count. A count
        that is ahead of its grants would look to an opening balance as if nobody granted them.
        """
        key, labels = "telemetry:activity", ("telemetry", "app")
        with self._locks[user]:
            count = self._old.buckets[user][key].points + 1
            self._old.contribute(user, key, *labels, count, at)
            if self.activity_is_granted:
                self._ledger.grant(user, make_grant_id("activity", event), key, *labels, 1, at)
            self._ledger.contribute(user, key, *labels, count, at)


def a_day_of_traffic(site: ShadowedSite, users: list[str], day: int) -> None:
    """Posts, redeliveries, edits, badges given twice: nothing that the site did not do before."""
    at = START + timedelta(days=day)

    def requests(client: int) -> None:
        for number, user in list(enumerate(users))[client::CLIENTS]:
            if (number + day) % 5 == 0:
                for _ in range(2):  # the queue delivers at least once
                    site.post_is_published(user, f"day-{day}-{number}", 5, at)
            if (number + day) % 20 == 0:  # a moderator finds it worth more
                site.post_is_published(user, f"day-{day}-{number}", 8, at + timedelta(hours=2))
            if (number + day) % 11 == 0:
                site.badge_is_earned(user, "helper", 15, at)
                site.badge_is_earned(user, "helper", 15, at + timedelta(hours=1))
            for event in range(3):
                site.user_is_active(user, f"{day}-{number}-{event}", at)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(requests, range(CLIENTS)))


# --- what the team looks at --------------------------------------------------------------------


def check_that_nobody_noticed(old: OldSite, ledger: ScoreLedger) -> None:
    """Every user has the total of the old site, on every page that shows one."""
    ranked = sorted(old.buckets, key=lambda user: (-old.total(user), user))
    rows = ledger.leaderboard.top(len(ranked))
    if [(row.user_id, row.score) for row in rows] != [(user, old.total(user)) for user in ranked]:
        raise AssertionError("somebody would have noticed")


def show(title: str, drift: Drift) -> Drift:
    """Print a line of the story, and what explains the difference."""
    print(f"{title:<42} {drift.same:>3} of {drift.users} users agree, drift {drift.difference:+,}")
    for cause in drift.causes:
        print(f"{'':<42} {cause.difference:+,} in {cause.keys}: {cause.reason}")
    return drift


def show_opened(opened: OpenedBalances) -> None:
    """Print what was granted."""
    for kind, (grants, points) in opened.kinds.items():
        print(f"{'':<42} opened {grants} balances of {kind} with {points:,} points")


def migration(folder: Path, page: Path | None = None) -> Drift:
    """Run the whole story in a folder and return the last report."""
    old = years_of_traffic()
    users = sorted(old.buckets)
    # In this folder, whatever the environment says: a story has no business in a real database.
    settings = Settings.model_construct(folder=folder)
    event_store = {
        "SCORING_PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "SCORING_SQLITE_DBNAME": str(settings.events_file),
    }
    # With a worker, which projects while the site goes on; drift() waits for it.
    with ScoreLedger.open(settings=settings, event_store=event_store) as ledger:
        # Step 2: the past. Posts and badges are in the ledger already, counts are not.
        print(f"imported {import_buckets(old, ledger)} buckets of {len(users)} users")
        show("after the import", ledger.drift())
        check_that_nobody_noticed(old, ledger)

        # Step 3: the shadow is on.
        site = ShadowedSite(old, ledger)
        for day in (1, 2, 3):
            a_day_of_traffic(site, users, day)
        show("after three days in shadow", ledger.drift())
        check_that_nobody_noticed(old, ledger)

        # Step 4: what is left, the largest first. From the release of day 4 on, each activity is
        # granted; what was counted before is opened while clients go on.
        site.activity_is_granted = True
        with ThreadPoolExecutor(1) as background:
            traffic = background.submit(a_day_of_traffic, site, users, 4)
            show_opened(ledger.open_balances(keys=["telemetry:activity"]))
            traffic.result()
        # Interrupted, or run again to be sure: nothing is granted twice.
        show_opened(ledger.open_balances(keys=["telemetry:activity"]))
        show("after migrating telemetry:activity", ledger.drift())
        show_opened(ledger.open_balances(keys=["quiz:history"]))
        a_day_of_traffic(site, users, 5)

        # Step 5: what is left cannot heal. The old way took the points of an edited post, the
        # ledger keeps the first. The site knows by how much, and decides.
        drift = show("after migrating quiz:history, a day later", ledger.drift())
        check_that_nobody_noticed(old, ledger)
        print(drift.verdict)
        print(drift.impact)
        print(drift.remedy)
        drift = ledger.drift(tolerance=Tolerance(points=10))
        print(drift.verdict)
        if page is not None:
            with page.open("w", encoding="utf-8") as file:
                write_page(drift, file)

        # Step 6: the flip, if the report lets it. It is one word where the site reads, so the way
        # back is too: both totals are kept as long as both are written.
        by: Literal["recomputed", "ledger"] = "ledger" if drift.safe_to_flip else "recomputed"
        print(f"reads are by {by}: {[row.user_id for row in ledger.leaderboard.top(3, by=by)]}")
        a_day_of_traffic(site, users, 6)
        by = "recomputed"
        print(f"the way back, by {by}: {[row.user_id for row in ledger.leaderboard.top(3, by=by)]}")
        drift = ledger.drift(tolerance=Tolerance(points=10))
        check_that_nobody_noticed(old, ledger)
    print(drift.verdict)
    return drift


def main() -> None:
    """Run the story, in a temporary folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--html", type=Path, help="keep the last report as a page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="score-ledger-migration-") as folder:
        migration(Path(folder), arguments.html)


if __name__ == "__main__":
    main()
