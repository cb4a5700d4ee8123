"""A completion on its way from an engine to a client: bytes unchanged, in order, as they come.

The reply to one request, as an ASGI application. It picks an engine, and another if that one says
nothing before anything was sent; holds the status line until the first event of a stream is known,
because vLLM reports errors inside streams under HTTP 200; withholds the usage event from a client
that did not ask; stops the generation when the client hangs up; and sends the last bytes only when
the log entry is durable. What is read beside the bytes is in serving/transcript.py.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.types import Receive, Scope, Send

from core import metrics, traces
from core.errors import EngineError, Unavailable
from core.keyring import Keyring
from core.records import ApiKey
from core.setting_groups import GatewaySettings
from feedback.entries import user_hash
from serving import routing, sse
from serving.admission import Admission, Grant
from serving.engines import Engine
from serving.entry import completion_id, log_entry, tokens_used
from serving.failures import Refusal, refusal_of, send_failure
from serving.hangup import HangUp
from serving.inbox import Inbox
from serving.replicas import Replicas
from serving.requests import Asked, engine_body
from serving.routing import ANY, Wish
from serving.transcript import Kind, Transcript
from serving.upstream import NotAnswered, Upstream, check_id
from serving.usage import Usage

HUNG_UP, SHUT_DOWN, BROKE_OFF = "hung_up", "shutdown", "engine"
_LAST_WORD_SECONDS = 1.0
"""How long a client that reads too slowly may take for the error that ends its stream."""
_MAX_ENGINES = 3  # that are asked for one reply; a request that ends engines ends no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every reply needs; made once by serving/app.py."""

    settings: GatewaySettings
    keyring: Keyring
    replicas: Replicas
    upstream: Upstream
    inbox: Inbox
    admission: Admission
    usage: Usage


