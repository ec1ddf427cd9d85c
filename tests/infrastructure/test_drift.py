"""The drift report: true, explained to the last point, and safe to look at."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections import Leaderboard, MongoScoreView, ProjectionWorker
from projections.drift import (
    CsvTable,
    Drift,
    Reason,
    Tolerance,
    UserDrift,
    keys,
    measure_drift,
    write_page,
)
from projections.drift.causes import MAX_CAUSES, OTHER_CATEGORIES, OTHER_KEYS
from projections.drift.distributions import SignedBins, Spread
from projections.drift.keys import kind_of
from projections.drift.measurement import LARGEST
from projections.drift.summary import summary_tables
from projections.mongo.read_model import ReadModel
from scoring import Scoring
from support import NOON, make_grant

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></title><b>",
    "=1+1",
    "&amp;",
    "\u202egnp.exe",
)


def project(scoring: Scoring, view: MongoScoreView) -> None:
    ProjectionWorker(scoring, view).catch_up()


def page(drift: Drift) -> str:
    file = io.StringIO()
    write_page(drift, file)
    return file.getvalue()


@pytest.fixture
def differing(scoring: Scoring, view: MongoScoreView, read_model: ReadModel) -> ReadModel:
    """Users whose totals differ for one reason each."""
    scoring.contribute("ada", "telemetry:activity", "telemetry", "app", 40)
    scoring.feed_post("bob", "1", 9, NOON)
    scoring.feed_post("bob", "1", 2, NOON)
    scoring.feed_post("cyd", "1", 3, NOON)
    scoring.feed_post("cyd", "1", 5, NOON)
    scoring.grant(**make_grant(1, user_id="dan", amount=7).model_dump())
    scoring.award_badge("eve", "helper", 20, NOON)
    for number, (user_id, points) in enumerate((("fay", 4), ("gus", 7)), start=2):
        visits = {"key": "telemetry:visits", "category": "telemetry", "amount": 6}
        scoring.grant(**make_grant(number, user_id=user_id, **visits).model_dump())
        scoring.contribute(user_id, "telemetry:visits", "telemetry", "app", points)
    project(scoring, view)
    return read_model


def test_each_reason_is_told_apart(differing: ReadModel) -> None:
    """Not granted, taken back, ahead of its grants, and unknown to the old way."""
    users: dict[str, UserDrift] = {}
    drift = measure_drift(differing, on_user=lambda user: users.update({user.user_id: user}))
    assert {user_id: (u.old, u.new) for user_id, u in users.items()} == {
        "ada": (40, 0), "bob": (2, 9), "cyd": (5, 3), "dan": (0, 7), "eve": (20, 20),
        "fay": (4, 6), "gus": (7, 6),
    }  # fmt: skip
    assert [(c.reason, c.keys, c.category, c.old, c.new) for c in drift.causes] == [
        (Reason.NOT_GRANTED, "telemetry:activity", "telemetry", 40, 0),
        (Reason.LEDGER_ONLY, "quiz:history:*", "learning", 0, 7),
        (Reason.AWARDED_AGAIN, "content:feed-post:*", "content", 7, 12),
        (Reason.SHRUNK, "telemetry:visits", "telemetry", 4, 6),
        (Reason.GROWN, "telemetry:visits", "telemetry", 7, 6),
    ]
    assert {cause.reason for cause in drift.residue} == {
        Reason.LEDGER_ONLY, Reason.AWARDED_AGAIN, Reason.SHRUNK,
    }  # fmt: skip
    assert (drift.users, drift.same, drift.lower, drift.higher) == (7, 1, 3, 3)
    assert (drift.old, drift.new, drift.difference) == (78, 51, -27)
    assert list(drift.categories.items()) == [
        ("telemetry", [51, 12]),
        ("learning", [0, 7]),
        ("content", [7, 12]),
        ("award", [20, 20]),
    ]
    assert [row.user_id for row in drift.largest] == ["ada", "bob", "dan", "cyd", "fay", "gus"]
    assert drift.largest[0].main_cause == "telemetry:activity, not granted yet"


def test_causes_add_up_to_the_difference_for_everybody_and_overall(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Random traffic: nothing is left over, in no column."""
    randomness = random.Random(4)
    for number in range(300):
        user, which = f"user-{randomness.randrange(40)}", str(randomness.randrange(3))
        points = randomness.randrange(9)
        match randomness.randrange(4):
            case 0:
                scoring.contribute(user, f"telemetry:t{which}", "telemetry", "app", points)
            case 1:
                scoring.feed_post(user, which, points, NOON)
            case 2:
                scoring.contribute(user, f"award:badge:{which}", "prize", "shop", points, NOON)
            case _:
                scoring.grant(**make_grant(number, user_id=user).model_dump())
    project(scoring, view)
    seen = []

    def check(user: UserDrift) -> None:
        score = scoring.score_of(user.user_id)
        assert (user.old, user.new) == (score.recomputed_total, score.total_score)
        assert sum(user.by_reason().values()) == user.difference
        assert sum(old for old, _ in user.categories.values()) == user.old
        assert sum(new for _, new in user.categories.values()) == user.new
        seen.append(user.user_id)

    drift = measure_drift(read_model, on_user=check)
    assert seen == sorted(seen)
    assert len(seen) == drift.users == read_model.users.count_documents({})
    assert sum(cause.difference for cause in drift.causes) == drift.difference
    assert sum(new - old for old, new in drift.categories.values()) == drift.difference
    assert sum(count for *_, count in drift.histogram.bars()) == drift.users
    assert sum(count for *_, count in drift.scatter.points()) == drift.users
    assert drift.same + drift.lower + drift.higher == drift.users
    assert drift.unexplained == 0
    assert drift.timeline[-1].total == drift.new


