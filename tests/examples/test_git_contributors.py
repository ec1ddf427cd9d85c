"""examples/git_contributors.py against real repositories, the odd and the broken ones included."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "examples" / "git_contributors.py"
JANE = b"Jane Doe <jane@example.org> 1700000000 +0000"
FIELDS = {"user_id", "grant_id", "key", "category", "source", "amount", "granted_at"}

# Nothing of the machine: no settings, and git finds no repository around the test's folder.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "Jane Doe",
    "GIT_AUTHOR_EMAIL": "jane@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_NAME": "Carl Committer",
    "GIT_COMMITTER_EMAIL": "carl@example.org",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
}

Entry = tuple[bytes, bytes, bytes]  # name, mode, object: one line of a tree


class Repository:
    """A real repository whose commits are written object by object, valid or not."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main", *options)

    def git(self, *arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments],
            input=given,
            capture_output=True,
            check=True,
            env=ENVIRONMENT,
        )
        return done.stdout.rstrip(b"\n")

    def blob(self, content: bytes) -> bytes:
        return self.git("hash-object", "-w", "--stdin", given=content)

    def tree(self, files: Mapping[bytes, bytes]) -> bytes:
        """Write a tree, folders included, from paths to contents; any byte may be in a path."""
        blobs = {content: self.blob(content) for content in set(files.values())}
        index = b"".join(
            b"100644 %s\t%s\0" % (blobs[content], path) for path, content in files.items()
        )
        self.git("read-tree", "--empty")
        self.git("update-index", "-z", "--index-info", given=index)
        return self.git("write-tree")

    def commit(
        self,
        message: bytes = b"work",
        *,
        files: Mapping[bytes, bytes] | None = None,
        parents: Sequence[bytes] | None = None,
        author: bytes = JANE,
        committer: bytes = b"Carl Committer <carl@example.org> 1700000000 +0000",
        headers: bytes = b"",
        ref: str = "refs/heads/main",
    ) -> str:
        """Write a commit byte by byte on top of `ref`, and move `ref` there."""
        if parents is None:
            parents = self.git("for-each-ref", "--format=%(objectname)", ref).split()
        lines = [b"tree " + self.tree(files or {})]
        lines += [b"parent " + parent for parent in parents]
        lines += [b"author " + author, b"committer " + committer]
        raw = b"\n".join(lines) + b"\n" + headers + b"\n" + message
        made = self.git(
            "hash-object", "-w", "-t", "commit", "--stdin", "--literally", given=raw
        ).decode()
        self.git("update-ref", ref, made)
        return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def run(
    *arguments: str | Path, environment: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        check=False,
        env=dict(environment),
    )


def grants_of(*arguments: str | Path) -> list[dict[str, Any]]:
    """Run the script, which must succeed in silence, and return its lines, all of them checked."""
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return checked(done.stdout)


def only_error_of(
    *arguments: str | Path, environment: Mapping[str, str] = ENVIRONMENT, output: bytes = b""
) -> str:
    """Run the script, which must fail, and return the one sentence that it says."""
    done = run(*arguments, environment=environment)
    assert (done.returncode, done.stdout) == (1, output)
    (sentence,) = done.stderr.decode().splitlines()
    return sentence


def checked(output: bytes) -> list[dict[str, Any]]:
    """Return the grants, every one held against what the ledger accepts, in words of our own."""
    assert output == b"" or output.endswith(b"\n")
    grants = [json.loads(line) for line in output.decode("utf-8").split("\n")[:-1]]
    for grant in grants:
        assert set(grant) == FIELDS
        assert_fit_id(grant["user_id"], longest=128)
        assert_fit_id(grant["grant_id"], longest=256)
        assert re.fullmatch(r"git:[0-9a-f]{40}([0-9a-f]{24})?", grant["grant_id"])
        assert len(grant["key"]) <= 256
        assert re.fullmatch(r"[A-Za-z0-9._~@/-]+(:[A-Za-z0-9._~@/-]+)*", grant["key"])
        assert not re.match(r"content:feed-post:|award:badge:", grant["key"])
        for label in ("category", "source"):
            assert re.fullmatch(r"[a-z][a-z0-9-]{0,31}", grant[label])
        assert type(grant["amount"]) is int
        assert 1 <= grant["amount"] <= 1_000_000_000
        granted_at = datetime.fromisoformat(grant["granted_at"])
        assert granted_at.utcoffset() == timedelta(0)
        assert datetime(1970, 1, 1, tzinfo=UTC) <= granted_at
    assert len({grant["grant_id"] for grant in grants}) == len(grants)
    assert len({grant["key"] for grant in grants}) == len(grants)
    return grants


