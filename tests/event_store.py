"""Comparing the read model with the event store, event by event, and damaging the latter."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from eventsourcing.utils import get_topic

from projections.events.decoder import EventDecoder
from projections.events.model import GrantEvent
from projections.mongo import connect
from projections.mongo.batches import grant_document
from projections.mongo.read_model import ReadModel
from projections.verification.totals import verify_totals
from scoring import Scoring, UserScore

GRANT_RECORDED = get_topic(UserScore.GrantRecorded)


def assert_equal_to_the_events(scoring: Scoring, read_model: ReadModel) -> int:
    """Every grant is there once with its payload, nothing else is, and all sums are right.

    Returns how many grants there are.
    """
    stored = iter(read_model.grants.find().sort("_id", 1))
    count = 0
    for notification in grants_of(scoring):
        event = EventDecoder(scoring.mapper).decode(notification)
        assert isinstance(event, GrantEvent)
        expected = grant_document(event)
        del expected["recordedAt"]  # kept in milliseconds
        found = next(stored, {})
        assert {name: found.get(name) for name in expected} == expected
        count += 1
    assert next(stored, None) is None, "there are grants that were never recorded"
    assert verify_totals(read_model).ok
    for document in read_model.users.find():
        score = scoring.score_of(document["_id"])
        assert document["version"] == score.version
        assert document["recomputedTotal"] == score.recomputed_total
        assert document["totalScore"] == score.total_score
        assert document["grantCount"] == score.grant_count
    return count


def grants_of(scoring: Scoring) -> Iterator:  # type: ignore[type-arg]
    position = 0
    while page := scoring.recorder.select_notifications(
        start=position, limit=5000, topics=[GRANT_RECORDED], inclusive_of_start=False
    ):
        yield from page
        position = page[-1].id


def events_in(file: Path) -> int:
    """How many events are committed to a file that another process writes, or is to make."""
    if not file.exists():
        return 0
    with closing(sqlite3.connect(file)) as store, suppress(sqlite3.OperationalError):
        return int(store.execute("SELECT count(*) FROM stored_events").fetchone()[0])
    return 0


@contextmanager
def damaged(
    file: Path, *positions: int, by: Callable[[bytes], bytes] = lambda _: b"{"
) -> Iterator[None]:
    """The events at these positions are others inside the block; by default, not to be decoded."""
    with closing(sqlite3.connect(file)) as database:
        states = {
            position: database.execute(
                "SELECT state FROM stored_events WHERE rowid = ?", (position,)
            ).fetchone()[0]
            for position in positions
        }
        _write(database, {position: by(state) for position, state in states.items()})
    try:
        yield
    finally:
        with closing(sqlite3.connect(file)) as database:
            _write(database, states)


@contextmanager
def damaged_in_mongo(uri: str, database: str, position: int) -> Iterator[None]:
    """The event at this position cannot be decoded inside the block."""
    with connect(uri) as client:
        events = client[database]["scoring_events"]
        document = events.find_one({"_id": {"$lte": position}}, sort=[("_id", -1)])
        assert document is not None
        state = f"e.{position - document['_id']}.d"
        events.update_one({"_id": document["_id"]}, {"$set": {state: b"{"}})
        try:
            yield
        finally:
            events.replace_one({"_id": document["_id"]}, document)


def _write(database: sqlite3.Connection, states: dict[int, bytes]) -> None:
    with database:
        for position, state in states.items():
            database.execute(
                "UPDATE stored_events SET state = ? WHERE rowid = ?", (state, position)
            )
