"""What receipts promise, held against rows in the event store and documents in MongoDB.

Nothing of the ledger is used here, neither its decoders nor its verification: rows are added up
from their JSON, documents are read with plain ``find``.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from pymongo.database import Database

from soak.event_stores import Restore, Row

GRANT, BUCKET, CLAIM = (
    "scoring:UserScore.GrantRecorded",
    "scoring:UserScore.BucketSet",
    "scoring:GrantClaimed",
)
USERS = UUID("6c1d7c0e-6f1b-5b0e-9a53-2f6f2b9d8a01")
CLAIMS = UUID("b7a4b5a2-0c57-5f0d-8e0a-7d1f4f5e9c02")
FIELDS = ("user_id", "grant_id", "key", "category", "source", "amount", "granted_at")
GRANT_SHAPED = ("content:feed-post:", "award:badge:")

Document = dict[str, Any]


@dataclass
class Call:
    """A call of a writer; what it was answered is missing if the writer was killed before."""

    began: int
    grants: list[Document] | None = None
    contribution: Document | None = None
    ended: int | None = None
    receipts: list[Document] | None = None
    error: str | None = None


@dataclass
class Read:
    """What an application saw of its own grant once it had waited for it."""

    began: int
    ended: int
    error: str | None
    found: bool | None
    total: int | None
    at_least: int | None


@dataclass
class Protocols:
    """Everything that writers printed."""

    calls: dict[str, Call] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)

    @classmethod
    def read(cls, files: Iterable[Path]) -> Protocols:
        protocols = cls()
        for line in _lines(files):
            if "began" in line:
                protocols.calls[line["call"]] = Call(
                    line["began"], line.get("grants"), line.get("contribution")
                )
            elif "call" in line:
                call = protocols.calls[line["call"]]
                call.ended = line["ended"]
                call.receipts = line.get("receipts")
                call.error = line.get("error")
            elif "read" in line:
                protocols.reads.append(
                    Read(
                        protocols.calls[line["read"]].began,
                        line["ended"],
                        *(line.get(name) for name in ("error", "found", "total", "at_least")),
                    )
                )
        return protocols


def paused(file: Path, token: str) -> int:
    """How many threads have said that they pause."""
    return sum(line.get("paused") == token for line in _lines([file]))


def _lines(files: Iterable[Path]) -> Iterator[Document]:
    for file in files:
        with file.open() as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # A killed writer's last one.


class Ledger:
    """What the rows of the event store come to."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.deviations: list[str] = []
        self.newest = 0
        self.grants: dict[int, Document] = {}
        self.buckets_set: dict[int, Document] = {}
        self.positions: dict[str, int] = {}
        self.users: dict[str, Document] = {}
        self.buckets: dict[tuple[str, str], Document] = {}
        self.balances: dict[str, set[int]] = defaultdict(lambda: {0})
        self.recomputed: dict[int, tuple[int, int]] = {}
        """By position: the recomputed total before and after."""
        self.totals: dict[int, tuple[int, int]] = {}
        """By position: the running balance before and after."""
        self._versions: dict[UUID, int] = defaultdict(int)
        claims: set[UUID] = set()
        for row in rows:
            self.newest = row.position
            self._versions[row.stream] += 1
            if row.version != self._versions[row.stream]:
                self._deviate(
                    f"stream {row.stream} has version {row.version} at {row.position},"
                    f" not {self._versions[row.stream]}"
                )
            if row.topic == GRANT:
                self._add_grant(row)
            elif row.topic == BUCKET:
                self._add_bucket(row)
            elif row.topic == CLAIM:
                claims.add(row.stream)
        expected = {uuid5(CLAIMS, grant_id) for grant_id in self.positions}
        if claims != expected:
            self._deviate(f"{len(claims)} claims of {len(expected)} grants")

    def _deviate(self, text: str) -> None:
        self.deviations.append(text)

    def _add_grant(self, row: Row) -> None:
        grant = {name: _plain(row.state[name]) for name in FIELDS}
        user_id = grant["user_id"]
        if row.stream != uuid5(USERS, user_id):
            self._deviate(f"the grant at {row.position} is in another user's stream")
        if grant["grant_id"] in self.positions:
            self._deviate(
                f"{grant['grant_id']} is recorded at {self.positions[grant['grant_id']]} and at"
                f" {row.position}"
            )
        self.positions[grant["grant_id"]] = row.position
        self.grants[row.position] = {**grant, "recorded_at": _plain(row.state["timestamp"])}
        user = self._user(user_id)
        before = user["totalScore"]
        user["totalScore"] += grant["amount"]
        user["grantCount"] += 1
        for totals, name in (("categoryTotals", "category"), ("sourceTotals", "source")):
            label = grant[name]
            user[totals][label] = user[totals].get(label, 0) + grant["amount"]
        granted_at = _moment(grant["granted_at"])
        if user["lastGrantAt"] is None or granted_at > user["lastGrantAt"]:
            user["lastGrantAt"] = granted_at
        user["version"] = row.version
        self.totals[row.position] = before, user["totalScore"]
        self.balances[user_id].add(user["totalScore"])
        if grant["key"].startswith(GRANT_SHAPED):
            self._set(row, grant, points=grant["amount"])

    def _add_bucket(self, row: Row) -> None:
        state = {name: _plain(value) for name, value in row.state.items()}
        self._user(state["user_id"])["version"] = row.version
        self.buckets_set[row.position] = state
        self._set(row, state, points=state["points"])

    def _set(self, row: Row, state: Document, *, points: int) -> None:
        where = state["user_id"], state["key"]
        replaced = self.buckets.get(where, {"points": 0})["points"]
        self.buckets[where] = {
            "category": state["category"],
            "source": state["source"],
            "points": points,
        }
        user = self._user(state["user_id"])
        before = user["recomputedTotal"]
        user["recomputedTotal"] += points - replaced
        self.recomputed[row.position] = before, user["recomputedTotal"]

    def _user(self, user_id: str) -> Document:
        return self.users.setdefault(
            user_id,
            {
                "totalScore": 0,
                "categoryTotals": {},
                "sourceTotals": {},
                "grantCount": 0,
                "recomputedTotal": 0,
                "lastGrantAt": None,
                "version": 1,
            },
        )


