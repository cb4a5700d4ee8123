"""An engine that speaks the Responses and the Messages API, as vLLM speaks them.

Shapes and order of events are those of vLLM 0.32; test_clients.py checks them against vLLM itself.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

WORDS = ("The", " capital", " is", " Paris", ".", " É", " 🙂")
SAID = "".join(WORDS)
CALL = {"name": "weather", "arguments": '{"city":"Paris"}'}
USAGE = {"input_tokens": 7, "output_tokens": len(WORDS)}


@dataclass
class ApisDouble:
    """What it should do next, and what it was asked."""

    calls: bool = False
    """Answer with a call of the tool instead of words."""
    cut_off: bool = False
    """Stop at the limit of tokens."""
    error_after: int | None = None
    """After so many events a stream carries the error that vLLM would write, and ends."""
    cut_after: int | None = None
    """After so many events the connection is cut."""
    crosses_after: int | None = None
    """After so many events a swap to v0001 crosses."""
    refuses_with: tuple[int, dict] | None = None
    raw: list[bytes] | None = None
    """Send exactly these chunks, as a stream."""
    gate: asyncio.Event | None = None
    """A unary reply waits for it, and what follows the third event of a stream."""
    requests: list[dict] = field(default_factory=list)
    answering: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        if self.refuses_with is not None:
            status, body = self.refuses_with
            return web.json_response(body, status=status)
        events, whole = self._reply(request, asked)
        self.answering += 1
        try:
            if not asked.get("stream"):
                if self.gate is not None:
                    await self.gate.wait()
                return web.json_response(whole, headers={"x-policy-version": "v0000"})
            return await self._stream(request, events)
        finally:
            self.answering -= 1

    async def choices(self, request: web.Request) -> web.Response:
        """Chats and texts, of which the gateway's probe is one, in as few words as will do."""
        chat = request.path == "/v1/chat/completions"
        said = {"message": {"role": "assistant", "content": "x"}} if chat else {"text": "x"}
        prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        reply = {
            "id": f"{prefix}-{request.headers['X-Request-Id']}",
            "object": kind,
            "created": 1790000000,
            "model": "instructloop",
            "choices": [{"index": 0, **said, "finish_reason": "length"}],
        }
        return web.json_response(reply, headers={"x-policy-version": "v0000"})

    def _reply(self, request: web.Request, asked: dict) -> tuple[Iterator[dict], dict]:
        if request.path == "/v1/responses":
            response = self._response(asked)
            return self._response_events(response), response
        message = self._message(request.headers["X-Request-Id"], asked)
        return self._message_events(message), message

    async def _stream(self, request: web.Request, events: Iterator[dict]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"x-policy-version": "v0000"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        if self.raw is not None:
            for chunk in self.raw:
                await response.write(chunk)
                await asyncio.sleep(0)
            return response
        for number, event in enumerate(events):
            if number == self.crosses_after:
                await response.write(b": policy-version v0001\n\n")
            if number == self.error_after:
                error = {"type": "internal_error", "message": "it died"}
                await response.write(as_event({"type": "error", "error": error}))
                return response
            if number == self.cut_after:
                request.transport.abort()
                return response
            if number == 3 and self.gate is not None:
                await self.gate.wait()
            await response.write(as_event(event))
        return response

    def _response(self, asked: dict) -> dict:
        text = {"type": "output_text", "text": SAID, "annotations": [], "logprobs": None}
        said = {"id": "msg_1", "type": "message", "role": "assistant", "content": [text]}
        call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", **CALL}
        return {
            "id": asked["request_id"],
            "object": "response",
            "created_at": 1790000000,
            "status": "incomplete" if self.cut_off else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if self.cut_off else None,
            "model": asked["model"],
            "metadata": asked.get("metadata"),
            "instructions": asked.get("instructions"),
            "output": [{**(call if self.calls else said), "status": "completed"}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": asked.get("tools", []),
            "temperature": 1.0,
            "top_p": 1.0,
            "usage": {
                **USAGE,
                "total_tokens": 14,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }

    def _response_events(self, response: dict) -> Iterator[dict]:
        (item,) = response["output"]
        place = {"output_index": 0, "item_id": item["id"]}
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        events = [
            {"type": f"response.{word}", "response": begun} for word in ("created", "in_progress")
        ]
        if self.calls:
            events.append(
                {"type": "response.output_item.added", **place, "item": {**item, "arguments": ""}}
            )
            for piece in ('{"city"', ':"Paris"}'):
                delta = {"type": "response.function_call_arguments.delta", "delta": piece}
                events.append({**delta, **place})
        else:
            empty = {**item, "content": [], "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            inside = {**place, "content_index": 0}
            events.append({"type": "response.output_item.added", **place, "item": empty})
            events.append({"type": "response.content_part.added", **inside, "part": part})
            for word in WORDS:
                delta = {"type": "response.output_text.delta", "delta": word, "logprobs": []}
                events.append({**delta, **inside})
            events.append(
                {"type": "response.output_text.done", "text": SAID, "logprobs": [], **inside}
            )
        events.append({"type": "response.output_item.done", **place, "item": item})
        events.append({"type": "response.completed", "response": response})
        return iter([{**event, "sequence_number": n} for n, event in enumerate(events)])

    def _message(self, request_id: str, asked: dict) -> dict:
        call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
        reason = "max_tokens" if self.cut_off else "tool_use" if self.calls else "end_turn"
        return {
            "id": f"chatcmpl-{request_id}",
            "type": "message",
            "role": "assistant",
            "content": [call if self.calls else {"type": "text", "text": SAID}],
            "model": asked["model"],
            "stop_reason": reason,
            "usage": USAGE,
        }

    def _message_events(self, message: dict) -> Iterator[dict]:
        begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
        begun["usage"] = {"input_tokens": 7, "output_tokens": 0}
        yield {"type": "message_start", "message": begun}
        (block,) = message["content"]
        if self.calls:
            start, pieces = {**block, "input": {}}, ('{"city"', ':"Paris"}')
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        else:
            start = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": word} for word in WORDS]
        yield {"type": "content_block_start", "index": 0, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        yield {"type": "message_delta", "delta": ended, "usage": USAGE}
        yield {"type": "message_stop"}

    @asynccontextmanager
    async def listening(self, socket: Path):
        """Serve on a Unix socket; gives the URL."""
        app = web.Application()
        app.router.add_post("/v1/responses", self.answer)
        app.router.add_post("/v1/messages", self.answer)
        app.router.add_post("/v1/completions", self.choices)
        app.router.add_post("/v1/chat/completions", self.choices)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, socket).start()
        try:
            yield f"unix:{socket}"
        finally:
            if self.gate is not None:
                self.gate.set()
            await runner.cleanup()


def as_event(content: dict) -> bytes:
    """An event as vLLM writes it."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"event: {content['type']}\ndata: {body}\n\n".encode()
