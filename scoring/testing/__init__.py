"""Test tools for applications that embed the ledger: strategies, a state machine, given/when/then.

* Strategies for hypothesis: ``user_ids()``, ``grant_ids()``, ``keys()``, ``grant_shaped_keys()``,
  ``labels()``, ``amounts()``, ``moments()``, ``grants()``, ``grant_sequences()`` and
  ``invalid_grants()``.
* ``ScoringMachine`` drives any ``Scoring`` against ``LedgerModel``, two dictionaries.
* ``given(*events).when(command).then(*events)`` specifies what a command does to one user.

It needs hypothesis: install ``score-ledger[testing]``.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401 - only to say in one sentence what is missing
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ImportError(
        "scoring.testing needs hypothesis: install the extra score-ledger[testing]"
    ) from None

from scoring.testing.invalid import invalid_grants
from scoring.testing.machine import ScoringMachine
from scoring.testing.model import LedgerModel
from scoring.testing.sequences import changed_payloads, grant_sequences
from scoring.testing.specifications import (
    EventSketch,
    Outcome,
    Specification,
    bucket_set,
    given,
    grant_claimed,
    grant_recorded,
    user_created,
)
from scoring.testing.strategies import (
    amounts,
    grant_ids,
    grant_shaped_keys,
    grants,
    keys,
    labels,
    moments,
    user_ids,
)

__all__ = [
    "EventSketch",
    "LedgerModel",
    "Outcome",
    "ScoringMachine",
    "Specification",
    "amounts",
    "bucket_set",
    "changed_payloads",
    "given",
    "grant_claimed",
    "grant_ids",
    "grant_recorded",
    "grant_sequences",
    "grant_shaped_keys",
    "grants",
    "invalid_grants",
    "keys",
    "labels",
    "moments",
    "user_created",
    "user_ids",
]
