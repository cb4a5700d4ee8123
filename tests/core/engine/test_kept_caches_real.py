"""The real vLLM when weights are exchanged under replies: what is kept, and what nobody may meet.

Most tests use an engine with memory for 256 blocks of 32 tokens; the other one has vLLM's own
scheduler, and starts on the new model: what a swap has to be equal to.
"""

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from core.engine import launch
from core.engine.client import EngineClient, Sample
from core.engine.launch import EngineSpec
from serving.swap import Loadable, swap
from tests.serving.real_engine import control, engine_spec, running_engine
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

SALT = "one user of the old version"
LONG = [(37 * i) % 4000 + 100 for i in range(203)]  # six full blocks
SHORT = [[1, 100 + 7 * i, 3000 + i, 40 * i + 5, 9] for i in range(6)]  # less than one
KV_BYTES = 256 * 16384


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "v0000": make_tiny_model(folder / "v0000", seed=0),
        "v0001": make_tiny_model(folder / "v0001", seed=1),
    }


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="il-"))  # a socket's path has to be short
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def keeping(folder, models) -> Iterator[EngineSpec]:
    """An engine with little memory."""
    command = launch.command

    def small(spec: EngineSpec) -> list[str]:
        flags = command(spec)
        flags[flags.index("--kv-cache-memory-bytes") + 1] = str(KV_BYTES)
        return flags

    spec = engine_spec(folder, models["v0000"], version="v0000", name="keeping")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "command", small)
        with running_engine(spec):
            yield spec


