"""A typed program that embeds the ledger passes both type checkers, against the built wheel."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "typing" / "embedding_program.py"

MISTAKES = """
from datetime import UTC, datetime
from projections import ScoreLedger
from scoring import Scoring

Scoring().grant("ada", "g", "k", "c", "s", "5", datetime.now(UTC))
ScoreLedger.open(worker="no")
Scoring().score_of("ada").nonsense
"""


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The user has no path to our sources.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def user_s_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment with the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    asked = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=ROOT)
    packages = Path(asked.stdout.strip())
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return python


def mypy(python: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # What it found out about the packages that we depend on need not be found out in each run.
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'users'}"
    here = (sys.executable, "-m", "mypy", "--strict", "--config-file=", cache)
    return run(*here, "--python-executable", python, str(folder), cwd=folder)


def pyright(python: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pyright", "--pythonpath", python, str(folder), cwd=folder)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The program, and one with mistakes, away from the sources."""
    folder = tmp_path / "programs"
    folder.mkdir()
    shutil.copy(PROGRAM, folder)
    (folder / "mistakes.py").write_text(MISTAKES)
    return folder


def lines_with_errors(done: subprocess.CompletedProcess[str]) -> set[tuple[str, int]]:
    """Of mypy's and pyright's output alike: ``…/name.py:line:… error: …``."""
    found = re.findall(r"([\w.]+\.py):(\d+):.*?error", done.stdout)
    return {(name, int(line)) for name, line in found}


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_a_typed_program_passes_and_mistakes_are_found(
    checker: Callable[[str, Path], subprocess.CompletedProcess[str]],
    user_s_python: str,
    programs: Path,
) -> None:
    """Strictly: nothing of ours is of the type that means anything goes."""
    done = checker(user_s_python, programs)
    assert lines_with_errors(done) == {("mistakes.py", line) for line in (6, 7, 8)}, (
        done.stdout + done.stderr
    )


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_fresh_environment_with_the_wheel_is_enough(
    wheel: Path, programs: Path, tmp_path: Path
) -> None:
    """Installed as a user installs it, the program passes both checkers and runs."""
    (programs / "mistakes.py").unlink()
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    installed = run(
        *(python, "-m", "pip", "install", "-q", f"{wheel}[embedded,tracing]"), cwd=tmp_path
    )
    assert installed.returncode == 0, installed.stderr
    for checker in (mypy, pyright):
        done = checker(python, programs)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run(python, str(programs / PROGRAM.name), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "typed and run\n"), done.stderr
