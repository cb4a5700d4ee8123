import asyncio
import json
from dataclasses import replace

import pytest

from core.engine import guard as guard_module
from core.engine.guard import (
    DATA_ROUTES,
    OPEN_ROUTES,
    EngineGuard,
    GuardSettings,
    settings_from,
    write_tokens,
)
from core.errors import StartError

DATA, CONTROL = "data-token", "control-token"
SETTINGS = GuardSettings(data_token=DATA, control_token=CONTROL, policy_version="v1")
NEAR = {"client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8100)}
AWAY = {"client": ("10.1.2.4", 40000), "server": ("10.1.2.3", 8100)}


class TinyEngine:
    """An ASGI app in vLLM's place: remembers what reached it, answers when told to."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.fails = False

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            self.reached.append(("lifespan", ""))
            return
        self.reached.append((scope["method"], scope["path"]))
        await self.may_answer.wait()
        if self.fails:
            raise RuntimeError("the engine broke")
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


class Reply:
    def __init__(self, messages) -> None:
        start, *bodies = messages
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.json = json.loads(b"".join(message["body"] for message in bodies))


@pytest.fixture
def engine() -> TinyEngine:
    return TinyEngine()


@pytest.fixture
def guard(engine) -> EngineGuard:
    return EngineGuard(engine, SETTINGS)


async def call(guard, method, path, token=None, body=None, headers=None, ends=None) -> Reply:
    headers = list(headers or [])
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers, **(ends or {})}
    content = json.dumps(body).encode() if body is not None else b""
    inbox = [{"type": "http.request", "body": content, "more_body": False}]
    sent = []

    async def receive():
        return inbox.pop()

    async def send(message):
        sent.append(message)

    await guard(scope, receive, send)
    return Reply(sent)


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer data-token ")],
        [(b"authorization", b"bearer data-token")],
        [(b"authorization", b"Basic data-token")],
        [(b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer data-token")],
        [(b"x-api-key", b"data-token")],
        [(b"authorization", "Bearer dåta".encode("latin-1"))],
    ],
)
async def test_without_a_token_nothing_reaches_the_engine(guard, engine, headers):
    for path in ("/v1/models", "/invocations", "/collective_rpc", "/instructloop/state", "/health"):
        reply = await call(guard, "GET", path, headers=headers)
        assert reply.status == 403
        assert reply.json["error"]["type"] == "permission_error"
    assert engine.reached == []


async def test_the_data_token_opens_its_routes(guard, engine):
    for method, path in sorted(DATA_ROUTES):
        assert (await call(guard, method, path, DATA)).status == 200
    assert sorted(engine.reached) == sorted(DATA_ROUTES)


@pytest.mark.parametrize(
    "route",
    [
        ("POST", "/invocations"),
        ("POST", "/collective_rpc"),
        ("POST", "/pause"),
        ("POST", "/tokenize"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/instructloop/hold"),
        ("GET", "/instructloop/state"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("HEAD", "/health"),
        ("OPTIONS", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/V1/chat/completions"),
        ("POST", "/v1/chat/../chat/completions"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", ""),
    ],
)
async def test_the_data_token_opens_nothing_else(guard, engine, route):
    assert (await call(guard, *route, DATA)).status == 404
    assert engine.reached == []


async def test_the_control_token_opens_every_route_of_the_engine(guard, engine):
    for route in [("POST", "/collective_rpc"), ("POST", "/pause"), ("GET", "/openapi.json")]:
        assert (await call(guard, *route, CONTROL)).status == 200
    assert len(engine.reached) == 3


async def test_websockets_are_closed_and_the_lifespan_passes(guard, engine):
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", f"Bearer {CONTROL}".encode())]
    await guard({"type": "websocket", "path": "/v1/realtime", "headers": headers}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
    await guard({"type": "lifespan"}, None, send)
    assert engine.reached == [("lifespan", "")]


async def test_held_requests_wait_and_go_on_as_requests_to_the_admitted_version(guard, engine):
    await call(guard, "POST", "/instructloop/hold", CONTROL)
    waiting = asyncio.create_task(call(guard, "POST", "/v1/completions", DATA))
    await settle()
    state = (await call(guard, "GET", "/instructloop/state", CONTROL)).json
    assert state == {"version": "v1", "held": True, "in_flight": 0, "waiting": 1}
    assert engine.reached == []
    admitted = await call(guard, "POST", "/instructloop/admit", CONTROL, {"version": "v2"})
    assert admitted.json["version"] == "v2"
    assert not admitted.json["held"]
    reply = await waiting
    assert reply.status == 200
    assert reply.headers["x-policy-version"] == "v2"
    assert "x-policy-versions" not in reply.headers


async def test_reading_and_control_requests_are_never_held(guard):
    await call(guard, "POST", "/instructloop/hold", CONTROL)
    assert (await call(guard, "GET", "/health", DATA)).status == 200
    assert (await call(guard, "GET", "/metrics", DATA)).status == 200
    assert (await call(guard, "POST", "/inference/v1/generate", CONTROL)).status == 200
    assert (await call(guard, "POST", "/v1/completions", CONTROL)).status == 200


async def test_a_hold_that_follows_an_admission_at_once_keeps_requests_waiting(guard, engine):
    await call(guard, "POST", "/instructloop/hold", CONTROL)
    waiting = asyncio.create_task(call(guard, "POST", "/v1/completions", DATA))
    await settle()
    admission = call(guard, "POST", "/instructloop/admit", CONTROL, {"version": "v2"})
    hold = call(guard, "POST", "/instructloop/hold", CONTROL)
    await admission
    await hold  # neither gave the waiting task a turn
    await settle()
    assert engine.reached == []
    assert not waiting.done()
    await call(guard, "POST", "/instructloop/admit", CONTROL, {"version": "v3"})
    assert (await waiting).headers["x-policy-version"] == "v3"


async def test_more_requests_than_may_wait_are_told_to_come_back(engine):
    settings = GuardSettings(
        data_token=DATA, control_token=CONTROL, policy_version="v1", max_waiting=2
    )
    guard = EngineGuard(engine, settings)
    await call(guard, "POST", "/instructloop/hold", CONTROL)
    waiting = [asyncio.create_task(call(guard, "POST", "/v1/completions", DATA)) for _ in range(2)]
    await settle()
    reply = await call(guard, "POST", "/v1/completions", DATA)
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    await call(guard, "POST", "/instructloop/admit", CONTROL, {"version": "v1"})
    assert [reply.status for reply in await asyncio.gather(*waiting)] == [200, 200]


async def test_a_request_that_waited_too_long_is_told_to_come_back(engine):
    settings = GuardSettings(
        data_token=DATA, control_token=CONTROL, policy_version="v1", max_wait_seconds=0.01
    )
    guard = EngineGuard(engine, settings)
    await call(guard, "POST", "/instructloop/hold", CONTROL)
    reply = await call(guard, "POST", "/v1/completions", DATA)
    assert reply.status == 503
    assert "retry-after" in reply.headers
    state = (await call(guard, "GET", "/instructloop/state", CONTROL)).json
    assert state["waiting"] == 0
    assert engine.reached == []


async def test_in_flight_counts_data_requests_until_their_reply_is_out(guard, engine):
    engine.may_answer.clear()
    data = asyncio.create_task(call(guard, "POST", "/v1/chat/completions", DATA))
    probe = asyncio.create_task(call(guard, "POST", "/inference/v1/generate", CONTROL))
    await settle()
    assert (await call(guard, "GET", "/instructloop/state", CONTROL)).json["in_flight"] == 1
    engine.may_answer.set()
    await asyncio.gather(data, probe)
    assert (await call(guard, "GET", "/instructloop/state", CONTROL)).json["in_flight"] == 0


async def test_a_request_that_breaks_the_engine_is_no_longer_in_flight(guard, engine):
    engine.fails = True
    with pytest.raises(RuntimeError):
        await call(guard, "POST", "/v1/completions", DATA)
    assert (await call(guard, "GET", "/instructloop/state", CONTROL)).json["in_flight"] == 0


async def test_a_version_named_during_a_request_makes_its_reply_list_both(guard, engine):
    engine.may_answer.clear()
    crossed = asyncio.create_task(call(guard, "POST", "/v1/completions", DATA))
    await settle()
    await call(guard, "POST", "/instructloop/version", CONTROL, {"version": "v2"})
    engine.may_answer.set()
    reply = await crossed
    assert reply.headers["x-policy-version"] == "v1"
    assert reply.headers["x-policy-versions"] == "v1,v2"


@pytest.mark.parametrize("body", [None, {}, [], {"version": 2}, {"version": "v2\r\nx: y"}])
async def test_a_version_that_cannot_be_a_header_is_refused_and_changes_nothing(guard, body):
    reply = await call(guard, "POST", "/instructloop/admit", CONTROL, body)
    assert reply.status == 400
    state = (await call(guard, "GET", "/instructloop/state", CONTROL)).json
    assert state["version"] == "v1"


async def test_an_unknown_route_of_the_guard_is_not_found_and_does_not_reach_the_engine(
    guard, engine
):
    assert (await call(guard, "POST", "/instructloop/state", CONTROL)).status == 404
    assert (await call(guard, "POST", "/instructloop/nothing", CONTROL)).status == 404
    assert engine.reached == []


def test_settings_come_from_the_token_file_and_the_environment(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(json.dumps({"data": ["d", "before"], "control": "c"}))
    environment = {
        guard_module.TOKENS_FILE: str(tokens),
        guard_module.POLICY_VERSION: "v7",
        guard_module.HOLD_WAITING: "3",
        guard_module.HOLD_SECONDS: "1.5",
    }
    assert settings_from(environment) == GuardSettings(
        data_token="d",
        control_token="c",
        policy_version="v7",
        max_waiting=3,
        max_wait_seconds=1.5,
        more_data_tokens=("before",),
        tokens_file=tokens,
    )


async def test_data_tokens_are_exchanged_under_a_running_guard(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(guard_module, "_LOOK_SECONDS", 0.0)
    tokens = tmp_path / "tokens"
    write_tokens(tokens, data=["old"], control=CONTROL)
    environment = {guard_module.TOKENS_FILE: str(tokens), guard_module.POLICY_VERSION: "v7"}
    guard = EngineGuard(engine, settings_from(environment))

    async def opened() -> list[str]:
        names = ("old", "new", "elsewhere", CONTROL)
        replies = {name: await call(guard, "GET", "/v1/models", name) for name in names}
        return [name for name, reply in replies.items() if reply.status == 200]

    assert await opened() == ["old", CONTROL]
    write_tokens(tokens, data=["new", "old"], control="elsewhere")
    assert tokens.stat().st_mode & 0o777 == 0o600
    assert await opened() == ["old", "new", CONTROL]
    for unusable in ("", "{}", '{"data": []}', '{"data": [""]}', f'{{"data": ["{CONTROL}"]}}'):
        tokens.write_text(unusable)
        assert await opened() == ["old", "new", CONTROL]
    tokens.write_text('{"data": "new"}')  # an earlier release writes one, which is no list
    assert await opened() == ["new", CONTROL]
    assert (await call(guard, "GET", "/v1/models", "n")).status == 403
    write_tokens(tokens, data=["new", "old"], control=CONTROL)
    assert await opened() == ["old", "new", CONTROL]
    assert (await call(guard, "POST", "/collective_rpc", "new")).status == 404
    tokens.unlink()
    assert await opened() == ["old", "new", CONTROL]
    write_tokens(tokens, data=["new"], control=CONTROL)
    assert await opened() == ["new", CONTROL]


def test_a_guard_without_tokens_does_not_start(tmp_path, engine):
    with pytest.raises(StartError):
        settings_from({})
    with pytest.raises(StartError):
        settings_from({guard_module.TOKENS_FILE: str(tmp_path / "nothing")})
    with pytest.raises(StartError):
        EngineGuard(engine, GuardSettings(data_token="", control_token="c", policy_version="v1"))


def test_equal_tokens_are_refused_because_the_data_token_would_open_everything(engine):
    with pytest.raises(StartError):
        EngineGuard(engine, GuardSettings(data_token="t", control_token="t", policy_version="v1"))


# --- on a port ------------------------------------------------------------------------------


@pytest.fixture
def port(engine) -> EngineGuard:
    return EngineGuard(engine, replace(SETTINGS, tcp=True))


async def test_on_a_port_health_and_metrics_need_no_token_and_all_else_does(port, engine):
    for path in ("/health", "/metrics"):
        assert (await call(port, "GET", path, ends=AWAY)).status == 200
        assert (await call(port, "POST", path, ends=AWAY)).status == 403
        assert (await call(port, "GET", f"{path}/", ends=AWAY)).status == 403
    assert engine.reached == [("GET", "/health"), ("GET", "/metrics")]
    for method, path in sorted(DATA_ROUTES - OPEN_ROUTES):
        assert (await call(port, method, path, ends=AWAY)).status == 403
        assert (await call(port, method, path, DATA, ends=AWAY)).status == 200


async def test_on_a_port_the_control_token_counts_only_on_the_engine_s_own_machine(port, engine):
    routes = (("POST", "/collective_rpc"), ("POST", "/pause"), ("POST", "/instructloop/hold"))
    for method, path in routes:
        assert (await call(port, method, path, CONTROL, ends=AWAY)).status == 403
        assert (await call(port, method, path, CONTROL)).status == 403  # nobody knows from where
        assert (await call(port, method, path, DATA, ends=NEAR)).status == 404
    assert engine.reached == []
    assert (await call(port, "GET", "/instructloop/state", CONTROL, ends=NEAR)).json[
        "held"
    ] is False
    for method, path in routes:
        assert (await call(port, method, path, CONTROL, ends=NEAR)).status == 200


async def test_on_a_port_control_routes_stay_shut_to_who_forges_where_it_comes_from(port, engine):
    forged = [(b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=127.0.0.1")]
    reply = await call(port, "POST", "/pause", CONTROL, headers=forged, ends=AWAY)
    assert reply.status == 403
    assert engine.reached == []


def test_whether_it_stands_on_a_port_is_said_by_a_variable(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(json.dumps({"data": ["d", "before"], "control": "c"}))
    told = {guard_module.TOKENS_FILE: str(tokens), guard_module.POLICY_VERSION: "v1"}
    assert settings_from(told).tcp is False
    assert settings_from({**told, guard_module.ON_TCP: "1"}).tcp is True
