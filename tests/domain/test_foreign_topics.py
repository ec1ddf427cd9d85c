"""A stored topic is text that anybody may have written: nothing is run because of it."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import Notification
from eventsourcing.utils import clear_topic_cache, register_topic

from projections.errors import PoisonEvent
from projections.events.decoder import EventDecoder
from scoring import BatchFailed, Scoring, ScoringError, UserScore
from scoring.identity import claim_stream_id, user_stream_id
from support import make_grant, sqlite_env

FOREIGN = [
    "unittest.__main__",
    "unittest.__main__:main",
    "os:system",
    "os",
    "builtins:dict",
    "no_such_module_anywhere:Event",
    "module_with_a_side_effect:Event",
    "scoring:UserScore.GrantRecorded.amount",
    "scoring:UserScore.Vanished",
    ":",
    "",
]


@dataclass(frozen=True)
class PlainEvent:
    """An embedder's event need not be the library's."""

    originator_id: UUID
    originator_version: int


class Counter(Aggregate):
    """An embedder's aggregate."""

    class Counted(Aggregate.Event):
        """An event that a class of its own inherits."""

        def apply(self, aggregate: Counter) -> None:
            """Count."""


class SpecialCounter(Counter):
    """It has the events of its base class, and is itself stored under an old name."""


@pytest.fixture
def side_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when it is imported."""
    left = tmp_path / "it ran"
    (tmp_path / "module_with_a_side_effect.py").write_text(
        f"open({str(left)!r}, 'w').close()\nclass Event: originator_id: str\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return left


def plant(file: Path, stream: UUID, topic: str, *, version: int = 1, state: bytes = b"{}") -> None:
    with closing(sqlite3.connect(file)) as other, other:
        other.execute(
            "INSERT INTO stored_events VALUES (?, ?, ?, ?)", (stream.hex, version, topic, state)
        )


@pytest.mark.parametrize("topic", FOREIGN)
def test_a_row_with_a_foreign_topic_is_a_clear_error_and_runs_nothing(
    tmp_path: Path, side_effect: Path, topic: str
) -> None:
    """Whether it lies where a claim is, or among the events of a user."""
    file = tmp_path / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        imported = set(sys.modules)
        plant(file, claim_stream_id("grant-2"), topic)
        with pytest.raises(ScoringError, match="the topic"):
            app.grant(**make_grant(2, user_id="jane").model_dump())
        with pytest.raises(BatchFailed, match="the topic"):
            app.grant_many([make_grant(2, user_id="joe")])
        plant(file, user_stream_id("jane"), topic, version=3)
        with pytest.raises(ScoringError, match="the topic"):
            app.score_of("jane")
        plant(file, user_stream_id("carl"), topic)
        with pytest.raises(ScoringError, match="the topic"):
            app.contribute("carl", "telemetry:activity", "telemetry", "app", 1)
        assert app.grant(**make_grant(3, user_id="joe").model_dump()).status == "RECORDED"
    assert not side_effect.exists()
    assert "unittest.__main__" not in set(sys.modules) - imported


@pytest.mark.parametrize("topic", ["os:_wrap_close", "module_with_a_side_effect:Event"])
def test_a_snapshot_of_a_foreign_class_is_a_clear_error(
    tmp_path: Path, side_effect: Path, topic: str
) -> None:
    """The topic inside of a snapshot is no more to be trusted than that of the row."""
    file = tmp_path / "events.sqlite"
    with Scoring(sqlite_env(file)) as app:
        app.grant_many([make_grant(number, user_id="jane") for number in range(120)])
    with closing(sqlite3.connect(file)) as other, other:
        [(state,)] = other.execute("SELECT state FROM stored_snapshots").fetchall()
        changed = json.dumps({**json.loads(state), "topic": topic}).encode()
        other.execute("UPDATE stored_snapshots SET state = ?", (changed,))
    with Scoring(sqlite_env(file)) as app, pytest.raises(ScoringError, match="the topic"):
        app.score_of("jane")
    assert not side_effect.exists()


@pytest.mark.parametrize("topic", FOREIGN)
def test_a_foreign_topic_is_a_poison_event_to_the_projection(side_effect: Path, topic: str) -> None:
    """With a reason that names the topic."""
    with Scoring() as app:
        with pytest.raises(PoisonEvent, match="the topic") as poison:
            EventDecoder(app.mapper).decode(
                Notification(
                    id=1, originator_id=UUID(int=1), originator_version=1, topic=topic, state=b"{}"
                )
            )
        assert poison.value.topic == topic
    assert not side_effect.exists()


def test_the_classes_of_the_application_are_resolved_by_all_their_names() -> None:
    """Its own aggregates beside ours, plain events, inherited ones, and names that are registered.

    A process that has stored nothing yet knows no topic from before.
    """
    with Scoring() as app:
        counter, special = Counter(), SpecialCounter()
        for each in (counter, special):
            each.trigger_event(each.Counted)
        app.save(counter, special, PlainEvent(UUID(int=1), 1))
        app.take_snapshot(counter.id)
        app.grant(**make_grant(1, user_id="jane").model_dump())
        clear_topic_cache()
        register_topic("counters.of.old", sys.modules[__name__])
        register_topic("counters:Special", SpecialCounter)
        assert app.repository.get(counter.id).version == 2
        assert app.repository.get(special.id).version == 2
        assert [*app.events.get(UUID(int=1))] == [PlainEvent(UUID(int=1), 1)]
        assert app.score_of("jane").grant_count == 1
        for topic, found in {
            "counters:Special.Counted": SpecialCounter.Counted,
            "counters.of.old:PlainEvent": PlainEvent,
            "counters.of.old:Counter.Counted": Counter.Counted,
            "scoring:UserScore.GrantRecorded": UserScore.GrantRecorded,
        }.items():
            event = app.mapper.to_domain_event(
                Notification(
                    id=1, originator_id=UUID(int=1), originator_version=1, topic=topic, state=b"{}"
                )
            )
            assert type(event) is found
