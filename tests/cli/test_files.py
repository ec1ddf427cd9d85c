"""Files that commands write: complete or as they were, and never one that is read."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from command_line import COMMAND, CommandLine
from concurrency import until
from interrupts import interrupted
from projections.cli.files import UnusableFile, written
from support import grant_lines

BAD = b"{nonsense\n"


def test_an_import_never_writes_rejects_into_what_it_reads(cli: CommandLine) -> None:
    """By its name, another spelling, a link of either kind, or as the standard input."""
    grants = cli.cwd / "grants.jsonl"
    content = grant_lines(1) + BAD
    grants.write_bytes(content)
    (cli.cwd / "soft").symlink_to(grants)
    (cli.cwd / "hard").hardlink_to(grants)
    for reject in ("./grants.jsonl", "soft", "hard"):
        done = cli("import", "grants.jsonl", "--reject", reject)
        assert (done.returncode, done.stdout) == (1, "")
        assert "name another file" in done.stderr
        assert grants.read_bytes() == content
    with grants.open("rb") as stdin:
        done_from_stdin = subprocess.run(
            [COMMAND, "import", "-", "--reject", "hard"],
            cwd=cli.cwd, stdin=stdin, capture_output=True, check=False,
        )  # fmt: skip
    assert done_from_stdin.returncode == 1
    assert b"is the standard input: name another file" in done_from_stdin.stderr
    assert grants.read_bytes() == content
    assert not (cli.cwd / ".score-ledger").exists()


def test_no_file_is_written_over_the_event_store_or_another_output(cli: CommandLine) -> None:
    """Whichever option names it."""
    cli("import", "-", stdin=grant_lines(1))
    cli("project")
    events = cli.cwd / ".score-ledger" / "events.sqlite"
    before = events.read_bytes()
    for words in (
        ("drift", "--csv", str(events)),
        ("import", "-", "--reject", str(events)),
        ("drift", "--csv", "report", "--html", "./report"),
    ):
        done = cli(*words, stdin=b"")
        assert (done.returncode, done.stdout) == (1, ""), words
        assert "which this command needs: name another file" in done.stderr
    assert events.read_bytes() == before
    assert not (cli.cwd / "report").exists()


def test_old_rejects_stay_if_the_import_does_not_begin_or_is_interrupted(cli: CommandLine) -> None:
    """They are replaced at the end, and nothing lies about."""
    (cli.cwd / "rejected").write_bytes(b"of old\n")
    events = cli.cwd / "events.sqlite"
    events.write_bytes(b"not a database" * 100)
    done = cli("import", "-", "--reject", "rejected", stdin=BAD, SQLITE_DBNAME=str(events))
    assert done.returncode == 1
    assert (cli.cwd / "rejected").read_bytes() == b"of old\n"

    process = cli.start("import", "-", "--reject", "rejected")
    assert process.stdin is not None
    process.stdin.write(BAD * 5000)
    process.stdin.flush()
    until(lambda: any(part.stat().st_size for part in cli.cwd.glob(".score-ledger-*.part")))
    process.send_signal(2)
    process.wait(timeout=90)  # or it might meet the end of its input first
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130
    assert stderr.decode().endswith("nothing counts twice, and rejected is as it was\n")
    assert (cli.cwd / "rejected").read_bytes() == b"of old\n"
    assert list(cli.cwd.glob(".score-ledger-*.part")) == []

    assert cli("import", "-", "--reject", "rejected", stdin=grant_lines(1)).returncode == 0
    assert (cli.cwd / "rejected").read_bytes() == b""


def test_a_report_is_not_begun_if_the_ledger_cannot_be_opened(cli: CommandLine) -> None:
    """An old one stays."""
    (cli.cwd / "drift.html").write_text("of old")
    assert cli("drift", "--html", "drift.html").returncode == 1
    assert (cli.cwd / "drift.html").read_text() == "of old"


def test_a_file_keeps_its_link_and_its_permissions(tmp_path: Path) -> None:
    """What the link points to is replaced; a dangling one gets what it points to."""
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    link = tmp_path / "link"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        with written(link, "--csv") as file:
            file.write(content)
        assert link.is_symlink()
        assert target.read_bytes() == content
        target.chmod(0o640)
    assert target.stat().st_mode & 0o777 == 0o640
    with written(tmp_path / "new", "--csv") as file:
        file.write(b"new")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_is_no_ordinary_file_is_written_as_it_comes(cli: CommandLine) -> None:
    """Pipes and devices are not replaced by files; the standard output is not cut off."""
    cli("import", "-", stdin=grant_lines(1))
    cli("project")
    os.mkfifo(cli.cwd / "fifo")
    reader = subprocess.Popen(["cat", "fifo"], cwd=cli.cwd, stdout=subprocess.PIPE)
    assert cli("drift", "--csv", "fifo").returncode == 0
    assert reader.communicate()[0].startswith(b"user_id,")
    assert cli("drift", "--csv", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()
    assert cli("drift", "--csv", "/dev/stdout").stdout.startswith("user_id,")
    with (cli.cwd / "all").open("wb") as stdout:
        subprocess.run(
            [COMMAND, "drift", "--csv", "/dev/stdout"],
            cwd=cli.cwd, env={**os.environ, **cli.env}, stdout=stdout, check=True,
        )  # fmt: skip
    content = (cli.cwd / "all").read_text()
    assert content.startswith("user_id,")
    assert "A flip" in content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "--csv folder is a folder: name a file"),
        ("no/such/folder/file", "No such file or directory): name a file in a folder that exists"),
        ("/proc/file", "--csv /proc/file cannot be written"),
        ("/dev/full", "--csv /dev/full cannot be written (No space left on device)"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    """In one sentence, with the option."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UnusableFile) as error, written(Path(name), "--csv") as file:
        file.write(b"x" * 100_000)
    assert message in str(error.value)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder for everybody; those of pytest are for its user, whatever a test makes of them."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def test_a_write_protected_file_or_folder_is_respected(open_folder: Path) -> None:
    """By whom it binds, which is everybody but root."""
    protected = open_folder / "protected"
    protected.write_bytes(b"mine")
    protected.chmod(0o444)
    (open_folder / "closed").mkdir(mode=0o555)

    def tried(name: str) -> str:
        code = (
            "import os, sys; from pathlib import Path; from projections.cli.files import written\n"
            "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
            "try:\n"
            "    with written(Path(sys.argv[1]), '--csv') as file: file.write(b'yours')\n"
            "except ValueError as error: print(error)"
        )
        command = [os.path.realpath("/proc/self/exe"), "-c", code, str(open_folder / name)]
        return subprocess.run(command, capture_output=True, check=False, text=True).stdout

    assert "cannot be written (it is write-protected)" in tried("protected")
    assert protected.read_bytes() == b"mine"
    assert "cannot be written (Permission denied)" in tried("closed/file")


