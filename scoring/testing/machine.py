"""A state machine that drives any ``Scoring`` against a small model."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from eventsourcing.persistence import IntegrityError
from eventsourcing.popo import POPOApplicationRecorder
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scoring import conflicts
from scoring.application import SNAPSHOT_INTERVAL, Scoring
from scoring.contributions import Contribution
from scoring.errors import InvalidGrant
from scoring.grants import Grant
from scoring.receipts import ContributionReceipt, GrantReceipt, GrantStatus
from scoring.rules import normalised_user_id
from scoring.testing.expectation import expect
from scoring.testing.invalid import invalid_grants
from scoring.testing.model import LedgerModel
from scoring.testing.sequences import changed_payloads
from scoring.testing.store_reader import StoreReader
from scoring.testing.strategies import amounts, grant_ids, grants, keys, moments, user_ids
from scoring.user_score import UserScore

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

# Mostly few ids, so that they come again, also under other users and payloads.
_IDS: Final = st.one_of(
    st.sampled_from(tuple(f"grant-{number}" for number in range(8))), grant_ids()
)


@st.composite
def _new(draw: DrawFn) -> Grant:
    """Draw a grant whose id may be taken or not."""
    machine: ScoringMachine = draw(st.runner())
    return draw(machine.grant_strategy)


@st.composite
def _recorded(draw: DrawFn) -> Grant:
    """Draw a grant that is recorded already; a new one if none is."""
    machine: ScoringMachine = draw(st.runner())
    recorded = list(machine.model.grants.values())
    if not recorded:
        return draw(machine.grant_strategy)
    return recorded[draw(st.integers(0, len(recorded) - 1))]


@st.composite
def _conflicting(draw: DrawFn) -> Grant:
    """Draw a grant that contradicts a recorded one."""
    machine: ScoringMachine = draw(st.runner())
    return draw(changed_payloads(draw(_recorded()), users=machine.user_strategy))


@st.composite
def _batches(draw: DrawFn) -> list[Grant]:
    """Draw new grants, repetitions and conflicts, some of them twice in the batch."""
    batch = draw(_SMALL_BATCHES)
    repeated = batch[: draw(st.integers(0, 2))]
    return [*batch, *repeated] if draw(st.booleans()) else [*reversed(batch), *repeated]


# Few, so that buckets are overwritten.
_POSTS: Final = st.sampled_from(("content:feed-post:1", "content:feed-post:2"))
_BADGES: Final = st.sampled_from(("award:badge:1", "award:badge:2"))
_KEYS: Final = st.one_of(
    st.sampled_from(("telemetry:activity", "quiz:best")), _POSTS, _BADGES, keys()
)


@st.composite
def _contributed(
    draw: DrawFn, keys: SearchStrategy[str] = _KEYS, labels: tuple[str, str] | None = None
) -> Contribution:
    """Draw a contribution of one of the users, with a time, as the model has no clock."""
    machine: ScoringMachine = draw(st.runner())
    category, source = labels or (draw(_FEW_LABELS), draw(_FEW_LABELS))
    return Contribution(
        user_id=draw(machine.user_strategy),
        key=draw(keys),
        category=category,
        source=source,
        points=draw(st.one_of(st.integers(0, 2), amounts())),
        at=draw(moments()),
    )


def _id_in(key: str) -> str:
    return key.rpartition(":")[2]


_FEW_LABELS: Final = st.sampled_from(("content", "feed"))
_SMALL_BATCHES: Final = st.lists(st.one_of(_new(), _recorded(), _conflicting()), max_size=6)


class _FirstConflictOnly(logging.Filter):
    """Lets one conflict of the process be logged: a run makes thousands of them on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self._has_passed = False

    def filter(self, record: logging.LogRecord) -> bool:
        del record
        has_passed, self._has_passed = self._has_passed, True
        return not has_passed


_first_conflict_only: Final = _FirstConflictOnly()