def assert_fit_id(text: object, *, longest: int) -> None:
    assert isinstance(text, str)
    assert unicodedata.is_normalized("NFC", text)
    assert 1 <= len(text) <= longest
    assert text == text.strip()
    assert not {unicodedata.category(c) for c in text} & {"Cc", "Cs", "Cn", "Zl", "Zp"}


def hashes(grants: Sequence[Mapping[str, Any]]) -> list[str]:
    return [grant["grant_id"].removeprefix("git:") for grant in grants]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("git_contributors", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


git_contributors = load_script()


# -- which commits, in which order ----------------------------------------------------------------


def history_with_a_merge(repository: Repository) -> list[str]:
    root = repository.commit(b"root", files={b"a": b"1"})
    side = repository.commit(
        b"side", files={b"a": b"1", b"b": b"2"}, parents=[root.encode()], ref="refs/heads/side"
    )
    work = repository.commit(b"work", files={b"a": b"3"})
    merge = repository.commit(
        b"Merge branch 'side'",
        files={b"a": b"3", b"b": b"2"},
        parents=[work.encode(), side.encode()],
    )
    empty = repository.commit(b"nothing", files={b"a": b"3", b"b": b"2"})
    return [root, side, work, merge, empty]


def test_every_commit_is_printed_once_after_its_parents(repository: Repository) -> None:
    root, side, work, merge, empty = history_with_a_merge(repository)
    printed = hashes(grants_of(repository.path))
    assert sorted(printed) == sorted([root, side, work, merge, empty])
    assert (printed[0], printed[3:]) == (root, [merge, empty])


def test_a_grant_has_the_fields_of_an_import_line(repository: Repository) -> None:
    made = repository.commit(b"feat: begin", files={b"a.py": b"1", b"b.py": b"2"})
    (grant,) = grants_of(repository.path)
    user_id = grant.pop("user_id")
    assert re.fullmatch(r"Jane Doe \([0-9a-f]{10}\)", user_id)
    assert grant == {
        "grant_id": f"git:{made}",
        "key": f"commit:{made}",
        "category": "feature",
        "source": "git-commit",
        "amount": 12,
        "granted_at": "2023-11-14T22:13:20+00:00",
    }


def test_a_commit_comes_after_its_parent_even_if_a_clock_was_wrong(repository: Repository) -> None:
    def committed_at(seconds: int) -> bytes:
        return b"Carl <carl@x> %d +0000" % seconds

    root = repository.commit(b"root", committer=committed_at(1_700_000_000))
    parent = repository.commit(b"parent", committer=committed_at(1_700_000_900))
    child = repository.commit(b"child", committer=committed_at(0))
    parents = [parent.encode(), child.encode()]
    merge = repository.commit(b"m", parents=parents, committer=committed_at(1_700_001_000))
    assert hashes(grants_of(repository.path)) == [root, parent, child, merge]


def test_a_later_run_repeats_the_earlier_lines_and_adds_the_new(repository: Repository) -> None:
    history_with_a_merge(repository)
    before = run(repository.path).stdout
    assert run(repository.path).stdout == before
    new = repository.commit(b"later", files={b"z": b"z"})
    after = run(repository.path).stdout
    assert after.startswith(before)
    assert hashes(checked(after[len(before) :])) == [new]


def test_a_range_prints_only_what_it_contains(repository: Repository) -> None:
    made = history_with_a_merge(repository)
    assert hashes(grants_of(repository.path, "HEAD~1..HEAD")) == made[-1:]
    assert hashes(grants_of(repository.path, "main", "^main~1")) == made[-1:]
    assert grants_of(repository.path, "HEAD..HEAD") == []
    assert hashes(grants_of(repository.path, "side")) == made[:2]


def test_all_means_branches_tags_remotes_and_head_but_no_stash_notes_or_pull_requests(
    repository: Repository,
) -> None:
    refs = ("refs/heads/a", "refs/tags/b", "refs/remotes/origin/c")
    wanted = {repository.commit(ref.encode(), ref=ref) for ref in refs}
    for ref in ("refs/stash", "refs/notes/commits", "refs/pull/1/head"):
        repository.commit(ref.encode(), ref=ref)
    repository.git("tag", "a-file", repository.blob(b"a key").decode())
    assert set(hashes(grants_of(repository.path, "--all"))) == wanted

    detached = repository.commit(b"detached", ref="refs/hidden/x")
    repository.git("update-ref", "--no-deref", "HEAD", detached)
    assert set(hashes(grants_of(repository.path, "--all"))) == wanted | {detached}


def test_a_bare_clone_and_a_subfolder_print_what_the_work_tree_prints(
    repository: Repository, tmp_path: Path
) -> None:
    repository.commit(b"mail", files={b".mailmap": b"Jane Roe <jane@example.org>\n"})
    history_with_a_merge(repository)
    repository.commit(b"mail", files={b".mailmap": b"Jane Roe <jane@example.org>\n"})
    repository.git("reset", "--hard", "--quiet")
    repository.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    (repository.path / "sub").mkdir()
    expected = run(repository.path).stdout
    assert b"Jane Roe" in expected
    assert run(tmp_path / "bare.git").stdout == expected
    assert run(repository.path / "sub").stdout == expected


def test_sha256_repositories_work_too(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "long", "--object-format=sha256")
    made = [repository.commit(files={b"a": content}) for content in (b"1", b"2")]
    assert {len(name) for name in made} == {64}
    assert hashes(grants_of(repository.path)) == made


def test_histories_of_many_batches_are_printed_whole_and_in_order(repository: Repository) -> None:
    stream = b"".join(
        b"commit refs/heads/main\nauthor J <j@x> %d +0000\ncommitter C <c@x> %d +0000\ndata 1\nx\n"
        b"M 100644 inline f%d\ndata 1\nx\n\n" % (n, n, n % 7)
        for n in range(12_001)
    )
    repository.git("fast-import", "--quiet", given=stream)
    grants = grants_of(repository.path)
    assert hashes(grants) == repository.git("rev-list", "--reverse", "HEAD").decode().split()
    assert [grant["granted_at"] for grant in grants] == sorted(g["granted_at"] for g in grants)


# -- how many points ------------------------------------------------------------------------------


def test_points_are_ten_and_one_for_each_file_at_most_ninety(repository: Repository) -> None:
    def many(count: int) -> dict[bytes, bytes]:
        return {b"%d" % n: b"x" for n in range(count)}

    table: list[tuple[dict[bytes, bytes], int]] = [
        ({}, 10),  # an empty root
        ({b"a": b"1"}, 11),
        ({b"a": b"1"}, 10),  # an empty commit
        ({b"a": b"2", b"d/b": b"\0\1\2"}, 12),  # text and binary
        ({b"a": b"2", b"d/b": b"\0\1\3"}, 11),  # binary only
        ({b"a": b"2", b"c": b"\0\1\3"}, 12),  # a rename: one deleted, one added
        ({b"a": b"line\n" * 100_000, b"c": b"\0\1\3"}, 11),  # lines do not count
        ({}, 12),  # deletions
        (many(89), 99),
        ({}, 99),
        (many(90), 100),
        ({}, 100),
        (many(2_000), 100),
    ]
    for files, _ in table:
        repository.commit(files=files)
    assert [grant["amount"] for grant in grants_of(repository.path)] == [p for _, p in table]


def test_a_merge_earns_ten_whatever_it_brings_in(repository: Repository) -> None:
    history_with_a_merge(repository)
    (merge,) = [g for g in grants_of(repository.path) if g["source"] == "git-merge"]
    assert (merge["amount"], merge["category"]) == (10, "merge")


def test_odd_file_names_are_neither_lost_nor_mistaken_for_commits(repository: Repository) -> None:
    odd = (
        *(b"A", b"M", b"\nA", b"\n", b"\n\n", b" ", b"tab\tand\nnewline", b'"quoted"', b"\\n"),
        *(
            b"0" * 40,
            b"a" * 64,
            b"\xff\xfe",
            b"\x1e\x1f",
            "é".encode(),
            b"-rf",
            b":100644",
            b"R100",
        ),
    )
    made = [
        repository.commit(files=dict.fromkeys(odd, b"1")),
        repository.commit(files={b"moved/" + name: b"1" for name in odd}),
        repository.commit(files={}),
    ]
    grants = grants_of(repository.path)
    assert hashes(grants) == made
    assert [g["amount"] for g in grants] == [10 + len(odd), 10 + 2 * len(odd), 10 + len(odd)]


# -- what kind of work ----------------------------------------------------------------------------

CODE = (b"src/a.py",)


@pytest.mark.parametrize(
    ("subject", "paths", "category"),
    [
        (b"feat: x", CODE, "feature"),
        (b"feat(ui)!: x", CODE, "feature"),
        (b"FIX: x", CODE, "fix"),
        (b"docs: x", CODE, "docs"),
        (b"test: x", CODE, "tests"),
        (b"revert: x", CODE, "revert"),
        (b'Revert "feat: x"', CODE, "revert"),
        (b"perf: x", CODE, "code"),
        (b"chore(deps): x", (b"README.md",), "upkeep"),
        (b"net: a subsystem, not a type", CODE, "code"),
        (b"feat:no space", CODE, "code"),
        (b"a feat: x", CODE, "code"),
        (b"x", (b"src/a.py", b"tests/test_a.py"), "code"),
        (b"x", (b"tests/a.py", b"lib/test_b.py", b"c_test.go", b"d.spec.ts"), "tests"),
        (b"x", (b"contest.py",), "code"),
        (b"x", (b"README", b"docs/conf.py", b"a/b.rst", b"CHANGELOG.txt"), "docs"),
        (b"x", (b"a.md.py",), "code"),
        (b"x", (), "empty"),
        (b"", (), "empty"),
    ],
)
def test_the_category_is_what_the_subject_says_else_what_the_files_say(
    repository: Repository, subject: bytes, paths: Sequence[bytes], category: str
) -> None:
    repository.commit(subject, files=dict.fromkeys(paths, b"x"))
    (grant,) = grants_of(repository.path)
    assert (grant["category"], grant["source"]) == (category, "git-commit")


def test_messages_may_contain_anything(repository: Repository) -> None:
    messages = (
        *(b"", b"\n\n\n", b"\xff\xfe\x80", b"fix: a\0b", b"\x1e\x1f\x1b[31m", b"a\r\nb\rc"),
        *("fix: \u2028\u202e".encode(), b"A\n", b"commit " + b"0" * 40, b"%H%x00%s", b'{"a": 1}'),
        *(b"fix: " + b"long " * 400_000, b"fix(" * 50_000, b"diff --git a/x b/x\n--- a/x\n"),
    )
    made = [
        repository.commit(message, files={b"f": b"%d" % n}) for n, message in enumerate(messages)
    ]
    grants = grants_of(repository.path)
    assert hashes(grants) == made
    assert {grant["amount"] for grant in grants} == {11}


# -- who ------------------------------------------------------------------------------------------


def user_ids(repository: Repository) -> list[str]:
    return [grant["user_id"] for grant in grants_of(repository.path)]


def test_no_two_authors_share_a_user_id_however_odd_their_names(repository: Repository) -> None:
    long = "很长的名字".encode() * 100
    authors = (
        *(b"Jane Doe <jane@a.org>", b"Jane Doe <jane@b.org>", b"J. Doe <jane@a.org>"),
        *(b" <jane@a.org>", b"<jane2@a.org>", b" <>", b"Jane Doe <>", b"jane@a.org <jane@a.org>"),
        *(b"a\x01b <x@x>", b"a\x02b <x@x>", b"a\x7fb <x@x>", b"a\xffb <x@x>", b"a\xfeb <x@x>"),
        *(long + b"1 <x@x>", long + b"2 <x@x>", b"x" * 128 + b" <x@x>", b"x" * 129 + b" <x@x>"),
        *("abc\u202e <x@x>".encode(), "abc\u2066 <x@x>".encode(), "\u2028 <x@x>".encode()),
        *("\u0378 <x@x>".encode(), "\ufffe <x@x>".encode(), b"\xed\xa0\x80 <x@x>"),
        *("👩‍👩‍👧 <x@x>".encode(), "עברית <x@x>".encode(), "\u0301 <x@x>".encode()),
        *(b"[bold] <x@x>", b"award:badge:1 <x@x>", b"a/b <x@x>", b'"\\ <x@x>', b"$set <x@x>"),
    )
    for author in authors:
        repository.commit(author=author + b" 1700000000 +0000")
    found = user_ids(repository)
    assert len(set(found)) == len(found) == len(authors)
    assert not [user_id for user_id in found if re.search("[\u202a-\u202e\u2066-\u2069]", user_id)]


@pytest.mark.parametrize(
    ("author", "shown"),
    [
        ("Jane Doe", "Jane Doe"),
        ("", "no name"),
        ("\u00a0 Jane\u3000", "Jane"),
        ("a\x1b[31mb", "a\ufffd[31mb"),
        ("a\u202eb", "a\ufffdb"),
        ("Zoe\u0308", "Zoë"),
        ("👩‍🚀", "👩‍🚀"),
        ("x" * 115, "x" * 115),
        ("x" * 116, "x" * 114 + "…"),
    ],
)
def test_a_user_id_shows_the_name_as_far_as_the_rules_allow(
    repository: Repository, author: str, shown: str
) -> None:
    repository.commit(author=author.encode() + b" <x@x> 1700000000 +0000")
    (user_id,) = user_ids(repository)
    assert re.fullmatch(re.escape(shown) + r" \([0-9a-f]{10}\)", user_id)


def test_one_author_keeps_one_user_id_across_spellings_that_mean_the_same(
    repository: Repository,
) -> None:
    latin = "Zoë <zoe@x>".encode("latin-1") + b" 1 +0000"
    repository.commit(author="Zoë <zoe@x> 1 +0000".encode())
    repository.commit(author="Zoe\u0308 <ZOE@X> 2 +0900".encode())
    repository.commit(author=latin, headers=b"encoding ISO-8859-1\n")
    assert len(set(user_ids(repository))) == 1
    repository.commit(author=latin)  # not said to be Latin-1, so nobody can know
    assert len(set(user_ids(repository))) == 2


def test_a_line_in_the_mailmap_joins_two_spellings(repository: Repository) -> None:
    repository.commit(author=b"Jane Doe <jane@example.org> 1 +0000")
    repository.commit(author=b"jane <JANE@laptop> 2 +0000")
    first, second = user_ids(repository)
    assert first != second
    mailmap = repository.path / ".mailmap"
    mailmap.write_text("Jane Doe <jane@example.org> <jane@laptop>\n", encoding="utf-8")
    assert user_ids(repository) == [first, first]


def test_no_address_is_printed(repository: Repository) -> None:
    repository.commit(author=b"Jane <very.private@example.org> 1 +0000")
    assert b"private" not in run(repository.path).stdout


@given(name=st.binary(max_size=300), email=st.binary(max_size=30))
def test_any_author_has_a_fit_user_id(name: bytes, email: bytes) -> None:
    assert_fit_id(git_contributors.user_id_of(name, email), longest=128)


@given(name=st.text(max_size=200), email=st.text(max_size=30))
def test_any_author_in_unicode_has_a_fit_user_id(name: str, email: str) -> None:
    raw = name.encode("utf-8", "surrogatepass"), email.encode("utf-8", "surrogatepass")
    assert_fit_id(git_contributors.user_id_of(*raw), longest=128)


@given(
    one=st.tuples(st.binary(max_size=4), st.binary(max_size=4)),
    other=st.tuples(st.binary(max_size=4), st.binary(max_size=4)),
)
def test_user_ids_are_equal_only_for_the_same_name_and_address(
    one: tuple[bytes, bytes], other: tuple[bytes, bytes]
) -> None:
    """The model: what may differ is white space around both, and the case of the address."""

    def meaning(name: bytes, email: bytes) -> tuple[str, str]:
        spelled, address = (
            unicodedata.normalize("NFC", raw.decode("utf-8", "surrogateescape")).strip()
            for raw in (name, email)
        )
        return spelled, address.lower()

    same = git_contributors.user_id_of(*one) == git_contributors.user_id_of(*other)
    assert same == (meaning(*one) == meaning(*other))


# -- when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "granted_at"),
    [
        (b"1700000000 +0000", "2023-11-14T22:13:20+00:00"),
        (b"1700000000 +5130", "2023-11-14T22:13:20+00:00"),
        (b"1700000000 -9999", "2023-11-14T22:13:20+00:00"),
        (b"1700000000 +051800", "2023-11-14T22:13:20+00:00"),
        (b"0 +0000", "1970-01-01T00:00:00+00:00"),
        (b"0000000000000001 -1200", "1970-01-01T00:00:01+00:00"),
        (b"2147483648 +0000", "2038-01-19T03:14:08+00:00"),
        (b"253402300799 -1200", "9999-12-31T23:59:59+00:00"),
    ],
)
def test_the_date_is_the_authors_in_utc_whatever_the_time_zone(
    repository: Repository, date: bytes, granted_at: str
) -> None:
    repository.commit(author=b"Jane Doe <jane@example.org> " + date)
    (grant,) = grants_of(repository.path)
    assert grant["granted_at"] == granted_at


