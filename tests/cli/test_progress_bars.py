"""What progress bars say of pace and time left, by a clock that only the test moves."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from projections import CopyProgress, Progress, RebuildOutcome
from projections.cli import console
from projections.cli.rebuild import run_rebuild


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Has no time go by but what the test says."""
    return Clock(monkeypatch)


class Clock:
    """Lets seconds go by, and reads what a bar says in the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 1000.0
        self._output = io.StringIO()
        terminal = Console(
            file=self._output,
            force_terminal=True,
            no_color=True,
            width=200,
            get_time=lambda: self._now,
        )
        monkeypatch.setattr(console, "err", terminal)

    def __call__(self, seconds: float) -> None:
        self._now += seconds

    def said(self) -> str:
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._output.getvalue())
        return [line for line in plain.splitlines() if line.strip()][-1]


def test_a_copy_that_is_carried_on_says_its_own_pace(after: Clock) -> None:
    """What the one before has copied took no time of this one."""
    with console.stage_bar("events", "copying") as show:
        show(CopyProgress("comparing what is there", 500_000, 1_000_000))
        after(1)
        show(CopyProgress("comparing what is there", 1_000_000, 1_000_000))
        for done in (1_002_000, 1_004_000, 1_006_000):
            after(2)
            show(CopyProgress("copying events", done, 1_016_000))
    assert " 1,000 events/s 0:00:04 left 0:00:10" in after.said()


def test_a_rebuild_that_is_carried_on_says_its_own_pace(after: Clock) -> None:
    """Of its grants, beside a bar of positions; the time of the first batch is not known."""

    class Rebuilt:
        def rebuild(self, on_progress: Callable[[Progress], None], **_: object) -> RebuildOutcome:
            for position, grants in ((900_000, 5000), (910_000, 10_000), (920_000, 15_000)):
                on_progress(Progress(position, 1_000_000, grants))
                after(1)
            return RebuildOutcome(2, 920_000, live=True)

    ledger: Any = Rebuilt()
    run_rebuild(ledger, Event())
    assert " 3,333 grants/s 0:00:03 left 0:00:08" in after.said()
