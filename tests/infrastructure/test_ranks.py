"""Counts of users by ranges of scores: exact whatever the scores are, and however they move."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.monitoring import CommandStartedEvent, CommandSucceededEvent

from concurrency import at_once
from heard_commands import HeardCommands
from projections import Leaderboard, MongoScoreView, ProjectionWorker, ScoreLedger, ShapeChanged
from projections.errors import ReadModelDamaged
from projections.mongo import connect
from projections.mongo.collections import Document
from projections.mongo.read_model import ReadModel
from projections.mongo.sessions import in_snapshot
from projections.queries.leaderboard import By
from projections.verification.events import verify_events
from projections.verification.ranks import verify_ranks
from projections.verification.totals import verify_totals
from projections.worker.rebuild import Rebuild
from ranks import add_to_users, assert_counts_are_true, count_users, fill_users, ranked
from scoring import Scoring
from support import make_grant, sqlite_env, worker_maker

LOWEST, HIGHEST = -(2**63), 2**63 - 1


scores = st.one_of(
    st.integers(0, 5),
    st.integers(-20, 40),
    st.integers(LOWEST, HIGHEST),
    st.integers(HIGHEST - 3, HIGHEST),
    st.integers(LOWEST, LOWEST + 3),
)
places = st.tuples(scores, scores)
batches = st.lists(
    st.dictionaries(st.integers(0, 40).map("user-{:02}".format), places, min_size=1, max_size=25),
    min_size=1,
    max_size=5,
)


@given(batches=batches)
@settings(max_examples=10, suppress_health_check=[*HealthCheck])
@pytest.mark.usefixtures("small_ranges")
def test_every_rank_is_that_of_the_definition(
    read_model: ReadModel, batches: list[dict[str, tuple[int, int]]]
) -> None:
    """After any moves, counted or recounted: up, down, tied, negative, to both ends of 64 bits."""
    read_model.users.delete_many({})
    read_model.ranks.delete_many({})
    totals: dict[str, tuple[int, int]] = {}
    for batch in batches:
        changes = {}
        for user_id, (total, recomputed) in batch.items():
            before = totals.get(user_id, (0, 0))
            change = (total - before[0], recomputed - before[1])
            if all(LOWEST <= each <= HIGHEST for each in change):
                changes[user_id] = change
                totals[user_id] = (total, recomputed)
        add_to_users(read_model, changes)
        assert_counts_are_true(read_model)
        if len(batch) % 2:
            count_users(read_model)
            assert_counts_are_true(read_model)
    board = Leaderboard(read_model)
    for index, by in enumerate(reversed(get_args(By))):
        rows = ranked({user_id: both[index] for user_id, both in totals.items()})
        assert [board.rank_of(row.user_id, by) for row in rows] == rows
        assert [row for page in board.pages(size=4, by=by) for row in page] == rows
        for place, row in enumerate(rows[:: 1 + len(rows) // 5]):
            at = rows.index(row)
            assert board.around(row.user_id, place, by) == rows[max(0, at - place) : at + place + 1]
            assert board.page(after=row, limit=3, by=by) == rows[at + 1 : at + 4]


@pytest.mark.usefixtures("small_ranges")
def test_users_may_be_counted_all_at_once(read_model: ReadModel) -> None:
    """However many there are, in one pass over the index; the benchmarks do so with millions."""
    fill_users(
        read_model,
        ({"_id": f"user-{n:03}", "totalScore": n % 7, "recomputedTotal": n} for n in range(200)),
    )
    assert assert_counts_are_true(read_model) > 20


@pytest.mark.usefixtures("small_ranges")
def test_documents_are_joined_again_when_users_have_left(read_model: ReadModel) -> None:
    """Everybody moves on for ever, and no trail of empty ranges stays behind."""
    users = [f"user-{number:02}" for number in range(60)]
    add_to_users(read_model, {user: (3 * number, 0) for number, user in enumerate(users)})
    most = assert_counts_are_true(read_model)
    assert most > 10
    for _ in range(6):
        add_to_users(read_model, dict.fromkeys(users[::2], (1000, 0)))
        add_to_users(read_model, dict.fromkeys(users[1::2], (1000, 0)))
        assert assert_counts_are_true(read_model) < 2 * most
    add_to_users(read_model, {user: (-6000 - 3 * n, 0) for n, user in enumerate(users)})
    assert assert_counts_are_true(read_model) <= 3


@pytest.mark.usefixtures("small_ranges")
def test_a_small_batch_reads_and_writes_few_documents_among_many(
    read_model: ReadModel, mongo_uri: str
) -> None:
    """Those from the old score to the new one, and the numbers above for those below."""
    add_to_users(read_model, {f"user-{number:03}": (number, 0) for number in range(300)})
    assert read_model.ranks.count_documents({}) > 50
    heard = Documents()
    with MongoClient[Document](mongo_uri, event_listeners=[heard]) as client:
        model = ReadModel(client, read_model.database.name)
        for change in ({"user-150": (3, 0)}, {"new": (150, 0)}, {"user-290": (-1, 0)}):
            heard.read = heard.written = 0
            add_to_users(model, change)
            assert (heard.read, heard.written) <= (3, 4)
            assert_counts_are_true(read_model)


class Documents(HeardCommands):
    """Counts the documents of ranks that are read, and the statements that write some."""

    read = written = 0

    def started(self, event: CommandStartedEvent) -> None:
        if event.command.get(event.command_name) == "score_ranks":
            self.written += len(event.command.get("updates", event.command.get("deletes", ())))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        cursor = event.reply.get("cursor", {})
        if str(cursor.get("ns")).endswith(".score_ranks"):
            self.read += len(cursor["firstBatch"])


@pytest.mark.usefixtures("small_ranges")
def test_two_who_count_at_once_do_not_lose_each_others_moves(
    read_model: ReadModel, mongo_uri: str
) -> None:
    """Whose transaction conflicts is begun again, with what the other one has left."""
    add_to_users(read_model, {f"user-{number:02}": (number, number) for number in range(50)})

    def move(seed: int) -> None:
        randomness = random.Random(seed)
        with connect(mongo_uri) as client:
            model = ReadModel(client, read_model.database.name)
            for number in range(15):
                moves = randomness.sample(range(50), 10)
                changes = {f"user-{n:02}": (randomness.randrange(-9, 20), 1) for n in moves}
                add_to_users(model, changes | {f"new-{seed}-{number}": (n, 0) for n in moves[:1]})

    at_once(2, move)
    assert assert_counts_are_true(read_model) > 10
    assert read_model.users.count_documents({}) == 80


@pytest.mark.usefixtures("small_ranges")
def test_verify_looks_at_every_document(scoring: Scoring, view: MongoScoreView) -> None:
    """One that is gone, ends elsewhere or counts wrongly in the middle; a rebuild is the cure."""
    model = view.read_model
    scoring.grant_many(make_grant(n, user_id=f"user-{n}", amount=n + 1) for n in range(60))
    ProjectionWorker(scoring, view).catch_up()
    before = list(model.ranks.find().sort("_id", 1))
    pages = [document["_id"] for document in before if document["_id"]["total"] == "totalScore"]
    at = {"_id": pages[len(pages) // 2]}
    damages: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: model.ranks.delete_one(at), "highest totalScore that is counted below"),
        (lambda: model.ranks.delete_one({"_id": pages[-1]}), "highest totalScore that is counted"),
        (lambda: model.ranks.delete_one({"_id": pages[0]}), "lowest totalScore that is counted"),
        (
            lambda: model.ranks.update_one(at, {"$inc": {"users.1": 1}}),
            "users with totalScore from",
        ),
        (
            lambda: model.ranks.update_one(at, {"$inc": {"above": -1}}),
            "users with totalScore above",
        ),
        (lambda: model.ranks.update_one(at, {"$set": {"users": []}}), "document"),
    )
    for plant, said in damages:
        model.ranks.delete_many({})
        model.ranks.insert_many(before)
        plant()
        for outcome in (verify_events(scoring, model), verify_totals(model)):
            assert any(said in difference.what for difference in outcome.differences)
    assert Rebuild(scoring, model, worker_maker(scoring)).run().live
    assert verify_events(scoring, model).ok
    assert verify_totals(model).ok


@pytest.mark.usefixtures("small_ranges")
def test_verify_reads_the_index_of_each_total_once(read_model: ReadModel, mongo_uri: str) -> None:
    """Not once for every range of scores: a million users have thousands of them."""
    add_to_users(read_model, {f"user-{n:03}": (n, n % 9) for n in range(300)})
    with MongoClient[Document](mongo_uri) as client:
        database = client[read_model.database.name]
        database.command("profile", 2)
        model = ReadModel(client, database.name)
        assert in_snapshot(client, lambda session: verify_ranks(model, session)).ok
        database.command("profile", 0)
        reads = list(database["system.profile"].find({"ns": f"{database.name}.user_scores"}))
    assert [read["docsExamined"] for read in reads] == [0, 0]
    assert [read["keysExamined"] for read in reads] == [300, 300]


@pytest.mark.usefixtures("small_ranges")
def test_counts_that_are_missing_are_an_error_and_no_rank(read_model: ReadModel) -> None:
    """Nobody is told a rank that was made up."""
    add_to_users(read_model, {f"user-{number:02}": (number, 0) for number in range(50)})
    read_model.ranks.delete_many({"_id.to": 2**63 - 1})
    with pytest.raises(ReadModelDamaged, match=r"score_ranks is missing.*score-ledger rebuild"):
        Leaderboard(read_model).rank_of("user-49", "ledger")
    read_model.ranks.update_many({}, {"$set": {"tops": "none"}})
    with pytest.raises(ReadModelDamaged, match="score_ranks is not as it was made"):
        Leaderboard(read_model).rank_of("user-10", "ledger")


def test_a_read_model_without_counts_is_rebuilt(
    scoring: Scoring, view: MongoScoreView, tmp_path: Path
) -> None:
    """As an earlier release has left it: nothing ranks or is written there, but status shows it."""
    model = view.read_model
    scoring.grant_many(make_grant(number) for number in range(30))
    ProjectionWorker(scoring, view).catch_up()
    rows = Leaderboard(model).top(by="ledger")
    model.ranks.drop()
    model.control.update_one(
        {}, {"$set": {"shape": 1}, "$unset": {"collections.1.score_ranks": ""}}
    )
    model.positions.update_one({}, {"$unset": {"shape": ""}})
    scoring.grant_many([make_grant(100)])
    later = ReadModel(model.client, model.database.name)
    later.prepare()
    assert "score_ranks" not in model.database.list_collection_names()
    with pytest.raises(ShapeChanged, match="run score-ledger rebuild"):
        Leaderboard(later).top()
    with closing(MongoScoreView(later)) as own, pytest.raises(ShapeChanged):
        ProjectionWorker(scoring, own).catch_up()
    assert later.grants.count_documents({}) == 30
    opened: dict[str, Any] = {
        "mongo": model.database, "event_store": sqlite_env(tmp_path / "events.sqlite"),
        "worker": False,
    }  # fmt: skip
    with pytest.raises(ShapeChanged):
        ScoreLedger.open(**opened)
    with ScoreLedger.open(**opened, any_shape=True) as ledger:
        assert ledger.status().grants == 30
        assert ledger.rebuild().live
        assert ledger.verify().ok
    assert Leaderboard(later).top(by="ledger") != rows
    assert assert_counts_are_true(later) == 2