@pytest.mark.parametrize(
    "author",
    [
        b"Jane <j@x> 253402300800 +0000",
        b"Jane <j@x> 18446744073709551616 +0000",
        b"Jane <j@x> " + b"9" * 5_000 + b" +0000",
        b"Jane <j@x> -1 +0000",
        b"Jane <j@x> tomorrow",
        b"Jane <j@x>",
        b"Jane",
        b"",
    ],
    ids=lambda author: author[:40].decode(),
)
def test_a_commit_without_a_usable_date_is_named_and_left_out(
    repository: Repository, author: bytes
) -> None:
    good = [repository.commit(b"before")]
    bad = repository.commit(b"bad", author=author)
    good.append(repository.commit(b"after"))
    done = run(repository.path)
    assert done.returncode == 3
    assert hashes(checked(done.stdout)) == good
    (sentence,) = done.stderr.decode().splitlines()
    assert bad in sentence
    assert len(sentence) < 200


# -- the same for everybody -----------------------------------------------------------------------

SETTINGS = """
[log]
    showSignature = true
    showRoot = false
    diffMerges = first-parent
    mailmap = false
    date = relative
    decorate = full
    follow = true
[diff]
    renames = copies
    relative = true
    noprefix = true
    orderFile = /nonexistent
    external = false
    ignoreSubmodules = all
    algorithm = histogram
    renameLimit = 1
[core]
    quotePath = true
    abbrev = 4
    pager = false
    attributesFile = {folder}/attributes
[color]
    ui = always
[i18n]
    logOutputEncoding = ISO-8859-1
    commitEncoding = ISO-8859-1
[mailmap]
    file = {folder}/mailmap
    blob = HEAD:not-the-mailmap
[format]
    pretty = raw
[notes]
    displayRef = *
[alias]
    rev-list = version
    diff-tree = version
"""


