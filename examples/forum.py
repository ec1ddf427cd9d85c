"""A forum with aggregates of its own, whose policy grants points in reaction to their events.

The forum is a ``Scoring`` application, so its posts and the ledger share one event store. A command
changes the post, the policy turns the post's new events into grants, and **one** ``save()`` commits
posts, grants and the claims on their ids together: ``UserScore`` emits each claim with its grant,
whatever application saves it. There is never a published post without its points, nor points
for a post that was not published, and no second process to catch up with.

The other way is to call ``Scoring.grant`` from the policy, with ids derived from the event. It is
the better one where posts are kept in another store, or where the same reaction may come about
twice: ``grant`` answers ``DUPLICATE``, while here the refused claim takes the whole save down with
it. The policy must then be driven by the post's recorded events until it has run for all of
them, since the process may die between the two commits. Here the post itself decides what happens
once (it is published once; a vote that was taken back and given again is no new vote), so the first
way costs nothing but the retry that every application of ``eventsourcing`` needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

from eventsourcing.application import AggregateNotFoundError
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import IntegrityError

from scoring import Scoring, UserScore, make_grant_id

ATTEMPTS = 10

T = TypeVar("T")


class ForumError(Exception):
    """The forum's rules do not allow this."""


class Post(Aggregate):
    """A post: written once, published once, and liked at most once by each reader."""

    class Created(Aggregate.Created):
        """It was written."""

        author_id: str
        text: str

    @dataclass(frozen=True)
    class Published(Aggregate.Event):
        """Everybody can see it from now on."""

        author_id: str
        published_at: datetime

        def apply(self, aggregate: Post) -> None:
            """Note it."""
            aggregate.is_published = True

    @dataclass(frozen=True)
    class Liked(Aggregate.Event):
        """A reader liked it for the first time."""

        author_id: str
        reader_id: str
        liked_at: datetime

        def apply(self, aggregate: Post) -> None:
            """Note who."""
            aggregate.liked_by.add(self.reader_id)

    def __init__(self, author_id: str, text: str) -> None:
        self.author_id = author_id
        self.text = text
        self.is_published = False
        self.liked_by: set[str] = set()

    def publish(self, *, at: datetime) -> None:
        """Show it to everybody; a second time does nothing."""
        if not self.is_published:
            self.trigger_event(self.Published, author_id=self.author_id, published_at=at)

    def like(self, *, reader_id: str, at: datetime) -> None:
        """Like it; a second time does nothing.

        Raises:
            ForumError: if it is not published, or is the reader's own.
        """
        if not self.is_published:
            raise ForumError("only a published post can be liked")
        if reader_id == self.author_id:
            raise ForumError("nobody can like a post of their own")
        if reader_id not in self.liked_by:
            self.trigger_event(
                self.Liked, author_id=self.author_id, reader_id=reader_id, liked_at=at
            )


class Forum(Scoring):
    """Posts and the points for them, in one event store."""

    def write(self, *, author_id: str, text: str) -> UUID:
        """Write a post and return its id."""
        post = Post(author_id=author_id, text=text)
        self.save(post)
        return post.id

    def publish(self, post_id: UUID, *, at: datetime) -> None:
        """Publish a post, with 10 points for its author."""
        self._change(post_id, lambda post: post.publish(at=at))

    def like(self, post_id: UUID, *, reader_id: str, at: datetime) -> None:
        """Like a post, with a point for its author."""
        self._change(post_id, lambda post: post.like(reader_id=reader_id, at=at))

    def post(self, post_id: UUID) -> Post:
        """Return a post."""
        post: Post = self.repository.get(post_id)
        return post

    def _change(self, post_id: UUID, command: Callable[[Post], None]) -> None:
        """Carry out a command on a post and the policy, and commit both together."""

        def attempt() -> None:
            post = self.post(post_id)
            command(post)
            self.save(post, *self._policy(post.pending_events))

        _retried(attempt)

    def _policy(self, events: Sequence[Any]) -> Iterator[UserScore]:
        """Turn what happened to a post into grants; the scores are yet to be saved."""
        for event in events:
            match event:
                case Post.Published():
                    score = self._score(event.author_id)
                    score.grant(
                        grant_id=make_grant_id("forum", "published", str(event.originator_id)),
                        key=f"forum:post:{event.originator_id}",
                        category="content",
                        source="forum",
                        amount=10,
                        granted_at=event.published_at,
                    )
                    yield score
                case Post.Liked():
                    score = self._score(event.author_id)
                    score.grant(
                        grant_id=make_grant_id(
                            "forum", "liked", str(event.originator_id), event.reader_id
                        ),
                        key=f"forum:like:{event.originator_id}",
                        category="reputation",
                        source="forum",
                        amount=1,
                        granted_at=event.liked_at,
                    )
                    yield score

    def _score(self, user_id: str) -> UserScore:
        try:
            score: UserScore = self.repository.get(UserScore.create_id(user_id))
        except AggregateNotFoundError:
            return UserScore(user_id=user_id)
        return score


def _retried(attempt: Callable[[], T]) -> T:
    """Do it again from the start when another thread or process changed the same streams first."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except IntegrityError:
            continue
    return attempt()


def main() -> None:
    """Publish a post, like it, and show the author's points."""
    forum = Forum()
    post_id = forum.write(author_id="ada", text="A ledger remembers.")
    forum.publish(post_id, at=datetime.now(UTC))
    for reader_id in ("bob", "cleo", "bob"):
        forum.like(post_id, reader_id=reader_id, at=datetime.now(UTC))
    print("ada has", forum.score_of("ada").total_score, "points:", forum.score_of("ada"))
    print("nothing for an unknown post:", uuid4() in forum.repository)


if __name__ == "__main__":
    main()
