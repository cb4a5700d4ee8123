"""OpenTelemetry behind core/traces.py: spans in batches, by OTLP over HTTP, from a thread.

The only module that imports opentelemetry, loaded only where something is traced. A collector that
is away costs nothing but the spans: the queue is bounded, and the end waits for two seconds.
"""

import hashlib
import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.traces import NAMES, Headers, Kind, Value

_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}
_EXPORT_SECONDS = 5
_LAST_SECONDS = 2.0
_headers = TraceContextTextMapPropagator()  # no baggage: what clients put there stays there


class Telemetry:
    """Makes the spans of a process and sends them."""

    def __init__(self, process: str, url: str) -> None:
        named = {"service.namespace": "instructloop", "service.instance.id": str(os.getpid())}
        named["service.version"] = version("instructloop")
        if "OTEL_SERVICE_NAME" not in os.environ:
            named["service.name"] = f"instructloop-{process}"
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("instructloop")

    def span(
        self,
        name: str,
        attributes: Mapping[str, Value],
        *,
        kind: Kind,
        headers: Headers | None,
        trace_of: str,
    ) -> "Open":
        """A span that begins with its block."""
        parent = _parent(trace_of) if headers is None else _taken_in(headers)
        made = self._tracer.start_span(name, parent, _KINDS[kind], _allowed(attributes))
        return Open(made)

    def part(
        self, name: str, seconds: float, attributes: Mapping[str, Value], *, trace_of: str
    ) -> None:
        """A span that ends now."""
        began = time.time_ns() - int(seconds * 1e9)
        self._tracer.start_span(
            name, _parent(trace_of), attributes=_allowed(attributes), start_time=began
        ).end()

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes to the span that is open here."""
        trace.get_current_span().set_attributes(_allowed(attributes))

    def outgoing(self) -> dict[str, str]:
        """`traceparent`, and `tracestate` where a client gave one."""
        carrier: dict[str, str] = {}
        _headers.inject(carrier)
        return carrier

    def close(self) -> None:
        """Send what is left; a collector that is away holds nobody up."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_SECONDS)


class Open:
    """A span that is the current one of its block."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:  # what it says may quote a request
            self._span.set_status(Status(StatusCode.ERROR, kind.__name__))
        self._span.end()
        context.detach(self._token)

    def note(self, **attributes: Value) -> None:
        """Add attributes."""
        self._span.set_attributes(_allowed(attributes))

    def call(self, name: str) -> None:
        """Name it."""
        self._span.update_name(name)


def _allowed(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """By the names that they have outside. Raises KeyError for one that is none of ours."""
    return {NAMES[name]: value for name, value in attributes.items()}


def _taken_in(headers: Headers) -> Context:
    """The place in a client's trace that its headers say; none where they say nothing valid."""
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    return _headers.extract(carrier, Context())


def _parent(trace_of: str) -> Context | None:
    """The place in a trace that a name stands for, in every process; None for the current span."""
    if not trace_of:
        return None
    digest = hashlib.sha256(trace_of.encode()).digest()
    place = SpanContext(
        trace_id=int.from_bytes(digest[:16]),
        span_id=int.from_bytes(digest[16:24]),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(NonRecordingSpan(place), Context())
