"""The client against a real HTTP server on a Unix socket that answers what each test wants."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from core.engine import client as client_module
from core.engine.client import EngineClient, GuardState, Sample
from core.errors import CorruptVersion, EngineError


class Server:
    """Records every request; replies by path, in order, the last reply again and again."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, object]] = []
        self.tokens: set[str] = set()
        self.connections: set[int] = set()
        self.replies: dict[str, list[tuple[int, object]]] = {}
        self.concurrent = 0
        self.most_concurrent = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((request.method, request.path_qs, json.loads(body) if body else None))
        self.tokens.add(request.headers["Authorization"])
        self.connections.add(id(request.transport))
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        await asyncio.sleep(0.01)
        self.concurrent -= 1
        replies = self.replies.get(request.path, [(200, {})])
        status, content = replies.pop(0) if len(replies) > 1 else replies[0]
        if status == 0:
            request.transport.close()
        return web.json_response(content, status=status)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def engine(server, tmp_path) -> AsyncIterator[EngineClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "e.sock")).start()
    tokens = {"data_token": "data", "control_token": "control"}
    async with EngineClient(socket=tmp_path / "e.sock", **tokens) as client:
        yield client
    await runner.cleanup()


def choice(index: int, token_ids: list[int], logprobs: list[float], reason: str = "stop") -> dict:
    content = [
        {"token_id": token, "logprob": logprob, "rank": 1, "top_logprobs": []}
        for token, logprob in zip(token_ids, logprobs, strict=True)
    ]
    return {
        "index": index,
        "token_ids": token_ids,
        "logprobs": {"content": content},
        "finish_reason": reason,
    }


async def test_samples_come_in_the_order_of_prompts_and_of_their_index(engine, server):
    server.replies["/inference/v1/generate"] = [
        (200, {"choices": [choice(1, [7, 2], [-0.5, -0.25]), choice(0, [5], [-1.0], "length")]}),
    ]
    groups = await engine.generate([[1, 3], [1, 4]], n=2, max_tokens=9, temperature=0.5, seed=100)
    assert groups[0] == [Sample([5], [-1.0], "length"), Sample([7, 2], [-0.5, -0.25], "stop")]
    assert len(groups) == 2
    bodies = sorted((body for _, _, body in server.requests), key=lambda body: body["token_ids"])
    assert [body["token_ids"] for body in bodies] == [[1, 3], [1, 4]]
    # two answers each: their seeds are 100, 101 and 102, 103
    assert [body["sampling_params"]["seed"] for body in bodies] == [100, 102]
    assert bodies[0]["sampling_params"] == {
        "n": 2,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 100,
        "logprobs": 0,
        "detokenize": False,
    }
    assert server.tokens == {"Bearer control"}


@pytest.mark.parametrize(("n", "concurrency", "most"), [(1, 4, 4), (4, 12, 3), (8, 5, 1)])
async def test_no_more_answers_than_asked_for_are_under_way(engine, server, n, concurrency, most):
    server.replies["/inference/v1/generate"] = [(200, {"choices": [choice(0, [2], [0.0])]})]
    prompts = [[1]] * 12
    await engine.generate(prompts, n=n, max_tokens=1, temperature=1.0, concurrency=concurrency)
    assert server.most_concurrent == most


async def test_samples_for_our_own_use_wait_behind_clients_if_they_are_told_to(engine, server):
    server.replies["/inference/v1/generate"] = [(200, {"choices": [choice(0, [2], [0.0])]})]
    await engine.generate([[1]], n=1, max_tokens=1, temperature=1.0)
    await engine.probe()
    await engine.generate([[1]] * 9, n=1, max_tokens=1, temperature=1.0, priority=7, concurrency=3)
    assert [body["priority"] for _, _, body in server.requests] == [0, 0] + [7] * 9
    assert server.most_concurrent == 3


@pytest.mark.parametrize("logprob", [-9999.0, float("nan")])
async def test_a_logprob_that_is_no_number_is_an_error(engine, server, logprob):
    server.replies["/inference/v1/generate"] = [(200, {"choices": [choice(0, [2], [logprob])]})]
    with pytest.raises(EngineError):
        await engine.probe()


