"""A program that embeds the ledger with a worker of its own, and reads what it wrote.

    python application.py NAME OUTPUT PAUSE SEED

Its lines are those of ``writer.py``; a call that was answered says too what was seen after waiting.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path

from projections import LedgerError, ScoreLedger
from soak.writer import Protocol, new_grant, stop_on_sigterm

REST_SECONDS = 0.2
PATIENCE_SECONDS = 60.0


def main() -> None:
    name, output, pause, seed = sys.argv[1:]
    stop = stop_on_sigterm()
    protocol = Protocol(Path(output))
    prefix = f"{name}-{time.monotonic_ns()}"
    randomness = random.Random(f"{seed}-{prefix}")
    numbers = count()
    with ScoreLedger.open() as ledger:
        while not stop.wait(REST_SECONDS):
            if Path(pause).exists():
                protocol.write(paused=Path(pause).read_text(), thread=prefix)
                while Path(pause).exists() and not stop.wait(0.1):
                    pass
                continue
            grant = new_grant(f"{prefix}-{next(numbers)}", randomness)
            began = time.monotonic_ns()
            protocol.write(call=grant.grant_id, began=began, grants=[grant.model_dump(mode="json")])
            try:
                receipt = ledger.grant(**grant.model_dump())
                protocol.write(
                    call=grant.grant_id,
                    ended=time.monotonic_ns(),
                    receipts=[{**asdict(receipt), "user_id": None}],
                )
                ledger.wait(receipt, timeout=PATIENCE_SECONDS)
                page = ledger.history(grant.user_id, before=receipt.position + 1, limit=1)
                totals = ledger.totals(grant.user_id)
            except (LedgerError, TimeoutError) as error:
                protocol.write(read=grant.grant_id, ended=time.monotonic_ns(), error=str(error))
                stop.wait(1)
                continue
            protocol.write(
                read=grant.grant_id,
                ended=time.monotonic_ns(),
                found=bool(page) and page[0].grant_id == grant.grant_id,
                total=totals.total_score,
                at_least=receipt.total_after,
            )


if __name__ == "__main__":
    main()