def test_nobodys_settings_change_a_byte(repository: Repository, tmp_path: Path) -> None:
    repository.commit(
        b"feat: begin",
        files={
            "é.py".encode(): b"1\n" * 50,
            b"not-the-mailmap": b"Eve <eve@x> <jane@example.org>\n",
        },
        author="Zoë <zoe@x> 1 +0000".encode(),
    )
    history_with_a_merge(repository)
    expected = run(repository.path)
    assert (expected.returncode, expected.stderr) == (0, b"")

    (tmp_path / "attributes").write_text("* -diff\n", encoding="utf-8")
    (tmp_path / "mailmap").write_text("Eve <eve@x> <jane@example.org>\n", encoding="utf-8")
    config = tmp_path / "config"
    config.write_text(SETTINGS.format(folder=tmp_path), encoding="utf-8")
    hostile = ENVIRONMENT | {
        "GIT_CONFIG_GLOBAL": str(config),
        "LC_ALL": "de_DE.ISO-8859-1",
        "PYTHONIOENCODING": "ascii",
        "TZ": "Asia/Kathmandu",
        "GIT_EXTERNAL_DIFF": "false",
        "GIT_PAGER": "false",
    }
    done = run(repository.path, environment=hostile)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", expected.stdout)


def test_the_repository_named_wins_over_the_one_whose_hook_is_running(
    repository: Repository, tmp_path: Path
) -> None:
    made = repository.commit()
    other = Repository(tmp_path / "other")
    other.commit(b"of another repository", files={b"a": b"a"})
    inside_a_hook = ENVIRONMENT | {"GIT_DIR": str(other.path / ".git"), "GIT_WORK_TREE": "/"}
    done = run(repository.path, environment=inside_a_hook)
    assert hashes(checked(done.stdout)) == [made]


