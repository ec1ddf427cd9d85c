"""``examples/dual_write.py`` runs as it is printed, and the guide prints what runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from command_line import run_python
from dual_writers import EXAMPLE, dual_write
from projections.mongo import connect


def test_what_came_apart_is_named_and_repaired(tmp_path: Path) -> None:
    """A call that was lost, and two clients who crossed each other; and nothing with an outbox."""
    env = {"TMPDIR": str(tmp_path), "MONGO_URI": "mongodb://nowhere.invalid"}
    done = run_python(EXAMPLE, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    kinds = "1 other points, 1 order of two writes"
    assert done.stdout.splitlines() == [
        f"The ledger differs from the old collection in 2 of 2 buckets of 2 users ({kinds}).",
        "  ada telemetry:activity: other points",
        "  bob telemetry:activity: order of two writes",
        "The ledger holds what the old collection holds: 2 buckets of 2 users, 2 of them repaired.",
        "  ada telemetry:activity: other points, repaired",
        "  bob telemetry:activity: order of two writes, repaired",
        "The ledger holds what the old collection holds: 2 buckets of 2 users.",
        "3 from the outbox",
        "The ledger holds what the old collection holds: 3 buckets of 3 users.",
    ]


def test_the_guide_shows_the_code_that_runs() -> None:
    """Word for word."""
    guide = (EXAMPLE.parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
    code = EXAMPLE.read_text(encoding="utf-8")
    for start, end in (
        ("class DualWriter:", "\n\n\n# --- an outbox"),
        ("class OutboxWriter:", "\n\n\n# --- what comes apart"),
    ):
        shown = code[code.index(start) : code.index(end)]
        assert shown in guide


@pytest.fixture
def client(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with connect(mongo_uri) as client:
        yield client


def test_a_relay_that_is_killed_leaves_the_last_value_of_every_key(
    client: MongoClient[dict[str, Any]],
) -> None:
    """Wherever it is killed: before it tells the ledger, or after, before it has noted that."""
    site = client[f"site_{uuid4().hex}"]
    try:
        for dies_at in range(6):
            site.drop_collection("scores")
            site.drop_collection("outbox")
            writer = dual_write.OutboxWriter(site["scores"], site["outbox"])
            for points in (1, 2, 3):
                writer.contribute("ada", "telemetry:activity", "telemetry", "app", points)
            told: list[int] = []
            calls = count()

            def tell(*contribution: Any, told: list[int] = told, dies_at: int = dies_at) -> None:
                if next(calls) == dies_at:  # noqa: B023 - called within the round
                    raise dual_write.Killed
                told.append(contribution[4])
                if next(calls) == dies_at:  # noqa: B023 - likewise
                    raise dual_write.Killed

            with pytest.raises(dual_write.Killed):
                dual_write.relay(site["outbox"], tell)
            while dual_write.relay(site["outbox"], tell):
                pass
            assert told[-1] == 3
            assert sorted(set(told)) == [1, 2, 3]
            assert site["outbox"].count_documents({}) == 0
    finally:
        client.drop_database(site.name)