def test_a_failure_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    """An error, Ctrl-C, and a disk that is full."""
    target = tmp_path / "target"
    target.write_bytes(b"of old")

    def fail(error: BaseException) -> None:
        with written(target, "--csv") as file:
            file.write(b"half")
            raise error

    for error in (ValueError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
        assert target.read_bytes() == b"of old"

    done = subprocess.run(
        [COMMAND, "import", "-", "--reject", "target"],
        cwd=tmp_path, input=BAD * 60_000, capture_output=True, check=False,
        preexec_fn=_limited(400_000),
    )  # fmt: skip
    assert done.returncode == 1
    assert b"--reject target cannot be written (File too large)" in done.stderr
    assert target.read_bytes() == b"of old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".score-ledger", "target"]


def test_wherever_ctrl_c_comes_nothing_lies_about(tmp_path: Path) -> None:
    """And the file is the old one or the new one, whole."""
    target = tmp_path / "target"

    def write() -> None:
        with written(target, "--csv") as file:
            file.write(b"new")

    for place in count(1):
        target.write_bytes(b"of old")
        with suppress(KeyboardInterrupt):
            interrupted(place, write, "cli/files")
            break
        assert list(tmp_path.iterdir()) == [target], place
        assert target.read_bytes() in {b"of old", b"new"}
    assert place > 20


def _limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