@pytest.fixture(scope="module")
def plain(folder, models) -> Iterator[EngineSpec]:
    """An engine on the new model that schedules as vLLM does."""
    command = launch.command

    def without(spec: EngineSpec) -> list[str]:
        flags = command(spec)
        at = flags.index("--scheduler-cls")
        return flags[:at] + flags[at + 2 :]

    spec = engine_spec(folder, models["v0001"], version="v0001", name="plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "command", without)
        with running_engine(spec):
            yield spec


@asynccontextmanager
async def serving(spec: EngineSpec, version: str, models: dict[str, Path]):
    """A client of an engine that serves this version before and after."""
    async with control(spec) as client:
        yield client
        await client.replace_weights(models[version], version)
        await client.admit(version)


@pytest.fixture
async def client(keeping, models) -> AsyncIterator[EngineClient]:
    async with serving(keeping, "v0000", models) as client:
        yield client


@pytest.fixture
async def other(plain, models) -> AsyncIterator[EngineClient]:
    async with serving(plain, "v0001", models) as client:
        yield client


async def exchange(client: EngineClient, version: str) -> None:
    """The middle of a swap, to what is staged already."""
    await client.hold()
    await client.pause()
    await client.install()
    await client.reset_prefix_cache(keep=True)
    await client.set_weight_version(version)
    await client.resume()
    await client.admit(version)


async def counted(client: EngineClient, name: str) -> float:
    """A counter of vLLM."""
    text = await client._send("GET", "/metrics", token=client.data_token, timeout=5)
    found = re.search(rf"^vllm:{name}_total{{[^}}]*}} (\S+)$", text.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


async def answer(client: EngineClient, prompt: list[int], tokens: int = 24) -> Sample:
    """The most likely answer of a user with the salt, through vLLM's route for token ids."""
    body = {
        "token_ids": prompt,
        "sampling_params": {
            "max_tokens": tokens,
            "temperature": 0.0,
            "logprobs": 0,
            "detokenize": False,
            "ignore_eos": True,
        },
        "cache_salt": SALT,
    }
    reply = await client._control("POST", "/inference/v1/generate", body)
    return client._checked(reply["choices"][0])


async def same(client: EngineClient, other: EngineClient, prompt: list[int]) -> bool:
    """Whether two engines answer the same, up to the rounding of batches of other sizes."""
    mine, theirs = await answer(client, prompt), await answer(other, prompt)
    return mine.token_ids == theirs.token_ids and mine.logprobs == pytest.approx(
        theirs.logprobs, abs=0.05
    )


@dataclass
class Stream:
    """A client's stream, token by token."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ended: bool = False

    async def read(self, spec: EngineSpec, tokens: int) -> None:
        body = {
            "model": "instructloop",
            "prompt": self.prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "cache_salt": SALT,
        }
        headers = {"Authorization": f"Bearer {spec.data_token}"}
        connector = aiohttp.UnixConnector(str(spec.socket))
        async with (
            aiohttp.ClientSession("http://engine", connector=connector) as session,
            session.post("/v1/completions", json=body, headers=headers) as reply,
        ):
            assert reply.status == 200
            text = b""
            async for chunk in reply.content.iter_any():
                *events, text = (text + chunk).split(b"\n\n")
                for event in events:
                    self.take(event.decode())
        self.ended = True

    def take(self, event: str) -> None:
        if event.startswith(": policy-version "):
            self.marks.append((len(self.tokens), event.removeprefix(": policy-version ")))
        elif (data := event.removeprefix("data: ")) != "[DONE]":
            said = json.loads(data)
            if "error" in said:
                self.errors.append(data)
            for choice in said.get("choices", []):
                self.tokens += choice["token_ids"] or []

    async def reaches(self, count: int) -> None:
        while len(self.tokens) < count:
            assert not self.ended
            await asyncio.sleep(0.005)


@asynccontextmanager
async def streams(spec: EngineSpec, prompts: list[list[int]], tokens: int):
    """Streams that all have written some tokens when the block begins."""
    crossed = [Stream(prompt) for prompt in prompts]
    async with asyncio.TaskGroup() as reading, asyncio.timeout(60):
        tasks = [reading.create_task(stream.read(spec, tokens)) for stream in crossed]
        await asyncio.gather(*(stream.reaches(40) for stream in crossed))
        assert not any(task.done() for task in tasks)
        yield crossed


async def go_on(crossed: list[Stream]) -> None:
    """Return when each has written more: what vLLM counts comes with tokens."""
    await asyncio.gather(*(stream.reaches(len(stream.tokens) + 30) for stream in crossed))
    assert not any(stream.ended for stream in crossed)


async def test_after_a_swap_no_request_meets_what_the_old_weights_computed(
    keeping, client, other, models
):
    """Not a prompt of before, nor one that a crossed reply's own tokens make up."""
    old = await answer(client, LONG)
    hits = await counted(client, "prefix_cache_hits")
    assert (await answer(client, LONG)).token_ids == old.token_ids
    warm = await counted(client, "prefix_cache_hits")
    assert warm == hits + 192

    await client.stage(models["v0001"])
    async with streams(keeping, [LONG, SHORT[0]], 1500) as crossed:
        before = await counted(client, "prefix_cache_hits")
        await exchange(client, "v0001")
        assert await same(client, other, LONG)
        assert await counted(client, "prefix_cache_hits") == before
        assert (await answer(client, LONG)).token_ids != old.token_ids
        assert await counted(client, "prefix_cache_hits") == before + 192
        asked = 0
        for stream in crossed:  # which go on, and have filled blocks with the new weights
            await stream.reaches(len(stream.tokens) + 100)
            assert not stream.ended
            whole = stream.prompt + stream.tokens
            asked += len(whole) + 24
            assert await same(client, other, whole)
    found = await counted(client, "prefix_cache_hits")
    for stream in crossed:
        assert [version for _, version in stream.marks] == ["v0001"]
        assert not stream.errors
        assert await same(client, other, stream.prompt + stream.tokens)
    # no more than what was asked for above, and so computed by the new weights alone
    assert await counted(client, "prefix_cache_hits") <= found + asked


async def test_replies_go_on_with_what_they_have_and_end_whole(keeping, client, models):
    preempted = await counted(client, "num_preemptions")
    old, new = (Loadable(version, models[version], None) for version in ("v0000", "v0001"))
    async with streams(keeping, SHORT[:4], 1700) as crossed:
        await swap(client, new=new, old=old, drain_seconds=0)
        await swap(client, new=old, old=new, drain_seconds=0)
        await go_on(crossed)
        assert await counted(client, "num_preemptions") == preempted
    for stream in crossed:
        assert [version for _, version in stream.marks] == ["v0001", "v0000"]
        assert (len(stream.tokens), stream.errors) == (1700, [])


async def test_a_crossed_reply_that_is_put_back_for_lack_of_memory_ends_whole(
    keeping, client, other, models
):
    preempted = await counted(client, "num_preemptions")
    await client.stage(models["v0001"])
    async with streams(keeping, SHORT, 1700) as crossed:  # 320 blocks
        await exchange(client, "v0001")
        await go_on(crossed)
        assert await counted(client, "num_preemptions") == preempted
    assert await counted(client, "num_preemptions") > preempted
    for stream in crossed:
        assert (len(stream.tokens), stream.errors) == (1700, [])
    assert await same(client, other, SHORT[1] + crossed[1].tokens)


async def test_an_engine_that_cannot_keep_them_computes_them_again(plain, other, client, models):
    preempted = await counted(other, "num_preemptions")
    await answer(other, LONG)
    await other.stage(models["v0000"])
    async with streams(plain, SHORT, 1000) as crossed:
        await exchange(other, "v0000")
        await go_on(crossed)
        assert await counted(other, "num_preemptions") == preempted + len(SHORT)
        assert await same(client, other, LONG)
    for stream in crossed:
        assert [version for _, version in stream.marks] == ["v0000"]
        assert (len(stream.tokens), stream.errors) == (1000, [])
