"""``Leaderboard``: ranks, neighbours and pages, from the index alone."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

import projections
from projections import Leaderboard, LeaderboardRow, ScoreLedger, Settings
from projections.cli.queries import leaderboard as leaderboard_command
from projections.mongo.read_model import ReadModel
from projections.queries.leaderboard import By
from ranks import add_to_users, insert_users, ranked

RANDOM = random.Random(11)


def fill(read_model: ReadModel, totals: dict[str, int]) -> None:
    """Users with these old totals; the ledger has them in the opposite order."""
    insert_users(
        read_model,
        (
            {
                "_id": user_id,
                "totalScore": 1000 - total,
                "categoryTotals": {},
                "sourceTotals": {},
                "grantCount": 0,
                "recomputedTotal": total,
                "lastGrantAt": None,
                "version": 1,
            }
            for user_id, total in totals.items()
        ),
    )


FEW = {"ada": 7, "bob": 5, "cyd": 5, "dan": 0, "eve": 0, "fay": 0, "gus": 9}


def test_competition_ranking_lists_ties_by_user_id(read_model: ReadModel) -> None:
    """1, 2, 3, 3, 5: users with equal scores share a rank, and the next one is not two."""
    fill(read_model, FEW)
    rows = Leaderboard(read_model).top(10)
    assert [(row.rank, row.user_id) for row in rows] == [
        (1, "gus"), (2, "ada"), (3, "bob"), (3, "cyd"), (5, "dan"), (5, "eve"), (5, "fay"),
    ]  # fmt: skip
    assert Leaderboard(read_model).top(2) == rows[:2]
    assert Leaderboard(read_model).top(0) == []


def test_user_ids_tie_by_code_point(read_model: ReadModel) -> None:
    """As Python sorts them, in every script."""
    totals = dict.fromkeys(["Z", "a", "é", "\uffee", "👩\u200d🚀", "שלום"], 5)
    fill(read_model, totals)
    assert Leaderboard(read_model).top(10) == ranked(totals)


def test_an_empty_leaderboard_and_strangers(read_model: ReadModel) -> None:
    """Nobody is there, or somebody is not: no error, and no rank made up."""
    board = Leaderboard(read_model)
    assert board.top(5) == board.page() == board.around("nobody") == []
    assert list(board.pages()) == []
    assert board.rank_of("nobody") is None
    fill(read_model, FEW)
    assert board.rank_of("nobody") is None
    assert board.around("nobody", 2) == []


def test_a_total_of_0_is_ranked(read_model: ReadModel) -> None:
    """Users who have a document but no points are last, not absent."""
    fill(read_model, FEW)
    assert Leaderboard(read_model).rank_of("eve") == LeaderboardRow(5, "eve", 0)


def test_the_user_id_is_normalised(read_model: ReadModel) -> None:
    """In both spellings it is one user."""
    fill(read_model, {"Zo\u00eb": 5})
    for spelling in ("Zo\u00eb", "Zoe\u0308"):
        assert Leaderboard(read_model).rank_of(spelling) == LeaderboardRow(1, "Zo\u00eb", 5)
        assert len(Leaderboard(read_model).around(spelling)) == 1


@pytest.mark.parametrize("spread", [1, 3, 10, 1000])
def test_every_reader_agrees_with_the_definition(read_model: ReadModel, spread: int) -> None:
    """Many ties and few: ranks, neighbours, pages of every size."""
    totals = {f"user-{n:02d}": RANDOM.randrange(spread) for n in range(40)}
    fill(read_model, totals)
    board, rows = Leaderboard(read_model), ranked(totals)
    assert board.top(100) == rows
    for index, row in enumerate(rows):
        assert board.rank_of(row.user_id) == row
        for k in (0, 1, 2, 5, 60):
            assert board.around(row.user_id, k) == rows[max(0, index - k) : index + k + 1]
    for size in (1, 3, 7, 40, 41):
        paged: list[LeaderboardRow] = []
        while page := board.page(after=paged[-1] if paged else None, limit=size):
            assert len(page) <= size
            paged += page
        assert paged == rows
        assert [row for page in board.pages(size=size) for row in page] == rows


def test_ranks_on_a_page_are_those_of_the_moment(read_model: ReadModel) -> None:
    """Not those that would follow from the row the page begins after, which may be old."""
    fill(read_model, FEW)
    board = Leaderboard(read_model)
    rows = board.top(10)
    assert board.page(after=LeaderboardRow(99, "bob", 5)) == rows[3:]
    assert board.page(after=LeaderboardRow(99, "zed", 6)) == rows[2:]
    add_to_users(read_model, {"eve": (0, 8)})
    assert board.page(after=rows[2]) == [
        LeaderboardRow(4, "cyd", 5), LeaderboardRow(6, "dan", 0), LeaderboardRow(6, "fay", 0),
    ]  # fmt: skip


def test_pages_skip_and_repeat_nobody_whose_score_stays(read_model: ReadModel) -> None:
    """Others rise and fall, appear and leave between all pages."""
    totals = {f"user-{n:03d}": RANDOM.randrange(50) for n in range(200)}
    fill(read_model, totals)
    board = Leaderboard(read_model)
    movers = RANDOM.sample(sorted(totals), 100)
    seen: list[LeaderboardRow] = []
    while page := board.page(after=seen[-1] if seen else None, limit=9):
        seen += page
        # The very user the next page starts from moves too.
        for user_id in [*RANDOM.sample(movers, 10), seen[-1].user_id]:
            if user_id in movers:
                add_to_users(read_model, {user_id: (0, RANDOM.randrange(-25, 25))})
        read_model.users.delete_one({"_id": movers[0]})
    stayed = [row.user_id for row in seen if row.user_id not in movers]
    expected = [row.user_id for row in ranked(totals) if row.user_id not in movers]
    assert stayed == expected
    assert all((-a.score, a.user_id) < (-b.score, b.user_id) for a, b in pairwise(seen))


def test_pages_of_one_moment_skip_and_repeat_nobody_at_all(read_model: ReadModel) -> None:
    """Everybody moves between the pages, and the pages are those of the beginning."""
    totals = {f"user-{n:03d}": RANDOM.randrange(20) for n in range(100)}
    fill(read_model, totals)
    seen: list[LeaderboardRow] = []
    for page in Leaderboard(read_model).pages(size=13):
        seen += page
        read_model.users.update_many({}, [{"$set": {"recomputedTotal": {"$rand": {}}}}])
        read_model.users.insert_one({"_id": f"new-{len(seen)}", "recomputedTotal": 5})
    assert seen == ranked(totals)


def test_a_wrong_argument_is_named(read_model: ReadModel) -> None:
    """At the call, not at the first row."""
    board: Any = Leaderboard(read_model)
    cases: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: board.top(-1), "n must be an integer of 0 or more"),
        (lambda: board.top("3"), "n must be an integer"),
        (lambda: board.top(2**70), "n must be an integer"),
        (lambda: board.around("ada", -1), "k must be an integer of 0 or more"),
        (lambda: board.page(limit=0), "limit must be an integer of 1 or more"),
        (lambda: board.page(after=("ada", 3)), "after must be the last LeaderboardRow"),
        (lambda: board.pages(size=0), "size must be an integer of 1 or more"),
        (lambda: board.top(1, by=["ledger"]), "by must be"),
        (lambda: board.top(1, by="score"), "by must be 'recomputed' or 'ledger'"),
        (lambda: board.pages(by="score"), "by must be"),
        (lambda: board.rank_of(" ada"), "user_id must be"),
    )
    for call, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def stages(plan: Any) -> set[str]:
    """All stages of an explained plan, the rejected ones aside."""
    if isinstance(plan, dict):
        found = {plan["stage"]} if isinstance(plan.get("stage"), str) else set()
        return found.union(*(stages(v) for k, v in plan.items() if k != "rejectedPlans"))
    if isinstance(plan, list):
        return set().union(*map(stages, plan))
    return set()


@pytest.mark.parametrize("by", get_args(By))
def test_everything_is_read_from_the_index_alone(read_model: ReadModel, by: By) -> None:
    """Explained by the server: no document is fetched to list, nor to count; no sort in memory."""
    fill(read_model, {f"user-{n:03d}": RANDOM.randrange(50) for n in range(300)})
    board, name = Leaderboard(read_model), read_model.database.name
    profile = read_model.client[name]
    profile.command("profile", 2)
    row = board.rank_of("user-007", by)
    assert row is not None
    board.top(100, by)
    board.around(row.user_id, 3, by)
    board.page(after=row, limit=20, by=by)
    profile.command("profile", 0)
    commands = [
        entry["command"]
        for entry in profile["system.profile"].find({"ns": f"{name}.user_scores"})
        if entry["command"].get("filter") != {"_id": "user-007"}
    ]
    kinds = {next(iter(command)) for command in commands}
    assert kinds == {"find", "aggregate"}
    for command in commands:
        asked = {
            key: value
            for key, value in command.items()
            if key not in ("lsid", "$clusterTime", "$db", "readConcern")
        }
        explained = read_model.database.command("explain", asked, verbosity="executionStats")
        plan = json.loads(json.dumps(explained, default=str))
        plan = plan.get("stages") or plan["queryPlanner"]["winningPlan"]
        assert stages(plan) & {"IXSCAN", "COUNT_SCAN"}, asked
        assert not stages(plan) & {"FETCH", "COLLSCAN", "SORT"}, asked
        if "aggregate" in asked:
            assert "COUNT_SCAN" in stages(plan)


# --- nothing is flipped --------------------------------------------------------------------------


def test_every_leaderboard_reads_the_old_total_unless_asked_by_name(read_model: ReadModel) -> None:
    """The running balance, here in the opposite order, is shown to nobody who did not ask."""
    fill(read_model, FEW)
    board, old = Leaderboard(read_model), ranked(FEW)
    new = ranked({user_id: 1000 - total for user_id, total in FEW.items()})
    assert board.top(10) == board.page(limit=10) == next(board.pages()) == old
    assert board.around("cyd", 10) == old
    assert board.rank_of("ada") == old[1]
    assert board.top(10, by="ledger") == board.page(limit=10, by="ledger") == new
    assert board.around("cyd", 10, by="ledger") == next(board.pages(by="ledger")) == new
    assert board.rank_of("ada", by="ledger") in new


def test_a_leaderboard_that_ranks_by_the_ledger_does_so_unless_asked_by_name(
    read_model: ReadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For those who never had an old way; the call beats the argument, which beats the variable."""
    fill(read_model, FEW)
    old = ranked(FEW)
    new = ranked({user_id: 1000 - total for user_id, total in FEW.items()})
    board = Leaderboard(read_model, rank_by="ledger")
    assert board.top(10) == board.page(limit=10) == next(board.pages()) == new
    assert board.around("cyd", 10) == new
    assert board.rank_of("ada") in new
    assert board.top(10, by="recomputed") == board.page(limit=10, by="recomputed") == old
    assert board.page(after=new[0]) == new[1:]
    opened: dict[str, Any] = {"folder": tmp_path, "mongo": read_model.database, "worker": False}
    monkeypatch.setenv("SCORE_LEDGER_RANK_BY", "ledger")
    with ScoreLedger.open(**opened) as ledger:
        assert (ledger.leaderboard.rank_by, ledger.leaderboard.top(10)) == ("ledger", new)
        assert ledger.leaderboard.top(10, by="recomputed") == old
    with ScoreLedger.open(**opened, rank_by="recomputed") as ledger:
        assert ledger.leaderboard.top(10) == old
    monkeypatch.delenv("SCORE_LEDGER_RANK_BY")
    with ScoreLedger.open(**opened, rank_by="ledger") as ledger:
        assert ledger.leaderboard.top(10) == new


def test_no_public_reader_defaults_to_the_ledger() -> None:
    """Whatever takes ``by``, now or later, takes what was set for it when nothing is said.

    And that is the old total, when nothing was set either.
    """
    seen = []
    for name in projections.__all__:
        public = getattr(projections, name)
        for method_name, method in inspect.getmembers(public, inspect.isfunction):
            parameter = inspect.signature(method).parameters.get("by")
            if parameter is not None and not method_name.startswith("_"):
                seen.append(f"{name}.{method_name}")
                assert parameter.default is None, seen[-1]
    assert set(seen) >= {f"Leaderboard.{m}" for m in ("top", "rank_of", "around", "page", "pages")}
    assert inspect.signature(leaderboard_command).parameters["by"].default is None
    assert inspect.signature(Leaderboard).parameters["rank_by"].default == "recomputed"
    assert inspect.signature(ScoreLedger.open).parameters["rank_by"].default is None
    assert Settings().rank_by == "recomputed"
