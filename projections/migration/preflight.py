"""What of an old collection would be taken, and what not: by reason, with examples and choices."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from projections.migration.old_users import RejectReason
from projections.migration.old_values import breaks_its_rule
from scoring.identity import is_grant_shaped

if TYPE_CHECKING:
    from projections.migration.old_users import OldReject, OldUser

EXAMPLES: Final = 3
"""So many of each reason are kept."""

_MAX_LABELS: Final = 100
_SUGGESTED: Final = 3

_MEND: Final = "nothing here: {} at the site, or do without"

_CHOICES: Final = {
    RejectReason.USER_MISSING: "--field user=PATH, if users are elsewhere",
    RejectReason.USER_NOT_TEXT: "--users-as-text takes ObjectIds, integers and UUIDs as their text",
    RejectReason.USER_INVALID: _MEND.format("rename the user"),
    RejectReason.USER_TWICE: _MEND.format("make one user of both"),
    RejectReason.BUCKETS_UNREADABLE: "--field buckets=PATH, if they are elsewhere",
    RejectReason.BUCKET_UNREADABLE: _MEND.format("mend the bucket"),
    RejectReason.KEY_MISSING: "--field key=PATH, if keys are elsewhere",
    RejectReason.KEY_INVALID: _MEND.format("rename the key wherever it is contributed"),
    RejectReason.KEY_TWICE: _MEND.format("keep one of them"),
    RejectReason.POINTS_MISSING: "--field points=PATH, if points are elsewhere",
    RejectReason.POINTS_NOT_A_NUMBER: _MEND.format("make a number of it"),
    RejectReason.POINTS_WHOLE: "--round whole takes 12.0 as 12",
    RejectReason.POINTS_FRACTION: "--round nearest takes 12.4 as 12, and 12.5 as 13",
    RejectReason.POINTS_NEGATIVE: _MEND.format("make it 0 or more"),
    RejectReason.POINTS_TOO_LARGE: _MEND.format("make it less"),
    RejectReason.TIME_MISSING: "--field at=PATH, if there is a time, and --granted-at TIME for all "
    "that have none",
    RejectReason.TIME_UNREADABLE: _MEND.format("make it a date"),
    RejectReason.TOTAL_UNREADABLE: "none is needed: totals are only compared",
}


@dataclass
class Refusal:
    """What is refused for one reason.

    Attributes:
        reason: Why.
        count: How many values.
        examples: The first of them.
        labels: For labels, which there are and how often; of the first hundred different ones.
    """

    reason: RejectReason
    count: int = 0
    examples: list[OldReject] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, reject: OldReject) -> None:
        """Count one."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(reject)
        if self.reason is RejectReason.LABEL_INVALID:
            label = str(reject.value)
            if label in self.labels or len(self.labels) < _MAX_LABELS:
                self.labels[label] += 1

    @property
    def choice(self) -> str:
        """The option that takes these, where that is safe to choose; in words."""
        if self.reason is RejectReason.LABEL_MISSING:
            key = str(self.examples[0].key or "")
            kind = key.partition(":")[0]
            pattern = f"{kind}:*" if ":" in key else "*"
            return f"--labels '{pattern}=CATEGORY/SOURCE' for keys like these"
        if self.reason is RejectReason.LABEL_INVALID:
            options = [f"--label-map '{label}={suggested(label)}'" for label in self.labels]
            more = len(options) - _SUGGESTED
            return " ".join(options[:_SUGGESTED]) + (
                f" and {more} more, or --label-map FILE" if more > 0 else ""
            )
        return _CHOICES[self.reason]


@dataclass
class Preflight:
    """Counts what has been read of an old collection; its memory is bounded.

    Attributes:
        users: Users that can be taken.
        buckets: Their buckets that can be taken.
        grants: How many of these become grants.
        points: The sum of all buckets that can be taken, in points.
        rejected: Buckets that cannot be taken, or whole users of whom nothing can.
        other_totals: Users whose old total is not the sum of the buckets that can be taken.
        refusals: By reason.
    """

    users: int = 0
    buckets: int = 0
    grants: int = 0
    points: int = 0
    rejected: int = 0
    other_totals: int = 0
    refusals: dict[RejectReason, Refusal] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything can be taken."""
        return not self.rejected

    def add(self, user: OldUser) -> None:
        """Count one user."""
        for reject in (*user.rejects, *user.untimed.values()):
            self.refusals.setdefault(reject.reason, Refusal(reject.reason)).add(reject)
        self.rejected += len(rejected_buckets(user))
        if user.user_id is None:
            return
        self.users += 1
        taken = [each for key, each in user.buckets.items() if key not in user.untimed]
        self.buckets += len(taken)
        self.grants += sum(1 for each in taken if each.points and is_grant_shaped(each.key))
        points = sum(each.points for each in taken)
        self.points += points
        self.other_totals += user.total is not None and user.total != points

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that JSON has."""
        return {
            "users": self.users,
            "buckets": self.buckets,
            "grants": self.grants,
            "points": self.points,
            "refused": self.rejected,
            "other_totals": self.other_totals,
            "refusals": [
                {
                    "reason": str(refusal.reason),
                    "count": refusal.count,
                    "choice": refusal.choice,
                    "examples": [
                        {
                            "user_id": each.user_id,
                            "document_id": str(each.document_id),
                            "path": each.path,
                            "value": repr(each.value),
                        }
                        for each in refusal.examples
                    ],
                }
                for refusal in self.in_order()
            ],
        }

    def in_order(self) -> list[Refusal]:
        """Return the refusals, the most frequent first."""
        return sorted(self.refusals.values(), key=lambda each: (-each.count, each.reason))


def rejected_buckets(user: OldUser) -> list[OldReject]:
    """Return the first reject of each bucket that cannot be taken; a total is no bucket."""
    first: dict[tuple[str, str], OldReject] = {}
    for reject in (*user.rejects, *user.untimed.values()):
        if reject.reason is not RejectReason.TOTAL_UNREADABLE:
            first.setdefault((repr(reject.document_id), reject.place), reject)
    return list(first.values())


def suggested(label: str) -> str:
    """Return a label that the ledger takes and that looks like one that it does not."""
    plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-").lstrip("0123456789-")[:32]
    return "LABEL" if breaks_its_rule("category", plain) else plain