@dataclass(slots=True, kw_only=True)
class Reply:
    """The answer to one request."""

    services: Services
    asked: Asked
    key: ApiKey
    token: str
    tag: str
    began: float
    """When the request came, on the monotonic clock."""
    grant: Grant
    """What it took of the limits."""
    transcript: Transcript = field(init=False)
    wish: Wish = ANY
    """The versions that may answer."""
    logged: bool = False
    started: bool = False
    """Whether the status line has been sent."""
    asked_engine_at: float = 0.0

    def __post_init__(self) -> None:
        self.transcript = Transcript(self.asked.api.read_reply)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hang_up = HangUp(receive)
        try:
            with hang_up:
                await self._answer(send)
            if hang_up.happened:
                self._log(HUNG_UP)
        except asyncio.CancelledError:
            self._log(SHUT_DOWN)
            raise
        finally:
            self._settle()

    @property
    def completion_id(self) -> str:
        """The id that the engine is asked to give."""
        return completion_id(self.asked, self.token)

    async def _answer(self, send: Send) -> None:
        """Ask engines until one answers. Raises InstructLoopError when none does."""
        tried: list[Engine] = []
        failure: Refusal | NotAnswered | None = None
        again, near = False, self._nearness()
        self.wish = self.services.replicas.wish(self.asked.version, self._user)
        while len(tried) < _MAX_ENGINES:
            try:
                engine = self.services.replicas.find(self.wish, tried, near)
            except Unavailable:
                break
            try:
                with traces.span("engine", kind="client", replica=engine.name):
                    return await self._ask(engine, send)
            except Refusal as refusal:
                if not refusal.others_may_do_better:
                    engine.answered()
                    return await send_failure(send, refusal, self.asked.api.path)
                failure = refusal
            except NotAnswered as silence:
                failure = silence
                if silence.stale and not again:
                    again = True
                    continue
            engine.failed() if failure.is_fault else engine.avoid()
            tried.append(engine)
        await send_failure(send, failure, self.asked.api.path)

    def _user(self) -> str:
        """Whom the log will name: a canary's cohorts are made of that."""
        key, name = self.key, self.asked.end_user(self.key)
        return user_hash(self.services.keyring, tenant=key.tenant, key_id=key.id, user=name)

    def _nearness(self) -> int | None:
        """The prompt's point for choosing among engines, if there is a choice."""
        if len(self.services.replicas) < 2:
            return None
        secret, asked = self.services.keyring.tag_key(), self.asked
        return routing.nearness(secret, self.key.tenant, asked.prompt, asked.canonical)

    async def _ask(self, engine: Engine, send: Send) -> None:
        """Pass on one engine's reply. Raises NotAnswered or Refusal if nothing was sent."""
        settings = self.services.settings
        self.transcript = Transcript(self.asked.api.read_reply)
        body = engine_body(self.asked, model=engine.model, steering=self._steering(engine))
        limit = settings.request_timeout_seconds
        first = settings.first_token_timeout_seconds if self.asked.stream else limit
        engine.in_flight += 1
        metrics.IN_FLIGHT.set(self.services.replicas.in_flight)
        self.asked_engine_at = time.monotonic()
        patience = asyncio.timeout(first)
        engine.replies.add(patience)
        try:
            async with (
                patience,
                self.services.upstream.post(
                    engine, self.asked.api.path, body, request_id=self.token
                ) as response,
            ):
                if self._is_stream(response):
                    loop = asyncio.get_running_loop()
                    await self._stream(engine, response, send, loop.time() + limit, patience)
                else:
                    await self._unary(engine, response, send)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            engine.replies.discard(patience)  # it has ended, and cannot be hurried any more
            if self.started:
                await self._break_off(send)
            elif isinstance(error, TimeoutError) and engine.breaker.closed:
                engine.failed()  # to wait as long for another makes it worse
                raise Unavailable("the engine took too long", code="engine_timeout") from error
            else:
                raise NotAnswered(str(error) or "it hangs") from error
        finally:
            engine.replies.discard(patience)
            engine.in_flight -= 1
            metrics.IN_FLIGHT.set(self.services.replicas.in_flight)

    def _steering(self, engine: Engine) -> dict[str, Any]:
        """What only the gateway tells an engine: no cache entry is shared across tenants."""
        if not engine.is_vllm:
            return {}
        salt = self.services.keyring.hashed(self.key.tenant, "cache", engine.version)
        said = {"cache_salt": salt, "request_id": self.completion_id}
        return said if engine.fixed else {**said, "priority": 0}

    def _is_stream(self, response: aiohttp.ClientResponse) -> bool:
        return response.status == 200 and response.content_type == "text/event-stream"

    async def _unary(self, engine: Engine, response: aiohttp.ClientResponse, send: Send) -> None:
        body = await response.read()
        answered_at = time.monotonic()
        if response.status != 200:
            raise Refusal(response.status, body, response.headers.get("Retry-After"))
        engine.answered()
        self._note_versions(engine, response)
        self.transcript.read(body)
        headers = self._headers(engine, response)
        await self._durable()
        await self._start(send, [*headers, (b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body})
        self._measure(answered_at)

    async def _stream(
        self,
        engine: Engine,
        response: aiohttp.ClientResponse,
        send: Send,
        until: float,
        patience: asyncio.Timeout,
    ) -> None:
        self._note_versions(engine, response)
        held: list[bytes] = []  # comments before the first event
        rest, done = b"", False
        async for chunk in response.content.iter_any():
            engine.well_at = time.monotonic()
            events, rest = sse.split(rest + chunk)
            passed, done = self._sort(events)
            held += passed
            if not self.started and (self.transcript.begun or done):
                engine.answered()
                first = self.transcript.first_version
                await self._start(send, self._headers(engine, response, first))
                patience.reschedule(until)
                now = time.monotonic()
                metrics.FIRST_TOKEN_SECONDS.observe(now - self.began)
                traces.part("first token", now - self.asked_engine_at)
            if self.started:
                await self._pass_on(held, done, send)
                held = []
            if done:
                return
        await self._end_without_done(rest, send)

    def _sort(self, events: list[bytes]) -> tuple[list[bytes], bool]:
        """The events to pass on, and whether the last of them ends the stream.

        Raises Refusal when the very first event is an error.
        """
        passed = []
        for event in events:
            kind = self.transcript.see(event)
            if kind is Kind.ERROR and not self.transcript.begun:
                raise refusal_of(event)
            if kind is not Kind.USAGE or self.asked.wants_usage:
                passed.append(event)
            if kind is Kind.DONE:
                return passed, True
        return passed, False

    async def _pass_on(self, events: list[bytes], done: bool, send: Send) -> None:
        if done:
            answered_at = time.monotonic()
            *before, last = events
            await _send_more(send, b"".join(before))
            await self._durable()
            await send({"type": "http.response.body", "body": last})
            self._measure(answered_at)
        else:
            await _send_more(send, b"".join(events))

    async def _end_without_done(self, rest: bytes, send: Send) -> None:
        """The engine closed the stream: well, if every answer had ended, or it had said why not."""
        if not self.started:
            raise NotAnswered("the engine closed the stream before its first event")
        if not self.transcript.finished and self.transcript.error != BROKE_OFF:
            return await self._break_off(send)
        await _send_more(send, rest)
        await self._durable()
        await send({"type": "http.response.body", "body": b""})

    async def _break_off(self, send: Send) -> None:
        """End a stream that the engine left unfinished with an error that clients raise."""
        self.transcript.error = BROKE_OFF
        await self._durable()
        error = EngineError("the engine broke off this reply; ask again")
        event = self.asked.api.error_event(error)
        with suppress(TimeoutError):  # the server closes the connection of who reads no more
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await send({"type": "http.response.body", "body": event})

    async def _start(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _note_versions(self, engine: Engine, response: aiohttp.ClientResponse) -> None:
        """Raises NotAnswered when what answered is not the version that may."""
        version = _version_of(engine, response)
        for name in (_crossed(engine, response) or version).split(","):
            self.transcript.served_by(name)
        if not self.wish.allows(version):
            engine.version = version  # it swapped since its last heartbeat
            self.services.replicas.doubt()
            self.wish = self.wish.after_a_move()
            raise NotAnswered(f"it serves {version} now", is_fault=False)

    def _headers(
        self, engine: Engine, response: aiohttp.ClientResponse, first: str | None = None
    ) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", response.headers.get("Content-Type", "").encode()),
            (b"x-policy-version", (first or _version_of(engine, response)).encode()),
        ]
        if crossed := _crossed(engine, response):
            headers.append((b"x-policy-versions", crossed.encode()))
        if not check_id(engine, self.transcript.id, self.completion_id):
            headers.append((b"x-feedback-off", str(engine.feedback_off).encode()))
        elif self.asked.prompt is None:
            headers.append((b"x-feedback-off", b"the prompt is not one text"))
        elif self.asked.stored and self.services.inbox.is_full:
            headers.append((b"x-feedback-off", b"the disk is full: it is not logged"))
        return headers + self.grant.headers()

    async def _durable(self) -> None:
        """Return when the entry is safe."""
        if (durable := self._log(self.transcript.verdict)) is not None:
            await durable

    def _log(self, error: str | None) -> "asyncio.Future[None] | None":
        """Hand the entry to the inbox, once; None if there is nothing to log."""
        if self.logged:
            return None
        self.logged = True
        self._count_tokens()
        if not self.asked.stored:
            return None
        said = log_entry(
            self.asked, self.key, self.transcript, token=self.token, tag=self.tag, error=error
        )
        return self.services.inbox.append(said)

    def _settle(self) -> None:
        """Give back what was taken too much of the limits, and count what was used."""
        prompt, completion = tokens_used(self.asked, self.transcript)
        self.grant.settle(prompt + completion)
        self.services.usage.answered(self.key.id, prompt, completion)

    def _count_tokens(self) -> None:
        said = self.transcript
        version = said.versions[0] if said.versions else "none"
        metrics.TOKENS.labels("prompt", version).inc(said.prompt_tokens or 0)
        metrics.TOKENS.labels("completion", version).inc(said.completion_tokens or 0)
        traces.note(
            completion_id=self.completion_id,
            version=version,
            prompt_tokens=said.prompt_tokens or 0,
            completion_tokens=said.completion_tokens or 0,
        )

    def _measure(self, answered_at: float) -> None:
        """What the gateway itself added: before the engine was asked, and after it had answered."""
        now = time.monotonic()
        metrics.OVERHEAD_SECONDS.observe(self.asked_engine_at - self.began + now - answered_at)


def _version_of(engine: Engine, response: aiohttp.ClientResponse) -> str:
    """The version of the first token, as our guard says it; a fixed engine has no guard."""
    if engine.fixed:
        return engine.version
    return response.headers.get("x-policy-version", engine.version)


def _crossed(engine: Engine, response: aiohttp.ClientResponse) -> str | None:
    """All versions, if a swap fell before the headers."""
    return None if engine.fixed else response.headers.get("x-policy-versions")


async def _send_more(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
