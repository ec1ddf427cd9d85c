"""The code blocks of the documentation, run as printed in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import ready_command
from projections.embedded import open_server

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHOWN_ONLY = {"text", "ini", "mermaid"}
"""Blocks in these languages are not run: a picture, or files of a server that is not here."""


def is_set_up(code: str) -> bool:
    """The two commands that make a virtual environment are run by .ci/run, from the README."""
    return code.startswith("python3 -m venv ")


def found_in(document: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def blocks(language: str) -> list[str]:
    return [code for file in DOCUMENTS for name, code in found_in(file) if name == language]


def numbered(language: str) -> list[Any]:
    """Blocks by document and number, so that a failure says where to look."""
    return [
        pytest.param(code, id=f"{file.stem}-{number}")
        for file in DOCUMENTS
        for number, (name, code) in enumerate(found_in(file), start=1)
        if name == language and not is_set_up(code)
    ]


PATIENT = "from projections import ScoreLedger as it; it.wait.__kwdefaults__['timeout'] = 120.0\n"
"""On a busy machine a worker may take longer than the few seconds that it is waited for."""

FIRST_GRANT = (
    "grant --user-id ada --grant-id first --key quiz:1 --category learning --source quiz --amount 5"
)


def run(command: list[str], folder: Path, *programs: Path) -> subprocess.CompletedProcess[str]:
    folders = [*programs, Path(sys.executable).parent, os.environ["PATH"]]
    path = os.pathsep.join(map(str, folders))
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.parametrize("code", numbered("python"))
def test_python_blocks_run_as_printed(code: str, tmp_path: Path) -> None:
    """In an empty folder, on the embedded default."""
    done = run([sys.executable, "-c", PATIENT + code], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", numbered("sh"))
def test_shell_blocks_run_as_printed(
    code: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every command of a block succeeds, in an empty folder or after the grants it speaks of."""
    programs = tmp_path_factory.mktemp("programs")
    command = programs / "score-ledger"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(ready_command())} "$@"\n')
    command.chmod(0o755)
    # In use, the server of the folder is not started and stopped for each command.
    with open_server(tmp_path / ".score-ledger" / "mongo"):
        if "score-ledger grant" not in code:
            run(["score-ledger", *FIRST_GRANT.split()], tmp_path, programs)
        done = run(["bash", "-ec", code], tmp_path, programs)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_just_two_set_up_commands_of_one_line() -> None:
    """One for the demo and one for the tests; .ci/run takes them from there."""
    set_up = [code for code in blocks("sh") if is_set_up(code)]
    assert [code.count("\n") for code in set_up] == [1, 1]
    assert set_up[0].rstrip().endswith("demo")
    assert set_up[1].rstrip().endswith("pytest")


def test_every_block_is_run_or_cannot_be() -> None:
    """Each names its language, and only what is no program is left out."""
    for file in DOCUMENTS:
        text = file.read_text(encoding="utf-8")
        languages = [name for name, _ in found_in(file)]
        assert text.count("\n```") == 2 * len(languages), f"{file.name}: a block without language"
        assert set(languages) <= {"python", "sh", *SHOWN_ONLY}, file.name


def anchors(document: Path) -> set[str]:
    """What the headings of a page are called in links, as everywhere that renders Markdown."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    """A file that is moved takes its links along, and so does a heading."""
    missing = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)", file.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        page = file.parent / name if name else file
        if not page.exists() or (anchor and anchor not in anchors(page)):
            missing.append(target)
    assert missing == []
