"""Comparing an old collection with the ledger's recomputed side, while both are being written.

Both are read once, sorted by user, and merged. Whatever differs then is a suspect, not a
difference: a call may be between its two writes, and the two sides are not read at one instant.
Suspects are looked at again, both sides anew, until they are the same or have stood still from one
look to the next, with a pause between. So nothing depends on the order in which the two sides sort
their users but the time it takes: whoever comes out of order is a suspect, too.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Final

from projections.errors import ProjectionError
from projections.joins import outer_join
from projections.migration.comparison_report import (
    MAX_DIFFERENCES,
    Comparison,
    ComparisonProgress,
    ScoreDifference,
)
from projections.migration.key_history import KeyHistory, read_histories
from projections.migration.ledger_scores import LedgerScores, LedgerUser
from projections.migration.old_users import OldReject, OldUser
from projections.migration.pairs import (
    BucketPair,
    Pair,
    TotalPair,
    by_key,
    comparable_key,
    differing_pairs,
    repairing,
    without_place,
)
from projections.migration.suspects import Suspect, Suspects
from scoring import BatchFailed, GrantStatus, InvalidGrant, StreamHasGap
from scoring.contributions import Bucket, Contribution
from scoring.identity import claim_stream_id, derived_grant_id, is_grant_shaped
from scoring.retries import read_event_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pymongo import MongoClient
    from pymongo.client_session import ClientSession

    from projections.migration.old_glance import OldGlance
    from projections.migration.old_scores import OldScores
    from projections.mongo.collections import Document
    from projections.mongo.read_model import ReadModel
    from scoring import ContributionReceipt, Scoring

SETTLE_SECONDS: Final = 5.0
"""How long a difference has to stand still, unless somebody says otherwise."""

_STEP_SECONDS: Final = 0.25
_MAX_LOOKS: Final = 10
_MAX_REPAIRS: Final = 3
_USERS_TOLD_AT_ONCE: Final = 1000
_NOTHING: Final = LedgerUser(0, {})


_Buckets = dict[tuple[str, str], Bucket]


@dataclass(slots=True)
class _Repair:
    suspect: Suspect
    difference: ScoreDifference
    contribution: Contribution


class OldComparison:
    """Compares one old collection with one ledger; used once."""

    def __init__(
        self,
        old: OldScores,
        client: MongoClient[Document],
        app: Scoring,
        read_model: ReadModel,
        *,
        catch_up: Callable[[], object],
        contribute_many: Callable[[Iterable[Contribution]], list[ContributionReceipt]] | None,
        settle_seconds: float,
        on_difference: Callable[[ScoreDifference], None] | None,
        on_progress: Callable[[ComparisonProgress], None] | None,
    ) -> None:
        """Prepare to compare; see ``ScoreLedger.compare``.

        ``catch_up`` returns when everything recorded so far is projected; ``contribute_many``
        repairs, and is ``None`` to leave everything as it is.
        """
        self._old = old
        self._client = client
        self._app = app
        self._read_model = read_model
        self._catch_up = catch_up
        self._contribute_many = contribute_many
        self._settle_seconds = settle_seconds
        self._on_difference = on_difference
        self._on_progress = on_progress
        self._outcome = Comparison(datetime.now(UTC), settle_seconds)
        self._suspects = Suspects()
        self._old_buckets = 0

    def run(self) -> Comparison:
        """Compare, and repair if that is wanted.

        Raises:
            ProjectionError: if there is nothing to repair from.
            ReadModelUnavailable: if MongoDB failed.
            ScoringError: if the event store failed.
        """
        with self._suspects:
            self._catch_up()
            self._read_model.generations.consistently(self._scan, seconds=None)
            repairs = self._contribute_many is not None
            if repairs and self._old_buckets == 0 < self._outcome.buckets:
                # More likely a name that is wrong than a site without scores.
                raise ProjectionError(
                    f"there is not one bucket to be found in the old collection "
                    f"{self._old.collection}, so everything would be repaired to 0: check the "
                    "names in its description; nothing was changed"
                )
            self._settle()
            return self._outcome

    def _scan(self, session: ClientSession) -> None:
        """Read everything once, and put down what differs; perhaps once more, from the start."""
        outcome = self._outcome = Comparison(datetime.now(UTC), self._settle_seconds)
        self._suspects.clear()
        self._old_buckets = 0
        documents = self._old.count(self._client)
        ledger_users = LedgerScores(self._read_model, session).users()
        for user_id, old, ledger in outer_join(self._old_users(), ledger_users):
            self._scan_user(user_id, old, ledger or _NOTHING)
            if outcome.users % _USERS_TOLD_AT_ONCE == 0:
                done = outcome.buckets if self._old.buckets is None else outcome.users
                self._tell_progress("comparing", done, documents)

    def _old_users(self) -> Iterator[tuple[str, OldGlance]]:
        """Yield the users of the old collection, sorted as Python sorts their ids."""
        last = ""
        for user in self._old.glance(self._client):
            if user.user_id is None:
                for reject in user.take().rejects:
                    self._report(without_place(reject))
            elif user.user_id > last:
                last = user.user_id
                yield last, user
            else:
                # MongoDB sorts ObjectIds and numbers otherwise than their texts.
                pairs = differing_pairs(self._taken(user), _NOTHING)
                self._suspects.put(Suspect(user.user_id, pair.key) for pair in pairs)

    def _taken(self, glance: OldGlance) -> OldUser:
        """Take what is acceptable, and report what cannot be looked for in the ledger."""
        old = glance.take()
        self._old_buckets += len(old.buckets)
        for reject in old.rejects:
            if comparable_key(reject) is None:
                self._report(without_place(reject))
        return old

    def _scan_user(self, user_id: str, glance: OldGlance | None, ledger: LedgerUser) -> None:
        outcome = self._outcome
        outcome.users += 1
        outcome.ledger_points += ledger.total
        plain, total = glance.look() if glance is not None else (None, None)
        if (
            plain == ledger.buckets
            and total in {None, ledger.total}
            and ledger.total == ledger.sum()
        ):
            # As nearly always, and quickly: what is as in the ledger need not be checked.
            self._old_buckets += len(ledger.buckets)
            outcome.buckets += len(ledger.buckets)
            outcome.old_points += ledger.total
            return
        old = OldUser(user_id) if glance is None else self._taken(glance)
        outcome.buckets += len(old.buckets.keys() | ledger.buckets.keys())
        outcome.old_points += TotalPair.of(old, ledger).old
        self._suspects.put(
            Suspect(user_id, pair.key, pair.seen) for pair in differing_pairs(old, ledger)
        )

    def _settle(self) -> None:
        """Look again at what differs, until all of it is decided."""
        total = left = len(self._suspects)
        while left:
            self._tell_progress("looking again", total - left, total)
            self._let_calls_end()
            for page in self._suspects.pages():
                self._look(page)
            left = len(self._suspects)

    def _let_calls_end(self) -> None:
        # In steps: while the machine is paused, so may be those who write.
        steps = math.ceil(self._settle_seconds / _STEP_SECONDS)
        for _ in range(steps):
            time.sleep(self._settle_seconds / steps)

    def _look(self, page: list[Suspect]) -> None:
        pairs = self._read_again(page)
        changed, decided = [], []
        settled: list[tuple[Suspect, Pair]] = []
        for suspect, pair in zip(page, pairs, strict=True):
            if not pair.differs:
                decided.append(suspect)
                self._outcome.passed += not suspect.repairs
            elif pair.seen != suspect.seen:
                if suspect.looks < _MAX_LOOKS:
                    looks = suspect.looks + 1
                    changed.append(suspect._replace(seen=pair.seen, looks=looks))
                else:
                    decided.append(suspect)
                    self._outcome.in_flight += 1
            else:
                settled.append((suspect, pair))
        repairs = []
        for user_id, some in groupby(settled, key=lambda it: it[1].user_id):
            repairs += self._decide(user_id, list(some))
        repaired = self._repair(repairs)
        decided += [suspect for suspect, _ in settled if suspect not in repaired]
        self._suspects.drop(decided)
        self._suspects.put([*changed, *repaired.values()])

    def _read_again(self, page: list[Suspect]) -> list[Pair]:
        """Read both sides anew; what was recorded before that is projected."""
        wanted: dict[str, set[str]] = {}
        for suspect in page:
            wanted.setdefault(suspect.user_id, set()).add(suspect.key)
        olds: dict[tuple[str, str], Contribution | OldReject | None] = {}
        totals = {each.user_id: OldUser(each.user_id) for each in page if not each.key}
        for user in self._old.read(self._client, users=wanted):
            if user.user_id is None:
                continue
            theirs = by_key(user)
            for key in wanted.get(user.user_id, ()):
                olds[user.user_id, key] = theirs.get(key)
            if user.user_id in totals:
                totals[user.user_id] = user
        self._catch_up()

        def read(session: ClientSession) -> tuple[_Buckets, dict[str, LedgerUser]]:
            scores = LedgerScores(self._read_model, session)
            return (
                scores.buckets((each.user_id, each.key) for each in page if each.key),
                scores.totals(totals),
            )

        buckets, ledgers = self._read_model.generations.consistently(read)
        places = ((each.user_id, each.key) for each in page)
        return [
            BucketPair(*place, olds.get(place), buckets.get(place))
            if place[1]
            else TotalPair.of(totals[place[0]], ledgers[place[0]])
            for place in places
        ]

    def _decide(self, user_id: str, settled: list[tuple[Suspect, Pair]]) -> list[_Repair]:
        """Report what stays, and return what is to be repaired."""
        is_shown = len(self._outcome.differences) < MAX_DIFFERENCES
        asked = {
            pair.key: pair.old_bucket
            for _, pair in settled
            if isinstance(pair, BucketPair) and pair.ledger and (pair.old_bucket or is_shown)
        }
        histories = read_histories(self._app, user_id, asked) if asked else {}
        repairs = []
        for suspect, pair in settled:
            difference = pair.difference(histories.get(pair.key, KeyHistory()))
            if self._contribute_many is None:
                self._report(difference)
                continue
            if suspect.repairs >= _MAX_REPAIRS:
                reason = f"it differed again, though it was repaired {suspect.repairs} times"
                self._report(replace(difference, reason=reason))
                continue
            contribution = repairing(pair)
            if contribution is not None and self._needs_time(contribution):
                reason = "it becomes a grant, and nothing says when it was earned: give that"
                difference, contribution = replace(difference, reason=reason), None
            if contribution is None:
                self._report(difference)
            else:
                repairs.append(_Repair(suspect, difference, contribution))
        return repairs

    def _needs_time(self, contribution: Contribution) -> bool:
        """Tell whether it makes a grant without saying when that was earned."""
        user_id, key = contribution.user_id, contribution.key
        if contribution.at is not None or not contribution.points or not is_grant_shaped(key):
            return False
        claim = claim_stream_id(derived_grant_id(user_id, key))
        return not read_event_store(lambda: self._app.recorder.select_events(claim, limit=1))

    def _repair(self, repairs: list[_Repair]) -> dict[Suspect, Suspect]:
        """Contribute, and return which suspects were repaired, as they are to be known now."""
        repaired = {}
        while repairs and self._contribute_many is not None:
            try:
                receipts = self._contribute_many([each.contribution for each in repairs])
            except BatchFailed as failed:
                if not isinstance(failed.__cause__, InvalidGrant | StreamHasGap):
                    raise
                receipts = failed.receipts_so_far
                refused = repairs.pop(failed.index)
                self._report(replace(refused.difference, reason=failed.reason))
            for each, receipt in zip(repairs, receipts, strict=False):
                suspect = each.suspect
                if not suspect.repairs:
                    self._report(replace(each.difference, repaired=True))
                    self._outcome.conflicts += receipt.status is GrantStatus.CONFLICT
                # Whoever wrote the key at the same time may have been overwritten by this.
                repaired[suspect] = suspect._replace(seen="", repairs=suspect.repairs + 1)
            repairs = repairs[len(receipts) :]
        return repaired

    def _report(self, difference: ScoreDifference) -> None:
        self._outcome.report(difference)
        if self._on_difference is not None:
            self._on_difference(difference)

    def _tell_progress(self, stage: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(ComparisonProgress(stage, done, max(done, total)))
