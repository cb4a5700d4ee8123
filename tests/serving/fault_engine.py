"""An engine double under the real guard, on a real socket, that breaks where it is told to.

Each token that it writes is the name of the version whose weights wrote it, or STALE where keys and
values of other weights were used. It does what vLLM does: a failed load leaves no weights and the
next token ends the process; a pause freezes; errors close nothing else. A `Fault` strikes once, at
a step of a swap, and says what happens there.
"""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from core.engine.guard import EngineGuard, GuardSettings
from core.engine.launch import EngineSpec

STALE = "STALE"
TOKENS = 12
NAME_BYTES = 16
STEPS = {
    "/instructloop/hold": "hold",
    "/instructloop/state": "drain",
    "/pause": "pause",
    "/reset_prefix_cache": "reset",
    "/instructloop/version": "name",
    "/update_weight_version": "name_vllm",
    "/resume": "resume",
    "/inference/v1/generate": "probe",
    "/instructloop/admit": "admit",
}
METHODS = {"install": "install", "safe_reload": "reload", "parameter_checksums": "checksums"}


@dataclass
class Fault:
    """What happens once when an engine is at a step."""

    step: str
    kind: str
    struck: bool = False


def checksums(weights: str) -> dict[str, str]:
    return {"layer.weight": hashlib.sha256(weights.encode()).hexdigest()}


def read_weights(folder: Path) -> str:
    """What stands in the only tensor: the version's name."""
    return (folder / "model.safetensors").read_bytes()[-NAME_BYTES:].decode().rstrip()


