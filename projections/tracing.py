"""OpenTelemetry spans around repositories and batches; nothing at all where nobody listens.

Only ``opentelemetry-api`` is needed (the extra ``tracing``). Without it, and as long as no SDK has
set a tracer provider, calls go straight through.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Final, TypeVar

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:
    INSTALLED = False
else:
    INSTALLED = True
    _SILENT_PROVIDERS = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.trace import Link, SpanKind

T = TypeVar("T")

SCOPE: Final = "score_ledger"
"""Name of the instrumentation scope of all spans and metrics."""

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.34.0"

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
    """Tell whether anybody takes spans: a no-operation span still costs about 20 microseconds."""
    return INSTALLED and not isinstance(trace.get_tracer_provider(), _SILENT_PROVIDERS)


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind,
    attributes: Mapping[str, str | int],
    links: Iterable[Link] = (),
) -> Iterator[None]:
    """Do something in a span that says whether and how it failed; for when one is listened to."""
    tracer = trace.get_tracer(SCOPE, schema_url=SCHEMA_URL)
    # The SDK records the exception and sets the status.
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, links=list(links)
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute("error.type", type(error).__qualname__)
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
        if not is_listened_to():
            return method(*args, **kwargs)
        with span(name, kind=trace.SpanKind.CLIENT, attributes=attributes):
            return method(*args, **kwargs)

    return in_span


def links_to(traceparents: Iterable[str | None]) -> list[Link]:
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