def check_receipts(
    ledger: Ledger, protocols: Protocols, restores: Sequence[Restore], counts: Counter[str]
) -> Iterator[str]:
    """Compare every answer with the rows, unless a restore has taken back what it is about."""
    for call_id, call in protocols.calls.items():
        if call.receipts is None or call.ended is None:
            counts["calls without an answer" if call.error is None else "calls refused"] += 1
            continue
        asked = call.grants or [call.contribution or {}]
        counts["calls answered"] += 1
        counts["of these batches of grants"] += len(asked) > 1
        if len(asked) != len(call.receipts):
            yield f"{call_id}: {len(asked)} asked, {len(call.receipts)} answered"
        for question, receipt in zip(asked, call.receipts, strict=False):
            fate = _fate(call, receipt["position"], restores)
            if fate:
                counts[fate] += 1
                continue
            counts[f"receipts {receipt['status']}"] += 1
            check = _check_grant if call.grants else _check_contribution
            for deviation in check(ledger, question, receipt):
                yield f"{call_id} {question} was answered {receipt}: {deviation}"


def _fate(call: Call, position: int, restores: Sequence[Restore]) -> str | None:
    for restore in restores:
        if position > restore.newest and call.ended is not None:
            if call.ended < restore.began:
                return "receipts taken back by a restore"
            if call.began < restore.ended:
                return "receipts during a restore"
    return None


def _check_grant(ledger: Ledger, grant: Document, receipt: Document) -> Iterator[str]:
    position = ledger.positions.get(grant["grant_id"])
    if position is None:
        yield "no such grant is stored"
        return
    stored = ledger.grants[position]
    is_same = all(_same(stored[name], grant[name]) for name in FIELDS)
    totals = receipt["total_before"], receipt["total_after"]
    if receipt["status"] == "RECORDED":
        if position != receipt["position"] or not is_same:
            yield f"stored at {position} is {stored}"
        elif totals != ledger.totals[position]:
            yield f"the totals were {ledger.totals[position]}"
        return
    if (receipt["status"] == "DUPLICATE") != is_same:
        yield f"stored at {position} is {stored}"
    if position > receipt["position"]:
        yield f"it is stored later, at {position}"
    if totals[0] != totals[1] or totals[0] not in ledger.balances[grant["user_id"]]:
        yield "the user never had that total"


def _check_contribution(ledger: Ledger, asked: Document, receipt: Document) -> Iterator[str]:
    user_id, key = asked["user_id"], asked["key"]
    position = receipt["position"]
    totals = receipt["recomputed_before"], receipt["recomputed_after"]
    is_routed = key.startswith(GRANT_SHAPED)
    if is_routed and f"{user_id}/{key}" not in ledger.positions:
        yield "no such grant is stored"
        return
    bucket = ledger.grants.get(position) or ledger.buckets_set.get(position)
    is_ours = bucket is not None and (bucket["user_id"], bucket["key"]) == (user_id, key)
    if receipt["status"] == "RECORDED" or (is_ours and totals[0] != totals[1]):
        points = bucket and bucket.get("points", bucket.get("amount"))
        if not is_ours or points != asked["points"]:
            yield f"stored at {position} is {bucket}"
        elif totals != ledger.recomputed[position]:
            yield f"the recomputed totals were {ledger.recomputed[position]}"


