"""Benchmarks: ``python tests/benchmarks`` prints a table; ratios are within one run.

Timings on shared machines are noisy, so what is compared is run in turns, and the median of the
rounds is given with their range. Nothing here passes or fails; ``--help`` names the parts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from inspect import getdoc
from pathlib import Path

from rich.console import Console

sys.path.insert(1, str(Path(__file__).parents[1]))  # for what the tests have in common

import comparisons
import consistent_reads
import embedding_costs
import event_stores
import growth
import leaderboards
import read_side
import threads
import verification
import write_side
from measuring import Report

PARTS = {
    "flat-cost": write_side.flat_cost,
    "cold-load": write_side.cold_load,
    "grant": write_side.single_grants,
    "grant-many": write_side.batched_grants,
    "threads": threads.many_threads,
    "processes": threads.many_processes,
    "taken": write_side.taken_ids,
    "contribute-many": write_side.batched_contributions,
    "writer-memory": write_side.memory,
    "leaderboard": leaderboards.leaderboard,
    "guarded-read": consistent_reads.guarded_reads,
    "tracing": embedding_costs.tracing,
    "catch-up": read_side.catch_up,
    "batch-size": read_side.batch_sizes,
    "runner": read_side.against_the_runner,
    "wait": read_side.waiting,
    "worker-memory": read_side.memory,
    "idle": read_side.idling,
    "event-stores": event_stores.event_stores,
    "catch-up-mongo": event_stores.catch_up_from_mongo,
    "wait-mongo": event_stores.waits_on_mongo,
    "growth": growth.growth,
    "alternatives": growth.alternatives,
    "verify": verification.against_a_bare_scan,
    "compare": comparisons.against_a_bare_scan,
}


def main() -> None:
    """Run the parts that were asked for, or all of them."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help=", ".join(PARTS))
    parser.add_argument(
        "--page",
        metavar="FOLDER",
        type=Path,
        help="keep the figures in FOLDER/figures/, in place of older ones of the same parts, "
        "and make FOLDER/figures.md of all that is there",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1,
        help="how many times as much work as usual: 0.01 to try a part, 10 for what takes long",
    )
    arguments = parser.parse_args()
    console = Console()
    total = Report()
    try:
        for name in arguments.parts or PARTS:
            report = Report(scale=arguments.scale)
            with (
                console.status(f"measuring {name}"),
                tempfile.TemporaryDirectory(prefix="score-ledger-benchmark-") as folder,
            ):
                PARTS[name](Path(folder), report)
            total.rows += report.rows
            if arguments.page is not None:
                import page  # noqa: PLC0415 - draws with what only the page needs

                page.keep(arguments.page, name, getdoc(PARTS[name]) or "", report)
    finally:  # what was measured before a part failed, or was interrupted, took minutes
        console.print(total.table())


if __name__ == "__main__":
    main()