class ScoringMachine(RuleBasedStateMachine):
    """Commands in any order, true and false repetitions, reloads, and snapshots between them.

    Drive your own application by overriding ``make_scoring()``, then hand the machine to your
    test runner::

        class BonusMachine(ScoringMachine):
            def make_scoring(self) -> Scoring:
                return BonusScoring()


        TestBonusScoring = BonusMachine.TestCase

    Rules and invariants of your own are added as methods, with hypothesis's decorators; a rule
    for a command of your own ends in ``self.compare(grants, receipts)`` or in
    ``self.compare_contributions(contributions, receipts)``.

    Most examples have conflicts. While a machine runs, only the first of a process is logged, so
    that the report of a failure can be read.

    Attributes:
        scoring: The application under test; a new object after every reload.
        model: What it is compared with.
        users: The normalised ids of the users of this example, one to four.
        user_strategy: Draws one of them.
        grant_strategy: What ``new_grants()`` returned for them.
    """

    def __init__(self) -> None:
        """Open the application on the empty store of a new example."""
        super().__init__()
        self.model = LedgerModel()
        self.users: list[str] = []
        self.scoring = self.make_scoring()
        self._store = StoreReader()
        self.user_strategy: SearchStrategy[str] = st.nothing()
        self.grant_strategy: SearchStrategy[Grant] = st.nothing()
        self._has_made_history = False
        conflicts.logger.addFilter(_first_conflict_only)

    def make_scoring(self) -> Scoring:
        """Return the application under test; override to test your own.

        It is called when an example begins, on a store that must be empty then, and again at
        every reload, when it must open the same store. (A store in memory is copied over by the
        machine.)
        """
        return Scoring()

    def new_grants(self) -> SearchStrategy[Grant]:
        """Return the strategy for the grants of ``self.users``; override to fit your own.

        It is called once in an example.
        """
        return grants(users=st.sampled_from(self.users), ids=_IDS)

    @initialize(users=st.lists(user_ids(), min_size=1, max_size=4))
    def choose_users(self, users: list[str]) -> None:
        """Settle on the users of this example."""
        self.users = sorted({normalised_user_id(user_id) for user_id in users})
        self.grant_strategy = self.new_grants()
        self.user_strategy = st.sampled_from(self.users)

    @rule(grant=_new())
    def grant(self, grant: Grant) -> None:
        """Award anything that is valid; its id may be taken."""
        receipt = self.scoring.grant(**grant.model_dump())
        self.compare([grant], [receipt])

    @rule(grant=_recorded())
    def grant_again(self, grant: Grant) -> None:
        """Repeat a recorded grant to the letter: a duplicate."""
        receipt = self.scoring.grant(**grant.model_dump())
        self.compare([grant], [receipt])

    @rule(grant=_conflicting())
    def contradict(self, grant: Grant) -> None:
        """Give a recorded id to another payload: a conflict."""
        receipt = self.scoring.grant(**grant.model_dump())
        self.compare([grant], [receipt])

    @rule(batch=_batches())
    def grant_many(self, batch: list[Grant]) -> None:
        """Award a batch in which users meet and ids repeat."""
        self.compare(batch, self.scoring.grant_many(batch))

    @rule(contribution=_contributed())
    def contribute(self, contribution: Contribution) -> None:
        """Set a bucket the old way; a grant-shaped key is granted the first time."""
        receipt = self.scoring.contribute(**contribution.model_dump())
        self.compare_contributions([contribution], [receipt])

    @rule(batch=st.lists(_contributed(), max_size=6))
    def contribute_many(self, batch: list[Contribution]) -> None:
        """Set buckets in a batch in which users and keys meet."""
        self.compare_contributions(batch, self.scoring.contribute_many(batch))

    @rule(contribution=_contributed(keys=_POSTS, labels=("content", "feed")))
    def feed_post(self, contribution: Contribution) -> None:
        """Contribute a feed post, perhaps one that was contributed or granted before."""
        user_id, points, at = contribution.user_id, contribution.points, contribution.at
        receipt = self.scoring.feed_post(user_id, _id_in(contribution.key), points, at)
        self.compare_contributions([contribution], [receipt])

    @rule(contribution=_contributed(keys=_BADGES, labels=("award", "badge")))
    def award_badge(self, contribution: Contribution) -> None:
        """Contribute a badge, likewise."""
        user_id, points, at = contribution.user_id, contribution.points, contribution.at
        receipt = self.scoring.award_badge(user_id, _id_in(contribution.key), points, at)
        self.compare_contributions([contribution], [receipt])

    @rule(user_index=st.integers(0, 3))
    def make_history(self, user_index: int) -> None:
        """Take a user past a snapshot of the application's own, once in an example."""
        if self._has_made_history:
            return
        self._has_made_history = True
        user_id = self.users[user_index % len(self.users)]
        batch = [
            Grant(
                user_id=user_id,
                grant_id=f"history-{number}",
                key="telemetry:activity",
                category="telemetry",
                source="history",
                amount=1 + number,
                granted_at=datetime(2024, 5, 1, tzinfo=UTC),
            )
            for number in range(SNAPSHOT_INTERVAL + 5)
        ]
        self.compare(batch, self.scoring.grant_many(batch))

    @rule(invalid=invalid_grants())
    def refuse(self, invalid: tuple[dict[str, Any], str]) -> None:
        """Offer what must be refused: nothing is written."""
        kwargs, field = invalid
        try:
            receipt = self.scoring.grant(**kwargs)
        except InvalidGrant as error:
            expect("field that is to blame", error.field, field)
        else:
            raise AssertionError(f"a grant with a wrong {field} was answered by {receipt}")
        expect("newly stored grants", self._store.read(self.scoring), {})

    @rule()
    def reload(self) -> None:
        """Go on with a fresh application on the same store, which remembers nothing else."""
        old = self.scoring
        if not isinstance(old.recorder, POPOApplicationRecorder):
            old.close()
            self.scoring = self.make_scoring()
            return
        self.scoring = self.make_scoring()
        everything = old.recorder.select_notifications(start=1, limit=2**31)
        self.scoring.recorder.insert_events(everything)
        if old.snapshots is not None and self.scoring.snapshots is not None:
            for user_id in self.users:
                stream = old.snapshots.get(UserScore.create_id(user_id))
                self.scoring.snapshots.put(list(stream))
        old.close()

    @rule(grant=_recorded())
    def take_snapshot(self, grant: Grant) -> None:
        """Force a snapshot of somebody who has grants."""
        if self.scoring.snapshots is not None and self.model.of(grant.user_id):
            with suppress(IntegrityError):  # one of this version is there already
                self.scoring.take_snapshot(UserScore.create_id(grant.user_id))

    @invariant()
    def every_balance_is_the_sum_of_the_grants(self) -> None:
        """Compare all that ``score_of()`` tells with the model."""
        for user_id in self.users:
            score = self.scoring.score_of(user_id)
            total = self.model.total(user_id)
            expect("total_score", score.total_score, total)
            expect("sum of categories", sum(score.category_totals.values()), total)
            expect("sum of sources", sum(score.source_totals.values()), total)
            for label, totals in (
                ("category", score.category_totals),
                ("source", score.source_totals),
            ):
                expect(f"{label}_totals", dict(totals), self.model.totals_by(label, user_id))
            recomputed = self.model.recomputed_total(user_id)
            expect("recomputed_total", score.recomputed_total, recomputed)
            expect("grant_count", score.grant_count, len(self.model.of(user_id)))

    def teardown(self) -> None:
        """Close the application."""
        self.scoring.close()
        conflicts.logger.removeFilter(_first_conflict_only)

    def compare(self, grants: list[Grant], receipts: list[GrantReceipt]) -> None:
        """Answer ``grants`` by the model and hold the receipts, and what was stored, against it.

        Args:
            grants: What one command awarded, in the order of the receipts.
            receipts: What it answered.

        Raises:
            AssertionError: if a receipt is not the truth.
        """
        expected = []
        for grant in grants:
            before = self.model.total(grant.user_id)
            status = self.model.grant(grant)
            expected.append((status, before, self.model.total(grant.user_id)))
        expect("number of receipts", len(receipts), len(grants))
        position_before = self._store.position
        written = self._store.read(self.scoring)
        newest: dict[str, int] = {}  # by user: within a batch, positions grow user by user
        recorded: dict[str, int] = {}
        for grant, receipt, (status, before, after) in zip(grants, receipts, expected, strict=True):
            expect("status", receipt.status, status)
            if status is GrantStatus.RECORDED:
                expect("totals", (receipt.total_before, receipt.total_after), (before, after))
                recorded[grant.grant_id] = receipt.position
                last_position = newest.get(grant.user_id, position_before)
                if receipt.position <= last_position:
                    raise AssertionError(f"{receipt} is not after position {last_position}")
                newest[grant.user_id] = receipt.position
                continue
            total = self.model.total(grant.user_id)
            expect("totals", (receipt.total_before, receipt.total_after), (total, total))
            self._store.expect_visible(grant.grant_id, receipt)
        expect("positions of what was stored", written, recorded)

    def compare_contributions(
        self, contributions: list[Contribution], receipts: list[ContributionReceipt]
    ) -> None:
        """Answer ``contributions`` by the model and hold receipts, and what was stored, against it.

        Args:
            contributions: What one command set, in the order of the receipts; with times.
            receipts: What it answered.

        Raises:
            AssertionError: if a receipt is not the truth.
        """
        expect("number of receipts", len(receipts), len(contributions))
        position_before = self._store.position
        self._store.read(self.scoring)
        recorded = {}
        for wanted, receipt in zip(contributions, receipts, strict=True):
            bucket = self.model.buckets.get((wanted.user_id, wanted.key))
            before = self.model.recomputed_total(wanted.user_id)
            status = self.model.contribute(wanted)
            after = self.model.recomputed_total(wanted.user_id)
            expect("status", receipt.status, status)
            totals = receipt.recomputed_before, receipt.recomputed_after
            expect("recomputed totals", totals, (before, after))
            if status is GrantStatus.RECORDED or bucket != wanted.bucket:
                recorded[receipt.position] = wanted.user_id, wanted.key, wanted.points
            elif not position_before <= receipt.position <= self._store.position:
                raise AssertionError(
                    f"{receipt} must be from {position_before} to {self._store.position}"
                )
        expect("what was stored, by position", self._store.stored, recorded)
