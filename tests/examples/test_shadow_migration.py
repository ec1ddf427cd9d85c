"""``examples/shadow_migration.py`` runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

from command_line import run_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "shadow_migration.py"


def test_the_story_ends_where_a_real_site_would(tmp_path: Path) -> None:
    """The drift shrinks with every step; what cannot heal is named, and is within tolerance."""
    page = tmp_path / "drift.html"
    env = {"TMPDIR": str(tmp_path), "MONGO_URI": "mongodb://nowhere.invalid"}
    done = run_python(EXAMPLE, "--html", page, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    agreeing = [int(n) for n in re.findall(r"(\d+) of 40 users agree", done.stdout)]
    _, in_shadow, first_migrated, all_migrated = agreeing
    assert in_shadow < first_migrated < all_migrated == 30
    drifts = [int(n.replace(",", "")) for n in re.findall(r"drift -(\S+)", done.stdout)]
    assert drifts[1:] == sorted(drifts[1:], reverse=True)
    # Opened beside the traffic, no event counts twice: what is left is what was awarded again.
    left = done.stdout.partition("a day later")[2]
    assert drifts[-1] == 30
    assert "-30 in content:feed-post:*: awarded again with other points" in left
    assert "30 points of 10 users cannot heal" in left
    assert left.count("A flip is not safe: 10 of 40 users would see another score") == 1
    assert "A flip is safe within 10 points: 10 of 40 users would see another score" in left
    assert "reads are by ledger: ['user-39'" in left
    assert "the way back, by recomputed: ['user-39'" in left
    assert "A flip is safe within 10 points" in page.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [page]
