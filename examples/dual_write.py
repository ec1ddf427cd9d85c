"""A site writes its scores twice: to its own collection, which users see, and to the ledger.

Two writes to two databases can come apart: a process is killed between them, and two clients that
write the same bucket may arrive in different orders. This shows what to write first, what to do
about it, and how the nightly comparison closes the rest::

    python examples/dual_write.py       # in a temporary folder, with a mongod of its own
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from projections import Comparison, LedgerError, OldScores, ScoreLedger
from projections.embedded import open_server
from scoring import ContributionReceipt

Document = dict[str, Any]

logger = logging.getLogger("site")


# --- the site as it was ------------------------------------------------------------------------


def set_bucket(
    scores: Collection[Document],
    user_id: str,
    key: str,
    bucket: Document,
    *,
    session: ClientSession | None = None,
) -> int:
    """Overwrite a user's bucket and the total, as ever; return how often theirs were written."""
    points = {"$map": {"input": {"$objectToArray": "$buckets"}, "in": "$$this.v.points"}}
    document: Any = scores.find_one_and_update(
        {"_id": user_id},
        [
            {
                "$set": {
                    f"buckets.{key}": {"$literal": bucket},
                    "writes": {"$add": [{"$ifNull": ["$writes", 0]}, 1]},
                }
            },
            {"$set": {"total": {"$sum": points}}},
        ],
        upsert=True,
        return_document=True,
        session=session,
    )
    return int(document["writes"])


OLD_SCORES = OldScores(collection="scores", buckets="buckets", at="at", total="total")


Contribute = Callable[..., ContributionReceipt]
"""``ScoreLedger.contribute``, or that of a ``Scoring`` application."""


# --- two writes --------------------------------------------------------------------------------


class DualWriter:
    """Sets a bucket in the site's own collection, and then in the ledger."""

    def __init__(self, scores: Collection[Document], contribute: Contribute) -> None:
        self._scores = scores
        self._tell_ledger = contribute

    def contribute(self, user_id: str, key: str, category: str, source: str, points: int) -> None:
        """Set a bucket; fails as the site always did, and never because of the ledger."""
        at = datetime.now(UTC)
        bucket = {"points": points, "category": category, "source": source, "at": at}
        # The old side first: users see it, and it is what a comparison repairs from.
        set_bucket(self._scores, user_id, key, bucket)
        try:
            self._tell_ledger(user_id, key, category, source, points, at)
        except LedgerError:
            # It has been tried again already. Later, the key may have another value.
            logger.exception("the ledger did not take %s of %s", key, user_id)


# --- an outbox, for those whose collection is on a replica set ---------------------------------


class OutboxWriter:
    """Sets a bucket, and puts down in the same transaction what the ledger is to be told."""

    def __init__(self, scores: Collection[Document], outbox: Collection[Document]) -> None:
        self._scores = scores
        self._outbox = outbox

    def contribute(self, user_id: str, key: str, category: str, source: str, points: int) -> None:
        """Set a bucket; the ledger is told by ``relay``."""
        at = datetime.now(UTC)
        bucket = {"points": points, "category": category, "source": source, "at": at}

        def write(session: ClientSession) -> None:
            # Of two clients that write for one user, MongoDB lets one wait for the other, so
            # these numbers are in the order in which the bucket was written.
            number = set_bucket(self._scores, user_id, key, bucket, session=session)
            place = {"user_id": user_id, "number": number}
            self._outbox.insert_one({"_id": place, "key": key, **bucket}, session=session)

        with self._scores.database.client.start_session() as session:
            session.with_transaction(write)


def relay(outbox: Collection[Document], contribute: Contribute) -> int:
    """Tell the ledger what is in the outbox, in order; return how much that was.

    Run by one process at a time, again and again. Killed, it tells some of it twice, which changes
    nothing: the last value of a key is told last.
    """
    client = outbox.database.client
    with client.start_session(snapshot=True) as session:
        # At one instant, so that no number is seen without those before it.
        entries = list(outbox.find(session=session).sort("_id", 1).limit(1000))
    for entry in entries:
        contribute(
            entry["_id"]["user_id"],
            *(entry[name] for name in ("key", "category", "source", "points")),
            entry["at"].replace(tzinfo=UTC),
        )
        outbox.delete_one({"_id": entry["_id"]})
    return len(entries)


# --- what comes apart, and what closes it ------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that is killed between its two writes."""


def killed(*_: object) -> ContributionReceipt:
    """Be killed instead of telling the ledger."""
    raise Killed


def come_apart(scores: Collection[Document], ledger: ScoreLedger) -> None:
    """Lose a call between its two writes, and let two clients cross each other."""
    activity = "telemetry:activity", "telemetry", "app"
    healthy = DualWriter(scores, ledger.contribute)
    healthy.contribute("ada", *activity, 12)
    dying = DualWriter(scores, killed)
    with suppress(Killed):
        dying.contribute("ada", *activity, 13)

    def overtaken(*contribution: Any) -> ContributionReceipt:
        # Between the two writes of this client, another one does both of its own.
        healthy.contribute("bob", *activity, 8)
        return ledger.contribute(*contribution)

    slow = DualWriter(scores, overtaken)
    slow.contribute("bob", *activity, 7)


def compare(ledger: ScoreLedger, database: str, *, repair: bool = False) -> Comparison:
    """Do what ``score-ledger compare --repair`` does every night."""
    old = OLD_SCORES.model_copy(update={"database": database})
    return ledger.compare(old, repair=repair, settle_seconds=1)


def main() -> None:
    """Come apart, compare, repair, compare again; then do it with an outbox."""
    with (
        tempfile.TemporaryDirectory(prefix="dual-write-") as folder,
        open_server(Path(folder) / "mongo") as server,
        closing(MongoClient[Document](server.uri)) as client,
        ScoreLedger.open(folder=folder, worker=False, mongo=server.uri) as ledger,
    ):
        scores = client["site"]["scores"]
        come_apart(scores, ledger)
        for repair in (False, True, False):
            comparison = compare(ledger, "site", repair=repair)
            print(comparison.verdict)
            for found in comparison.differences:
                print(f"  {found.user_id} {found.key}: {found.kind}", end="")
                print(", repaired" if found.repaired else "")

        outbox = client["site"]["outbox"]
        writer = OutboxWriter(scores, outbox)
        for points in (1, 2, 3):
            writer.contribute("cyd", "telemetry:activity", "telemetry", "app", points)
        print(f"{relay(outbox, ledger.contribute)} from the outbox")
        print(compare(ledger, "site").verdict)


if __name__ == "__main__":
    main()
