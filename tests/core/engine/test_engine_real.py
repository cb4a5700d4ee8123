"""The real vLLM, serving tiny random models: the guard, generation, reloads and a whole swap."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.engine.client import PROBE_PROMPT, EngineClient
from core.engine.guard import DATA_ROUTES
from core.engine.launch import EngineSpec, start_engine, stop_engine, wait_until_ready
from core.errors import CorruptVersion
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

START_SECONDS = 240
EOS = 2
# random weights separate greedy choices well, so that rounding does not change them
PROMPTS = [[1, 100 + 7 * i, 3000 + i, 40 * i + 5, 9] for i in range(4)]


@dataclass
class Engine:
    """A running engine and its two doors."""

    spec: EngineSpec
    pid: int

    def client(self) -> EngineClient:
        return EngineClient(
            socket=self.spec.socket,
            data_token=self.spec.data_token,
            control_token=self.spec.control_token,
        )

    def session(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self.spec.socket), force_close=True)
        return aiohttp.ClientSession("http://engine", connector=connector)

    def headers(self, token: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {token or self.spec.data_token}"}


@contextlib.contextmanager
def running(model: Path, version: str) -> Iterator[Engine]:
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    spec = EngineSpec(
        model=model,
        socket=folder / "e.sock",
        served_name="instructloop",
        policy_version=version,
        data_token="data-token",
        control_token="control-token",
        log=folder / "e.log",
        max_num_seqs=16,
    )
    process = start_engine(spec)
    engine = Engine(spec, process.pid)

    async def ready() -> None:
        async with engine.client() as client:
            await wait_until_ready(client, process, timeout=START_SECONDS, log=spec.log)

    try:
        asyncio.run(ready())
        yield engine
    finally:
        stop_engine(process, 20)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def old_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "old", seed=0)


@pytest.fixture(scope="module")
def new_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "new", seed=1)


@pytest.fixture(scope="module")
def serving(old_model) -> Iterator[Engine]:
    with running(old_model, "v0000") as engine:
        yield engine


@pytest.fixture(scope="module")
def cold(new_model) -> Iterator[Engine]:
    """A second engine that was started on the new model: what a swap has to be equal to."""
    with running(new_model, "v0001") as engine:
        yield engine


@pytest.fixture
async def client(serving, old_model) -> AsyncIterator[EngineClient]:
    """A client of the first engine, which serves the old model before and after each test."""
    async with serving.client() as client:
        yield client
        if (await client.state()).version != "v0000":
            await client.replace_weights(old_model, "v0000")


async def greedy(client: EngineClient, prompts: list[list[int]], max_tokens: int):
    """The most likely continuations, with their log-probabilities."""
    groups = await client.generate(prompts, n=1, max_tokens=max_tokens, temperature=0.0)
    return [sample for (sample,) in groups]


def all_routes(openapi: dict, log: str) -> set[tuple[str, str]]:
    """vLLM's routes: those it documents, and those it lists in its log when it starts."""
    documented = {
        (method.upper(), path) for path, methods in openapi["paths"].items() for method in methods
    }
    logged = {
        (method, path)
        for path, methods in re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", log)
        for method in methods.strip().split(", ")
    }
    return documented | logged


async def test_no_route_of_vllm_opens_without_a_token_and_few_open_with_the_gateway_s(
    serving, client
):
    openapi = await client._control("GET", "/openapi.json")
    routes = all_routes(openapi, serving.spec.log.read_text())
    assert {("POST", "/invocations"), ("POST", "/collective_rpc"), ("POST", "/pause")} <= routes
    assert len(routes) > 40
    async with serving.session() as session:
        for method, template in sorted(routes):
            path = re.sub(r"\{[^}]*\}", "x", template)
            for headers in ({}, serving.headers("wrong")):
                async with session.request(method, path, headers=headers) as reply:
                    assert reply.status == 403, (method, path)
            async with session.request(method, path, headers=serving.headers()) as reply:
                if (method, template) in DATA_ROUTES:
                    assert reply.status in (200, 400), (method, path)
                else:
                    assert reply.status == 404, (method, path)
                    said = await reply.read()
                    assert method == "HEAD" or b"gateway's token" in said, (method, path)
    # nothing of all this reached the engine
    assert await client._control("GET", "/is_paused") == {"is_paused": False}
    assert (await client.probe()).token_ids


