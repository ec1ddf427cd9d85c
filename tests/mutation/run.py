"""Mutation testing: a small change of the code that no test notices is a promise without a test.

Each mutant is made in a copy of the repository and judged by the tests that run the changed lines,
fastest first, on a mongod that they share. Which tests those are is measured once; that and the
verdicts are kept in ``.mutation/``, so a run that was interrupted goes on. Those that cannot be
noticed, because they change nothing that matters, are in ``equivalents.toml`` with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from mutants import Mutant, mutants_of
from projections.embedded import open_server

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".mutation"
EQUIVALENTS = Path(__file__).with_name("equivalents.toml")
PYTEST = (sys.executable, "-m", "pytest", "-q", "--tb=no", "-pno:cacheprovider")
QUICK = ("-n0", "-x", "-pno:cov", "-pno:anyio", "-pno:hypothesispytest")  # half of the start
SECONDS_FOR_A_MUTANT = 60.0
SECONDS_FOR_A_TEST = 25
NOTICED = {"killed", "timed out"}
KINDS = ("killed", "timed out", "survived", "not covered", "equivalent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="+", help="e.g. projections/mongo/parking.py")
    parser.add_argument("--sample", type=int, default=40, help="at most so many of each module")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tests", nargs="+", default=["tests/infrastructure", "tests/cli"])
    options = parser.parse_args()

    state = hashlib.sha256()
    for file in sorted(
        file for top in ("tests", "projections") for file in ROOT.glob(f"{top}/**/*.py")
    ):
        state.update(file.read_bytes())
    KEPT.mkdir(exist_ok=True)
    measured = KEPT / f"measured-{state.hexdigest()[:12]}.json"
    if not measured.exists():
        measured.write_text(json.dumps(measure(options.tests)))

    chosen: list[Mutant] = []
    for module in options.modules:
        mutants = mutants_of(module, (ROOT / module).read_text())
        count = min(options.sample, len(mutants))
        picked = random.Random(options.seed).sample(range(len(mutants)), count)
        chosen += [mutants[index] for index in sorted(picked)]
    report(chosen, judged(chosen, measured, options.jobs))


def measure(paths: list[str]) -> dict[str, Any]:
    """Return the seconds of each test that passes, and which of them run each line of a module."""
    with TemporaryDirectory() as folder:
        copy, env = copy_of_the_repository(Path(folder))
        env["COVERAGE_FILE"] = str(copy / "coverage")
        report, lines = copy / "report.xml", copy / "lines.json"
        options = ["--cov=projections", "--cov-context=test", "--cov-report="]
        options += ["-ojunit_family=xunit1", f"--junit-xml={report}"]
        subprocess.run([*PYTEST, *options, *paths], cwd=copy, env=env, check=False)
        to_json = [sys.executable, "-m", "coverage", "json", "-q", "--show-contexts", "-o"]
        subprocess.run([*to_json, str(lines)], cwd=copy, env=env, check=True)
        seconds = {}
        for case in ET.parse(report).iter("testcase"):
            file, classes = case.get("file", ""), case.get("classname", "")
            within = classes.removeprefix(file.removesuffix(".py").replace("/", ".")).split(".")[1:]
            if case.find("failure") is None and case.find("error") is None:
                name = "::".join([file, *within, case.get("name", "")])
                seconds[name] = float(case.get("time", 0))
        covered = {
            module: {
                line: sorted({context.split("|")[0] for context in contexts} & seconds.keys())
                for line, contexts in file["contexts"].items()
            }
            for module, file in json.loads(lines.read_text())["files"].items()
        }
    return {"seconds": seconds, "covered": covered}


def copy_of_the_repository(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the copy, and the environment in which it is what is imported."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder, {**os.environ, "PYTHONPATH": str(folder)}


def judged(chosen: list[Mutant], measured: Path, jobs: int) -> list[str]:
    """Return a verdict for each mutant, most of them from earlier runs perhaps."""
    file = KEPT / "verdicts.jsonl"
    verdicts: dict[str, str] = {
        mutant.key: "equivalent" for mutant in chosen if is_equivalent(mutant)
    }
    for line in file.read_text().splitlines() if file.exists() else []:
        key, state, verdict = json.loads(line)
        # What was noticed once is noticed by the same tests again; what was not, by new ones.
        if verdict.split(" by ")[0] in NOTICED or state == measured.stem:
            verdicts.setdefault(key, verdict)
    left = [mutant for mutant in chosen if mutant.key not in verdicts]
    found = json.loads(measured.read_text()) if left else {}
    judges: SimpleQueue[Judge] = SimpleQueue()

    def judge(mutant: Mutant) -> None:
        one = judges.get()
        try:
            verdict = verdicts[mutant.key] = one.verdict(mutant, tests_for(mutant, found))
        finally:
            judges.put(one)
        with file.open("a") as kept:
            kept.write(json.dumps([mutant.key, measured.stem, verdict]) + "\n")
        print(f"{mutant.module}:{mutant.first_line} {verdict}", flush=True)

    with ExitStack() as stack, ThreadPoolExecutor(jobs) as pool:
        for _ in range(min(jobs, len(left))):
            judges.put(Judge(stack))
        try:
            list(pool.map(judge, left))
        finally:
            pool.shutdown(cancel_futures=True)
    return [verdicts[mutant.key] for mutant in chosen]


def tests_for(mutant: Mutant, found: dict[str, Any]) -> list[str]:
    """Return the tests that run what is changed, fastest first, as many as there is time for."""
    covered: dict[str, list[str]] = found["covered"].get(mutant.module, {})
    lines = {*range(mutant.first_line, mutant.last_line + 1)}
    source = (ROOT / mutant.module).read_text().splitlines()
    if constant := re.match(r"(\w+)\b.* = ", source[mutant.first_line - 1]):
        # Run when the module is imported: what counts is who uses it.
        uses = re.compile(rf"\b{constant[1]}\b")
        lines |= {number for number, line in enumerate(source, 1) if uses.search(line)}
    chosen = {test for line in lines for test in covered.get(str(line), ())}
    if not chosen and any(str(line) in covered for line in lines):  # a field of a class, say
        chosen = {test for tests in covered.values() for test in tests}
    taken: list[str] = []
    total, variants = 0.0, Counter[str]()
    ordered = []
    for seconds, test in sorted((found["seconds"][test], test) for test in chosen):
        # One of each test first: the parameters of one often show the same.
        ordered.append((variants[test.split("[")[0]], seconds, test))
        variants[test.split("[")[0]] += 1
    for _, seconds, test in sorted(ordered):
        there_is_time = total + seconds <= SECONDS_FOR_A_MUTANT and seconds < SECONDS_FOR_A_TEST / 2
        if there_is_time or not taken:
            total += seconds
            taken.append(test)
    return taken


class Judge:
    """A copy of the repository and a mongod, on which one mutant after another is tried."""

    def __init__(self, resources: ExitStack) -> None:
        self._folder = Path(resources.enter_context(TemporaryDirectory()))
        self._copy, self._env = copy_of_the_repository(self._folder / "repository")
        self._server = resources.enter_context(ExitStack())
        self._start_server()

    def _start_server(self) -> None:
        self._server.close()
        data = Path(self._server.enter_context(TemporaryDirectory(dir=self._folder)))
        parameters = ["--setParameter", "enableTestCommands=1"]
        self._uri = self._server.enter_context(open_server(data, extra_args=parameters)).uri

    def verdict(self, mutant: Mutant, tests: list[str]) -> str:
        """Return ``survived``, ``timed out``, ``not covered`` or which test has killed it."""
        if not tests:
            return "not covered"
        module, arguments = self._copy / mutant.module, self._copy / "tests.txt"
        original = module.read_text()
        module.write_text(mutant.source)
        shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)
        arguments.write_text("\n".join(tests))
        process = subprocess.Popen(
            [*PYTEST, *QUICK, f"--timeout={SECONDS_FOR_A_TEST}",
             f"--mongo-uri={self._uri}", f"@{arguments}"],
            cwd=self._copy, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=30 + 2 * SECONDS_FOR_A_MUTANT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self._start_server()  # without the fail points that the test may have left
            return "timed out"
        finally:
            module.write_text(original)
        if "ERROR: not found" in output:
            raise RuntimeError(f"there are other tests by now than were measured: delete {KEPT}")
        if process.returncode == 0:
            return "survived"
        by = re.search(r"^(?:FAILED|ERROR) (.*)", output, re.MULTILINE)
        if by and "from pytest-timeout" in by[1]:
            return "timed out"
        return f"killed by {by[1] if by else 'the import'}"


def is_equivalent(mutant: Mutant) -> bool:
    return any(
        entry["module"] == mutant.module and entry["diff"].split() == mutant.diff.split()
        for entry in tomllib.loads(EQUIVALENTS.read_text())["equivalent"]
    )


def report(mutants: list[Mutant], verdicts: list[str]) -> None:
    """Print every mutant that nobody noticed, and a table of the modules."""
    counts: dict[str, Counter[str]] = {}
    for mutant, verdict in zip(mutants, verdicts, strict=True):
        kind = verdict.split(" by ")[0]
        counts.setdefault(mutant.module, Counter())[kind] += 1
        if kind in {"survived", "not covered"}:
            print(f"\n{kind}: {mutant.module}:{mutant.first_line}\n{mutant.diff}")
    print(f"\n{'module':32}" + "".join(f"{kind:>12}" for kind in KINDS) + "     noticed")
    for module, of in counts.items():
        share = sum(of[kind] for kind in NOTICED) / max(of.total() - of["equivalent"], 1)
        print(f"{module:32}" + "".join(f"{of[kind]:12}" for kind in KINDS) + f"{share:12.0%}")


if __name__ == "__main__":
    main()
