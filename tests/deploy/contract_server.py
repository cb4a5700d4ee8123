"""A small real HTTP server with the routes of the contract that raters use, and faults on order.

It checks what the service would: keys, Idempotency-Keys, that a ranking names different answers
to one prompt, and that a task is answered whole. Its "model" answers by counting.
"""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

KEY = "il-test"


@dataclass
class Fault:
    """What one request gets instead of its reply; `late`: after it was carried out."""

    status: int
    retry_after: str | None = None
    late: bool = False


@dataclass
class Service:
    """Everything that the server was told, and how it answers."""

    texts: Callable[[str, int], str] = lambda prompt, i: "word " * (i + 1)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    asked: list[dict[str, Any]] = field(default_factory=list)
    completions: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    rankings: list[dict[str, Any]] = field(default_factory=list)
    tasks: deque[dict[str, Any]] = field(default_factory=deque)
    answers: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    by_idempotency_key: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    most_at_once: int = 0
    at_once: int = 0
    url: str = ""

    def text_of(self, ref: dict[str, Any]) -> str:
        return self.completions[ref["completion_id"]][1][ref["choice"]]

    def prompt_of(self, ranking: dict[str, Any]) -> str:
        return self.completions[ranking["ranking"][0][0]["completion_id"]][0]


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "t", "param": None, "code": None}}
    return JSONResponse(body, status, headers=headers)


def make_app(service: Service) -> FastAPI:
    app = FastAPI()
    _add_faults(app, service)
    _add_completions(app, service)
    _add_rankings(app, service)
    _add_labeling(app, service)
    return app


def _add_faults(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.middleware("http")
    async def faulty(request: Request, call_next):
        if request.url.path == "/healthz":
            return await call_next(request)
        if not request.headers.get("authorization", "").startswith(f"Bearer {KEY}"):
            return _error(401, "no such key:\nmake one")
        kind = f"{request.method} {request.url.path.split('/')[2]}"
        fault = service.faults[kind].popleft() if service.faults[kind] else None
        if fault is None or fault.late:
            reply = await call_next(request)
        if fault is None:
            return reply
        headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
        return _error(fault.status, f"fault {fault.status}", headers)


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        service.at_once += 1
        service.most_at_once = max(service.most_at_once, service.at_once)
        await asyncio.sleep(0.002)
        service.at_once -= 1
        prompt = body["messages"][-1]["content"]
        before = sum(a["n"] for a in service.asked if a["messages"] == body["messages"])
        service.asked.append(body)
        texts = [service.texts(prompt, before + i) for i in range(body["n"])]
        name = f"chatcmpl-{len(service.completions)}"
        service.completions[name] = (prompt, texts)
        return {
            "id": name,
            "choices": [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop" if i % 2 else "length",
                }
                for i, text in enumerate(texts)
            ],
        }


def _add_rankings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/rankings")
    async def rank(request: Request, body: dict[str, Any]) -> Response:
        refs = [ref for tie in body["ranking"] for ref in tie]
        names = {(ref["completion_id"], ref["choice"]) for ref in refs}
        if not 2 <= len(refs) <= 9 or len(names) != len(refs):
            return _error(422, "2 to 9 different outputs")
        if len({service.completions[ref["completion_id"]][0] for ref in refs}) != 1:
            return _error(422, "of different prompts")
        return _once(service, request, body, lambda: service.rankings.append(body))


def _add_labeling(app: FastAPI, service: Service) -> None:
    @app.get("/v1/labeling/next")
    async def next_task() -> Response:
        if not service.tasks:
            return Response(status_code=204)
        return JSONResponse(service.tasks.popleft())

    @app.post("/v1/labeling/{task_id}")
    async def answer(request: Request, task_id: str, body: dict[str, Any]) -> Response:
        rater = request.headers["authorization"].removeprefix(f"Bearer {KEY}-")
        return _once(service, request, body, lambda: service.answers.append((rater, task_id, body)))


def _once(
    service: Service, request: Request, body: dict[str, Any], act: Callable[[], None]
) -> Response:
    key = request.headers["idempotency-key"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    if key in service.by_idempotency_key:
        known, reply = service.by_idempotency_key[key]
        return JSONResponse(reply, 201) if known == digest else _error(409, "another request")
    act()
    reply = {"id": f"record-{len(service.by_idempotency_key)}", "status": "recorded"}
    service.by_idempotency_key[key] = (digest, reply)
    return JSONResponse(reply, 201)


def free_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@contextlib.asynccontextmanager
async def serving(service: Service, listener: socket.socket | None = None) -> AsyncIterator[str]:
    """The server on a port of its own for the length of a `with` block; gives its URL."""
    listener = listener or free_socket()
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        assert not task.done(), "the server did not start"
        await asyncio.sleep(0.005)
    service.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield service.url
    finally:
        server.should_exit = True
        await task
