"""The forum example: posts and points are committed together, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from eventsourcing.persistence import IntegrityError

from command_line import run_python
from concurrency import at_once
from examples import forum as example
from examples.forum import Forum, ForumError
from projections import ScoreLedger
from projections.mongo.read_model import ReadModel
from scoring import GrantClaimed, UserScore
from support import NOON, sqlite_env


@pytest.fixture
def forum(tmp_path: Path) -> Iterator[Forum]:
    """A forum on a SQLite file."""
    with Forum(sqlite_env(tmp_path / "forum.sqlite")) as forum:
        yield forum


def test_a_published_post_and_its_points_are_committed_together(forum: Forum) -> None:
    """The post's event, the grant and its claim lie next to each other in the one order."""
    post_id = forum.write(author_id="ada", text="…")
    forum.publish(post_id, at=NOON)
    notifications = forum.recorder.select_notifications(start=2, limit=10)
    events = [forum.mapper.to_domain_event(n) for n in notifications]
    assert [type(event) for event in events] == [
        example.Post.Published,
        UserScore.Created,
        UserScore.GrantRecorded,
        GrantClaimed,
    ]
    assert forum.score_of("ada").category_totals == {"content": 10}


def test_what_happens_again_gives_no_points_again(forum: Forum) -> None:
    """The post decides what is new; the policy sees only its events."""
    post_id = forum.write(author_id="ada", text="…")
    for _ in range(2):
        forum.publish(post_id, at=NOON)
        forum.like(post_id, reader_id="bob", at=NOON)
    assert forum.score_of("ada").total_score == 11


def test_what_the_forum_refuses_gives_no_points(forum: Forum) -> None:
    """An author cannot like a post of their own, nor anybody one that is not published."""
    post_id = forum.write(author_id="ada", text="…")
    with pytest.raises(ForumError):
        forum.like(post_id, reader_id="bob", at=NOON)
    forum.publish(post_id, at=NOON)
    with pytest.raises(ForumError):
        forum.like(post_id, reader_id="ada", at=NOON)
    assert forum.score_of("ada").total_score == 10


def test_a_post_is_not_published_when_its_points_cannot_be_granted(
    forum: Forum, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant id that somebody else has taken stops both."""
    post_id = forum.write(author_id="ada", text="…")
    forum.grant("eve", f"forum/published/{post_id}", "forum:post:0", "content", "forum", 1, NOON)
    monkeypatch.setattr(example, "ATTEMPTS", 2)
    with pytest.raises(IntegrityError):
        forum.publish(post_id, at=NOON)
    assert not forum.post(post_id).is_published
    assert forum.score_of("ada").total_score == 0


def test_readers_who_like_at_once_all_count(forum: Forum) -> None:
    """Lost races on the streams of post and author are run again."""
    post_id = forum.write(author_id="ada", text="…")
    forum.publish(post_id, at=NOON)
    at_once(6, lambda number: forum.like(post_id, reader_id=f"r{number}", at=NOON))
    assert len(forum.post(post_id).liked_by) == 6
    assert forum.score_of("ada").total_score == 16


def test_a_ledger_projects_the_forum_s_grants_and_moves_over_its_posts(
    forum: Forum, read_model: ReadModel
) -> None:
    """The forum is a Scoring application, so a ledger takes it as it is."""
    with ScoreLedger.open(scoring=forum, mongo=read_model.database, worker=False) as ledger:
        post_id = forum.write(author_id="ada", text="…")
        forum.publish(post_id, at=NOON)
        assert ledger.catch_up() == 5
        assert ledger.leaderboard.top(1, by="ledger")[0].score == 10
        assert ledger.verify().ok


def test_the_example_runs_as_a_script() -> None:
    """In memory, without any server."""
    assert "ada has 12 points" in run_python(example.__file__).stdout
