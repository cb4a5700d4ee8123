"""What never gets through: to an engine from a client, and to its other routes from anybody."""

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from core.engine.guard import DATA_ROUTES
from serving import apis, fields
from tests.serving.conftest import announce, running_gateway
from tests.serving.real_engine import share_data_token
from tests.serving.tap import Tap

MESSAGES = [{"role": "user", "content": "Where is the Seine?"}]
APIS = {
    "chat": (apis.CHAT, {"messages": MESSAGES, "max_tokens": 9}),
    "text": (apis.TEXT, {"prompt": "The Seine", "max_tokens": 9}),
    "responses": (apis.RESPONSES, {"input": "Where is the Seine?", "max_output_tokens": 16}),
    "messages": (apis.MESSAGES, {"messages": MESSAGES, "max_tokens": 9}),
}
NAMED = {"priority", "request_id", "cache_salt", "kv_transfer_params", "chat_template"}
URL = "http://169.254.169.254/latest"
MEDIA = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "input_image", "image_url": URL},
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "document", "source": {"type": "url", "url": URL}},
    {"type": "input_file", "file_url": URL},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "audio_url", "audio_url": {"url": URL}},
    {"type": "video_url", "video_url": {"url": URL}},
]
STRANGE_HEADERS = {
    "X-Request-Id": "mine",
    "X-Session-Id": "mine",
    "X-data-parallel-rank": "1",
    "traceparent": "00-11111111111111111111111111111111-2222222222222222-01",
    "Cookie": "mine=1",
    "X-Forwarded-For": "10.0.0.1",
    "anthropic-beta": "mine",
}
by_api = pytest.mark.parametrize(("api", "good"), APIS.values(), ids=list(APIS))


@dataclass
class Listener:
    """An engine that only takes down what reaches it, and refuses it."""

    bodies: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def take_down(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"error": {"message": "no", "type": "x", "code": 400}}, status=400)

    @asynccontextmanager
    async def listening(self, socket: Path):
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self.take_down)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, socket).start()
        try:
            yield f"unix:{socket}"
        finally:
            await runner.cleanup()


def quiet(settings):
    """Settings without probes while a test runs, so that all that comes is the test's."""
    gateway = settings.gateway.model_copy(update={"probe_interval_seconds": 600.0})
    return settings.model_copy(update={"gateway": gateway})


@pytest.fixture
async def listener(state_dir):
    return Listener()


@pytest.fixture
async def gateway(listener, redis, gateway_settings, state_dir):
    async with listener.listening(state_dir / "engine.sock") as url:
        await announce(redis, url)
        async with running_gateway(quiet(gateway_settings), redis) as running:
            yield running


