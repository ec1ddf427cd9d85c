"""Turn the history of a git repository into grants, one JSON line per commit.

    python examples/git_contributors.py REPO | score-ledger import -

The rule. Every commit earns its author 10 points, and 1 point more for each file that it adds,
changes or deletes, at most 90 more: so 10 to 100 points. A merge earns 10, because the files it
brings in were paid for with the commits it merges; an empty commit earns 10 too.

Why files and not lines. A grant is recorded once and for ever, so the same commit must be worth the
same on every machine. Counts of lines change with the diff algorithm, the rename settings, the
attributes and the git version of whoever runs this; the list of files is a fact of the commit.
A renamed file is one deleted and one added.

Who. The user id is `Name (1a2b3c4d5e)`: the author's name, and a short hash of name and e-mail
together. Two people called Jane Doe never become one user; a wrong split can be mended by adding
two figures, a wrong merge by nothing. One person with two spellings or two addresses is joined the
way git itself does it, by a line in the repository's .mailmap; write it before the first import,
because the ledger never moves a grant that it has (it answers CONFLICT). In detail:
  - addresses are not printed, only hashed, without regard to case (as .mailmap compares them);
    whoever guesses an address can check the guess, so this is discretion and not secrecy;
  - names are NFC-normalised and stripped; what a user id may not contain (control characters, line
    separators, code points that this Python does not know, bytes that are not UTF-8) is shown as
    U+FFFD, and so are the bidi controls that reorder the text after them; long names end in an
    ellipsis; an empty one is `no name`. The hash is of the name before all that but the first two,
    so none of it makes two people one.

When. `granted_at` is the author date in UTC, from the seconds that git stores; its time zone is
only how the author's clock was set. A date that git cannot read, or that lies after the year 9999,
is never replaced by an invented one: the commit is left out and named on stderr.

Order. Oldest first, and never a commit before its parent, so the ledger is written as things
happened and a later run adds its lines at the end, branches merged late aside. For this git lists
all hashes before the first line appears; everything else is streamed.

Exit code: 0 all commits printed; 1 nothing can be done, or not to the end (one sentence on stderr
says why); 2 wrong usage; 3 all printed but those named on stderr.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import unicodedata
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BASE_POINTS = 10
MOST_POINTS_FOR_FILES = 90

USER_ID_LENGTH = 128  # code points, the ledger's limit
UNFIT_CATEGORIES = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})
# Embeddings, overrides and isolates: one that is left open reorders whatever is printed next.
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
STAND_IN = "\ufffd"

LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last that an ISO 8601 year can name

# A closed list: categories become field names of the totals, so a subject such as
# "net: fix it" must not be able to invent one.
CATEGORY_OF_TYPE = {
    "feat": "feature",
    "fix": "fix",
    "docs": "docs",
    "test": "tests",
    "revert": "revert",
    "perf": "code",
    "refactor": "code",
    "build": "upkeep",
    "chore": "upkeep",
    "ci": "upkeep",
    "style": "upkeep",
}
CONVENTIONAL_SUBJECT = re.compile(rb"([a-z]+)(?:\([^()]*\))?!?: ", re.IGNORECASE)
SUBJECT_BYTES = 200  # all that is looked at; a subject may be megabytes long

TEST_FOLDERS = frozenset({b"test", b"tests", b"testing", b"spec", b"specs", b"__tests__"})
TEST_FILE = re.compile(rb"test_|.*(?:_test|\.test|\.spec)\.")
DOC_FOLDERS = frozenset({b"doc", b"docs", b"documentation"})
DOC_FILE = re.compile(rb"readme|changelog|.*\.(?:md|rst|adoc)$")

COMMIT_FORMAT = "%H%x00%P%x00%at%x00%aN%x00%aE%x00%s"  # NUL is the one byte no field can contain
COMMITS_PER_BATCH = 5_000
READ_BYTES = 1 << 16

# A git hook sets these, and they would silently win over REPO.
ENVIRONMENT_NAMING_A_REPOSITORY = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_INDEX_FILE",
        "GIT_NAMESPACE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)


class GitError(Exception):
    """The history cannot be read; the message is one sentence with the cure."""


class Commit(NamedTuple):
    """What of a commit decides its grant, as git prints it; text stays bytes until it is used."""

    hash: bytes
    parents: int
    author_seconds: bytes  # empty where git could not read the date
    author_name: bytes
    author_email: bytes
    subject: bytes
    files: int
    test_files: int
    doc_files: int


# -- what a commit is worth, to whom, and what for ------------------------------------------------


def grant_of(commit: Commit) -> dict[str, str | int] | None:
    """Return the fields of one import line, or None if the author date cannot be expressed."""
    granted_at = utc_time(commit.author_seconds)
    if granted_at is None:
        return None
    commit_hash = commit.hash.decode("ascii")
    return {
        "user_id": user_id_of(commit.author_name, commit.author_email),
        "grant_id": f"git:{commit_hash}",
        "key": f"commit:{commit_hash}",
        "category": category_of(commit),
        "source": "git-merge" if commit.parents > 1 else "git-commit",
        "amount": BASE_POINTS + min(commit.files, MOST_POINTS_FOR_FILES),
        "granted_at": granted_at,
    }


@functools.lru_cache(maxsize=4096)
def user_id_of(name: bytes, email: bytes) -> str:
    """Return the user id of an author: the name made fit, and a hash of name and e-mail."""
    # Invalid bytes become lone surrogates here, so that the hash still tells them apart.
    spelled = unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape")).strip()
    address = email.decode("utf-8", "surrogateescape").strip().lower()
    identity = unicodedata.normalize("NFC", address) + "\0" + spelled
    raw_identity = identity.encode("utf-8", "surrogateescape")
    suffix = f" ({hashlib.blake2b(raw_identity, digest_size=5).hexdigest()})"

    shown = "".join(STAND_IN if is_unfit(character) else character for character in spelled)
    shown = unicodedata.normalize("NFC", shown) or "no name"
    room = USER_ID_LENGTH - len(suffix)
    if len(shown) > room:
        shown = shown[: room - 1] + "…"
    return shown + suffix


def is_unfit(character: str) -> bool:
    """Tell whether a character may not stand in a user id, or must not be let loose on a screen."""
    return unicodedata.category(character) in UNFIT_CATEGORIES or character in BIDI_CONTROLS


def utc_time(seconds: bytes) -> str | None:
    """Return seconds since 1970 as ISO 8601 in UTC; None if unreadable or after the year 9999."""
    if not seconds.isdigit():
        return None
    # Git passes on as many digits as somebody wrote, more than int() agrees to parse.
    digits = seconds.lstrip(b"0") or b"0"
    if len(digits) > len(str(LAST_SECOND)) or int(digits) > LAST_SECOND:
        return None
    return datetime.fromtimestamp(int(digits), UTC).isoformat()


def category_of(commit: Commit) -> str:
    """Return what kind of work a commit is: by its parents, else its subject, else its files."""
    if commit.parents > 1:
        return "merge"
    if commit.subject.startswith(b'Revert "'):
        return "revert"
    if found := CONVENTIONAL_SUBJECT.match(commit.subject):
        category = CATEGORY_OF_TYPE.get(found[1].decode("ascii").lower())
        if category is not None:
            return category
    return category_of_files(commit)


def category_of_files(commit: Commit) -> str:
    """Return what kind of files a commit touches: tests, docs, none at all, or any others."""
    if commit.files == 0:
        return "empty"
    if commit.files == commit.test_files:
        return "tests"
    if commit.files == commit.doc_files:
        return "docs"
    return "code"


def is_test(path: bytes) -> bool:
    """Tell whether a path, as git stores it, looks like a test."""
    *folders, name = path.lower().split(b"/")
    return not TEST_FOLDERS.isdisjoint(folders) or TEST_FILE.match(name) is not None


def is_doc(path: bytes) -> bool:
    """Tell whether a path, as git stores it, looks like documentation."""
    *folders, name = path.lower().split(b"/")
    return not DOC_FOLDERS.isdisjoint(folders) or DOC_FILE.match(name) is not None


# -- reading git ----------------------------------------------------------------------------------
#
# Plumbing commands only (rev-list, diff-tree): `git log` obeys dozens of settings of its user
# (log.showRoot, log.diffMerges, diff.renames, diff.orderFile, ...), these obey none of them.
# In a single process, oldest first, git keeps every commit message in memory; in batches it
# keeps 5,000, and a batch is printed only when git has answered for every commit in it.


def git_command(repo: str, *arguments: str) -> list[str]:
    """Return a git command line that gives the same answer whatever its user has configured."""
    return [
        "git",
        "--no-replace-objects",  # the hash vouches for the commit, not for its stand-in
        "-c",
        "mailmap.file=",
        "-c",
        "mailmap.blob=HEAD:.mailmap",  # what git itself reads in a bare repository
        "-C",
        repo,
        *arguments,
    ]


def git_environment() -> dict[str, str]:
    """Return our environment without what would make git read another repository or history."""
    kept = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT_NAMING_A_REPOSITORY}
    # An empty graft file would do as well, but git comments on the use of any that exists.
    return kept | {"LC_ALL": "C", "GIT_GRAFT_FILE": f"{os.devnull}/none"}


def ask_git(repo: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a git command with a short answer to its end, whatever its exit code."""
    try:
        return subprocess.run(
            git_command(repo, *arguments), env=git_environment(), capture_output=True, check=False
        )
    except OSError as problem:
        raise GitError(
            f"cannot run git ({problem.strerror}); install git and put it on PATH"
        ) from problem


