"""OpenTelemetry traces: what a request, a swap or a stage of learning took, and where.

Off unless an endpoint is set; then nothing of OpenTelemetry is even imported (core/telemetry.py
does that) and each call here costs a comparison. Attributes are the few names below, so that no
prompt, answer, user or key can become one; of an exception only the type is told. W3C's
`traceparent` is taken in from clients and handed to engines, whose vLLM continues the trace.
"""

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Literal, Protocol, Self
from urllib.parse import urlsplit

from core.errors import StartError
from core.settings import Settings

Kind = Literal["internal", "server", "client"]
Value = str | int | float | bool
Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them."""
NAMES = {
    "route": "http.route",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "completion_id": "gen_ai.response.id",
    "request_id": "instructloop.request_id",
    "version": "instructloop.policy_version",
    "replica": "instructloop.replica",
    "run": "instructloop.run",
    "stage": "instructloop.stage",
    "outcome": "instructloop.outcome",
}
"""Every attribute that a span of ours may have, by the name it has in the code."""


class Span(Protocol):
    """A span as a `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def note(self, **attributes: Value) -> None:
        """Add attributes, by the names of `NAMES`."""

    def call(self, name: str) -> None:
        """Name it, when that is known."""


class Tracer(Protocol):
    """What core/telemetry.py gives."""

    def span(
        self,
        name: str,
        attributes: Mapping[str, Value],
        *,
        kind: Kind,
        headers: Headers | None,
        trace_of: str,
    ) -> Span:
        """A span that begins with its block."""

    def part(
        self, name: str, seconds: float, attributes: Mapping[str, Value], *, trace_of: str
    ) -> None:
        """A span that ends now."""

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes to the span that is open here."""

    def outgoing(self) -> dict[str, str]:
        """Headers that hand the trace on."""

    def close(self) -> None:
        """Send what is left, for a bounded time."""


class _Nothing:
    """The span of a process that is not traced."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, **_: Value) -> None:
        return None

    def call(self, name: str) -> None:
        return None


_NOTHING = _Nothing()
_tracer: Tracer | None = None


def traces_url(settings: Settings, environment: Mapping[str, str] = os.environ) -> str | None:
    """Where spans go: as the setting or OpenTelemetry's own variables say; None for nowhere.

    Raises StartError for a URL with a password: vLLM has it on its command line.
    """
    url = _traces_url(settings, environment)
    if url is not None and "@" in urlsplit(url).netloc:
        raise StartError(
            "the endpoint of traces has a password in its URL, which others could read: put it "
            "into OTEL_EXPORTER_OTLP_HEADERS"
        )
    return url


def _traces_url(settings: Settings, environment: Mapping[str, str]) -> str | None:
    if settings.otel_endpoint:
        return f"{settings.otel_endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces"
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if whole := environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return whole
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None


def set_up(process: str, settings: Settings) -> None:
    """Trace from now on as `process`, if an endpoint is set."""
    global _tracer
    if (url := traces_url(settings)) is not None:
        from core.telemetry import Telemetry  # only now: who is not traced does not load it

        _tracer = Telemetry(process, url)


def close() -> None:
    """Send what is left, and trace no more."""
    global _tracer
    if _tracer is not None:
        _tracer.close()
        _tracer = None


def span(
    name: str,
    *,
    kind: Kind = "internal",
    headers: Headers | None = None,
    trace_of: str = "",
    **attributes: Value,
) -> Span:
    """A block of work.

    `headers` are a client's, whose trace it belongs to; `trace_of` names a thing that has a trace
    of its own, however many processes work at it: a run.
    """
    if _tracer is None:
        return _NOTHING
    return _tracer.span(name, attributes, kind=kind, headers=headers, trace_of=trace_of)


def part(name: str, seconds: float, *, trace_of: str = "", **attributes: Value) -> None:
    """What just took so many seconds, within the span that is open here."""
    if _tracer is not None:
        _tracer.part(name, seconds, attributes, trace_of=trace_of)


def note(**attributes: Value) -> None:
    """Add attributes to the span that is open here."""
    if _tracer is not None:
        _tracer.note(attributes)


def outgoing() -> dict[str, str]:
    """Headers that hand the trace on to an engine; none while nothing is traced."""
    return {} if _tracer is None else _tracer.outgoing()
