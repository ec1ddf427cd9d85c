"""The file of a SQLite event store: who may read it, and what if it is taken away."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import cast

import pytest
from eventsourcing.sqlite import SQLiteFactory

from projections.connections import Stores
from projections.settings import Settings
from scoring import BatchFailed, Scoring, ScoringError
from scoring.sqlite_pool import PatientConnectionPool
from support import make_grant, sqlite_env


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that may be renamed."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def replace(folder: Path) -> None:
    """As ``mv backup.sqlite events.sqlite`` does."""
    with Scoring(sqlite_env(folder / "other.sqlite")) as other:
        other.grant(**make_grant(1000).model_dump())
    (folder / "other.sqlite").replace(folder / "events.sqlite")


def replace_all(folder: Path) -> None:
    """As ``rsync --archive`` does from a copy: the folder gets its old time back, too."""
    before = folder.stat()
    replace(folder)
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_log(folder: Path) -> None:
    (folder / "events.sqlite-wal").unlink()


def rename_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def point_elsewhere(folder: Path) -> None:
    """A link that the file was opened through names another one now."""
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    shutil.move(folder / "events.sqlite", elsewhere)
    (folder / "events.sqlite").symlink_to(elsewhere / "another.sqlite")
    (elsewhere / "another.sqlite").touch()


@pytest.mark.parametrize("is_settled", [False, True], ids=["just opened", "open for long"])
@pytest.mark.parametrize(
    "harm",
    [remove, replace, replace_all, remove_log, rename_folder, point_elsewhere],
    ids=lambda f: f.__name__,
)
def test_nothing_is_answered_recorded_that_is_gone_with_the_file(
    folder: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, *, is_settled: bool
) -> None:
    """One clear error from every command, again and again, until the store is opened anew."""
    with Scoring(sqlite_env(folder / "events.sqlite")) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        if is_settled:
            monkeypatch.setattr("scoring.sqlite_files.SETTLED_AFTER_NANOSECONDS", 0)
            time.sleep(0.02)  # longer than the clock of any file system of today takes for a tick
            app.grant(**make_grant(99, user_id="jane").model_dump())
            assert app.factory.datastore.pool._files._settled  # type: ignore[attr-defined]
        harm(folder)
        for number in (2, 3):
            with pytest.raises(ScoringError, match=r"events\.sqlite.* while it was in use"):
                app.grant(**make_grant(number, user_id="jane").model_dump())
        with pytest.raises(BatchFailed, match="while it was in use") as failed:
            app.grant_many([make_grant(4)])
        assert failed.value.receipts_so_far == []
        with pytest.raises(ScoringError, match="while it was in use"):
            app.award_badge("jane", "first-post", 5)
        if harm is not remove_log:  # whose content the process still has
            with pytest.raises(ScoringError, match="while it was in use"):
                app.score_of("jane")
            with pytest.raises(ScoringError, match="while it was in use"):
                app.recorder.select_notifications(start=1, limit=10)
    folder.mkdir(exist_ok=True)
    with Scoring(sqlite_env(folder / "events.sqlite")) as app:
        # SQLite still had the log that was removed, and closing wrote it into the file.
        status = "DUPLICATE" if harm is remove_log else "RECORDED"
        assert app.grant(**make_grant(2, user_id="jane").model_dump()).status == status


def test_a_file_that_is_put_back_is_used_again(folder: Path) -> None:
    """It is the same file, with all that was recorded."""
    with Scoring(sqlite_env(folder / "events.sqlite")) as app:
        app.grant(**make_grant(1, user_id="jane").model_dump())
        rename_folder(folder)
        with pytest.raises(ScoringError, match="while it was in use"):
            app.score_of("jane")
        folder.with_name("elsewhere").rename(folder)
        assert app.score_of("jane").grant_count == 1
        assert app.grant(**make_grant(2, user_id="jane").model_dump()).status == "RECORDED"


def test_a_log_that_somebody_else_closes_meanwhile_is_not_missed(folder: Path) -> None:
    """It goes with the last connection that has it open: one that is new here has it, too."""
    file = folder / "events.sqlite"
    with Scoring(sqlite_env(file)) as one:
        one.grant(**make_grant(1).model_dump())
        pool = cast("SQLiteFactory", one.factory).datastore.pool
        assert isinstance(pool, PatientConnectionPool)
        pool.hold()  # as at a fork: nothing is open here
        pool.release()
        other = Scoring(sqlite_env(file))
        other.grant(**make_grant(2).model_dump())
        connection = pool.get_connection()
        other.close()
        assert one.score_of("user-2").grant_count == 1
        pool.check_files()
        pool.put_connection(connection)
        assert one.grant(**make_grant(3).model_dump()).status == "RECORDED"


def test_the_file_and_its_log_are_private(folder: Path) -> None:
    """Scores are personal; whoever wants to share the file makes it before."""
    with Scoring(sqlite_env(folder / "events.sqlite")) as app:
        app.grant(**make_grant().model_dump())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == dict.fromkeys(
        ("events.sqlite", "events.sqlite-wal", "events.sqlite-shm"), 0o600
    )


def test_the_folder_of_the_default_store_is_private(tmp_path: Path) -> None:
    """As that of the embedded server in it is."""
    settings = Settings(folder=tmp_path / "here" / ".score-ledger")
    with ExitStack() as stack:
        Stores(settings, stack).scoring().grant(**make_grant().model_dump())
    assert stat.S_IMODE(settings.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(settings.events_file.stat().st_mode) == 0o600


def test_a_file_that_was_there_keeps_its_mode(folder: Path) -> None:
    """And what SQLite puts beside it has the same."""
    file = folder / "events.sqlite"
    file.touch()
    file.chmod(0o664)
    folder.chmod(0o775)
    with Scoring(sqlite_env(file)) as app:
        app.grant(**make_grant().model_dump())
        assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o664}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o775


@pytest.mark.parametrize("name", ["file:{}?cache=private", "file://{}", "{}?not=a&uri"])
def test_a_file_may_be_named_in_any_way_that_sqlite_takes(folder: Path, name: str) -> None:
    """A URI, and a name that only looks like one."""
    file = name.format(folder / "events.sqlite")
    env = {**sqlite_env(folder), "SQLITE_DBNAME": file}
    for status in ("RECORDED", "DUPLICATE"):
        with Scoring(env) as app:
            assert app.grant(**make_grant().model_dump()).status == status
            assert app.score_of(make_grant().user_id).grant_count == 1


def test_several_batches_are_copied_from_the_log_together(folder: Path) -> None:
    """As each changes many of the pages that the one before it has changed."""
    file, log = folder / "events.sqlite", folder / "events.sqlite-wal"
    with Scoring(sqlite_env(file)) as app:
        size = file.stat().st_size
        numbers = count()
        while log.stat().st_size < 2 * 1000 * 4096:  # twice what SQLite would leave there
            app.grant_many(make_grant(number) for number in islice(numbers, 1000))
            assert file.stat().st_size == size
    assert file.stat().st_size > size


def test_whoever_writes_again_is_given_the_connection_that_wrote_last(tmp_path: Path) -> None:
    """Whose cache has the file's pages, while every commit empties the caches of the others."""
    pool = PatientConnectionPool(db_name=str(tmp_path / "events.sqlite"))
    first, second, third = (pool.get_connection() for _ in range(3))
    for connection in (third, first, second):
        pool.put_connection(connection)
    for _ in range(2):
        assert pool.get_connection(is_writer=True) is second
        pool.put_connection(second)
    pool.close()
