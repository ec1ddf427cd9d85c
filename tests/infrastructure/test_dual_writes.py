"""The trial of a migration: a site that writes twice, killed between its writes, and compared."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from dual_writers import Site, Writer, differing, dual_write, in_the_collection, in_the_events
from projections import Comparison, OldScores, ScoreDifference, ScoreLedger
from projections.mongo import connect
from support import NOON, sqlite_env

WRITERS = 5
DYING_AT_ONCE = 10
"""More than a writer that gets its turn may take between its two writes."""

Place = tuple[str | None, str | None]


@pytest.fixture
def site(mongo_uri: str, tmp_path: Path) -> Iterator[Site]:
    database = f"site_{uuid4().hex}"
    yield Site(mongo_uri, database, tmp_path)
    with connect(mongo_uri) as client:
        client.drop_database(database)
        client.drop_database(f"{database}_ledger")


def test_comparing_names_exactly_what_differs_while_a_site_writes_and_is_killed(site: Site) -> None:
    """Five writers live, after twenty were killed between their two writes."""
    _trial(site, kills=20)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_comparing_names_exactly_what_differs_for_a_long_time(site: Site) -> None:
    """``SOAK_SECONDS``: one trial after the other, with more kills in each."""
    until = time.monotonic() + int(os.environ.get("SOAK_SECONDS", "600"))
    for number in count():
        folder = site.folder / str(number)
        folder.mkdir()
        _trial(Site(site.uri, site.database, folder), kills=60)
        with connect(site.uri) as client:
            client.drop_database(site.database)
            client.drop_database(f"{site.database}_ledger")
        if time.monotonic() > until:
            return


def _trial(site: Site, *, kills: int) -> None:
    with (
        connect(site.uri) as client,
        ScoreLedger.open(
            event_store=sqlite_env(site.folder / "events.sqlite"),
            mongo=client[f"{site.database}_ledger"],
        ) as ledger,
    ):
        old = dual_write.OLD_SCORES.model_copy(update={"database": site.database})
        planted = _plant(site, ledger)
        writers = _killed_again_and_again(site, kills)
        try:
            resting = (
                planted
                | site.lost()
                | {
                    place
                    for place in in_the_collection(client, site.database)
                    if place[0] == "shared"
                }
            )
            expected = resting & differing(
                in_the_collection(client, site.database),
                in_the_events(site.folder / "events.sqlite"),
            )
            assert planted | site.lost() <= expected
            assert len(site.lost()) == kills
            found, comparison = _compare(ledger, old)
            assert set(found) == expected
            assert comparison.difference_count == len(expected)
            assert found["planted", "telemetry:raced"].kind == "order of two writes"
            assert found["planted", "telemetry:other"].kind == "other points"

            _, repaired = _compare(ledger, old, repair=True)
            assert repaired.ok, repaired.verdict
            assert repaired.repaired_count == len(expected)
            found, again = _compare(ledger, old)
            assert found == {}
            # There is traffic, and what is in flight would be named at first sight.
            passed = comparison.passed + repaired.passed + again.passed
            while not passed:
                found, again = _compare(ledger, old)
                assert found == {}
                passed = again.passed
        finally:
            site.stop(writers)
        assert (
            differing(
                in_the_collection(client, site.database),
                in_the_events(site.folder / "events.sqlite"),
            )
            == set()
        )
        # Everybody, without traffic, and at once.
        assert ledger.compare(old, settle_seconds=0).ok


def _compare(
    ledger: ScoreLedger, old: OldScores, *, repair: bool = False
) -> tuple[dict[Place, ScoreDifference], Comparison]:
    found: dict[Place, ScoreDifference] = {}

    def add(difference: ScoreDifference) -> None:
        place = difference.user_id, difference.key
        assert place not in found, "named twice"
        found[place] = difference

    comparison = ledger.compare(old, repair=repair, on_difference=add)
    return found, comparison


def _plant(site: Site, ledger: ScoreLedger) -> set[tuple[str, str]]:
    """Differences of every kind that there are, and two clients who cross each other."""
    labels = "telemetry", "app"
    with connect(site.uri) as client:
        scores = client[site.database]["scores"]

        def in_the_site(key: str, points: int, category: str = "telemetry") -> None:
            bucket = {"points": points, "category": category, "source": "app", "at": NOON}
            dual_write.set_bucket(scores, "planted", key, bucket)

        in_the_site("telemetry:missing-in-ledger", 3)
        ledger.contribute("planted", "telemetry:missing-in-old", *labels, 4)
        in_the_site("telemetry:other", 5)
        ledger.contribute("planted", "telemetry:other", *labels, 6)
        in_the_site("telemetry:label", 7, "other")
        ledger.contribute("planted", "telemetry:label", *labels, 7)
        for points in (8, 9):
            in_the_site("telemetry:raced", points)
        for points in (9, 8):
            ledger.contribute("planted", "telemetry:raced", *labels, points)
        ledger.award_badge("planted", "first", 10, at=NOON)
        in_the_site("award:badge:first", 11, "award")
    keys = ("missing-in-ledger", "missing-in-old", "other", "label", "raced")
    return {("planted", f"telemetry:{key}") for key in keys} | {("planted", "award:badge:first")}


def _killed_again_and_again(site: Site, kills: int) -> list[Writer]:
    """Return writers who live, after others have died in their places."""
    numbers = count()
    randomness = Random(7)
    living: list[Writer] = []
    while living or kills:
        while kills and len(living) < DYING_AT_ONCE:
            kills -= 1
            living.append(site.start(next(numbers), dies_after=randomness.randrange(6, 16)))
        living[0].process.join(0.01)
        ended = [each for each in living if each.process.exitcode is not None]
        assert all(each.process.exitcode == -signal.SIGKILL for each in ended)
        living = [each for each in living if each not in ended]
    return [site.start(next(numbers)) for _ in range(WRITERS)]
