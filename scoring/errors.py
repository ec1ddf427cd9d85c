"""The errors this package raises; each carries its data.

LedgerError
├── InvalidSetting (a ValueError, too)
├── ScoringError
│   ├── InvalidGrant (a ValueError, too)
│   ├── BatchFailed
│   ├── EventStoreNotOpened
│   └── StreamHasGap
└── ProjectionError (those of the read side, in projections.errors)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from scoring.receipts import ReceiptT

if TYPE_CHECKING:
    from collections.abc import Sequence


class LedgerError(Exception):
    """The ledger cannot do what was asked: the base of all errors of ours.

    A bad argument is a ``TypeError`` or a ``ValueError`` instead, or both kinds in one.
    """

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the message and the data, so that an error crosses process borders whole."""
        # Not as exceptions do by default: they are made again from the message alone.
        return _blank, (type(self), self.args), vars(self)


class InvalidSetting(LedgerError, ValueError):
    """A setting, from an argument or the environment, cannot be used.

    Attributes:
        name: The variable, e.g. ``"SCORE_LEDGER_BATCH_SIZE"``; where a whole event store cannot be
            understood, the variables that name it.
        reason: Why, in words.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name} is not usable: {reason}")


class ScoringError(LedgerError):
    """A command could not be carried out; the message is one sentence with the cure."""


class EventStoreNotOpened(ScoringError):
    """The event store, or a part of it, cannot be opened.

    Attributes:
        reason: Why, in the store's own words.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the event store cannot be opened: {reason}")


class InvalidGrant(ScoringError, ValueError):
    """A grant breaks a rule, so nothing was written.

    Attributes:
        field: The name of the field that breaks the rule, e.g. ``"amount"``.
        value: The value that was given.
        rule: The rule in words, e.g. ``"an integer from 1 to 1000000000"``.
    """

    def __init__(self, *, field: str, value: object, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{field} must be {rule}; got {_shortened(value)}")


class StreamHasGap(ScoringError):
    """A user's stream lacks versions, though later ones are there, so nothing is known of its sums.

    Nothing was written. ``Scoring.close_gaps`` makes the stream readable again, without the points
    that are lost; restoring the right backup brings these back.

    Attributes:
        user_id: Whose stream it is.
        missing: The versions of the first gap.
    """

    def __init__(self, user_id: str, missing: range) -> None:
        self.user_id = user_id
        self.missing = missing
        super().__init__(
            f"the stream of user {user_id!r} lacks {versions_in_words(missing)}, though later ones "
            "are there: the event store was put back to an earlier state and then written to; "
            "restore the right backup, or give the lost points up with Scoring.close_gaps()"
        )


class BatchFailed(ScoringError, Generic[ReceiptT]):
    """``grant_many`` or ``contribute_many`` stopped part-way; what was recorded before stays.

    Attributes:
        receipts_so_far: Receipts of everything before the failing chunk, in input order; exactly
            these were answered for, nothing of the failing chunk was recorded. If what failed is
            of a user whose stream has a gap, they are those of everything before it.
        index: Zero-based index, in the input, of what failed (of the first of the failing chunk
            when the event store failed).
        reason: Why, in words.
        command: What was to be recorded: ``"grant"`` or ``"contribution"``.
    """

    def __init__(
        self, receipts_so_far: Sequence[ReceiptT], index: int, reason: str, command: str = "grant"
    ) -> None:
        self.receipts_so_far: list[ReceiptT] = list(receipts_so_far)
        self.index = index
        self.reason = reason
        self.command = command
        super().__init__(
            f"{command} {index} failed after {len(self.receipts_so_far)} receipts: {reason}"
        )


def _blank(cls: type[LedgerError], args: tuple[object, ...]) -> LedgerError:
    return cls.__new__(cls, *args)


def versions_in_words(versions: range) -> str:
    """Return ``version 7`` or ``versions 7 to 11``."""
    if len(versions) == 1:
        return f"version {versions.start}"
    return f"versions {versions.start} to {versions.stop - 1}"


def _shortened(value: object, *, limit: int = 80) -> str:
    # The value may be megabytes of text, an integer too long for Python to print, or hostile.
    try:
        text = ascii(value[:limit] if isinstance(value, str) else value)
    except Exception:  # noqa: BLE001 - what cannot be printed must still be refused
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= limit else text[: limit - 1] + "…"
