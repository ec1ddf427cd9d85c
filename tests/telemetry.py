"""Spans and metrics of a test, taken by OpenTelemetry's own SDK in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult


class _Switch(Sampler):
    """Takes spans only while a test listens: the others would keep them all in memory."""

    on = False

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return (ALWAYS_ON if self.on else ALWAYS_OFF).should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "on while a test listens"


class Telemetry:
    """The providers of the process, and what they were given."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._switch = _Switch()
        provider = TracerProvider(sampler=self._switch)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(provider)
        delta = AggregationTemporality.DELTA
        self._reader = InMemoryMetricReader(
            preferred_temporality={Counter: delta, Histogram: delta}
        )
        metrics.set_meter_provider(MeterProvider([self._reader]))

    @contextmanager
    def listening(self) -> Iterator[None]:
        self._exporter.clear()
        self._reader.get_metrics_data()
        self._switch.on = True
        yield
        self._switch.on = False
        self._exporter.clear()

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def spans_named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def metrics(self) -> dict[str, list[Any]]:
        """Data points by name, since the last time or the beginning of the test."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
