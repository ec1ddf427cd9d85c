"""``examples/replaying.py``."""

from __future__ import annotations

from pathlib import Path

from command_line import run_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "replaying.py"


def test_the_example_replays_and_rebuilds_and_ends_with_the_same_board() -> None:
    """All five steps, on the embedded default; its assertions are part of it."""
    done = run_python(EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert [line[:2] for line in done.stdout.splitlines()] == ["1.", "2.", "3.", "4.", "5."]