async def test_an_answer_that_was_cut_off_is_an_error(engine, server):
    aborted = choice(0, [2], [-1.0], "abort")
    server.replies["/inference/v1/generate"] = [(200, {"choices": [aborted]})]
    with pytest.raises(EngineError, match="abort"):
        await engine.probe()


async def test_a_failed_prompt_fails_the_whole_call_as_an_engine_error(engine, server):
    good = (200, {"choices": [choice(0, [2], [-1.0])]})
    server.replies["/inference/v1/generate"] = [good, (500, {"error": "broken"}), good]
    with pytest.raises(EngineError, match="500"):
        await engine.generate([[1]] * 3, n=1, max_tokens=1, temperature=1.0, concurrency=1)


async def test_each_request_has_a_connection_of_its_own(engine, server):
    server.replies["/pause"] = [(500, {}), (200, {})]
    with pytest.raises(EngineError, match="answered 500 to /pause"):
        await engine.pause()
    await engine.pause()
    await engine.resume()
    assert len(server.connections) == 3


async def test_pausing_never_takes_vllm_s_defaults(engine, server):
    await engine.pause()
    assert server.requests == [("POST", "/pause?mode=keep&clear_cache=false", None)]


async def test_a_prefix_cache_that_was_not_reset_is_an_error_although_the_status_is_200(
    engine, server
):
    server.replies["/reset_prefix_cache"] = [(200, {"success": False})]
    with pytest.raises(EngineError, match="did not reset"):
        await engine.reset_prefix_cache()
    server.replies["/reset_prefix_cache"] = [(200, {"success": True})]
    await engine.reset_prefix_cache()
    assert server.requests[-1][1].endswith("?reset_running_requests=true")


async def test_caches_of_replies_in_flight_are_kept_where_the_engine_can_and_else_dropped(
    engine, server
):
    server.replies["/reset_prefix_cache"] = [(200, {"success": True})]
    await engine.reset_prefix_cache(keep=True)
    assert [path for _, path, _ in server.requests] == [
        "/reset_prefix_cache?reset_running_requests=false"
    ]
    server.replies["/reset_prefix_cache"] = [(200, {"success": False}), (200, {"success": True})]
    await engine.reset_prefix_cache(keep=True)
    assert [path.split("=")[1] for _, path, _ in server.requests[1:]] == ["false", "true"]
    server.replies["/reset_prefix_cache"] = [(200, {"success": False})]
    with pytest.raises(EngineError, match="did not reset"):
        await engine.reset_prefix_cache(keep=True)


async def test_a_refused_checkpoint_says_why(engine, server, tmp_path):
    server.replies["/collective_rpc"] = [(200, {"results": [{"refused": "a is missing"}]})]
    with pytest.raises(CorruptVersion, match="a is missing"):
        await engine.reload(tmp_path)
    assert server.requests[-1][2] == {"method": "safe_reload", "kwargs": {"folder": str(tmp_path)}}


async def test_a_load_that_only_some_ranks_refused_is_broken_not_refused(engine, server, tmp_path):
    server.replies["/collective_rpc"] = [(200, {"results": [{}, {"refused": "no space"}]})]
    with pytest.raises(EngineError, match="in part: no space"):
        await engine.reload(tmp_path)
    both = [{"refused": "no space"}, {"refused": "no space"}]
    server.replies["/collective_rpc"] = [(200, {"results": both})]
    with pytest.raises(CorruptVersion, match="no space"):
        await engine.reload(tmp_path)


async def test_checksums_of_several_ranks_do_not_hide_each_other(engine, server):
    server.replies["/collective_rpc"] = [(200, {"results": [{"w": "1"}]})]
    assert await engine.checksums() == {"w": "1"}
    server.replies["/collective_rpc"] = [(200, {"results": [{"w": "1"}, {"w": "2"}]})]
    assert await engine.checksums() == {"w@0": "1", "w@1": "2"}


