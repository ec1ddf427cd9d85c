"""Writers on an event store in MongoDB that say what they were answered, and who checks it.

``python tests/mongo_history.py URI DATABASE SEED`` writes until it is killed: one line for each
grant that was acknowledged, ``[grant id, status, position]``.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from eventsourcing.persistence import ApplicationRecorder, Notification

from concurrency import at_once
from projections.mongo import connect
from projections.mongo.event_store.documents import collection_of
from scoring import Grant, GrantReceipt, Scoring, ScoringError
from scoring.identity import claim_stream_id, user_stream_id
from support import NOON, make_grant, mongo_env

THREADS = 4
Acknowledged = tuple[str, str, int]


class Writer:
    """Grants and contributes from several threads, to users of its own and to contended ones."""

    def __init__(self, scoring: Scoring, seed: int) -> None:
        self._scoring, self._seed = scoring, seed
        self._output = Lock()

    def run(self) -> None:
        at_once(THREADS, self._write)

    def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        made = 0
        while True:
            size = rng.choice([1, 1, 1, 1, 5, 40, 600])
            grants = []
            for _ in range(size):
                made += 1
                users = rng.choice([f"own-{self._seed}-{number}-{made % 50}", f"hot-{made % 3}"])
                # Some ids are wanted by all.
                grant_id = rng.choice([f"{self._seed}-{number}-{made}", f"shared-{made}"])
                grants.append(make_grant(made, user_id=users, grant_id=grant_id))
            try:
                if size > 1:
                    self._say(grants, self._scoring.grant_many(grants))
                elif rng.random() < 0.3:
                    key, points = f"quiz:{made % 5}", rng.randrange(9)
                    self._scoring.contribute(f"hot-{made % 3}", key, "any", "any", points, NOON)
                else:
                    self._say(grants, [self._scoring.grant(**grants[0].model_dump())])
            except ScoringError:
                continue  # nothing is promised

    def _say(self, grants: Sequence[Grant], receipts: Iterable[GrantReceipt]) -> None:
        lines = [
            json.dumps([grant.grant_id, str(receipt.status), receipt.position]) + "\n"
            for grant, receipt in zip(grants, receipts, strict=True)
        ]
        with self._output:
            os.write(1, "".join(lines).encode())


@dataclass
class Reader:
    """Follows the positions, and keeps the events in the order in which it saw them."""

    recorder: ApplicationRecorder
    seen: list[Notification] = field(default_factory=list)

    def read(self, limit: int = 500) -> None:
        last = self.seen[-1].id if self.seen else 0
        self.seen += self.recorder.select_notifications(last, limit, inclusive_of_start=False)


def acknowledged(output: bytes) -> list[Acknowledged]:
    """What writers said."""
    return [tuple(json.loads(line)) for line in output.splitlines()]


@dataclass
class Stored:
    """The documents as they are, read without the recorder."""

    events: dict[int, tuple[bytes, int, bytes, bytes]] = field(default_factory=dict)
    """By position: stream, version, state, and the commit's token."""
    gaps: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, uri: str, database: str) -> Stored:
        stored, end = cls(), 0
        with connect(uri) as client:
            for document in collection_of(client, database, "scoring_events").find().sort("_id", 1):
                if (document["_id"], document["l"]) != (end + 1, end + len(document["e"])):
                    stored.gaps.append(f"{document['_id']} to {document['l']} after {end}")
                for position, item in enumerate(document["e"], document["_id"]):
                    stored.events[position] = (item["s"], item["v"], item["d"], document["c"])
                end = document["l"]
        return stored

    def broken_streams(self) -> list[str]:
        found, versions = [], Counter[bytes]()
        for position, (stream, version, *_) in self.events.items():
            if version != versions[stream] + 1:
                found.append(f"version {version} after {versions[stream]} at {position}")
            versions[stream] = version
        return found

    def grants(self) -> list[tuple[int, str, bytes, bool]]:
        """Position, id and user's stream of each, and whether its claim is of the same commit."""
        tokens = {stream: token for stream, _, _, token in self.events.values()}
        found = []
        for position, (stream, _, state, token) in self.events.items():
            data = json.loads(state)
            if "grant_id" in data:
                grant_id = data["grant_id"]
                is_whole = tokens.get(claim_stream_id(grant_id).bytes) == token
                is_whole &= user_stream_id(data["user_id"]).bytes == stream
                found.append((position, grant_id, stream, is_whole))
        return found


def violations(
    uri: str, database: str, answers: Sequence[Acknowledged], seen: Sequence[Sequence[Notification]]
) -> list[str]:
    """Hold everything that was said and seen against the documents themselves."""
    stored = Stored.read(uri, database)
    grants = stored.grants()
    places = {grant_id: position for position, grant_id, *_ in grants}
    found = stored.gaps + stored.broken_streams()
    found += [f"{grant_id} is half there" for _, grant_id, _, is_whole in grants if not is_whole]
    times = Counter(grant_id for _, grant_id, *_ in grants)
    times.update(f"answer {grant_id}" for grant_id, said, _ in answers if said == "RECORDED")
    found += [f"{what} is there {n} times" for what, n in times.items() if n > 1]
    for grant_id, said, position in answers:
        place = places.get(grant_id, 0)
        if not 0 < place <= position or (said == "RECORDED" and place != position):
            found.append(f"{grant_id} was answered {said} at {position}, and is at {place}")
    for each in seen:
        got = [
            (n.id, getattr(n.originator_id, "bytes", None), n.originator_version, n.state)
            for n in each
        ]
        if got != [(at, *stored.events[at][:3]) for at in range(1, len(each) + 1)]:
            found.append("a reader saw something else than a beginning of the chain")
    return found


if __name__ == "__main__":
    with Scoring(mongo_env(sys.argv[1], sys.argv[2])) as scoring:
        Writer(scoring, int(sys.argv[3])).run()
