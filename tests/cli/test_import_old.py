"""``score-ledger import`` of buckets: from JSON lines and from an old collection, and again."""

from __future__ import annotations

import gzip
import json
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection

from command_line import PATIENT, CommandLine, on_both_stores
from concurrency import until
from event_store import events_in
from fail_points import failing
from scoring import Scoring
from support import NOON, sqlite_env

Document = dict[str, Any]

APP = {"category": "telemetry", "source": "app"}
BADGE = {"category": "award", "source": "badge", "at": NOON}


def described(old: Collection[Document], folder: Path, more: str = "") -> str:
    """The name of a file that describes it: a map in the user's document, and a time."""
    (folder / "old.toml").write_text(
        f'database = "{old.database.name}"\ncollection = "scores"\nbuckets = "buckets"\n'
        f'at = "at"\ntotal = "total"\n{more}'
    )
    return "old.toml"


def fill(old: Collection[Document], count: int) -> None:
    """Users with a count that is recomputed and a badge."""
    old.insert_many(
        {
            "_id": f"user-{n:05}",
            "buckets": {
                "telemetry:activity": {"points": n, **APP},
                "award:badge:early": {"points": 20, **BADGE},
            },
            "total": n + 20,
        }
        for n in range(count)
    )


MESS: Document = {
    "fine": {"points": 1, **APP},
    "whole": {"points": 12.0, **APP},
    "fraction": {"points": 12.5, **APP},
    "negative": {"points": -3, **APP},
    "underscore": {"points": 1, "category": "feed_post", "source": "app"},
    "capital": {"points": 1, "category": "Telemetry", "source": "app"},
    "sourceless:a": {"points": 1, "category": "telemetry"},
    "a b": {"points": 1, **APP},
    "über": {"points": 1, **APP},
    "award:badge:untimed": {"points": 1, "category": "award", "source": "badge"},
}

CHOICES = {
    "points that are whole, but not stored as an integer": "--round whole takes 12.0 as 12",
    "points with a fraction": "--round nearest takes 12.4 as 12, and 12.5 as 13",
    "negative points": "nothing here: make it 0 or more at the site, or do without",
    "a label that breaks the rule of labels": (
        "--label-map 'feed_post=feed-post' --label-map 'Telemetry=telemetry'"
    ),
    "no label": "--labels 'sourceless:*=CATEGORY/SOURCE' for keys like these",
    "a key that breaks the rule of key": (
        "nothing here: rename the key wherever it is contributed at the site, or do without"
    ),
    "no time for a key that becomes a grant": (
        "--field at=PATH, if there is a time, and --granted-at TIME for all that have none"
    ),
    "a user that is not text": (
        "--users-as-text takes ObjectIds, integers and UUIDs as their text"
    ),
}


def everything(client: MongoClient[Document]) -> dict[str, Any]:
    """All collections of the server but its own, with what is in them."""
    return {
        f"{name}.{collection}": list(client[name][collection].find().sort("_id", 1))
        for name in client.list_database_names()
        if name not in {"admin", "config", "local"}
        for collection in client[name].list_collection_names()
    }