def what_git_said(output: bytes) -> str:
    """Return git's complaint, often several lines, as one."""
    return " ".join(output.decode("utf-8", "replace").split()).removeprefix("fatal: ")


def require_whole_history(repo: str) -> None:
    """Raise GitError unless this is a repository that git agrees to read, and no shallow clone."""
    answer = ask_git(repo, "rev-parse", "--is-shallow-repository")
    if answer.returncode != 0:
        raise GitError(
            f"REPO must be the folder of a git repository that you may read, but git says of"
            f" {repo!r}: {what_git_said(answer.stderr)}"
        )
    if answer.stdout.strip() == b"true":
        raise GitError(
            f"{repo!r} is a shallow clone, so a commit at its edge looks as if it had added every"
            f" file there is; fetch the rest with `git -C {shlex.quote(repo)} fetch --unshallow`"
        )


def choose_commits(repo: str, revisions: Sequence[str], *, every_branch: bool) -> list[str]:
    """Return the rev-list arguments that stand for what was asked for on the command line."""
    has_head = bool(ask_git(repo, "rev-parse", "--verify", "--quiet", "HEAD").stdout)
    chosen = list(revisions)
    if has_head and not revisions:
        chosen.append("HEAD")  # with --all too: while it is detached, no branch need contain it
    if every_branch and has_any_ref(repo):
        # Not rev-list's --all: stashes, notes and unmerged pull requests are no contributions.
        chosen += ["--branches", "--tags", "--remotes"]
    if not chosen:
        raise GitError(f"{repo!r} has no commits there yet; commit something, or name a revision")
    return chosen


