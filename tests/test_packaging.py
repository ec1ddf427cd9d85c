"""What is shipped, and what imports what."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_scoring_imports_without_pymongo() -> None:
    """The domain works where the driver is not installed."""
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pymongo', 'bson', 'projections'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import scoring\n"
        "from datetime import datetime, UTC\n"
        "r = scoring.Scoring().grant('ada', 'g', 'k', 'content', 'feed', 5, datetime.now(UTC))\n"
        "assert r.status == 'RECORDED'\n"
        "try:\n"
        "    import pymongo\n"
        "except ModuleNotFoundError:\n"
        "    print('and pymongo was not there')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "and pymongo was not there\n"), done.stderr


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    """With their typing markers, the demo's input, and no tests or examples."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"scoring", "projections"}
    assert {"scoring/py.typed", "projections/py.typed"} <= names
    assert {"projections/demo/grants.jsonl", "projections/demo/git_contributors.py"} <= names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)
