"""``examples/shadow_migration.py`` runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "shadow_migration.py"


def test_the_story_ends_with_the_sentence_that_says_whether_a_flip_is_safe(tmp_path: Path) -> None:
    """The drift shrinks with every step, and in the end nobody would notice."""
    page = tmp_path / "drift.html"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--html", str(page)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path), "MONGO_URI": "mongodb://nowhere.invalid"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "A flip is safe: of 40 users, nobody would see another score."
    agreeing = [int(n) for n in re.findall(r"(\d+) of 40 users agree", done.stdout)]
    imported, in_shadow, first_migrated, all_migrated = agreeing
    assert max(imported, in_shadow) < first_migrated < all_migrated == 40
    drifts = [abs(int(n.replace(",", ""))) for n in re.findall(r"drift (\S+)", done.stdout)]
    assert drifts[1:] == sorted(drifts[1:], reverse=True)
    assert "telemetry:activity: not granted yet" in done.stdout
    assert "A flip is safe" in page.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [page]