def has_any_ref(repo: str) -> bool:
    """Tell whether there is any branch or tag, of this repository or of its remotes."""
    places = ("refs/heads", "refs/tags", "refs/remotes")
    return bool(ask_git(repo, "for-each-ref", "--count=1", *places).stdout)


def read_history(repo: str, chosen: Sequence[str]) -> Iterator[Commit]:
    """Yield the chosen commits and their ancestors, oldest first, parents before children."""
    command = git_command(repo, "rev-list", "--reverse", "--date-order", *chosen, "--")
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command, env=git_environment(), stdout=subprocess.PIPE, stderr=complaints
        ) as lister,
    ):
        hashes = iter(lister.stdout or ())
        while batch := list(itertools.islice(hashes, COMMITS_PER_BATCH)):
            yield from read_commits(repo, batch)
        if lister.wait() != 0:
            raise GitError(f"git could not list the commits: {said_in(complaints)}")


def read_commits(repo: str, hashes: Sequence[bytes]) -> list[Commit]:
    """Return the commits with these hashes (lines of rev-list), all of them or none."""
    command = git_command(
        repo,
        *("diff-tree", "--stdin", "--root", "--always", "-r", "-z"),
        *("--no-renames", "--name-status", "--encoding=UTF-8", f"--format={COMMIT_FORMAT}"),
    )
    with tempfile.TemporaryFile() as questions, tempfile.TemporaryFile() as complaints:
        # From a file, not a pipe: git answers while it reads, and two full pipes are a deadlock.
        questions.writelines(hashes)
        questions.seek(0)
        with subprocess.Popen(
            command,
            env=git_environment(),
            stdin=questions,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as reader:
            commits = list(parse_commits(reader.stdout)) if reader.stdout else []
        if reader.returncode != 0 or [c.hash for c in commits] != [h.rstrip() for h in hashes]:
            raise GitError(
                f"git described {len(commits)} of {len(hashes)} commits"
                f" ({said_in(complaints) or 'without a word'}); see what"
                f" `git -C {shlex.quote(repo)} fsck` finds"
            )
    return commits


def said_in(complaints: IO[bytes]) -> str:
    """Return what git wrote to its stderr, as one line of bearable length."""
    complaints.seek(0)
    return what_git_said(complaints.read(2_000))


def parse_commits(output: IO[bytes]) -> Iterator[Commit]:
    r"""Yield commits from what diff-tree prints.

    That is `hash NUL parents NUL ... subject NUL`, then for each file `status NUL path NUL`, with a
    newline before the first status. A status is one letter and a path always follows one, so no
    path, however odd, is taken for anything else.
    """
    tokens = split_at_nul(output)
    commit: Commit | None = None
    for token in tokens:
        if len(token.removeprefix(b"\n")) == 1 and commit is not None:
            path = next(tokens, b"")
            commit = commit._replace(
                files=commit.files + 1,
                test_files=commit.test_files + is_test(path),
                doc_files=commit.doc_files + is_doc(path),
            )
            continue
        if commit is not None:
            yield commit
        parents, seconds, name, email, subject = (next(tokens, b"") for _ in range(5))
        commit = Commit(
            hash=token,
            parents=len(parents.split()),
            author_seconds=seconds,
            author_name=name,
            author_email=email,
            subject=subject[:SUBJECT_BYTES],
            files=0,
            test_files=0,
            doc_files=0,
        )
    if commit is not None:
        yield commit


def split_at_nul(output: IO[bytes]) -> Iterator[bytes]:
    """Yield the NUL-terminated pieces of a stream, each whole, however long."""
    piece: list[bytes] = []
    while chunk := output.read(READ_BYTES):
        head, *others = chunk.split(b"\0")
        piece.append(head)
        for other in others:
            yield b"".join(piece)
            piece = [other]
    if any(piece):
        yield b"".join(piece)


# -- the command ----------------------------------------------------------------------------------


def write_grants(commits: Iterable[Commit], output: IO[bytes]) -> int:
    """Write one JSON line per commit; return how many were left out, each named on stderr."""
    left_out = 0
    for commit in commits:
        grant = grant_of(commit)
        if grant is None:
            left_out += 1
            seconds = commit.author_seconds[:20].decode("ascii", "replace") or "unreadable"
            complain(
                f"commit {commit.hash.decode('ascii')} is left out: its author date ({seconds})"
                f" is no time between 1970 and 9999"
            )
            continue
        # JSON is UTF-8 by definition, whatever the locale says about text streams.
        output.write(json.dumps(grant, ensure_ascii=False).encode() + b"\n")
    output.flush()
    return left_out


def complain(sentence: str) -> None:
    """Print a sentence on stderr, where it cannot be mistaken for a grant."""
    print(f"git_contributors: {sentence}", file=sys.stderr)


def revision(argument: str) -> str:
    """Accept a command-line argument as a revision, unless git would take it for an option."""
    if argument.startswith("-"):
        raise argparse.ArgumentTypeError(f"{argument!r} is not a revision")
    return argument


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; its help is the text at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="git_contributors.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  git_contributors.py .                     everything that HEAD contains
  git_contributors.py . v1.0..HEAD          only what came after v1.0, say for a nightly import
  git_contributors.py /srv/git/x.git --all  every branch and tag of a bare repository
""",
    )
    parser.add_argument("repo", metavar="REPO", help="a folder in a git repository, bare or not")
    parser.add_argument(
        "revisions",
        metavar="REVISION",
        nargs="*",
        type=revision,
        help="a branch, tag, hash or range A..B (default: HEAD)",
    )
    parser.add_argument(
        "--all",
        dest="every_branch",
        action="store_true",
        help="also every branch, tag and remote-tracking branch",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the grants and return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        require_whole_history(options.repo)
        chosen = choose_commits(options.repo, options.revisions, every_branch=options.every_branch)
        left_out = write_grants(read_history(options.repo, chosen), sys.stdout.buffer)
    except GitError as problem:
        complain(str(problem))
        return 1
    except OSError as problem:
        complain(f"cannot go on: {problem.strerror or problem}; cure that and run it again")
        # What is still buffered would fail again, with a traceback, when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 3 if left_out else 0


if __name__ == "__main__":
    # Like any filter: end without a word when the reader goes away (`| head`) or at Ctrl-C.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
