"""OpenTelemetry metrics of the ledger: how grants were answered, and how the projection keeps up.

Only ``opentelemetry-api`` is needed (the extra ``tracing``); without it nothing is counted. No
attribute carries a user's or a grant's id.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakKeyDictionary

from projections.telemetry.tracing import INSTALLED, SCHEMA_URL, SCOPE
from scoring import GrantStatus, LedgerError

if INSTALLED:
    from opentelemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

    from projections.status import LedgerStatus
    from scoring import GrantReceipt

_GAUGES: Final[dict[str, tuple[Callable[[LedgerStatus], int | None], str, str]]] = {
    "score_ledger.projection.lag": (
        lambda status: status.lag_events,
        "{event}",
        "Events between the newest one and the tracked position, claims included.",
    ),
    "score_ledger.projection.parked_users": (
        lambda status: status.parked_count,
        "{user}",
        "Users whose streams are parked at an event that cannot be projected.",
    ),
    "score_ledger.projection.foreign_grants": (
        lambda status: status.foreign_grants,
        "{grant}",
        "Grants that met a foreign document in their place and were not added.",
    ),
    "score_ledger.projection.event_store_replaced": (
        lambda status: int(status.event_store_replaced is not None),
        "1",
        "1 if the event store is not the one that was projected so far, or went back; else 0.",
    ),
}
"""By name: what of a status it shows, its unit, and what it means."""

_BATCH_SIZES: Final = [0, 1, 10, 50, 100, 500, 1000, 2500, 5000, 10_000, 20_000, 40_000]
_SECONDS: Final = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

_BY_STATUS: Final = {status: {"score_ledger.grant.status": status.value} for status in GrantStatus}


class _Ledger(Protocol):
    def status(self) -> LedgerStatus: ...


_ledgers: WeakKeyDictionary[_Ledger, str] = WeakKeyDictionary()


def observe(ledger: _Ledger, *, namespace: str) -> None:
    """Show this ledger's status in the gauges, under its database, as long as it is open."""
    _ledgers[ledger] = namespace


if INSTALLED:
    _meter = metrics.get_meter(SCOPE, schema_url=SCHEMA_URL)
    _grants = _meter.create_counter(
        "score_ledger.grants", unit="{grant}", description="Grants answered, by status."
    )
    _batch_size = _meter.create_histogram(
        "score_ledger.projection.batch.size",
        unit="{grant}",
        description="Grants in one transaction of the projection.",
        explicit_bucket_boundaries_advisory=_BATCH_SIZES,
    )
    _batch_duration = _meter.create_histogram(
        "score_ledger.projection.batch.duration",
        unit="s",
        description="Duration of one transaction of the projection, retries included.",
        explicit_bucket_boundaries_advisory=_SECONDS,
    )
    _conflicts = _meter.create_counter(
        "score_ledger.projection.conflicts",
        unit="{batch}",
        description="Batches that were not applied because another worker was faster.",
    )

    def _observer(
        value_of: Callable[[LedgerStatus], int | None],
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(options: CallbackOptions) -> list[Observation]:
            del options
            seen = []
            for ledger, namespace in list(_ledgers.items()):
                try:
                    value = value_of(ledger.status())
                except LedgerError:
                    continue  # closed, or a store is away: no value is better than a wrong one
                if value is None:
                    continue
                seen.append(metrics.Observation(value, {"db.namespace": namespace}))
            return seen

        return observed

    for _name, (_value_of, _unit, _description) in _GAUGES.items():
        _meter.create_observable_gauge(
            _name, callbacks=[_observer(_value_of)], unit=_unit, description=_description
        )


def count_grants(receipts: Iterable[GrantReceipt]) -> None:
    """Count how grants were answered."""
    if INSTALLED:
        for status, number in Counter(receipt.status for receipt in receipts).items():
            _grants.add(number, _BY_STATUS[status])


def count_batch(*, grants: int, seconds: float) -> None:
    """Count a batch that was applied."""
    if INSTALLED:
        _batch_size.record(grants)
        _batch_duration.record(seconds)


def count_conflict() -> None:
    """Count a batch that another worker was faster with."""
    if INSTALLED:
        _conflicts.add(1)
