"""An engine that answers at once and as told: vLLM's HTTP surface, without a model.

It speaks as vLLM does where the gateway could tell: ids from `X-Request-Id`, a role chunk first, a
usage event only if asked, errors inside streams under HTTP 200, `x-policy-version` headers and
comments of our guard. The same tests run against vLLM itself (test_contract.py). As a program
(`python -m tests.serving.engine_double SOCKET VERSION`) it is a process that a test may kill.
"""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

WORDS = (" The", " capital", " is", " Paris", ".", " É", " 🙂", "\n\n", "data: x")
ERROR = {"message": "too busy", "type": "ServiceUnavailable", "param": None, "code": 503}


@dataclass
class EngineDouble:
    """What it should do next, and what it was asked."""

    version: str = "v0000"
    words: tuple[str, ...] = WORDS
    status: int | None = None
    """Answer everything with this error status."""
    first_error: dict | None = None
    """A stream's first event is this error."""
    error_after: int | None = None
    """After so many words a stream carries ERROR, then [DONE], as vLLM does when it dies."""
    cut_after: int | None = None
    """After so many words the connection is cut."""
    crosses_to: str | None = None
    """A swap to this version crosses each reply half-way."""
    own_ids: bool = False
    gate: asyncio.Event | None = None
    """The second half of each reply waits for it."""
    finish_reason: str = "stop"
    hangs: bool = False
    """It accepts, and answers nothing any more."""
    pace: float = 0.0
    """Seconds before each event of a stream, and before a unary reply."""
    tokens: int | None = None
    """What its counter of tokens says; one that hangs shows it all the same."""
    probes: list[dict] = field(default_factory=list)
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    aborted: int = 0
    answering: int = 0

    async def completions(self, request: web.Request) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        asked = await request.json()
        if request.headers.get("X-Request-Id", "").startswith("probe-"):
            return await self._probed(request, asked)
        self.requests.append(asked)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path)
        if self.status is not None:
            error = {**ERROR, "code": self.status}
            return web.json_response({"error": error}, status=self.status)
        if asked.get("max_tokens", 0) > 2048:  # as vLLM does beyond its context
            error = {"message": "too long", "type": "x", "param": "max_tokens", "code": 400}
            return web.json_response({"error": error}, status=400)
        reply = _Words(self, asked, request.headers.get("X-Request-Id", "none"), chat)
        self.answering += 1
        try:
            if asked.get("stream"):
                return await self._stream(request, reply)
            return await self._unary(reply)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.answering -= 1

    async def _probed(self, request: web.Request, asked: dict) -> web.Response:
        """Probes come when they come, so they are kept apart from what tests ask."""
        self.probes.append(asked)
        await self._while_it_hangs()
        if self.status is not None:
            return web.json_response({"error": ERROR}, status=self.status)
        return web.json_response(
            _Words(self, asked, request.headers["X-Request-Id"], False).whole()
        )

    async def _while_it_hangs(self) -> None:
        while self.hangs:
            await asyncio.sleep(0.01)

    async def _unary(self, reply: "_Words") -> web.Response:
        await asyncio.sleep(self.pace)
        await self._while_it_hangs()
        if self.gate is not None:
            await self.gate.wait()
        headers = {"x-policy-version": self.version}
        if self.crosses_to:
            headers["x-policy-versions"] = f"{self.version},{self.crosses_to}"
        # vLLM writes compact JSON that is not ASCII only
        body = json.dumps(reply.whole(), ensure_ascii=False, separators=(",", ":"))
        return web.Response(body=body.encode(), content_type="application/json", headers=headers)

    async def _stream(self, request: web.Request, reply: "_Words") -> web.StreamResponse:
        response = web.StreamResponse(headers={"x-policy-version": self.version})
        response.content_type = "text/event-stream"
        await self._while_it_hangs()
        await response.prepare(request)
        if self.first_error:
            await response.write(_event({"error": self.first_error}) + b"data: [DONE]\n\n")
            return response
        for number, event in enumerate(reply.events()):
            await asyncio.sleep(self.pace)
            await self._while_it_hangs()
            if number == self.error_after:
                await response.write(_event({"error": {**ERROR, "code": 500}}))
                break
            if number == self.cut_after:
                request.transport.abort()
                return response
            if number == len(self.words) // 2:
                if self.gate is not None:
                    await self.gate.wait()
                if self.crosses_to:
                    await response.write(f": policy-version {self.crosses_to}\n\n".encode())
            await response.write(event)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, request: web.Request) -> web.Response:
        owner = "somebody" if self.own_ids else "vllm"
        data = [{"id": "instructloop", "object": "model", "owned_by": owner}]
        await self._while_it_hangs()
        return web.json_response({"object": "list", "data": data})

    async def metrics(self, request: web.Request) -> web.Response:
        if self.tokens is None:
            await self._while_it_hangs()
        else:
            self.tokens += 1
        return web.Response(text=f'vllm:generation_tokens_total{{engine="0"}} {self.tokens or 0}')

    async def anything(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        return web.json_response({})

    @asynccontextmanager
    async def listening(self, socket: Path | None = None, *, port: int = 0):
        """Serve on a Unix socket, or on a port of its own; gives the URL."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.completions)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_route("*", "/{rest:.*}", self.anything)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.UnixSite(runner, socket) if socket else web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        try:
            host, port = ("", 0) if socket else runner.addresses[0]
            yield f"unix:{socket}" if socket else f"http://{host}:{port}"
        finally:
            if self.gate is not None:
                self.gate.set()
            await runner.cleanup()


class _Words:
    """One reply, whole or in events."""

    def __init__(self, double: EngineDouble, asked: dict, request_id: str, chat: bool) -> None:
        self.double = double
        self.asked = asked
        self.chat = chat
        prefix = "chatcmpl" if chat else "cmpl"
        self.id = f"{prefix}-{'theirs' if double.own_ids else request_id}"
        self.n = asked.get("n", 1)
        words = len(double.words)
        self.usage = {
            "prompt_tokens": 7,
            "total_tokens": 7 + words * self.n,
            "completion_tokens": words * self.n,
        }

    def _envelope(self, kind: str, choices: list) -> dict:
        return {
            "id": self.id,
            "object": kind,
            "created": 1790000000,
            "model": self.asked["model"],
            "choices": choices,
        }

    def whole(self) -> dict:
        text = "".join(self.double.words)
        choices = []
        for index in range(self.n):
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {}
            said = said or {"text": text}
            choices.append({"index": index, **said, "finish_reason": self.double.finish_reason})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._envelope(kind, choices), "usage": self.usage}

    def events(self):
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        for index in range(self.n if self.chat else 0):
            choice = {"index": index, "delta": {"role": "assistant", "content": ""}}
            yield _event(self._envelope(kind, [{**choice, "finish_reason": None}]))
        for position, word in enumerate(self.double.words):
            last = position == len(self.double.words) - 1
            reason = self.double.finish_reason if last else None
            for index in range(self.n):
                said = {"delta": {"content": word}} if self.chat else {"text": word}
                choice = {"index": index, **said, "finish_reason": reason}
                yield _event(self._envelope(kind, [choice]))
        if (self.asked.get("stream_options") or {}).get("include_usage"):
            yield _event({**self._envelope(kind, []), "usage": self.usage})


def _event(content: dict) -> bytes:
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + body.encode() + b"\n\n"


async def _serve(socket: str, version: str) -> None:
    Path(socket).unlink(missing_ok=True)  # of one that was killed
    double = EngineDouble(version=version, pace=0.02, words=WORDS * 4)
    async with double.listening(Path(socket)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