@dataclass(eq=False)
class FaultEngine:
    """One process of vLLM, as an agent and a gateway see it."""

    spec: EngineSpec
    pace: float = 0.004
    on_strike: object = None
    """Called with the kind of a fault that is not the engine's own."""
    faults: list[Fault] = field(default_factory=list)
    returncode: int | None = None
    deaths: list[float] = field(default_factory=list)
    weights: str | None = field(init=False)
    staged: str | None = None
    work: str = "checksums"
    folder: str = ""
    cache: dict = field(default_factory=dict)
    running: list[dict] = field(default_factory=list)
    written: int = 0

    def __post_init__(self) -> None:
        self.weights = read_weights(self.spec.model)
        self.awake = asyncio.Event()
        self.awake.set()
        settings = GuardSettings(
            data_token=self.spec.data_token,
            control_token=self.spec.control_token,
            policy_version=self.spec.policy_version,
        )
        self.guard = EngineGuard(self._vllm, settings)
        self._web = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._server: asyncio.Server | None = None
        self._starting = asyncio.create_task(self._listen())

    # --- a process

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._web, str(self.spec.socket))

    def poll(self) -> int | None:
        return self.returncode

    def die(self, code: int = -9) -> None:
        if self.returncode is None:
            self.returncode = code
            self.deaths.append(asyncio.get_running_loop().time())
            self._starting.cancel()
            if self._server is not None:
                self._server.close()
            for connection in list(self._web.connections):
                if connection.transport is not None:
                    connection.transport.abort()

    async def stop(self) -> None:
        """SIGTERM: what is in flight may finish for a moment."""
        for _ in range(20):
            if not self.running or not self.awake.is_set() or self.returncode is not None:
                break
            await asyncio.sleep(0.01)
        self.die(0)

    # --- HTTP, and the faults

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        fault = self._fault(request.path, body)
        if fault is not None and await self._breaks(fault, request, body):
            return web.Response(status=500)
        if request.transport is None or request.transport.is_closing():
            return web.Response()  # nobody hears it
        return await self._pass(request, body)

    async def _breaks(self, fault: Fault, request: web.BaseRequest, body: bytes) -> bool:
        """Let a fault strike; whether the answer is an error."""
        match fault.kind:
            case "late_error" | "lost":
                await self._pass(request, body, silent=True)
            case "hang":
                await asyncio.Event().wait()
            case "die":
                self.die()
            case "delay":
                await asyncio.sleep(0.05)
            case "redis" | "agent" as kind:
                self.on_strike(self, kind)
        if fault.kind in ("cut", "lost"):
            request.transport.abort()
        return fault.kind in ("error", "late_error")

    async def _pass(
        self, request: web.BaseRequest, body: bytes, *, silent: bool = False
    ) -> web.StreamResponse:
        """Through the guard to vLLM; nobody hears the answer if it is to be silent."""
        answer: list[web.StreamResponse] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": body}

        async def send(message: dict) -> None:
            if silent:
                return
            if message["type"] == "http.response.start":
                headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
                answer.append(web.StreamResponse(status=message["status"], headers=headers))
                await answer[0].prepare(request)
            elif message.get("body"):
                await answer[0].write(message["body"])

        headers = [(k.lower().encode(), v.encode()) for k, v in request.headers.items()]
        scope = {"type": "http", "method": request.method, "path": request.path, "headers": headers}
        await self.guard(scope, receive, send)
        if silent:
            return web.Response()
        await answer[0].write_eof()
        return answer[0]

    def _fault(self, path: str, body: bytes) -> Fault | None:
        step = STEPS.get(path)
        if path == "/collective_rpc":
            method = json.loads(body)["method"]
            step = METHODS.get(method, {"stage": "stage", "checksums": "attest"}[self.work])
            if method == "begin":
                return None
        for fault in self.faults:
            if fault.step == step and not fault.struck and fault.kind not in ("wrong", "nan"):
                fault.struck = fault.kind != "refuse"
                return fault
        return None

    def _has(self, step: str, kind: str) -> bool:
        """Whether a fault of the content of an answer strikes now."""
        for fault in self.faults:
            if (fault.step, fault.kind) == (step, kind) and not fault.struck:
                fault.struck = True
                return True
        return False

    # --- what vLLM does

    async def _vllm(self, scope: dict, receive, send) -> None:
        path, body = scope["path"], (await receive())["body"]
        asked = json.loads(body) if body else {}
        match path:
            case "/v1/chat/completions":
                return await self._complete(scope, asked, send)
            case "/metrics":
                text = f'vllm:generation_tokens_total{{engine="0"}} {self.written}'.encode()
                return await _reply(send, text, b"text/plain")
            case "/pause":
                self.awake.clear()
            case "/resume":
                self.awake.set()
            case "/reset_prefix_cache":
                self.cache.clear()
                for request in self.running:
                    request["computed_by"] = None
                return await _json(send, {"success": True})
            case "/collective_rpc":
                return await _json(send, {"results": [self._rpc(asked["method"], asked["kwargs"])]})
            case "/inference/v1/generate":
                if not self.awake.is_set():
                    await asyncio.Event().wait()
                logprob = -9999.0 if self._has("probe", "nan") else -0.5
                content = {"content": [{"logprob": logprob}]}
                choice = {"index": 0, "token_ids": [1], "logprobs": content}
                return await _json(send, {"choices": [{**choice, "finish_reason": "length"}]})
        await _json(send, {})

    def _rpc(self, method: str, kwargs: dict) -> dict:
        match method:
            case "begin":
                self.work, self.folder, self.staged = kwargs["work"], kwargs.get("folder", ""), None
                return {}
            case "go_on" if self.work == "stage":
                if self._has("stage", "refuse"):
                    return {"refused": "w holds NaN"}
                self.staged = read_weights(Path(self.folder))
                staged = "half" if self._has("stage", "wrong") else self.staged
                return {"done": checksums(staged)}
            case "go_on":
                wrong = self._has("attest", "wrong")
                return {"done": checksums("wrong" if wrong else self.weights)}
            case "install":
                self.weights, self.staged = self.staged, self.weights
                return {"wrong": "layer"} if self._has("install", "wrong") else {}
            case "safe_reload":
                self.weights = read_weights(Path(kwargs["folder"]))
                return {}
        return checksums(self.weights)

    async def _complete(self, scope: dict, asked: dict, send) -> None:
        ids = dict(scope["headers"])[b"x-request-id"].decode()
        envelope = {"id": f"chatcmpl-{ids}", "created": 1, "model": asked["model"]}
        key = (asked.get("cache_salt"), json.dumps(asked["messages"]))
        mine = {"computed_by": self.cache.get(key)}
        self.running.append(mine)
        try:
            if asked.get("stream"):
                await self._stream(envelope, key, mine, send)
            else:
                words = [await self._token(key, mine) for _ in range(TOKENS)]
                message = {"role": "assistant", "content": " ".join(words)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                whole = {**envelope, "object": "chat.completion", "choices": [choice]}
                usage = {"prompt_tokens": 3, "completion_tokens": TOKENS, "total_tokens": 15}
                await _json(send, {**whole, "usage": usage})
        finally:
            self.running.remove(mine)

    async def _stream(self, envelope: dict, key: tuple, mine: dict, send) -> None:
        await _start(send, b"text/event-stream")
        chunk = {**envelope, "object": "chat.completion.chunk"}
        for number in range(TOKENS):
            word = await self._token(key, mine)
            end = "stop" if number == TOKENS - 1 else None
            choice = {"index": 0, "delta": {"content": word + " "}, "finish_reason": end}
            event = json.dumps({**chunk, "choices": [choice]})
            await _more(send, f"data: {event}\n\n")
        await _more(send, "data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    async def _token(self, key: tuple, mine: dict) -> str:
        await asyncio.sleep(self.pace)
        while not self.awake.is_set():
            await self.awake.wait()
        if self.weights is None:
            self.die(1)
            raise ConnectionResetError
        mine["computed_by"] = mine["computed_by"] or self.weights
        self.cache.setdefault(key, mine["computed_by"])
        self.written += 1
        return self.weights if mine["computed_by"] == self.weights else STALE


async def _start(send, kind: bytes) -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _more(send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _reply(send, body: bytes, kind: bytes) -> None:
    await _start(send, kind)
    await send({"type": "http.response.body", "body": body})


async def _json(send, content: dict) -> None:
    await _reply(send, json.dumps(content).encode(), b"application/json")