async def test_replacing_weights_names_the_version_before_the_engine_goes_on(
    engine, server, tmp_path
):
    server.replies["/collective_rpc"] = [(200, {"results": [{}]})]
    server.replies["/reset_prefix_cache"] = [(200, {"success": True})]
    await engine.replace_weights(tmp_path, "v2")
    assert [path.split("?")[0] for _, path, _ in server.requests] == [
        "/pause",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/instructloop/version",
        "/update_weight_version",
        "/resume",
    ]


async def test_after_a_refusal_the_engine_goes_on_with_what_it_has(engine, server, tmp_path):
    server.replies["/collective_rpc"] = [(200, {"results": [{"refused": "why"}]})]
    with pytest.raises(CorruptVersion):
        await engine.replace_weights(tmp_path, "v2")
    assert [path.split("?")[0] for _, path, _ in server.requests] == [
        "/pause",
        "/collective_rpc",
        "/resume",
    ]


async def test_after_a_broken_load_the_engine_stays_paused(engine, server, tmp_path):
    server.replies["/collective_rpc"] = [(500, {})]
    with pytest.raises(EngineError):
        await engine.replace_weights(tmp_path, "v2")
    assert server.requests[-1][1] == "/collective_rpc"


async def test_draining_ends_when_nothing_is_in_flight_or_time_is_up(engine, server):
    states = [{"version": "v1", "held": True, "in_flight": n, "waiting": 4} for n in (2, 1, 0)]
    server.replies["/instructloop/state"] = [(200, state) for state in states]
    assert await engine.state() == GuardState("v1", True, 2, 4)
    assert await engine.drain(60) == 0
    server.replies["/instructloop/state"] = [(200, states[0])]
    assert await engine.drain(0.05) == 2


async def test_no_answer_is_an_engine_error_that_names_the_socket(engine, server, tmp_path):
    server.replies["/resume"] = [(0, {})]
    with pytest.raises(EngineError, match=r"e\.sock"):
        await engine.resume()
    absent = EngineClient(socket=tmp_path / "no.sock", data_token="d", control_token="c")
    async with absent as client:
        assert not await client.health()
        with pytest.raises(EngineError):
            await client.hold()


async def test_a_slow_answer_is_an_engine_error(engine, server, monkeypatch):
    monkeypatch.setattr(client_module, "_CONTROL_SECONDS", 0.001)
    with pytest.raises(EngineError, match="did not answer"):
        await engine._call("POST", "/resume", token="control", timeout=0.001)


async def test_health_uses_the_token_that_the_gateway_uses(engine, server):
    assert await engine.health()
    assert server.tokens == {"Bearer data"}


async def test_staging_is_asked_for_in_slices_until_every_rank_is_done(engine, server, tmp_path):
    server.replies["/collective_rpc"] = [
        (200, {"results": [{}, {}]}),
        (200, {"results": [{}, {"done": {"w": "2"}}]}),
        (200, {"results": [{"done": {"w": "1"}}, {}]}),
    ]
    assert await engine.stage(tmp_path) == {"w@0": "1", "w@1": "2"}
    asked = [body for _, _, body in server.requests]
    assert asked[0] == {"method": "begin", "kwargs": {"work": "stage", "folder": str(tmp_path)}}
    assert [body["method"] for body in asked[1:]] == ["go_on", "go_on"]


async def test_what_cannot_be_staged_is_refused_or_has_to_be_reloaded(engine, server, tmp_path):
    server.replies["/collective_rpc"] = [
        (200, {"results": [{}]}),
        (200, {"results": [{"refused": "w holds NaN"}]}),
    ]
    with pytest.raises(CorruptVersion, match="w holds NaN"):
        await engine.stage(tmp_path)
    server.replies["/collective_rpc"] = [(200, {"results": [{"unsupported": "a GPU"}]})]
    assert await engine.stage(tmp_path) is None


async def test_a_layer_that_did_not_go_in_is_an_error_of_the_engine(engine, server):
    server.replies["/collective_rpc"] = [(200, {"results": [{"wrong": "layers.3"}]})]
    with pytest.raises(EngineError, match="layers.3"):
        await engine.install()