async def test_long_prompts_with_seeds_do_not_end_the_engine(client):
    """vLLM on CPU cannot turn back a seeded generator, as it wants to after half a prompt."""
    prompts = [[5 + i] * 1900 for i in range(5)]
    groups = await client.generate(prompts, n=2, max_tokens=4, temperature=1.0, seed=11)
    assert [len(group) for group in groups] == [2] * 5
    again = await client.generate(prompts, n=2, max_tokens=4, temperature=1.0, seed=11)
    assert again == groups


async def post(session, path, headers, **body):
    async with session.post(path, headers=headers, json={"model": "instructloop"} | body) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json(), reply.headers


async def test_the_request_id_header_becomes_the_reply_s_id(serving):
    messages = [{"role": "user", "content": "hello"}]
    headers = serving.headers() | {"X-Request-Id": "ours-1"}
    async with serving.session() as session:
        chat, chat_headers = await post(
            session, "/v1/chat/completions", headers, messages=messages, max_tokens=3, n=2
        )
        text, _ = await post(
            session, "/v1/completions", headers, prompt=["a", "b"], max_tokens=3, n=2
        )
        answer, _ = await post(
            session, "/v1/responses", headers, input="hello", max_output_tokens=3, request_id="r-1"
        )
    assert chat["id"] == "chatcmpl-ours-1"
    assert [choice["index"] for choice in chat["choices"]] == [0, 1]
    assert text["id"] == "cmpl-ours-1"
    assert [choice["index"] for choice in text["choices"]] == [0, 1, 2, 3]
    assert answer["id"] == "r-1"
    assert chat_headers["x-policy-version"] == "v0000"
    assert "x-policy-versions" not in chat_headers


async def test_no_word_of_a_request_gets_into_the_log(serving, client):
    word = "Fernweh8271"
    good = {"messages": [{"role": "user", "content": word}], "max_tokens": 2}
    bad = [
        {"messages": [{"role": "user", "content": {word: word}}]},
        {"messages": word},
        good | {"temperature": word},
        good | {"max_tokens": 10**6},
        good | {"response_format": {"type": "json_schema", "json_schema": {"name": word}}},
    ]
    url, headers = "/v1/chat/completions", serving.headers()
    async with serving.session() as session:
        await post(session, url, headers, **good)
        for body in bad:
            async with session.post(url, headers=headers, json=body) as reply:
                assert reply.status >= 400
        broken = f'{{"messages": "{word}'
        async with session.post(
            url, headers=headers | {"Content-Type": "application/json"}, data=broken
        ) as reply:
            assert reply.status == 400
    assert word not in serving.spec.log.read_text()


