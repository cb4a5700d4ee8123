"""The parts of a demonstration. The whole of it: tests/loop/test_whole_loop.py turns the same."""

import hashlib
import itertools
import json
import math
from collections import Counter

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from core.errors import InstructLoopError
from core.keyring import Keyring
from core.settings import PREFIX
from deploy.demo.phases import Round, ask_all, learn, placed, swapped
from deploy.demo.result import Clock, iterations, stage_seconds
from deploy.demo.service import SPLIT, demo_environment, fix_user_hashes, free_port, service_client
from deploy.demo.traffic import Traffic
from deploy.simulate.judges import load_judge
from deploy.simulate.prompt_sets import Prompt, PromptSets
from feedback.split import split_of

BREVITY = load_judge("brevity")


def prompt_set(training: int, validation: int) -> PromptSets:
    prompts = [Prompt(f"prompt {i}", "", f"t{i}", f"k{i}", "open") for i in range(40)]
    return PromptSets(
        training=tuple(prompts[:training]),
        validation=tuple(prompts[training : training + validation]),
        test=(),
    )


def asgi_client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def test_every_prompt_is_asked_by_a_user_whose_hash_falls_into_its_part(tmp_path):
    keyring = Keyring(tmp_path)
    sets = prompt_set(training=17, validation=6)
    done = placed(sets, keyring)
    assert len({prompt.user for prompt in done}) == len(done) == 23
    by_split = {"train": set(), "validation": set()}
    for prompt in done:
        by_split[split_of(keyring.hashed("default", "user", prompt.user), SPLIT)].add(prompt.prompt)
    assert by_split["train"] == {prompt.prompt for prompt in sets.training}
    assert by_split["validation"] == {prompt.prompt for prompt in sets.validation}


def test_one_seed_splits_users_in_one_way_and_another_seed_in_another(tmp_path):
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        fix_user_hashes(tmp_path / name, seed)
    keys = [(tmp_path / name / "secrets" / "user.key").read_bytes() for name in "abc"]
    assert keys[0] == keys[1] == hashlib.sha256(b"demonstration 4").digest()
    assert keys[0] != keys[2]
    assert (tmp_path / "a" / "secrets" / "user.key").stat().st_mode & 0o077 == 0


def test_settings_of_the_demonstration_win_over_those_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv(PREFIX + "PROMOTION", "manual")
    monkeypatch.setenv(PREFIX + "REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("UNRELATED", "kept")
    plain = demo_environment(BREVITY, seed=3, state=tmp_path, redis_url=None)
    assert plain[PREFIX + "PROMOTION"] == "auto"
    assert plain[PREFIX + "LEARNING__SEED"] == "3"
    assert plain[PREFIX + "LEARNING__POLICY__MAX_NEW_TOKENS"] == str(BREVITY.max_tokens)
    assert (plain[PREFIX + "REDIS_URL"], plain["UNRELATED"]) == ("redis://elsewhere", "kept")
    ours = demo_environment(BREVITY, seed=3, state=tmp_path, redis_url="redis://ours")
    assert ours[PREFIX + "REDIS_URL"] == "redis://ours"


def test_a_phase_is_timed_also_when_it_fails():
    clock, said = Clock(), []
    with pytest.raises(InstructLoopError), clock.phase("learn", said.append):
        raise InstructLoopError("it failed")
    assert said == ["learn ..."]
    assert clock.total >= clock.seconds["learn"] >= 0.0


def test_figures_of_iterations_come_from_the_run_and_are_none_without_them(tmp_path):
    folder = tmp_path / "runs" / "r1" / "policy" / "out"
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps({"iterations": [{"reward": 0.5}]}))
    assert iterations(tmp_path, "r1") == [{"reward": 0.5}]
    assert iterations(tmp_path, "r2") == []


def test_only_stages_that_ended_have_a_length():
    states = {
        "snapshot": {"started_at": 10.0, "finished_at": 10.26},
        "policy": {"started_at": 20.0, "finished_at": 81.5},
        "gate": {"started_at": 90.0, "finished_at": None},
    }
    assert stage_seconds({"states": states}) == {"snapshot": 0.3, "policy": 61.5}


def completing(versions: list[str], bodies: list[dict]) -> FastAPI:
    """A service that answers with the last word of a prompt, from one version after another."""
    app, turns = FastAPI(), itertools.cycle(versions)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        bodies.append(body)
        word = body["messages"][0]["content"].split()[-1]
        reason = "stop" if int(word) % 2 else "length"
        choice = {"message": {"content": word}, "finish_reason": reason}
        return JSONResponse({"choices": [choice]}, headers={"x-policy-version": next(turns)})

    return app


async def test_answers_come_in_the_order_of_the_prompts_and_are_not_logged():
    bodies: list[dict] = []
    async with asgi_client(completing(["v0003"], bodies)) as client:
        answers = await ask_all(client, [f"number {i}" for i in range(30)], 11)
    assert answers.version == "v0003"
    assert answers.texts == tuple(str(i) for i in range(30))
    assert answers.finished == tuple(i % 2 == 1 for i in range(30))
    assert Counter((b["store"], b["max_tokens"], b["temperature"]) for b in bodies) == {
        (False, 11, 1.0): 30
    }


async def test_answers_of_two_versions_are_never_taken_for_one():
    async with asgi_client(completing(["v0003", "v0004"], [])) as client:
        with pytest.raises(InstructLoopError, match="several versions"):
            await ask_all(client, ["number 1", "number 2"], 11)


async def test_a_round_that_never_gets_to_its_votes_has_no_voters_and_ends_as_it_says():
    app = FastAPI()
    outcomes = iter(["running", "not_enough_data"])

    @app.post("/v1/loop/runs")
    async def begin() -> dict:
        return {"run_id": "r7"}

    @app.get("/v1/loop/runs/r7")
    async def look() -> dict:
        return {"id": "r7", "stage": "reward_model", "outcome": next(outcomes)}

    said: list[str] = []
    async with asgi_client(app) as client:
        traffic = Traffic(base_url="http://service", api_key="k", prompts=["p"])
        this = Round(client, BREVITY, traffic, {})
        run = await learn(this, said.append)
    assert (run["outcome"], said) == ("not_enough_data", ["  reward_model"])
    assert this.voting is None
    assert this.over.is_set()
    assert math.isinf(this.trained_until)


async def test_the_swap_is_over_when_the_promoted_version_is_among_the_models():
    app = FastAPI()
    served = iter(["v0000", "v0000", "v0001"])

    @app.get("/v1/models")
    async def models() -> dict:
        return {"data": [{"id": "instructloop"}, {"id": f"instructloop@{next(served)}"}]}

    @app.get("/v1/policies")
    async def policies() -> dict:
        return {"policies": [{"version": "v0000"}]}

    async with asgi_client(app) as client:
        promoted = {"outcome": "promoted", "version": "v0001"}
        assert await swapped(client, promoted) == "v0001"
        assert next(served, None) is None
        failed = {"outcome": "failed", "version": None}
        assert await swapped(client, failed) == "v0000"


async def test_the_client_carries_the_key_to_a_port_that_was_free():
    port = free_port()
    async with service_client(f"http://127.0.0.1:{port}", "il-test") as client:
        assert client.headers["authorization"] == "Bearer il-test"
        with pytest.raises(httpx.ConnectError):
            await client.get("/readyz")
