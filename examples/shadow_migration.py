"""A site moves from recomputed totals to the ledger, and nobody notices.

The story of a migration, from the old way to the sentence that says whether reads may be flipped::

    python examples/shadow_migration.py            # in a temporary folder, with a mongod of its own
    python examples/shadow_migration.py --html drift.html   # and keep the last report as a page

1. There is a site on the old way: each user has buckets, and a total that is recomputed from them.
2. Its buckets are imported. Feed posts and badges become grants in passing, as they are written
   once by their nature; counts that are recomputed stay what they are.
3. The shadow is on: the site's old calls go to the ledger. Users see the very same scores.
4. The kinds of keys that are recomputed are migrated one by one: what a user has is granted as an
   opening balance, and from then on each event is granted by itself.
5. The drift report says when the two totals agree for everybody.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from projections import Drift, ScoreLedger
from projections.drift import write_page
from projections.settings import Settings

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
    """Bring the buckets along, by the very call that the site will use from now on.

    ``contribute`` knows which keys are grant-shaped, so nothing is decided here. It is safe to
    repeat while the old site stands still: a bucket that is the same already records nothing. Once
    traffic goes to the ledger, do not: an old file would overwrite newer buckets.
    """
    count = 0
    for user, buckets in site.buckets.items():
        for key, bucket in buckets.items():
            ledger.contribute(
                user, key, bucket.category, bucket.source, bucket.points, bucket.changed_at
            )
            count += 1
    return count


class ShadowedSite:
    """The site's own calls, each of them sent both ways as long as the old site is still there.

    The only place that is changed when the shadow is turned on. What used to be a ``contribute``
    of a feed post or a badge now says so by name; everything else is as it was.
    """

    def __init__(self, old: OldSite, ledger: ScoreLedger) -> None:
        """Keep both."""
        self._old = old
        self._ledger = ledger

    def post_is_published(self, user: str, post: str, points: int, at: datetime) -> None:
        """Published, edited or delivered again: the first points are granted, once."""
        self._old.contribute(user, f"content:feed-post:{post}", "content", "feed", points, at)
        self._ledger.feed_post(user, post, points, at)

    def badge_is_earned(self, user: str, badge: str, points: int, at: datetime) -> None:
        """Earned, or awarded again by a job that forgot."""
        self._old.contribute(user, f"award:badge:{badge}", "award", "badge", points, at)
        self._ledger.award_badge(user, badge, points, at)

    def count_is_recomputed(
        self, user: str, key: str, category: str, source: str, points: int, at: datetime
    ) -> None:
        """A nightly count; it may shrink."""
        self._old.contribute(user, key, category, source, points, at)
        self._ledger.contribute(user, key, category, source, points, at)


def a_day_of_traffic(site: ShadowedSite, users: list[str], day: int) -> None:
    """New posts, redeliveries, and a badge given twice. Nothing that the site did not do before."""
    at = START + timedelta(days=day)
    for number, user in enumerate(users):
        if (number + day) % 5 == 0:
            for _ in range(2):  # the queue delivers at least once
                site.post_is_published(user, f"day-{day}-{number}", 5, at)
        if (number + day) % 11 == 0:
            site.badge_is_earned(user, "helper", 15, at)
            site.badge_is_earned(user, "helper", 15, at + timedelta(hours=1))
        activity = 3 * number + day
        site.count_is_recomputed(user, "telemetry:activity", "telemetry", "app", activity, at)


def migrate(
    key: str, category: str, source: str, old: OldSite, ledger: ScoreLedger, at: datetime
) -> None:
    """Migrate a kind of key that was recomputed: grant what each user has as an opening balance.

    The grant id is made from user and key, so the migration may be interrupted and run again. It
    is a plain grant: the recomputed total, which users see, does not hear of it. From here on the
    application calls ``grant()`` for every event of this kind, with an id of the event's own,
    beside the count that it still contributes.
    """
    for user, buckets in old.buckets.items():
        bucket = buckets.get(key)
        if bucket is not None and bucket.points:
            grant_id = f"opening:{key}:{user}"
            ledger.grant(user, grant_id, key, category, source, bucket.points, at)


# --- what the team looks at --------------------------------------------------------------------


def check_that_nobody_noticed(old: OldSite, ledger: ScoreLedger) -> None:
    """Every user has the total of the old site, on every page that shows one."""
    ranked = sorted(old.buckets, key=lambda user: (-old.total(user), user))
    rows = ledger.leaderboard.top(len(ranked))
    if [(row.user_id, row.score) for row in rows] != [(user, old.total(user)) for user in ranked]:
        raise AssertionError("somebody would have noticed")


def show(title: str, drift: Drift) -> None:
    """Print a line of the story."""
    print(f"{title:<42} {drift.same:>3} of {drift.users} users agree, drift {drift.difference:+,}")
    for cause in drift.causes:
        print(f"{'':<42} {cause.difference:+,} in {cause.keys}: {cause.reason}")


def migration(folder: Path, page: Path | None = None) -> Drift:
    """Run the whole story in a folder and return the last report."""
    old = years_of_traffic()
    users = sorted(old.buckets)
    # In this folder, whatever the environment says: a story has no business in a real database.
    settings = Settings(folder=folder)
    event_store = {
        "SCORING_PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "SCORING_SQLITE_DBNAME": str(settings.events_file),
    }
    with ScoreLedger.open(settings=settings, event_store=event_store, worker=False) as ledger:
        # Step 2: the past. Posts and badges are in the ledger already, counts are not.
        print(f"imported {import_buckets(old, ledger)} buckets of {len(users)} users")
        ledger.catch_up()
        check_that_nobody_noticed(old, ledger)
        show("after the import", ledger.drift())

        # Step 3: the shadow is on.
        site = ShadowedSite(old, ledger)
        for day in (1, 2, 3):
            a_day_of_traffic(site, users, day)
        ledger.catch_up()
        check_that_nobody_noticed(old, ledger)
        show("after three days in shadow", ledger.drift())

        # Step 4: the report says what is left, so that is what is migrated, the largest first.
        now = START + timedelta(days=4)
        migrate("telemetry:activity", "telemetry", "app", old, ledger, now)
        ledger.catch_up()
        check_that_nobody_noticed(old, ledger)
        show("after migrating telemetry:activity", ledger.drift())

        migrate("quiz:history", "learning", "quiz", old, ledger, now)
        ledger.catch_up()
        check_that_nobody_noticed(old, ledger)

        # A day with everything granted: each new activity counts both ways, so they stay together.
        for number, user in enumerate(users):
            points = old.buckets[user]["telemetry:activity"].points + 1
            site.count_is_recomputed(user, "telemetry:activity", "telemetry", "app", points, now)
            grant_id = f"activity:{now:%Y-%m-%d}:{number}"
            ledger.grant(user, grant_id, "telemetry:activity", "telemetry", "app", 1, now)
        ledger.catch_up()
        check_that_nobody_noticed(old, ledger)

        # Step 5: the sentence. Flipping is somebody's decision; nothing here does it.
        drift = ledger.drift()
        show("after migrating quiz:history, a day later", drift)
        if page is not None:
            with page.open("w", encoding="utf-8") as file:
                write_page(drift, file)
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
