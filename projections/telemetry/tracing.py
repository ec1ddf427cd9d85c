"""OpenTelemetry spans around repositories and batches; nothing at all where nobody listens.

Only ``opentelemetry-api`` is needed (the extra ``tracing``). Without it, and as long as no SDK has
set a tracer provider, calls go straight through.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from inspect import isfunction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

SCOPE: Final = "score_ledger"
"""Name of the instrumentation scope of all spans and metrics."""

MONGODB: Final = "mongodb"
"""The ``db.system.name`` of what is done to the read model."""

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.34.0"

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:
    INSTALLED = False
else:
    INSTALLED = True
    # A tracer of the API, which turns to the SDK's as soon as a provider is set.
    _tracer = trace.get_tracer(SCOPE, schema_url=SCHEMA_URL)
    _SILENT_PROVIDERS = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Link, Span

T = TypeVar("T")

MAX_LINKS: Final = 64
"""A batch names so many of the commands it projects; the SDK's own limit is 128 by default."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a repository's method does to its database.

    Attributes:
        operation: The ``db.operation.name``, e.g. ``find``.
        collection: The ``db.collection.name``, e.g. ``score_grants``.
    """

    operation: str
    collection: str


@dataclass(frozen=True, slots=True)
class Store:
    """Where a repository keeps its data.

    Attributes:
        system: The ``db.system.name``, e.g. ``mongodb``.
        namespace: The ``db.namespace``: the database.
        collection: The collection of methods that are not among ``calls``.
        calls: By method, what it does.
    """

    system: str
    namespace: str
    collection: str
    calls: Mapping[str, Call]


def is_listened_to() -> bool:
    """Tell whether anybody takes spans, before work is done for one."""
    return INSTALLED and not isinstance(trace.get_tracer_provider(), _SILENT_PROVIDERS)


def batch_span(
    name: str, *, attributes: Mapping[str, str | int], traceparents: Iterable[str | None]
) -> AbstractContextManager[None]:
    """Return a context in which to apply a batch, a span that links to the commands behind it."""
    if not is_listened_to():
        return nullcontext()
    return _running(
        _tracer.start_span(
            name, kind=trace.SpanKind.CONSUMER, attributes=attributes, links=_links_to(traceparents)
        )
    )


@contextmanager
def _running(span: Span) -> Iterator[None]:
    """Do something in a span that says whether and how it failed."""
    # The SDK records the exception and sets the status.
    with trace.use_span(span, end_on_exit=True):
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            raise


def traced(repository: type[T], store: Store) -> type[T]:
    """Return a repository class whose public methods are spans, as database calls of a client.

    Names and attributes are those of OpenTelemetry's semantic conventions for databases. None
    carries a user's or a grant's id, so there are only ever as many as there are methods.
    """
    if not INSTALLED:
        return repository
    methods = {
        name: _in_span(method, store.calls.get(name) or Call(name, store.collection), store)
        for base in reversed(repository.__mro__)
        for name, method in vars(base).items()
        if isfunction(method) and not name.startswith("_")
    }
    # A subclass, so that whoever asks what it is gets the right answer.
    return type(repository.__name__, (repository,), {"__doc__": repository.__doc__, **methods})


def traced_methods(target: object, store: Store) -> SimpleNamespace:
    """Return the methods of an object that ``store.calls`` names, each a span, and nothing else."""
    methods = {name: getattr(target, name) for name in store.calls}
    if INSTALLED:
        methods = {name: _in_span(m, store.calls[name], store) for name, m in methods.items()}
    return SimpleNamespace(**methods)


def _in_span(method: Callable[..., Any], call: Call, store: Store) -> Callable[..., Any]:
    name = f"{call.operation} {call.collection}"
    attributes = {
        "db.system.name": store.system,
        "db.namespace": store.namespace,
        "db.collection.name": call.collection,
        "db.operation.name": call.operation,
        "code.function.name": f"{method.__module__}.{method.__qualname__}",
    }

    @wraps(method)
    def in_span(*args: Any, **kwargs: Any) -> Any:
        span = _tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        if not span.get_span_context().is_valid:
            # Nobody listens. Making it the current span would cost ten times as much as asking.
            return method(*args, **kwargs)
        with _running(span):
            return method(*args, **kwargs)

    return in_span


def _links_to(traceparents: Iterable[str | None]) -> list[Link]:
    """Return links to the first ``MAX_LINKS`` different spans; what cannot be read is left out."""
    different: dict[str, None] = {}
    for traceparent in traceparents:
        if traceparent is not None:
            different[traceparent] = None
            if len(different) == MAX_LINKS:
                break
    links = []
    for traceparent in different:
        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        span_context = trace.get_current_span(context).get_span_context()
        if span_context.is_valid:
            links.append(trace.Link(span_context))
    return links