async def test_samples_end_with_the_end_token_and_report_what_they_were_drawn_from(
    client, old_model, tmp_path
):
    """Against transformers in float32, at a temperature where raw log-probabilities differ."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "ends-early"
    shutil.copytree(old_model, folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    embedding[EOS] = 8 * embedding[77]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    await client.replace_weights(folder, "v-ends-early")
    groups = await client.generate(PROMPTS, n=6, max_tokens=7, temperature=2.0, seed=3)
    samples = [sample for group in groups for sample in group]
    assert len(samples) == 24
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert len(sample.logprobs) == len(sample.token_ids) <= 7
        assert (sample.token_ids[-1] == EOS) == (sample.finish_reason == "stop")
        assert EOS not in sample.token_ids[:-1]
    assert len({tuple(sample.token_ids) for sample in samples}) == 24

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    off_by, off_by_raw = [], []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for sample in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + sample.token_ids])).logits[0]
            logits = logits[len(prompt) - 1 : -1]  # (answer, vocabulary)
            chosen = torch.tensor(sample.token_ids)[:, None]
            for temperature, differences in ((2.0, off_by), (1.0, off_by_raw)):
                reference = torch.log_softmax(logits / temperature, -1).gather(1, chosen)[:, 0]
                differences.append((reference - torch.tensor(sample.logprobs)).abs())
    assert torch.cat(off_by).mean() < 0.05
    assert torch.cat(off_by_raw).mean() > 0.5


def packed_digest(weight: torch.Tensor) -> str:
    """SHA-256 of a weight (outputs, inputs), transposed."""
    data = weight.t().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


async def test_checksums_are_those_of_the_file_and_of_another_engine_s_cold_start(
    client, cold, old_model, new_model
):
    before = await client.checksums()
    await client.replace_weights(new_model, "v0001")
    after = await client.checksums()
    async with cold.client() as other:
        assert after == await other.checksums()
    assert {name for name in before if before[name] != after[name]} >= {
        name for name in before if "norm" not in name
    }
    assert before.keys() == after.keys()
    for sums, folder in ((before, old_model), (after, new_model)):
        tensors = load_file(folder / "model.safetensors")
        layer = "model.layers.1."
        gate, up = (tensors[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        assert sums[f"{layer}mlp.gate_up_proj.weight.packed"] == packed_digest(
            torch.cat([gate, up])
        )
        down = tensors[f"{layer}mlp.down_proj.weight"]
        assert sums[f"{layer}mlp.down_proj.weight.packed"] == packed_digest(down)
        query, key, value = (tensors[f"{layer}self_attn.{n}_proj.weight"] for n in "qkv")
        fused = torch.cat([query, key, value])
        assert sums[f"{layer}self_attn.qkv_proj.weight.packed"] == packed_digest(fused)
        embedding = tensors["model.embed_tokens.weight"]
        assert sums["model.embed_tokens.weight.packed"] == packed_digest(embedding)
        raw = embedding.view(torch.uint8).numpy().tobytes()
        assert sums["model.embed_tokens.weight"] == hashlib.sha256(raw).hexdigest()


async def test_a_reload_serves_exactly_what_a_cold_start_serves(client, cold, new_model):
    old = await greedy(client, PROMPTS, 64)
    await client.replace_weights(new_model, "v0001")
    new = await greedy(client, PROMPTS, 64)
    async with cold.client() as other:
        reference = await greedy(other, PROMPTS, 64)
    assert [sample.token_ids for sample in new] == [sample.token_ids for sample in reference]
    assert [sample.token_ids for sample in new] != [sample.token_ids for sample in old]


async def test_stale_prefix_cache_gives_wrong_answers_and_a_reset_clears_it(
    client, cold, new_model
):
    await client.probe()
    await client.pause()
    await client.reload(new_model)
    await client.resume()
    stale = await client.probe()
    await client.pause()
    await client.reset_prefix_cache()
    await client.set_weight_version("v0001")
    await client.resume()
    fresh = await client.probe()
    async with cold.client() as other:
        reference = await other.probe()
    assert len(PROBE_PROMPT) > 64  # of which more than one block comes from the cache
    assert fresh == reference
    assert stale != reference


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def change(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_layer(folder: Path) -> None:
    def edit(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    change(folder, edit)


def with_a_wrong_shape(folder: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    change(folder, lambda tensors: tensors.update({name: tensors[name].t().contiguous()}))


def with_nan(folder: Path) -> None:
    def edit(tensors):
        tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = float("nan")

    change(folder, edit)


def with_one_tensor_more(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(4)}))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        without_a_layer,
        with_a_wrong_shape,
        with_nan,
        with_one_tensor_more,
        without_weights,
        shutil.rmtree,
    ],
)
async def test_a_spoilt_candidate_is_refused_and_the_old_weights_answer_as_before(
    client, new_model, tmp_path, spoil
):
    candidate = tmp_path / "candidate"
    shutil.copytree(new_model, candidate)
    spoil(candidate)
    answers, checksums = await greedy(client, PROMPTS, 24), await client.checksums()
    with pytest.raises(CorruptVersion):
        await client.replace_weights(candidate, "v0666")
    assert await client.checksums() == checksums
    assert await greedy(client, PROMPTS, 24) == answers
    assert (await client.state()).version == "v0000"


@dataclass
class Stream:
    """A streamed completion, read event by event."""

    prompt: list[int]
    headers: dict[str, str] = field(default_factory=dict)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    flowing: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, engine: Engine, max_tokens: int) -> None:
        body = {
            "model": "instructloop",
            "prompt": self.prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        async with (
            engine.session() as session,
            session.post("/v1/completions", json=body, headers=engine.headers()) as reply,
        ):
            assert reply.status == 200
            self.headers = dict(reply.headers)
            text = ""
            async for chunk in reply.content.iter_any():
                text += chunk.decode()
                *events, text = text.split("\n\n")
                for event in events:
                    self.take(event)
            assert text == ""

    def take(self, event: str) -> None:
        if event.startswith(": policy-version "):
            self.marks.append(event.removeprefix(": policy-version "))
            return
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            return
        for choice in json.loads(data)["choices"]:
            (self.after if self.marks else self.before).extend(choice["token_ids"] or [])
        if len(self.before) > 30:
            self.flowing.set()


async def swap(client: EngineClient, folder: Path, version: str) -> None:
    """The order of a hot swap; drains for less than the streams take."""
    await client.hold()
    assert await client.drain(0.05) > 0
    await client.pause()
    await client.reload(folder)
    await client.reset_prefix_cache()
    await client.set_weight_version(version)
    await client.resume()
    await client.probe()
    await client.admit(version)


async def test_a_swap_under_load_marks_each_stream_at_the_very_token_where_the_policy_changed(
    serving, client, cold, new_model
):
    """Every token before the mark is the old policy's greedy choice, every one after the new's."""
    length = 1500
    old = await greedy(client, PROMPTS, 700)
    streams = [Stream(prompt) for prompt in PROMPTS]
    reading = [asyncio.create_task(stream.read(serving, length)) for stream in streams]
    unary_body = {"prompt": [7, 8, 9], "max_tokens": length, "ignore_eos": True, "seed": 5}
    async with serving.session() as session:
        unary = asyncio.create_task(
            post(session, "/v1/completions", serving.headers(), **unary_body)
        )
        await asyncio.gather(*(stream.flowing.wait() for stream in streams))
        swapping = asyncio.create_task(swap(client, new_model, "v0001"))
        while not (await client.state()).held:
            await asyncio.sleep(0)
        late = Stream([5, 6, 7])
        reading.append(asyncio.create_task(late.read(serving, 20)))
        await swapping
        await asyncio.gather(*reading)
        unary_reply, unary_headers = await unary
    for stream, reference in zip(streams, old, strict=True):
        assert stream.headers["x-policy-version"] == "v0000"
        assert "x-policy-versions" not in stream.headers
        assert stream.marks == ["v0001"]
        assert len(stream.before) + len(stream.after) == length
        assert stream.before == reference.token_ids[: len(stream.before)]
    async with cold.client() as other:
        continued = await greedy(other, [s.prompt + s.before for s in streams], 24)
    assert [stream.after[:24] for stream in streams] == [sample.token_ids for sample in continued]
    assert unary_headers["x-policy-version"] == "v0000"
    assert unary_headers["x-policy-versions"] == "v0000,v0001"
    assert unary_reply["usage"]["completion_tokens"] == length
    assert late.headers["x-policy-version"] == "v0001"
    assert late.marks == []
    assert await client.in_flight() == 0


async def test_requests_that_waited_for_a_swap_answer_as_the_new_policy(
    serving, client, cold, new_model
):
    await client.hold()
    body = {"prompt": PROMPTS[0], "max_tokens": 16, "temperature": 0, "return_token_ids": True}
    async with serving.session() as session:
        waiting = asyncio.create_task(post(session, "/v1/completions", serving.headers(), **body))
        while (await client.state()).waiting == 0:
            await asyncio.sleep(0.01)
        await client.replace_weights(new_model, "v0001")
        assert not waiting.done()
        await client.admit("v0001")
        reply, headers = await waiting
    async with cold.client() as other:
        (reference,) = await greedy(other, [PROMPTS[0]], 16)
    assert reply["choices"][0]["token_ids"] == reference.token_ids
    assert headers["x-policy-version"] == "v0001"
    assert "x-policy-versions" not in headers


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def running_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_when_the_server_is_killed_nothing_of_the_engine_stays_behind(cold):
    """vLLM itself would leave the process that holds the model; last, for it ends an engine."""
    left = children(cold.pid)
    assert len(left) >= 1
    os.kill(cold.pid, 9)
    deadline = time.monotonic() + 20
    while any(running_still(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)
