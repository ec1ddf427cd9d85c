"""Datetimes of somebody else's class: tests of an application may have stopped the clock."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scoring import Scoring, UserScore
from support import make_grant, sqlite_env


class DatetimeSubclass(datetime):
    """As freezegun's ``FakeDatetime`` is, and ``pandas.Timestamp``."""


def test_a_datetime_of_a_subclass_is_recorded_as_the_datetime_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``freeze_time``, whose datetimes are of a class of its own."""
    frozen = DatetimeSubclass.fromtimestamp(0, UTC)
    monkeypatch.setattr("eventsourcing.domain.datetime_now_with_tzinfo", lambda: frozen)
    with Scoring(sqlite_env(tmp_path / "events.sqlite")) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        events: list[Any] = list(app.events.get(UserScore.create_id("jane")))
        assert [event.timestamp for event in events] == [frozen, frozen]
        assert {type(event.timestamp) for event in events} == {datetime}
