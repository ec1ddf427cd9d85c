"""The code blocks of the documentation, run as printed in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    found = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [code for name, code in found if name == language]


def is_set_up(code: str) -> bool:
    """The two commands that make a virtual environment are run by .ci/run, from the README."""
    return code.startswith("python3 -m venv ")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run_as_printed(code: str, tmp_path: Path) -> None:
    """In an empty folder, on the embedded default."""
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [code for code in blocks("sh") if not is_set_up(code)])
def test_shell_blocks_run_as_printed(code: str, tmp_path: Path) -> None:
    """Every command of a block succeeds, in an empty folder."""
    done = run(["bash", "-ec", code], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_just_two_set_up_commands_of_one_line() -> None:
    """One for the demo and one for the tests; .ci/run takes them from there."""
    set_up = [code for code in blocks("sh") if is_set_up(code)]
    assert [code.count("\n") for code in set_up] == [1, 1]
    assert set_up[0].rstrip().endswith("demo")
    assert set_up[1].rstrip().endswith("pytest")