@by_api
async def test_no_field_that_steers_the_engine_reaches_it(gateway, listener, api, good):
    assert NAMED <= fields.STEERING
    for name in fields.STEERING:
        for value in ("x", 7, {"a": 1}, None):
            body = {**good, name: value}
            async with gateway.post(api.path, body) as response:
                assert response.status == 400, (name, value)
    keywords = {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    async with gateway.post(api.path, {**good, **keywords}) as response:
        assert response.status == 400
    assert listener.bodies == []


@by_api
@pytest.mark.parametrize("part", MEDIA, ids=lambda part: part["type"])
async def test_no_media_reaches_an_engine(gateway, listener, api, good, part):
    messages = [{"role": "user", "content": [part]}]
    result = [{"role": "user", "content": [{"type": "tool_result", "content": [part]}]}]
    for prompt in (messages, result, [part]):
        async with gateway.post(api.path, {**good, api.prompt_field: prompt}) as response:
            assert response.status == 400
    assert listener.bodies == []


@by_api
async def test_no_header_of_a_client_reaches_an_engine(gateway, listener, api, good):
    body = {**good, "user": "Ada"} if "user" in api.our_fields else good
    for _ in range(2):
        async with gateway.post(api.path, body, headers=STRANGE_HEADERS) as response:
            assert response.status == 400  # the engine's
            assert response.headers["x-request-id"] != "mine"
    first, second = listener.headers
    assert first.keys() <= {
        "host",
        "authorization",
        "content-type",
        "content-length",
        "x-request-id",
        "accept-encoding",
    }
    token = gateway.keyring.token("engine-data.token")
    assert first["authorization"] == f"Bearer {token}"
    assert first["x-request-id"] != second["x-request-id"]
    assert "mine" not in str(listener.headers) + str(listener.bodies)
    assert gateway.secret not in str(listener.headers) + str(listener.bodies)


@by_api
async def test_the_gateway_alone_steers_and_clients_come_first(gateway, listener, api, good):
    async with gateway.post(api.path, good) as response:
        assert response.status == 400
    (body,) = listener.bodies
    steered = body.keys() & fields.STEERING
    assert steered == set(api.steering)
    assert body.get("priority", 0) == 0  # vLLM's first, and its default
    assert len(body["cache_salt"]) >= 32


async def test_the_gateway_s_own_token_opens_nothing_at_the_gateway(gateway):
    token = gateway.keyring.token("engine-data.token")
    for name in ("Authorization", "x-api-key"):
        value = f"Bearer {token}" if name == "Authorization" else token
        for path in ("/v1/models", "/v1/policies", "/metrics"):
            url = gateway.url + path
            async with gateway.http.get(url, headers={name: value}) as response:
                assert response.status == 401


async def vllm_routes(spec) -> set[tuple[str, str]]:
    """What vLLM documents, and what else it lists in its log when it starts."""
    connector = aiohttp.UnixConnector(str(spec.socket))
    async with aiohttp.ClientSession("http://engine", connector=connector) as http:
        headers = {"Authorization": f"Bearer {spec.control_token}"}
        async with http.get("/openapi.json", headers=headers) as response:
            paths = (await response.json())["paths"]
    documented = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    logged = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", spec.log.read_text())
    return documented | {
        (method, path) for path, methods in logged for method in methods.strip().split(", ")
    }


@pytest.mark.slow
async def test_through_the_gateway_no_route_of_vllm_is_reachable_but_completions(
    vllm, redis, gateway_settings, state_dir
):
    """What each token opens at the engine itself is in tests/core/engine/test_engine_real.py."""
    routes = await vllm_routes(vllm)
    assert {("POST", "/collective_rpc"), ("POST", "/pause"), ("POST", "/invocations")} <= routes
    assert len(routes) > 40
    surface = {("POST", api.path) for api, _ in APIS.values()}
    assert surface == {route for route in DATA_ROUTES if route[0] == "POST"}
    share_data_token(vllm, state_dir)
    tap = Tap()
    async with tap.on(vllm.socket, state_dir / "tap.sock") as url:
        await announce(redis, url)
        async with running_gateway(quiet(gateway_settings), redis) as gateway:
            ours = {*gateway.app.openapi()["paths"], "/openapi.json"}
            headers = {"Authorization": f"Bearer {gateway.secret}"}
            for method, template in sorted(routes - surface):
                path = re.sub(r"\{[^}]*\}", "x", template)
                for body in (None, {"model": "instructloop", "prompt": "x", "messages": MESSAGES}):
                    async with gateway.http.request(
                        method, gateway.url + path, headers=headers, json=body
                    ) as response:
                        if template not in ours:
                            assert response.status in (401, 403, 404, 405), (method, path)
                assert tap.requests == [], (method, path)
            for api, good in APIS.values():
                async with gateway.post(api.path, good) as response:
                    assert response.status == 200, await response.text()
            assert len(tap.bodies) == len(APIS)


@pytest.mark.slow
def test_our_engines_listen_on_a_socket_of_their_owner_and_on_no_address(vllm):
    (server,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(vllm.socket) in (process.info["cmdline"] or [])
    ]
    family = [server, *server.children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) <= {"127.0.0.1", "::1"}
    unix = {c.laddr for process in family for c in process.net_connections("unix")}
    assert str(vllm.socket) in unix
    assert vllm.socket.stat().st_mode & 0o077 == 0 or vllm.socket.parent.stat().st_mode & 0o077 == 0
