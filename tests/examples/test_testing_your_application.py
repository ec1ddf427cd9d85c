"""examples/testing_your_application.py passes as it stands, and fails when it should."""

from __future__ import annotations

import subprocess
from pathlib import Path

from command_line import run_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "testing_your_application.py"


def run(file: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on the file, away from this repository's own settings."""
    arguments = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(cwd)]
    return run_python("-m", "pytest", *arguments, *more, file, cwd=cwd)


def test_the_example_runs_as_its_first_line_says(tmp_path: Path) -> None:
    """All six of its tests pass, outside the checkout too."""
    done = run(EXAMPLE, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_the_example_finds_a_mistake_in_the_application(tmp_path: Path) -> None:
    """A command that makes up a new id for every attempt would award a lesson twice."""
    source = EXAMPLE.read_text(encoding="utf-8")
    right = 'grant_id=make_grant_id("lesson", lesson, user_id)'
    assert right in source
    wrong = source.replace(right, 'grant_id=__import__("uuid").uuid4().hex')
    broken = tmp_path / "test_broken.py"
    broken.write_text(wrong, encoding="utf-8")
    done = run(broken, tmp_path, "-k", "first_attempt")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED test_broken.py::test_only_the_first_attempt_counts" in done.stdout
