"""Forking a process with an application on SQLite: what parent and child may go on with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from command_line import run_python

# Each in a process of its own: a fork that hangs, or a store that is lost, must not be the test's.
_BEGIN = """
import os, sys, threading, time
import scoring.sqlite_pool
from concurrency import at_once, lasting_at_most, meanwhile
from forks import in_child
from scoring import Scoring
from support import make_grant, sqlite_env

scoring.sqlite_pool.PATIENCE_SECONDS = 600
app = Scoring(sqlite_env(sys.argv[1]))
begun = threading.Event()

def grant(number):
    return app.grant(**make_grant(number).model_dump()).status.name

def using(over):
    with app.factory.datastore.transaction(commit=True):
        begun.set()
        over.wait()

grant(0)
"""
_MANY_THREADS_FORK = """
sys.setswitchinterval(1e-5)

def forking(thread):
    for number in range(1000 * thread + 1, 1000 * thread + 26):
        said = grant(number), in_child(lambda: grant(number))
        assert said == ("RECORDED", "DUPLICATE"), said

at_once(3, forking)
assert grant(0) == "DUPLICATE"
"""
_IN_USE_AT_THE_FORK = """
scoring.sqlite_pool.PATIENCE_SECONDS = 0.3

def in_vain():
    app.close()  # which does not wait for a thread that is not here
    return in_child(lambda: 1), grant(1)

with meanwhile(using):
    begun.wait()
    for work in (in_vain, lambda: grant(1), lambda: Scoring(app.env)):
        with lasting_at_most(60):
            said = in_child(work)
        assert said.startswith("ScoringError"), said
        assert "in use when this process was forked" in said, said
assert grant(1) == "RECORDED"
assert in_child(lambda: grant(1)) == "DUPLICATE"
"""
_INTERRUPTED_WHILE_IT_WAITS = """
import signal

def interrupt(_, frame):
    if frame.f_code is threading.Condition.wait.__code__:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        raise KeyboardInterrupt

sys.unraisablehook = lambda _: None  # Python tells of what a fork's hooks raise, and forks
with meanwhile(using):
    begun.wait()
    signal.signal(signal.SIGALRM, interrupt)
    with lasting_at_most(60):  # which begins with a thread that is waited for
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        said = in_child(lambda: grant(1))
    assert "in use when this process was forked" in said, said
assert grant(1) == "RECORDED"
assert in_child(lambda: grant(1)) == "DUPLICATE"
"""
_IN_ONES_OWN_TRANSACTION = """
with lasting_at_most(60), app.factory.datastore.transaction(commit=False):
    said = in_child(lambda: grant(1))  # which does not wait for itself
assert "in use when this process was forked" in said, said
assert grant(1) == "RECORDED"
"""
_OTHERS_ASK_MEANWHILE = """
def asking(over):
    while not over.is_set():
        grant(0)

def work():
    # Each is to have its turn, though threads of the parent were waiting for theirs.
    with lasting_at_most(60):
        return [grant(number) for number in range(8)]

with meanwhile(*[asking] * 4):
    for _ in range(20):
        said = in_child(work)
        assert said.startswith("["), said
"""
_ANOTHER_DIRECTORY = """
os.makedirs("elsewhere")
os.chdir("elsewhere")
assert grant(1) == "RECORDED"
assert in_child(lambda: grant(1)) == "DUPLICATE"
assert grant(2) == "RECORDED"
assert os.listdir() == []
"""
_LOCKS_ARE_HELD_BY_ANOTHER_THREAD = """
def locking(over):
    def hold():
        with app._scores._cache._lock:
            begun.set()
            over.wait()

    app._queue.alone(hold)

with meanwhile(locking):
    begun.wait()
    with lasting_at_most(60):
        assert in_child(lambda: (grant(0), grant(1))) == "('DUPLICATE', 'RECORDED')"
assert grant(1) == "DUPLICATE"
"""
_IN_A_CHILD = """
import gc, signal
from itertools import count
from pathlib import Path
from interrupts import interrupted

gc.disable()  # so that errors which refer to themselves keep all that their frames refer to

def in_a_child():
    sys.setprofile(None)
    signal.alarm(120)
    files = [str(file.resolve()) for file in Path("/proc/self/fd").iterdir()]
    was_open = sum("events.sqlite" in file for file in files)
    return was_open, grant(0), *at_once(1, lambda _: grant(0)), len(told)

told = []
sys.unraisablehook = told.append
well = "(0, 'DUPLICATE', 'DUPLICATE', 0)"
"""
_AN_INSERT_WAS_REFUSED = f"""{_IN_A_CHILD}
assert grant(0) == "DUPLICATE"
assert in_child(in_a_child) == well
"""
_WHEREVER_A_GRANT_WAS_INTERRUPTED = f"""{_IN_A_CHILD}
errors = []
pool = app.factory.datastore.pool
for is_open in (True, False):
    for place in count(1):
        if is_open:
            grant(0)
        else:  # the next one is new
            pool._close_idle()
            pool._pool.clear()
        try:
            interrupted(place, lambda: grant(place), "/sqlite")
            break
        except KeyboardInterrupt as error:
            errors.append(error)
        said = in_child(in_a_child)
        assert said == well, (is_open, place, said)
        assert grant(place) in {{"RECORDED", "DUPLICATE"}}
    assert place > 20
"""
_WHEREVER_A_FORK_IS_INTERRUPTED = f"""{_IN_A_CHILD}
def locking(over):
    with app._scores._cache._lock:
        begun.set()
        over.wait()

for place in count(1):
    grant(0)
    begun.clear()
    with meanwhile(locking):
        begun.wait()
        said = interrupted(place, lambda: in_child(in_a_child), "scoring/", "eventsourcing/")
    is_over = said == well and not told
    is_refused = "in use when this process was forked" in said
    assert is_refused or said.startswith(well.removesuffix("0)")), (place, said)
    told.clear()
    with lasting_at_most(60):
        assert at_once(1, lambda _: grant(0)) == [grant(0)] == ["DUPLICATE"], place
    said = in_child(in_a_child)
    assert said == well, (place, said)
    if is_over:
        break
assert place > 20
"""


PROGRAMS = {
    "many threads fork": _MANY_THREADS_FORK,
    "in use": _IN_USE_AT_THE_FORK,
    "interrupted": _INTERRUPTED_WHILE_IT_WAITS,
    "own transaction": _IN_ONES_OWN_TRANSACTION,
    "others ask": _OTHERS_ASK_MEANWHILE,
    "locks are held": _LOCKS_ARE_HELD_BY_ANOTHER_THREAD,
    "another directory": _ANOTHER_DIRECTORY,
    "an insert was refused": _AN_INSERT_WAS_REFUSED,
    "a grant was interrupted": _WHEREVER_A_GRANT_WAS_INTERRUPTED,
    "a fork is interrupted": _WHEREVER_A_FORK_IS_INTERRUPTED,
}


@pytest.mark.parametrize(
    ("program", "name"),
    [
        *((program, "events.sqlite") for program in PROGRAMS),
        # Where it matters by which name a file is known.
        *((program, "file:events.sqlite?mode=rwc") for program in ("in use", "another directory")),
    ],
)
def test_parent_and_child_go_on_or_are_told_why_not(
    program: str, name: str, tmp_path: Path
) -> None:
    """Named by a path that is relative to where the process began, as a file and as a URI."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *sys.path])
    code = _BEGIN + PROGRAMS[program]
    done = run_python("-W", "ignore", "-c", code, name, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "events.sqlite").exists()
