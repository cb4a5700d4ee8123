"""The loop turns once, for real: vLLM, Redis, Celery, a gateway, raters over HTTP, and a swap.

One service with a tiny model, started as people start it, and one story told in order: it answers,
people rank, it learns, the gate speaks, the new version goes live while requests flow, goes back,
and a broken version is refused while the old one serves.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from core import registry
from core.keyring import Keyring
from core.records import Card
from core.redis_client import connect, redis_url
from core.settings import PREFIX, Settings
from core.versions import weights_sha256
from deploy.demo.service import free_port, label_keys
from deploy.demo.traffic import Traffic, flowing
from deploy.monitoring.panels import BOARDS
from deploy.simulate.judges import load_judge
from deploy.simulate.prompt_sets import Prompt
from deploy.simulate.run import collect, vote_tasks
from tests.conftest import eventually
from tests.loop.prometheus_server import Prometheus, prometheus
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ALERTS = Path(__file__).resolve().parents[2] / "helm" / "instructloop" / "files" / "alerts.yml"

SMALL = {
    "PROMOTION": "manual",
    "FEEDBACK__HELDOUT_RATERS": json.dumps(["heldout-*"]),
    "LOG__VALIDATION_SHARE": "0.4",
    "LOG__TEST_SHARE": "0",
    "LOG__SPLIT_BY_PROMPT_UNDER_USERS": "0",
    "ENGINE__MAX_MODEL_LEN": "512",
    "LEARNING__MIN_NEW_COMPARISONS": "1000000",
    "LEARNING__REWARD_MODEL__MIN_COMPARISONS": "10",
    "LEARNING__REWARD_MODEL__MIN_ACCURACY": "0",
    "LEARNING__POLICY__ITERATIONS": "2",
    "LEARNING__POLICY__PROMPTS_PER_ITERATION": "4",
    "LEARNING__POLICY__MINIBATCHES": "2",
    "LEARNING__POLICY__MAX_NEW_TOKENS": "12",
    "LEARNING__POLICY__STOP_KL_PER_TOKEN": "100",
    "LEARNING__EVALUATION__MAX_NEW_TOKENS": "12",
    "LEARNING__EVALUATION__VOTES_WAIT_SECONDS": "60",
    "LEARNING__GATE__MIN_USERS": "3",
}


@dataclass(frozen=True)
class Service:
    url: str
    state_dir: Path
    process: subprocess.Popen

    @property
    def key(self) -> str:
        return (self.state_dir / "admin.key").read_text().strip()

    @property
    def settings(self) -> Settings:
        return Settings(state_dir=self.state_dir)

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        state = Path(folder) / "s"
        model = make_tiny_model(Path(folder) / "tiny")
        port = free_port()
        environment = os.environ | {PREFIX + name: value for name, value in SMALL.items()}
        with (Path(folder) / "up.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy", "up", "--model", str(model)]
                + ["--port", str(port), "--state-dir", str(state)],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Service(f"http://127.0.0.1:{port}", state, process)
        try:
            asyncio.run(_until_ready(running, Path(folder) / "up.log"))
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


async def _until_ready(service: Service, log: Path) -> None:
    async with httpx.AsyncClient() as client:

        async def ready() -> bool:
            assert service.process.poll() is None, log.read_text()
            try:
                return (await client.get(f"{service.url}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

        await eventually(ready, seconds=180, every=0.2)


def prompts() -> list[Prompt]:
    things = ("rivers", "bread", "chess", "clouds", "tools", "songs", "maps", "cats", "tea", "ice")
    return [
        Prompt(
            prompt=f"Number {number}: tell me about {thing} in few words, or ask eva@example.org.",
            user=f"user-{number}",
            topic=thing,
            template="tell",
            form="open",
        )
        for number, thing in enumerate(things * 2)
    ]


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    body = {
        "model": "instructloop",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "store": False,
    }
    return await client.post("/v1/chat/completions", json=body)


async def test_the_loop_turns_once(service, tmp_path):
    judge = load_judge("brevity")
    target = service.url.removeprefix("http://")
    with prometheus(tmp_path / "prometheus", target=target, key=service.key, rules=ALERTS) as watch:
        await _turn_once(service, judge)
        await eventually(lambda: watch.ask("instructloop_policy_win_rate"), seconds=20)
        _check_dashboards_and_alerts(watch)
    _check_logs(service)


def _check_logs(service: Service) -> None:
    """Processes and stages write lines with fields, and no prompt is in any of them."""
    logs = service.state_dir / "logs"
    for process in ("gateway", "engine", "worker", "beat", "up"):
        path = logs / f"{'engine-0' if process == 'engine' else process}.log"
        said = [json.loads(raw) for raw in path.read_text().splitlines()]
        assert {line["process"] for line in said} == {process}
    stages = [*(service.state_dir / "runs").glob("*/*/log")]
    assert stages
    for path in stages:
        assert f'"run": "{path.parent.parent.name}"' in path.read_text()
    for path in [*logs.glob("*.log"), *stages]:
        assert "tell me about" not in path.read_text(errors="replace"), path.name


async def _turn_once(service: Service, judge) -> None:
    async with service.client() as client:
        first = (await ask(client)).raise_for_status()
        assert first.headers["x-policy-version"] == "v0000"
        collected = await collect(
            judge=judge,
            prompts=prompts(),
            base_url=service.url,
            api_key=service.key,
            raters=2,
            heldout_raters=2,
            answers=4,
            max_tokens=12,
        )
        assert collected.prompts == 20
        run = await _learn(client, service, judge)
        assert run["version"] == "v0001", run
        card = (await client.get("/v1/policies/v0001")).raise_for_status().json()
        _check_card(card, run)
        await _swap_under_traffic(client, service)
        await _refuse_a_broken_version(client, service)


OF_CANARIES = {"Canary evidence", "Canary users"}
"""Panels that show something while a canary is on: tests/loop/test_second_engine.py."""


def _check_dashboards_and_alerts(watch: Prometheus) -> None:
    """Every query is understood and shows something; every rule evaluates without an error."""
    empty = set()
    for panel in [panel for board in BOARDS for panel in board.panels]:
        for legend, query in panel.queries.items():
            assert watch.ask(panel.expressions[legend]), panel.title
            if not watch.ask(query):
                empty.add(panel.title)
    assert empty == OF_CANARIES
    rules = watch.rules()
    assert len(rules) == ALERTS.read_text().count("expr:")
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing <= {"InstructLoopSwapFailed"}  # a broken version was refused


async def _learn(client: httpx.AsyncClient, service: Service, judge) -> dict:
    over = asyncio.Event()
    keys = await label_keys(service.state_dir)
    voting = asyncio.create_task(
        vote_tasks(judge=judge, base_url=service.url, label_keys=keys, until=over)
    )
    reply = (await client.post("/v1/loop/runs", json={})).raise_for_status()
    assert reply.status_code == 202

    async def ended():
        run = (await client.get(f"/v1/loop/runs/{reply.json()['run_id']}")).json()
        return run if run["outcome"] != "running" else None

    run = await eventually(ended, seconds=500, every=0.5)
    over.set()
    await voting
    assert (service.state_dir / "runs" / run["id"]).is_dir()
    return run


def _check_card(card: dict, run: dict) -> None:
    assert card["parent"] == "v0000"
    assert card["kind"] == "ppo-ptx"
    assert card["signature"]
    assert card["data"]["comparisons"] > 0
    assert len(card["data"]["sha256"]) == 64
    assert len(card["weights_sha256"]) == 64
    assert isinstance(card["gate"]["passed"], bool)
    assert card["gate"]["reasons"]
    assert 0 <= card["figures"]["win_rate_vs_parent"]["value"] <= 1


async def _swap_under_traffic(client: httpx.AsyncClient, service: Service) -> None:
    traffic = Traffic(
        base_url=service.url,
        api_key=service.key,
        prompts=["hello"],
        max_tokens=64,
        clients=4,
        pause_seconds=0.01,
    )
    async with flowing(traffic, most_clients=4) as seen:
        await eventually(lambda: seen.versions["v0000"] >= 8, seconds=60)
        promoted = await client.post("/v1/policies/v0001/promote", json={"why": "the test"})
        assert promoted.status_code == 202, promoted.text
        await eventually(lambda: seen.versions["v0001"] >= 8, seconds=60)
        rolled_back = await client.post("/v1/policies/rollback", json={"why": "the test"})
        assert rolled_back.status_code == 202, rolled_back.text
        back = seen.versions["v0000"]
        await eventually(lambda: seen.versions["v0000"] >= back + 8, seconds=60)
    assert seen.failures == []
    assert set(seen.versions) == {"v0000", "v0001"}
    history = (await client.get("/v1/policies/v0001")).json()["history"]
    actions = [entry["action"] for entry in history]
    assert actions.index("published") < actions.index("promoted") < actions.index("rolled back")


async def _refuse_a_broken_version(client: httpx.AsyncClient, service: Service) -> None:
    """A version with NaN, properly signed and promoted by hand: it never serves."""
    version = await _publish_with_nan(service)
    traffic = Traffic(
        base_url=service.url, api_key=service.key, prompts=["hello"], clients=2, pause_seconds=0.01
    )
    async with flowing(traffic, most_clients=2) as seen:
        promoted = await client.post(f"/v1/policies/{version}/promote", json={"why": "the test"})
        assert promoted.status_code == 202, promoted.text

        async def refused():
            card = (await client.get(f"/v1/policies/{version}")).json()
            return any(entry["action"] == "quarantined" for entry in card["history"])

        await eventually(refused, seconds=60, every=0.1)
        served = sum(seen.versions.values())
        await eventually(lambda: sum(seen.versions.values()) >= served + 8, seconds=60)
    assert seen.failures == []
    assert set(seen.versions) == {"v0000"}
    again = await client.post(f"/v1/policies/{version}/promote", json={"why": "once more"})
    assert again.status_code == 422


async def _publish_with_nan(service: Service) -> str:
    async with connect(redis_url(service.settings)) as redis:
        version = await registry.next_version(redis)
        folder = service.state_dir / "policies" / version
        shutil.copytree(service.state_dir / "policies" / "v0001", folder)
        _plant_nan(folder)
        card = await registry.card(redis, "v0001")
        card = card.model_copy(
            update={"version": version, "weights_sha256": weights_sha256(folder)}
        )
        keyring = Keyring(service.state_dir / "secrets")
        signed: Card = registry.signed(card, keyring)
        (folder / "card.json").write_text(signed.model_dump_json())
        token = await registry.acquire_fence(redis)
        await registry.publish(redis, signed, fencing_token=token)
    return version


def _plant_nan(folder: Path) -> None:
    """Set one bf16 number of the last tensor to NaN, in place."""
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-2:] = b"\xff\x7f"
    path.write_bytes(raw)