def test_a_total_that_is_not_the_sum_of_its_parts_is_said_so(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Damage, or a batch that came in between: never a flip, and verify is named."""
    scoring.feed_post("ada", "1", 5, NOON)
    scoring.feed_post("bob", "1", 5, NOON)
    project(scoring, view)
    assert measure_drift(read_model).safe_to_flip
    read_model.users.update_one({"_id": "ada"}, {"$inc": {"recomputedTotal": 2, "totalScore": 2}})
    drift = measure_drift(read_model)
    assert (drift.different, drift.unexplained, drift.safe_to_flip) == (0, 1, False)
    assert "run score-ledger verify" in drift.verdict
    read_model.users.delete_one({"_id": "bob"})
    assert measure_drift(read_model).unexplained == 2


def test_the_verdict_says_whether_a_flip_is_safe(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Safe only if nobody would notice, and nothing is still on its way."""
    assert "there is no user yet" in measure_drift(read_model).verdict
    scoring.award_badge("eve", "helper", 20, NOON)
    project(scoring, view)
    drift = measure_drift(read_model)
    assert drift.verdict == "A flip is safe: of 1 user, nobody would see another score."
    drift.lag_events = 3
    assert not drift.safe_to_flip
    assert "3 events behind" in drift.verdict
    drift.lag_events, drift.parked_streams = 0, 1
    assert not drift.safe_to_flip
    assert "the events of 1 user are parked" in drift.verdict


def test_the_verdict_names_the_main_cause(differing: ReadModel) -> None:
    assert measure_drift(differing).verdict == (
        "A flip is not safe: 6 of 7 users would see another score, 3 of them a lower one; most of "
        "it is telemetry:activity, not granted yet."
    )


def test_it_says_how_much_would_be_noticed_and_what_can_be_done(differing: ReadModel) -> None:
    """In points and percent; what can be granted apart from what cannot heal."""
    drift = measure_drift(differing)
    assert drift.impact == (
        "6 of 7 users (85.7 %) would notice. In points: half up to 2, 95 in 100 up to 40, nobody "
        "more than 40. In percent of the old score: half up to 50 %, 95 in 100 up to 350 %, "
        "nobody more than 350 %. 1 user had nothing before."
    )
    assert drift.remedy == (
        "score-ledger open-balances grants 41 points of it. 14 points of 4 users cannot heal, "
        "since grants are for ever: granted without a bucket, awarded again with other points, "
        "bucket below its grants."
    )
    differing.users.update_many({}, [{"$set": {"totalScore": "$recomputedTotal"}}])
    assert measure_drift(differing).impact == ""


@pytest.mark.parametrize(
    ("tolerance", "beyond"),
    [("0", 6), ("1", 5), ("6", 3), ("40", 0), ("14.3%", 5), ("50%", 3), ("100 %", 2), ("350%", 1)],
)
def test_what_is_tolerated_does_not_stand_in_the_way_of_a_flip(
    differing: ReadModel, tolerance: str, beyond: int
) -> None:
    """In points, or in percent of the old score, of which nothing has none."""
    drift = measure_drift(differing, tolerance=Tolerance.parse(tolerance))
    assert (drift.beyond, drift.different) == (beyond, 6)
    assert drift.safe_to_flip is (beyond == 0)
    if beyond == 0:
        assert drift.verdict == (
            "A flip is safe within 40 points: 6 of 7 users would see another score, none of them "
            "by more."
        )


@pytest.mark.parametrize("text", ["", "-1", "5 points", "1,5%", "%", "NaN%", "1e3", "٣"])
def test_a_tolerance_that_cannot_be_understood_shows_good_ones(text: str) -> None:
    """Points or percent."""
    with pytest.raises(ValueError, match=r"points, as 5, or percent of the old score, as 0\.5%"):
        Tolerance.parse(text)


def test_it_says_who_would_change_places(read_model: ReadModel) -> None:
    """Within the first rows and out of them; ranks are those of both leaderboards, ties and all."""
    randomness = random.Random(12)
    read_model.users.insert_many(
        {
            "_id": f"user-{number:04d}",
            "recomputedTotal": randomness.randrange(900),
            "totalScore": randomness.randrange(900),
        }
        for number in range(1500)
    )
    drift = measure_drift(read_model)
    board = Leaderboard(read_model)
    ranks = [
        {row.user_id: row.rank for row in board.top(1500, by=by)} for by in ("recomputed", "ledger")
    ]
    for found in drift.boards:
        old, new = (
            {row.user_id for row in board.top(found.rows, by=by)} for by in ("recomputed", "ledger")
        )
        assert found.replaced == len(old - new)
        assert found.moved == sum(ranks[0][user] != ranks[1][user] for user in old & new)
    assert [found.rows for found in drift.boards] == [10, 100, 1000]
    first = {row.user_id for by in ("recomputed", "ledger") for row in board.top(1000, by=by)}
    places = sorted(ranks[0][user] - ranks[1][user] for user in first)
    assert [move.places for move in drift.climbs] == places[:-11:-1]
    assert [move.places for move in drift.falls] == places[:10]
    for move in (*drift.climbs, *drift.falls):
        assert move.old_rank == ranks[0][move.user_id]
        assert move.new_rank == ranks[1][move.user_id]


def test_nobody_changes_places_where_scores_stay_the_same(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Ties do not look like moves."""
    for number in range(30):
        scoring.award_badge(f"user-{number}", "helper", 1 + number // 3, NOON)
    project(scoring, view)
    drift = measure_drift(read_model)
    assert [(board.rows, board.moved, board.replaced) for board in drift.boards] == [
        (10, 0, 0), (100, 0, 0),
    ]  # fmt: skip
    assert (drift.climbs, drift.falls) == ([], [])


def test_users_on_all_pages_are_compared_strangers_between_them_too(
    monkeypatch: pytest.MonkeyPatch, differing: ReadModel
) -> None:
    """A page ends with a user's document; what belongs to nobody is on the page it sorts into."""
    monkeypatch.setattr(keys, "USERS_PER_PAGE", 2)
    whole = measure_drift(differing)
    seen: list[str] = []
    differing.buckets.insert_many(
        {"_id": {"userId": user, "key": "lost:bucket"}, "category": "x", "source": "s", "points": 1}
        for user in ("aaa", "bobby", "zoe")
    )
    drift = measure_drift(differing, on_user=lambda user: seen.append(user.user_id))
    assert seen == ["aaa", "ada", "bob", "bobby", "cyd", "dan", "eve", "fay", "gus", "zoe"]
    assert drift.unexplained == 3
    assert (drift.old, drift.new, drift.residue) == (whole.old, whole.new, whole.residue)


def test_the_largest_differences_are_bounded_and_ordered(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """Of equals, the first user ids."""
    for number in range(3 * LARGEST):
        scoring.contribute(f"user-{number:02d}", "a", "x", "s", 1 + number // 2)
    project(scoring, view)
    largest = measure_drift(read_model).largest
    assert len(largest) == LARGEST
    assert [(row.difference, row.user_id) for row in largest] == sorted(
        (row.difference, row.user_id) for row in largest
    )
    assert largest[0].user_id == f"user-{3 * LARGEST - 2:02d}"


def test_the_report_does_not_grow_with_kinds_of_keys_or_labels(
    view: MongoScoreView, read_model: ReadModel
) -> None:
    """Beyond a thousand they are summed up, and the sums still hold."""
    count = MAX_CAUSES + 50

    def letters(number: int) -> str:
        return "".join(chr(ord("a") + int(digit)) for digit in str(number))

    read_model.buckets.insert_many(
        {
            "_id": {"userId": user, "key": f"kind:{letters(number)}"},
            "category": f"c{letters(number)}"[:32],
            "source": "s",
            "points": 1,
        }
        for user in ("ada", "bob")
        for number in range(count)
    )
    read_model.users.insert_many(
        {"_id": user, "recomputedTotal": count, "totalScore": 0} for user in ("ada", "bob")
    )
    drift = measure_drift(read_model)
    assert len(drift.causes) == MAX_CAUSES + 1
    assert len(drift.categories) == MAX_CAUSES + 1
    assert drift.causes[0].keys == OTHER_KEYS
    assert (drift.causes[0].old, drift.causes[0].users) == (100, 2)
    assert drift.categories[OTHER_CATEGORIES] == [100, 0]
    assert sum(cause.old for cause in drift.causes) == drift.old == 2 * count


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("telemetry:activity", "telemetry:activity"),
        ("content:feed-post:8812", "content:feed-post:*"),
        ("award:badge:x", "award:badge:*"),
        ("quiz:history:7:3", "quiz:history:*"),
        ("lesson:42", "lesson:*"),
        ("profile", "profile"),
    ],
)
def test_keys_are_summed_up_by_kind(key: str, kind: str) -> None:
    """What looks like an id is a star."""
    assert kind_of(key) == kind


@pytest.mark.parametrize(
    ("days", "unit", "points"), [(30, "day", 4), (1000, "month", 4), (40_000, "year", 4)]
)
def test_the_timeline_chooses_its_unit(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel, days: int, unit: str, points: int
) -> None:
    """By when points were earned; the total only grows."""
    start = datetime(1, 1, 1, tzinfo=UTC) if days > 10_000 else NOON
    for number in range(4):
        at = start + timedelta(days=number * days // 3)
        scoring.grant(**make_grant(number, granted_at=at, amount=5).model_dump())
    project(scoring, view)
    drift = measure_drift(read_model)
    assert drift.timeline_unit == unit
    assert [point.total for point in drift.timeline] == [5, 10, 15, 20][-points:]
    assert unit in page(drift)


# --- distributions -------------------------------------------------------------------------------

differences = st.lists(st.integers(-(10**18), 10**18), min_size=1, max_size=60)


@given(differences)
def test_a_histogram_counts_every_value_in_its_range(values: list[int]) -> None:
    """Ranges follow each other without a gap."""
    bins = SignedBins()
    for value in values:
        bins.add(value)
    bars = bins.bars()
    assert all(a[1] + 1 == b[0] for a, b in pairwise(bars))
    for low, high, count in bars:
        assert count == sum(low <= value <= high for value in values)


@given(differences)
def test_quantiles_are_true_to_two_digits(values: list[int]) -> None:
    """And the ends are exact."""
    spread = Spread()
    for value in values:
        spread.add(value)
    quantiles, values = spread.quantiles(), sorted(values)
    assert (quantiles["0"], quantiles["100"]) == (values[0], values[-1])
    for percent in (5, 25, 50, 75, 95):
        true = values[max(0, -(-len(values) * percent // 100) - 1)]
        assert abs(quantiles[str(percent)] - true) <= abs(true) / 10


# --- csv and html --------------------------------------------------------------------------------


def test_the_csv_has_a_line_for_everybody_and_its_columns_add_up(
    scoring: Scoring, view: MongoScoreView, differing: ReadModel
) -> None:
    """Formulas of a spreadsheet are disarmed."""
    for name in HOSTILE:
        scoring.contribute(name, "a", "x", "s", 1)
    project(scoring, view)
    file = io.StringIO(newline="")
    measure_drift(differing, on_user=CsvTable(file).add)
    file.seek(0)
    rows = list(csv.DictReader(file))
    assert len(rows) == 7 + len(HOSTILE)
    for row in rows:
        reasons = [int(value) for name, value in list(row.items())[4:]]
        assert sum(reasons) == int(row["difference"])
        assert int(row["ledger_balance"]) - int(row["recomputed_total"]) == int(row["difference"])
        assert row["user_id"][0] not in "=+-@"
    assert "'=1+1" in {row["user_id"] for row in rows}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_user_ids_cannot_inject_anything_into_the_page(
    scoring: Scoring, view: MongoScoreView, read_model: ReadModel
) -> None:
    """They are shown as they are, isolated from the text around them, and nothing runs."""
    for name in HOSTILE:
        scoring.contribute(name, "a", "x", "s", 1)
    project(scoring, view)
    source = page(measure_drift(read_model))
    parsed = Page(source)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "b", "iframe", "link", "object"}
    assert all(not key.startswith("on") for _, attrs in parsed.tags for key in attrs)
    for name in HOSTILE:
        assert name in parsed.text
        assert f"<bdi>{name}</bdi>" in source.replace("&lt;", "<").replace("&gt;", ">").replace(
            "&quot;", '"'
        ).replace("&amp;", "&")


def test_the_page_needs_no_network_and_runs_no_script(differing: ReadModel) -> None:
    """One file; its own policy forbids the rest."""
    source = page(measure_drift(differing))
    parsed = Page(source)
    assert not [a for _, attrs in parsed.tags for a in attrs if a in ("src", "href", "xlink:href")]
    assert not re.search(r"url\(|@import|https?:", source)
    policy = [a["content"] for t, a in parsed.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_can_be_read_without_seeing_it(differing: ReadModel) -> None:
    """A language, headings, described plots, captions and headed columns."""
    source = page(measure_drift(differing))
    parsed = Page(source)
    assert ("html", {"lang": "en"}) in parsed.tags
    plots = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        root = ET.fromstring(plot)  # well-formed, too
        assert root.get("role") == "img"
        assert [child.tag for child in root][:2] == ["title", "desc"]
        assert len(root[1].text or "") > 50
    tables = source.count("<table>")
    assert tables == source.count("<caption>") == 5
    assert all(a.get("scope") == "col" for t, a in parsed.tags if t == "th")
    assert "A flip is not safe" in source


def test_a_table_says_how_much_of_it_is_left_out(differing: ReadModel) -> None:
    """Users too, of whom the report itself has only some."""
    drift = measure_drift(differing)
    tables = summary_tables(drift, limit=3)
    found = [(len(table.rows), table.total) for table in tables]
    assert found[:3] == [(3, 5), (3, 4), (3, 6)]


def test_a_narrow_page_scrolls_its_tables_and_keeps_keys_whole(differing: ReadModel) -> None:
    """Reasons go on in the next line, between words; numbers and keys do not."""
    source = page(measure_drift(differing))
    assert source.count('<div class="scroll"><table>') == source.count("<table>")
    assert '<td class="prose"><bdi>not granted yet</bdi></td>' in source
    assert '<td class="id"><bdi>telemetry:activity</bdi></td>' in source
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert ".scroll { overflow-x: auto; }" in style
    assert re.search(r"td\.id bdi \{[^}]*width: max-content;", style)
    assert not re.search(r"td\.prose \{[^}]*overflow-wrap", style)


def test_an_empty_read_model_makes_a_page_too(read_model: ReadModel) -> None:
    """With the sentence, and without plots of nothing."""
    source = page(measure_drift(read_model))
    assert "there is no user yet" in source
    assert "<svg" not in source


def test_a_page_of_totals_at_the_limit_is_drawn(read_model: ReadModel) -> None:
    """Nothing overflows where 64 bits end."""
    read_model.users.insert_many(
        [
            {"_id": "max", "recomputedTotal": 2**63 - 1, "totalScore": 0},
            {"_id": "min", "recomputedTotal": 0, "totalScore": 2**63 - 1},
        ]
    )
    drift = measure_drift(read_model)
    for plot in re.findall(r"<svg.*?</svg>", page(drift), re.DOTALL):
        root = ET.fromstring(plot)
        width, height = (float(value) for value in (root.get("viewBox") or "").split()[2:])
        for circle in root.iter("circle"):
            assert 0 <= float(circle.get("cx") or -1) <= width
            assert 0 <= float(circle.get("cy") or -1) <= height
    json.dumps(drift.to_json())


def test_the_json_says_what_the_tables_say(differing: ReadModel) -> None:
    """Verdict, counts, points, causes; sizes that do not grow with users."""
    value: Any = json.loads(json.dumps(measure_drift(differing).to_json()))
    assert value["safe_to_flip"] is False
    assert value["users"] == {
        "compared": 7, "same": 1, "lower": 3, "higher": 3, "beyond_tolerance": 6,
        "new_to_points": 1, "with_residue": 4, "unexplained": 0,
    }  # fmt: skip
    assert value["points"] == {"old": 78, "new": 51, "difference": -27}
    assert value["causes"][0]["reason"] == "not granted yet"
    assert value["largest"][0]["user_id"] == "ada"
    assert value["timeline"]["totals"][-1]["total"] == 51
