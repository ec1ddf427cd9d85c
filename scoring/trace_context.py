"""Which trace a command belongs to; OpenTelemetry is looked for, and done without."""

from __future__ import annotations

try:
    from opentelemetry import trace
except ModuleNotFoundError:

    def current_traceparent() -> str | None:
        """Return ``None``: without OpenTelemetry there is no current span."""
        return None

else:

    def current_traceparent() -> str | None:
        """Return the current span as a ``traceparent``, or ``None`` if there is none that is valid.

        Its form is that of the W3C recommendation Trace Context, version 00.
        """
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