def test_a_dry_run_says_what_would_be_taken_and_writes_nothing(
    cli: CommandLine, old: Collection[Document]
) -> None:
    """Each reason with how many, examples, and the option that is safe to choose."""
    old.insert_many([{"_id": "ada", "buckets": MESS, "total": 99}, {"_id": ObjectId()}])
    before = everything(old.database.client)
    asked = ("import", "--from-mongo", described(old, cli.cwd), "--dry-run")
    done = cli(*asked, "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert (said["users"], said["buckets"], said["refused"], said["other_totals"]) == (1, 1, 10, 1)
    assert {each["reason"]: each["choice"] for each in said["refusals"]} == CHOICES
    keys = next(each for each in said["refusals"] if each["reason"].startswith("a key"))
    assert keys["count"] == 2
    assert [each["path"] for each in keys["examples"]] == ["buckets.a b", "buckets.über"]
    shown = cli(*asked).stdout
    assert "1 buckets of 1 users can be taken" in shown
    assert "_id ada: buckets.fraction.points = 12.5" in shown
    assert "--label-map 'feed_post=feed-post'" in shown
    assert everything(old.database.client) == before
    assert sorted(file.name for file in cli.cwd.iterdir()) == ["old.toml"]


def test_every_choice_takes_what_it_says(cli: CommandLine, old: Collection[Document]) -> None:
    """With the options that the dry run names, only what has no choice is left out."""
    id_ = ObjectId()
    old.insert_many(
        [{"_id": "ada", "buckets": MESS}, {"_id": id_, "buckets": {"fine": MESS["fine"]}}]
    )
    (cli.cwd / "labels").write_text("# old = new\nfeed_post = feed-post\n")
    done = cli(
        *("import", "--from-mongo", described(old, cli.cwd), "--json", "--reject", "rejected"),
        *("--round", "nearest", "--label-map", "labels", "--label-map", "Telemetry=telemetry"),
        *("--labels", "sourceless:*=telemetry/app", "--granted-at", "2026-11-01T00:00:00Z"),
        "--users-as-text",
    )
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert (said["recorded"], said["rejected"], said["users"]) == (8, 3, 2)
    rejected = [json.loads(line) for line in (cli.cwd / "rejected").read_bytes().splitlines()]
    assert [(each["key"], each["points"]) for each in rejected] == [
        ("negative", -3),
        ("a b", 1),
        ("über", 1),
    ]
    with Scoring(sqlite_env(cli.cwd / ".score-ledger" / "events.sqlite")) as scoring:
        assert scoring.score_of("ada").recomputed_total == 1 + 12 + 13 + 1 + 1 + 1 + 1
        assert scoring.score_of("ada").total_score == 1
        assert scoring.score_of(str(id_)).recomputed_total == 1


def test_what_was_rejected_can_be_mended_and_imported(
    cli: CommandLine, old: Collection[Document]
) -> None:
    """The file of rejects has lines of contributions."""
    old.insert_one({"_id": "ada", "buckets": {"a b": {"points": 7, **APP}}})
    asked = ("import", "--from-mongo", described(old, cli.cwd), "--reject", "rejected")
    assert cli(*asked).returncode == 1
    mended = (cli.cwd / "rejected").read_text().replace("a b", "a-b")
    done = cli("import", "--contributions", "-", stdin=mended.encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 recorded")


def test_importing_again_leaves_what_came_in_since(
    cli: CommandLine, old: Collection[Document]
) -> None:
    """Traffic goes to the ledger already; only what the ledger does not have is set."""
    fill(old, 60)
    asked = ("import", "--from-mongo", described(old, cli.cwd), "--json")
    first = json.loads(cli(*asked).stdout)
    assert (first["recorded"], first["duplicate"], first["conflict"]) == (120, 0, 0)
    with Scoring(sqlite_env(cli.cwd / ".score-ledger" / "events.sqlite")) as scoring:
        newest = scoring.recorder.max_notification_id()
        again = cli(*asked)
        assert again.returncode == 0
        said = json.loads(again.stdout)
        assert (said["recorded"], said["duplicate"], said["conflict"]) == (0, 120, 0)
        assert scoring.recorder.max_notification_id() == newest
        scoring.contribute("user-00001", "telemetry:activity", "telemetry", "app", 777)
        scoring.contribute("user-00002", "award:badge:early", "award", "badge", 0)
        scoring.contribute("user-00003", "telemetry:activity", "other", "app", 3)
    old.insert_one({"_id": "zoe", "buckets": {"k": {"points": 5, **APP}}})
    third = cli(*asked)
    said = json.loads(third.stdout)
    assert third.returncode == 0
    assert (said["recorded"], said["duplicate"], said["conflict"]) == (1, 117, 3)
    assert "3 buckets are in the ledger with other points or labels and were left" in third.stderr
    with Scoring(sqlite_env(cli.cwd / ".score-ledger" / "events.sqlite")) as scoring:
        assert scoring.score_of("user-00001").recomputed_total == 777 + 20
        assert scoring.score_of("user-00002").recomputed_total == 2
    assert cli(*asked, "--overwrite").returncode == 0
    with Scoring(sqlite_env(cli.cwd / ".score-ledger" / "events.sqlite")) as scoring:
        assert scoring.score_of("user-00001").recomputed_total == 1 + 20
        assert scoring.score_of("user-00002").recomputed_total == 2 + 20


def test_grants_of_an_old_collection_have_the_time_of_the_document(
    cli: CommandLine, old: Collection[Document]
) -> None:
    """Or the one that is given, and never that of the import."""
    untimed = {"points": 5, "category": "award", "source": "badge"}
    old.insert_one(
        {
            "_id": "ada",
            "buckets": {"award:badge:a": {"points": 5, **BADGE}, "award:badge:b": untimed},
        }
    )
    asked = ("import", "--from-mongo", described(old, cli.cwd))
    assert cli(*asked).returncode == 1
    assert cli(*asked, "--granted-at", "2020-01-01T00:00:00Z").returncode == 0
    assert cli("project").returncode == 0
    grants = json.loads(cli("user", "ada", "--json").stdout)["grants"]
    assert {grant["key"]: grant["granted_at"] for grant in grants} == {
        "award:badge:a": "2026-11-22T12:00:00.000+00:00",
        "award:badge:b": "2020-01-01T00:00:00.000+00:00",
    }


def read_in_part(uri: str) -> AbstractContextManager[None]:
    """Inside the block, whoever reads the whole collection waits for the last thousand users."""
    return failing(uri, "getMore", mode={"skip": 2}, blockConnection=True, blockTimeMS=30_000)


def test_an_import_killed_half_way_and_run_again_ends_the_same(
    cli: CommandLine, old: Collection[Document], mongo_uri: str
) -> None:
    """``kill -9`` in the middle; the second run adds just what is missing."""
    fill(old, 4000)
    asked = ("import", "--from-mongo", described(old, cli.cwd), "--json")
    events = cli.cwd / ".score-ledger" / "events.sqlite"
    with read_in_part(mongo_uri):
        process = cli.start(*asked)
        until(lambda: events_in(events))
        process.kill()
        process.communicate()
    said = json.loads(cli(*asked).stdout)
    assert said["recorded"] + said["duplicate"] == 8000
    assert 0 < said["duplicate"] < 8000
    with Scoring(sqlite_env(events)) as scoring:
        for number in (0, 1, 2000, 3999):
            score = scoring.score_of(f"user-{number:05}")
            assert (score.recomputed_total, score.total_score) == (number + 20, 20)


def test_an_interrupted_import_says_how_to_finish(
    cli: CommandLine, old: Collection[Document], mongo_uri: str
) -> None:
    """SIGINT stops it between two transactions, with what was done."""
    fill(old, 4000)
    events = cli.cwd / ".score-ledger" / "events.sqlite"
    with read_in_part(mongo_uri):
        asked = ("import", "--from-mongo", described(old, cli.cwd), "--json")
        process = cli.start(*asked, program=PATIENT)
        until(lambda: events_in(events))
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, stderr
    said = json.loads(stdout)
    assert said["interrupted"] is True
    assert said["recorded"] % 1000 == 0
    assert said["recorded"] < 8000
    assert b"run the same import again to finish it" in stderr


def test_the_old_collection_is_where_it_is_said_to_be(
    cli: CommandLine, old: Collection[Document], mongo_uri: str
) -> None:
    """By name and fields without a file, on a server of its own; or it is one sentence."""
    old.insert_one({"who": "ada", "k": "a", "points": 5, **APP})
    name = f"{old.database.name}.scores"
    fields = ("--field", "user=who", "--field", "key=k")
    done = cli("import", "--from-mongo", name, "--old-uri", mongo_uri, *fields, MONGO_URI="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 recorded")
    wrong = {
        ("--from-mongo", name, "--field", "colour=x"): "there is no colour, only user, buckets",
        ("--from-mongo", "none.toml"): "none.toml cannot be read",
        ("--from-mongo", "scores"): "in which database the old collection scores",
        ("--from-mongo", name, "--label-map", "none"): "--label-map none cannot be read",
        ("--from-mongo", name, "--labels", "a=b"): "is not KEYS=CATEGORY/SOURCE",
        ("--from-mongo", name, "--label-map", "a=B"): "a label is 1 to 32 characters",
    }
    for options, message in wrong.items():
        done = cli("import", *options)
        assert done.returncode == 1, options
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
    for options in ((), ("a", "--from-mongo", name), ("a", "--dry-run"), ("a", "--overwrite")):
        assert cli("import", *options).returncode == 2, options


def contribution(number: int, **changes: Any) -> bytes:
    values = {"user_id": f"user-{number % 7}", "key": f"k:{number}", "points": number, **APP}
    return (json.dumps({**values, **changes}) + "\n").encode()


@on_both_stores
def test_importing_contributions_and_importing_them_again(cli: CommandLine) -> None:
    """A bad line is said and keeps no other out; gzip is unpacked; nothing is written twice."""
    lines = b"".join(contribution(n) for n in range(1500))
    (cli.cwd / "buckets.jsonl.gz").write_bytes(gzip.compress(lines))
    first = cli("import", "--contributions", "buckets.jsonl.gz", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["recorded"] == 1500
    changed = contribution(5, points=99) + contribution(6)
    again = cli("import", "--contributions", "-", "--json", stdin=changed)
    assert again.returncode == 0
    said = json.loads(again.stdout)
    assert (said["recorded"], said["duplicate"], said["conflict"]) == (0, 1, 1)
    assert "1 buckets are in the ledger with other points" in again.stderr
    set_ = cli("import", "--contributions", "--overwrite", "-", "--json", stdin=changed)
    assert json.loads(set_.stdout)["recorded"] == 1


BAD: dict[str, tuple[bytes, str]] = {
    "negative": (contribution(1, points=-1), "points must be an integer from 0"),
    "unknown": (contribution(1, amount=1), "unknown field 'amount': a contribution has user_id"),
    "missing": (b'{"user_id": "ada"}\n', "missing field 'key'"),
    "no time": (contribution(1, key="award:badge:x"), "no time for the key 'award:badge:x'"),
    "naive": (contribution(1, at="2026-11-22T12:00:00"), "at must be a timezone-aware datetime"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_contribution_is_reported_and_does_not_stop_the_others(
    cli: CommandLine, name: str
) -> None:
    bad, reason = BAD[name]
    stdin = contribution(2) + bad + contribution(3)
    done = cli("import", "--contributions", "-", "--reject", "rejected", stdin=stdin)
    assert done.returncode == 1
    assert f"line 2: {reason}" in done.stderr
    assert done.stdout.startswith("2 recorded, 0 duplicates, 0 conflicts, 1 rejected")
    assert (cli.cwd / "rejected").read_bytes() == bad


def test_a_contribution_without_a_time_takes_the_one_that_is_given(cli: CommandLine) -> None:
    """Only where it becomes a grant: a first 0 makes none."""
    lines = contribution(1, key="award:badge:x") + contribution(0, key="award:badge:y")
    assert cli("import", "--contributions", "-", stdin=lines).returncode == 1
    given = ("--granted-at", "2020-01-01T00:00:00Z")
    done = cli("import", "--contributions", "-", "--json", *given, stdin=lines)
    assert json.loads(done.stdout)["recorded"] == 1
    assert json.loads(done.stdout)["duplicate"] == 1