def test_replaced_and_grafted_commits_are_read_as_they_were_written(repository: Repository) -> None:
    made = history_with_a_merge(repository)
    expected = run(repository.path).stdout
    fake = repository.commit(b"fix: fake", files={b"z": b"z"}, ref="refs/heads/fake")
    repository.git("replace", made[2], fake)
    (repository.path / ".git" / "info" / "grafts").write_text(f"{made[3]}\n", encoding="ascii")
    done = run(repository.path)
    assert (done.stdout, done.stderr) == (expected, b"")


# -- when it cannot be done -----------------------------------------------------------------------


def test_a_folder_without_a_repository_is_named(tmp_path: Path) -> None:
    assert "not a git repository" in only_error_of(tmp_path)
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in only_error_of(tmp_path / "file")
    assert "No such file" in only_error_of(tmp_path / "missing")


@pytest.mark.parametrize("options", [(), ("--all",)])
def test_a_repository_without_commits_is_told_from_one_that_has_nothing_new(
    repository: Repository, options: Sequence[str]
) -> None:
    assert "no commits there yet" in only_error_of(repository.path, *options)
    repository.commit()
    assert len(grants_of(repository.path, *options)) == 1


def test_a_shallow_clone_is_refused_with_the_cure(repository: Repository, tmp_path: Path) -> None:
    history_with_a_merge(repository)
    shallow = tmp_path / "shallow"
    source = repository.path.as_uri()
    repository.git("clone", "--quiet", "--depth=1", source, str(shallow))
    assert f"git -C {shallow} fetch --unshallow" in only_error_of(shallow)
    subprocess.run(
        ["git", "-C", str(shallow), "fetch", "--quiet", "--unshallow"], check=True, env=ENVIRONMENT
    )
    assert run(shallow).stdout == run(repository.path).stdout


