"""MongoDB as the event store against the library's PostgreSQL, one server of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresFactory
from eventsourcing.utils import Environment, get_topic
from psycopg import Cursor
from psycopg.rows import DictRow

from concurrency import meanwhile
from measuring import Report, in_turns
from postgres_server import running_postgres
from projections import MongoScoreView, ProjectionWorker
from projections.embedded import open_server
from projections.events.pages import read_page
from projections.mongo import connect
from projections.mongo.read_model import ReadModel
from read_side import add_percentiles, served, waits_for_another_process
from replica_set import running_replica_set
from scoring import Scoring, UserScore
from scoring.identity import user_stream_id
from scoring.postgres import GaplessPostgresRecorder
from scoring.postgres_pool import BoundedConnection
from support import mongo_env
from write_side import fill, grant_each, grants, opened, same_rows

T = TypeVar("T")

EACH = 400
ROUNDS = 5
POSTGRES_LEDGER = "ledger on PostgreSQL"
WITH_LIBRARYS_INSERT = "ledger with library's insert"


class LibrarysInsert(GaplessPostgresRecorder):
    """Inserts as the library's recorder does, without a check, but sends all of it."""

    def _insert_stored_events(
        self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> None:
        PostgresApplicationRecorder._insert_stored_events(self, curs, stored_events, **kwargs)
        assert isinstance(curs.connection, BoundedConnection)
        curs.connection.flush_to_the_end()


def in_threads(threads: int, work: Callable[[list[T]], object], some: list[T]) -> None:
    parts = [some[number::threads] for number in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


def grant_in_threads(threads: int, app: Scoring) -> None:
    in_threads(threads, partial(grant_each, app), list(islice(grants(), EACH)))


def event_stores(folder: Path, report: Report) -> None:
    """Commands and reads of a ledger on MongoDB, in turns with PostgreSQL.

    The *ledger on PostgreSQL* is the one that users have. With the *library's insert* it commits
    a batch by the statement of `eventsourcing.postgres`, and checks nothing. The *library's
    recorder* is what an application has that uses that module as it comes: it inserts the two rows
    of a grant, made beforehand, and does nothing else, and each thread commits for itself.

    What is wanted is said of the library's recorder: of one thread, a command is held against the
    same command with the library's insert; of eight, against the recorder itself, since the ledger
    shares commits on any store. A ledger with
    `APPLICATION_RECORDER_TOPIC=eventsourcing.postgres:PostgresApplicationRecorder` is no measure of
    `grant_many`: psycopg leaves the end of some batches unsent, for which it waits ten seconds, and
    it looks up each user and each taken id in a query of its own, which takes several times as long
    as the rest. The ledger on PostgreSQL reads pages and users as the library's recorder does, and
    taken ids faster.
    """

    def compare(
        what: str,
        work: Callable[[Scoring], object],
        size: int,
        at_least: float | None,
        *,
        pair: tuple[Scoring, Scoring] | None = None,
        name: str = POSTGRES_LEDGER,
    ) -> None:
        ours, other = pair or (mine, theirs)
        a, b = in_turns(lambda: work(ours), lambda: work(other), rounds=ROUNDS)
        report.rates(f"{what}, MongoDB", size, a, name, b, at_least=at_least)

    def compare_with_recorder(threads: int, at_least: float | None) -> None:
        rows = same_rows(mine, EACH)
        pairs = list(zip(rows[::2], rows[1::2], strict=True))

        def insert_each(some: list[tuple[StoredEvent, StoredEvent]]) -> None:
            for pair in some:
                recorder.insert_events([replace(row, originator_id=uuid4()) for row in pair])

        a, b = in_turns(
            lambda: grant_in_threads(threads, mine),
            lambda: in_threads(threads, insert_each, pairs),
            rounds=ROUNDS,
        )
        what = f"grant(), threads: {threads}, MongoDB"
        report.rates(what, EACH, a, "library's recorder", b, at_least=at_least)

    many = report.scaled(20_000)
    with (
        open_server(folder / "mongo") as server,
        running_postgres() as postgres,
        Scoring(mongo_env(server.uri, "events")) as mine,
        Scoring(postgres.new_env(POSTGRES_POOL_SIZE="10")) as theirs,
        # Of its own, so that users have as many events on both sides of every pair.
        Scoring(mongo_env(server.uri, "beside_library")) as mine_beside_library,
        Scoring(
            postgres.new_env(APPLICATION_RECORDER_TOPIC=get_topic(LibrarysInsert))
        ) as inserting_as_library,
        closing(
            PostgresFactory(Environment("Library", postgres.new_env(POSTGRES_POOL_SIZE="10")))
        ) as library,
    ):
        recorder = library.application_recorder()
        for app in (mine, theirs):
            grant_each(app, list(islice(grants(), 100)))
        beside_library = mine_beside_library, inserting_as_library
        for app in beside_library:
            grant_each(app, list(islice(grants(), 100)))
        compare(
            "grant(), threads: 1",
            partial(grant_in_threads, 1),
            EACH,
            0.6,
            pair=beside_library,
            name=WITH_LIBRARYS_INSERT,
        )
        for threads, at_least in ((1, None), (8, 2)):
            compare(f"grant(), threads: {threads}", partial(grant_in_threads, threads), EACH, None)
            compare_with_recorder(threads, at_least)
        for pair, name, wanted in (
            (beside_library, WITH_LIBRARYS_INSERT, 1.2),
            ((mine, theirs), POSTGRES_LEDGER, None),
        ):
            compare(
                "grant_many",
                lambda app: app.grant_many(islice(grants(), many)),
                many,
                wanted,
                pair=pair,
                name=name,
            )
        taken = list(islice(grants(), many))
        for app in (mine, theirs):
            app.grant_many(taken)
        compare("grant_many, all taken", lambda app: app.grant_many(taken), many, 1)
        stop = min(app.recorder.max_notification_id() or 0 for app in (mine, theirs))
        topics = (get_topic(UserScore.GrantRecorded), get_topic(UserScore.BucketSet))

        def read(app: Scoring) -> None:
            after = 0
            while page := read_page(
                app.recorder, after=after, stop=stop, limit=2500, topics=topics
            ):
                after = page[-1].id

        compare("reading for the projection", read, stop // 2, 0.8)
        users = [f"user-{number}" for number in range(300)]

        def load(app: Scoring) -> None:
            for user in users:
                app.repository.get(user_stream_id(user))

        compare("loading a user", load, len(users), 0.5)


def catch_up_from_mongo(folder: Path, report: Report) -> None:
    """A catch-up whose events are in MongoDB against one whose are in SQLite."""
    many = report.scaled(100_000)
    with (
        opened(folder / "events.sqlite") as sqlite,
        served(folder) as read_side,
        Scoring(mongo_env(read_side.uri, "events")) as mongo,
    ):
        for app in (sqlite, mongo):
            fill(app, many)
        mine, theirs = in_turns(
            lambda: ProjectionWorker(mongo, read_side.empty()).catch_up(),
            lambda: ProjectionWorker(sqlite, read_side.empty()).catch_up(),
            rounds=3,
        )
    what = f"catch-up of {many:,} grants, events in MongoDB"
    report.rates(what, many, mine, "in SQLite", theirs, at_least=0.8)


def waits_on_mongo(folder: Path, report: Report) -> None:
    """``wait()`` for what another process records, on one node and on three."""
    with open_server(folder / "mongo") as server:
        _waits(report, "one node", server.uri, {50: 15, 99: 50})
    with running_replica_set(folder / "three") as replicas:
        _waits(report, "three nodes", replicas.uri, {50: 25})


def _waits(report: Report, name: str, uri: str, limits: dict[int, int]) -> None:
    env = mongo_env(uri, "waits")
    with (
        Scoring(env) as app,
        connect(uri) as client,
        closing(MongoScoreView(ReadModel(client, "waits"))) as view,
    ):
        view.read_model.prepare()
        with meanwhile(ProjectionWorker(app, view).follow):
            waits = waits_for_another_process(view, env)
    add_percentiles(report, f"events in MongoDB, {name}", waits, limits)
