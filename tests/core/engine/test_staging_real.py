"""The real vLLM with two sets of weights: staged beside live ones, exchanged, and compared."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.engine.client import EngineClient
from core.errors import CorruptVersion
from serving.attest import difference
from serving.swap import Loadable, SwapFailed, swap
from tests.serving.real_engine import control, engine_spec, running_engine
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

PROMPTS = [[1, 100 + 7 * i, 3000 + i, 40 * i + 5, 9] for i in range(4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return make_tiny_model(folder / "v0000", seed=0), make_tiny_model(folder / "v0001", seed=1)


@pytest.fixture(scope="module")
def spec(models) -> Iterator:
    folder = Path(tempfile.mkdtemp(prefix="il-"))  # a socket's path has to be short
    spec = engine_spec(folder, models[0], version="v0000")
    with running_engine(spec):
        yield spec
    shutil.rmtree(folder)


@pytest.fixture
async def client(spec, models) -> AsyncIterator[EngineClient]:
    """A client of an engine that serves the old model before and after each test."""
    async with control(spec) as client:
        yield client
        await client.replace_weights(models[0], "v0000")
        await client.admit("v0000")


async def greedy(client: EngineClient, tokens: int = 32) -> list[list[int]]:
    groups = await client.generate(PROMPTS, n=1, max_tokens=tokens, temperature=0.0)
    return [sample.token_ids for (sample,) in groups]


async def test_what_is_staged_touches_nothing_and_what_is_installed_is_what_a_reload_gives(
    client, models
):
    old = await greedy(client), await client.checksums()
    await client.replace_weights(models[1], "v0001")
    new = await greedy(client), await client.checksums()
    await client.replace_weights(models[0], "v0000")

    assert await client.stage(models[1]) == new[1]
    assert (await greedy(client), await client.checksums()) == old
    assert await client.stage(models[1]) == new[1]
    await client.pause()
    await client.install()
    await client.reset_prefix_cache()
    await client.resume()
    assert (await greedy(client), await client.checksums()) == new
    assert await client.attest() == new[1]
    await client.replace_weights(models[0], "v0000")  # a reload heals what was exchanged
    assert (await greedy(client), await client.checksums()) == old


async def test_an_engine_answers_while_weights_are_staged(client, models):
    alone = await greedy(client, 200)
    staging = asyncio.create_task(client.stage(models[1]))
    beside = await greedy(client, 200)
    assert alone == beside
    assert await staging is not None


def spoilt(model: Path, folder: Path, edit) -> Path:
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_nan(tensors) -> None:
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = float("nan")


def without_a_tensor(tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize("edit", [with_nan, without_a_tensor])
async def test_a_spoilt_checkpoint_is_not_staged(client, models, tmp_path, edit):
    before = await client.checksums()
    with pytest.raises(CorruptVersion):
        await client.stage(spoilt(models[1], tmp_path / "spoilt", edit))
    assert await client.checksums() == before


def with_one_other_weight(tensors) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"][11, 13] += torch.tensor(0.5).bfloat16()


async def test_a_version_with_one_weight_that_is_not_its_own_never_goes_live(
    client, models, tmp_path
):
    expected = await client.stage(models[1])
    before = await client.checksums()
    other = spoilt(models[1], tmp_path / "other", with_one_other_weight)
    with pytest.raises(SwapFailed, match="1 parameters are not those of v0001") as failure:
        await swap(
            client,
            new=Loadable("v0001", other, expected),
            old=Loadable("v0000", models[0], before),
            drain_seconds=0,
        )
    assert failure.value.restored
    assert await client.checksums() == before
    state = await client.state()
    assert (state.version, state.held) == ("v0000", False)


async def test_live_weights_that_change_after_staging_are_found_and_the_old_ones_put_back(
    client, models, tmp_path, monkeypatch
):
    """Between the pause and the comparison somebody loads other weights."""
    old = await greedy(client), await client.checksums()
    other = spoilt(models[1], tmp_path / "other", with_one_other_weight)
    admit = client.admit

    async def meddling(version: str) -> None:
        if version == "v0001":
            await client.replace_weights(other, "v0001")
        await admit(version)

    monkeypatch.setattr(client, "admit", meddling)
    with pytest.raises(SwapFailed, match="not those that were staged") as failure:
        await swap(
            client,
            new=Loadable("v0001", models[1], None),
            old=Loadable("v0000", models[0], old[1]),
            drain_seconds=0,
        )
    assert failure.value.restored
    assert (await greedy(client), await client.checksums()) == old
    assert (await client.state()).version == "v0000"


async def test_weights_that_were_exchanged_under_their_old_name_fail_the_attestation(
    client, models, tmp_path
):
    loaded = await client.checksums()
    alone = await greedy(client, 200)
    proving = asyncio.create_task(difference(client, "v0000", loaded))
    assert await greedy(client, 200) == alone  # it goes on beside the answers
    assert await proving == ""
    await client.replace_weights(
        spoilt(models[0], tmp_path / "other", with_one_other_weight), "v0000"
    )
    assert (
        await difference(client, "v0000", loaded) == "1 parameters are not those of v0000 any more"
    )
    await client.replace_weights(models[0], "v0001")
    assert await difference(client, "v0000", loaded) == "it serves v0000 and calls it v0001"