def test_a_missing_git_is_told_with_the_cure(repository: Repository, tmp_path: Path) -> None:
    sentence = only_error_of(repository.path, environment=ENVIRONMENT | {"PATH": str(tmp_path)})
    assert "install git" in sentence


def test_a_repository_of_somebody_else_is_reported_in_gits_own_words(
    repository: Repository,
) -> None:
    repository.commit()
    someone_elses = ENVIRONMENT | {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    sentence = only_error_of(repository.path, environment=someone_elses)
    assert "dubious ownership" in sentence
    assert "git config --global --add safe.directory" in sentence


def test_an_unknown_revision_is_named(repository: Repository) -> None:
    repository.commit()
    assert "'nowhere'" in only_error_of(repository.path, "nowhere")
    assert "HEAD~1" in only_error_of(repository.path, "HEAD~1")


def test_an_option_of_git_is_not_a_revision(repository: Repository, tmp_path: Path) -> None:
    repository.commit()
    target = tmp_path / "written"
    done = run(repository.path, "--", f"--output={target}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert not target.exists()


def test_a_damaged_repository_never_yields_a_grant_of_half_a_commit(repository: Repository) -> None:
    repository.commit(files={b"a/b": b"1"})
    lost = repository.git("rev-parse", "HEAD:a").decode()
    (repository.path / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    sentence = only_error_of(repository.path)
    assert lost in sentence
    assert "fsck" in sentence
    assert "graft" not in sentence  # git's remarks on how we silence it are not for the reader


def test_a_lost_ancestor_is_an_error_before_the_first_line(repository: Repository) -> None:
    lost = repository.commit()
    repository.commit(b"child")
    (repository.path / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    assert lost in only_error_of(repository.path)


def test_a_reader_that_goes_away_ends_it_without_a_word(repository: Repository) -> None:
    stream = b"".join(
        b"commit refs/heads/main\ncommitter C <c@x> %d +0000\ndata 1\nx\n" % n for n in range(2_000)
    )
    repository.git("fast-import", "--quiet", given=stream)
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(repository.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        assert script.stdout.readline().startswith(b"{")
        script.stdout.close()
        assert script.stderr.read() == b""
    assert script.returncode == -signal.SIGPIPE


def test_a_full_disk_is_one_sentence(repository: Repository) -> None:
    repository.commit()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(repository.path)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=ENVIRONMENT,
        )
    assert done.returncode == 1
    (sentence,) = done.stderr.decode().splitlines()
    assert "No space left on device" in sentence


def test_help_states_the_rule_and_an_example() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    for part in ("10 points", "score-ledger import -", "v1.0..HEAD", ".mailmap", "Exit code"):
        assert part in text