def check_rows(ledger: Ledger, protocols: Protocols) -> Iterator[str]:
    """Whatever is stored was asked for, in these words."""
    asked: dict[str, list[Document]] = defaultdict(list)
    for call in protocols.calls.values():
        for grant in call.grants or []:
            asked[grant["grant_id"]].append(grant)
        if call.contribution:
            contribution = call.contribution
            grant_id = f"{contribution['user_id']}/{contribution['key']}"
            asked[grant_id].append(
                {
                    **contribution,
                    "grant_id": grant_id,
                    "amount": contribution["points"],
                    "granted_at": contribution["at"],
                }
            )
    for position, stored in ledger.grants.items():
        if not any(
            all(_same(stored[name], grant[name]) for name in FIELDS)
            for grant in asked[stored["grant_id"]]
        ):
            yield f"the grant at {position} was never asked for: {stored}"


def check_documents(ledger: Ledger, database: Database[Document]) -> Iterator[str]:
    """The read model is what the rows come to, no more and no less."""
    found = {document["_id"]: document for document in database["score_grants"].find()}
    for position, grant in ledger.grants.items():
        expected = {
            "_id": position,
            "grantId": grant["grant_id"],
            "userId": grant["user_id"],
            "key": grant["key"],
            "category": grant["category"],
            "source": grant["source"],
            "amount": grant["amount"],
            "grantedAt": _moment(grant["granted_at"]),
            "recordedAt": _in_milliseconds(_moment(grant["recorded_at"])),
            "position": position,
        }
        yield from _compare("score_grants", position, expected, found.pop(position, None))
    yield from (f"score_grants has {document} besides" for document in found.values())
    users = {document.pop("_id"): document for document in database["user_scores"].find()}
    for user_id, user in ledger.users.items():
        yield from _compare("user_scores", user_id, user, users.pop(user_id, None))
    yield from (f"user_scores has {user_id} besides" for user_id in users)
    buckets = {
        (document["_id"]["userId"], document["_id"]["key"]): document
        for document in database["score_buckets"].find()
    }
    for where, bucket in ledger.buckets.items():
        document = buckets.pop(where, None)
        if document is not None:
            del document["_id"]
        yield from _compare("score_buckets", where, bucket, document)
    yield from (f"score_buckets has {where} besides" for where in buckets)
    yield from _check_ranks(ledger, list(database["score_ranks"].find().sort("_id", 1)))
    yield from (f"{parked} is parked" for parked in database["score_parked"].find())


def _check_ranks(ledger: Ledger, documents: list[Document]) -> Iterator[str]:
    """Every user is counted once by either total, and where the total is."""
    for total in ("totalScore", "recomputedTotal"):
        scores = [user[total] for user in ledger.users.values()]
        low = -(2**63)
        for document in documents:
            if document["_id"]["total"] != total:
                continue
            expected = {
                "from": low,
                "above": sum(score > document["_id"]["to"] for score in scores),
                "tops": document["tops"],
                "users": [],
            }
            for top in document["tops"]:
                expected["users"].append(sum(low <= score <= top for score in scores))
                low = top + 1
            yield from _compare("score_ranks", document["_id"], expected, document)
        if scores and low != 2**63:
            yield f"score_ranks counts nobody by {total} from {low} points"


def check_refusals(protocols: Protocols, untold: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Nobody is refused, but while the event store was being replaced."""
    for call_id, call in protocols.calls.items():
        if call.error is not None and not _overlaps(call.began, call.ended, untold):
            yield f"{call_id} was refused: {call.error}"


def check_reads(
    protocols: Protocols, untold: Sequence[tuple[int, int]], counts: Counter[str]
) -> Iterator[str]:
    """Whoever has waited sees their own grant; ``untold`` are times when the store was replaced."""
    for read in protocols.reads:
        if _overlaps(read.began, read.ended, untold):
            counts["reads around a restore"] += 1
        elif read.error is not None:
            yield f"an application was told: {read.error}"
        else:
            counts["reads of one's own writes"] += 1
            if not read.found or read.total is None or read.total < (read.at_least or 0):
                yield f"an application did not see what it wrote: {read}"


def _overlaps(began: int, ended: int | None, times: Sequence[tuple[int, int]]) -> bool:
    return any((ended or began) >= first and began <= last for first, last in times)


def _compare(where: str, name: object, expected: Document, found: Document | None) -> Iterator[str]:
    if found is None:
        yield f"{where} lacks {name}: {expected}"
    elif {key: found.get(key) for key in expected} != expected:
        yield f"{where} has {found}, not {expected}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and value.get("_type_") == "datetime_iso":
        return value["_data_"]
    return value


def _same(stored: Any, asked: Any) -> bool:
    if stored == asked:
        return True
    return (
        isinstance(asked, str) and asked.startswith("2026-") and _moment(stored) == _moment(asked)
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _in_milliseconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
