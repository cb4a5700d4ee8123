"""`make demo`: the whole loop once, on this machine, by raters with a taste, through HTTP alone.

feedback -> reward model -> PPO-ptx -> gate -> hot swap, while requests keep flowing; then the
raters' own judge compares the new version with the first on prompts that nobody trained on. The
service under test is `instructloop up`, as anybody would start it; what this file knows of its
insides is only where it keeps the figures of a run (for the plots).
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from core.auth import create_key
from core.errors import InstructLoopError, StartError
from core.keyring import Keyring
from core.records import Split
from core.redis_client import connect, redis_url
from core.settings import PREFIX, LogSettings, Settings
from deploy.judges import Judge, load_judge
from deploy.prompt_sets import Prompt, PromptSets, bundled_prompts, choose
from deploy.raters import rater_names
from deploy.report import DemoResult, write_report
from deploy.scoring import compare
from deploy.simulate import collect, vote_tasks
from deploy.traffic import Traffic, TrafficReport, flowing
from feedback.split import split_of

TRAINING_PROMPTS = 200
VALIDATION_PROMPTS = 50
TEST_PROMPTS = 200
ANSWERS = 6
RATERS = 6
HELDOUT_RATERS = 4
READY_SECONDS = 300
ROUND_SECONDS = 3600
POLL_SECONDS = 1.0
IDLE_STREAMS = 12
SPLIT = LogSettings(validation_share=0.25, test_share=0.0, split_by_prompt_under_users=0)
"""The test prompts of the demonstration are never logged, so nobody needs a share for them."""
SWAP_CLIENTS = 4
"""Streams that run around the swap; before it, while training has the cores, there is one."""


@dataclass(slots=True)
class Clock:
    """How long each phase took, in the order they came."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def phase(self, name: str, say: Callable[[str], None]) -> Iterator[None]:
        """Time a phase and say that it began."""
        say(f"{name} ...")
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 1)

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self.began, 1)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one version answered to the test prompts."""

    version: str
    texts: tuple[str, ...]
    finished: tuple[bool, ...]


def run_demo(
    *,
    judge: str,
    seed: int,
    out: Path,
    port: int,
    state_dir: Path | None,
    redis_url: str | None,
    say: Callable[[str], None],
) -> None:
    """Run it and write `report.json` and `report.html` to `out`.

    Raises InstructLoopError when the service does not come up, a request fails for good, or the
    round ends without a new version going live; the report is written in the last case, too.
    """
    taste = load_judge(judge)
    out.mkdir(parents=True, exist_ok=True)
    state = (state_dir or out / "state").resolve()
    if (state / "policies").exists():
        raise StartError(f"{state} holds a service already: choose another --state-dir or --out")
    sets = choose(
        bundled_prompts(),
        seed=seed,
        form=taste.form,
        training=TRAINING_PROMPTS,
        validation=VALIDATION_PROMPTS,
        test=TEST_PROMPTS,
    )
    environment = demo_environment(taste, seed=seed, state=state, redis_url=redis_url)
    result = asyncio.run(
        _demo(taste, sets, seed=seed, port=port or free_port(), environment=environment, say=say)
    )
    write_report(result, out)
    say(f"report: {out / 'report.html'}")
    if result.outcome != "promoted":
        raise InstructLoopError(f"the round ended as {result.outcome}: {result.reason}")


def demo_environment(
    taste: Judge, *, seed: int, state: Path, redis_url: str | None
) -> dict[str, str]:
    """Settings of the demonstration: a round only when asked, promotion by the gate alone."""
    ours = {
        "STATE_DIR": str(state),
        "PROFILE": "cpu-small",
        "PROMOTION": "auto",
        "FEEDBACK__HELDOUT_RATERS": json.dumps(["heldout-*"]),
        "LOG__VALIDATION_SHARE": str(SPLIT.validation_share),
        "LOG__TEST_SHARE": str(SPLIT.test_share),
        "LOG__SPLIT_BY_PROMPT_UNDER_USERS": str(SPLIT.split_by_prompt_under_users),
        "LEARNING__SEED": str(seed),
        "LEARNING__MIN_NEW_COMPARISONS": "1000000000",
        "LEARNING__INTERVAL_SECONDS": "1000000000",
        "LEARNING__POLICY__MAX_NEW_TOKENS": str(taste.max_tokens),
        "LEARNING__EVALUATION__MAX_NEW_TOKENS": str(taste.max_tokens),
    }
    if redis_url:
        ours["REDIS_URL"] = redis_url
    inherited = {k: v for k, v in os.environ.items() if k not in {PREFIX + name for name in ours}}
    return inherited | {PREFIX + name: value for name, value in ours.items()}


async def _demo(
    taste: Judge,
    sets: PromptSets,
    *,
    seed: int,
    port: int,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> DemoResult:
    clock = Clock()
    state = Path(environment[PREFIX + "STATE_DIR"])
    fix_user_hashes(state, seed)
    url = f"http://127.0.0.1:{port}"
    with _service(environment, port, state) as service:
        with clock.phase("start", say):
            await _wait_until_ready(url, service)
        key = (state / "admin.key").read_text().strip()
        async with _client(url, key) as client:
            return await _loop(
                client, taste, sets, seed=seed, clock=clock, state=state, key=key, say=say
            )


async def _loop(
    client: httpx.AsyncClient,
    taste: Judge,
    sets: PromptSets,
    *,
    seed: int,
    clock: Clock,
    state: Path,
    key: str,
    say: Callable[[str], None],
) -> DemoResult:
    url = str(client.base_url)
    test_prompts = [prompt.prompt for prompt in sets.test]
    with clock.phase("first answers", say):
        first = await _answers(client, test_prompts, taste.max_tokens)
    with clock.phase("collect", say):
        collected = await collect(
            judge=taste,
            prompts=placed(sets, Keyring(state / "secrets")),
            base_url=url,
            api_key=key,
            raters=RATERS,
            heldout_raters=HELDOUT_RATERS,
            answers=ANSWERS,
            max_tokens=taste.max_tokens,
            seed=seed,
        )
    voters = await label_keys(state)
    with clock.phase("idle", say):
        idle = await _idle_traffic(url, key, test_prompts)
    traffic = Traffic(base_url=url, api_key=key, prompts=test_prompts, pause_seconds=10.0)
    async with flowing(traffic) as seen:
        with clock.phase("learn", say):
            run, trained_until = await _round(client, taste, traffic, voters=voters, say=say)
        with clock.phase("swap", say):
            swapped_at = traffic.elapsed
            version = await _swapped(client, run)
        traffic.clients = 0
    with clock.phase("new answers", say):
        new = await _answers(client, test_prompts, taste.max_tokens)
    card = (await client.get(f"/v1/policies/{version}")).raise_for_status().json()
    return DemoResult(
        judge=taste.name,
        seed=seed,
        outcome=run["outcome"],
        reason=run["reason"],
        first_version=first.version,
        new_version=new.version,
        comparison=compare(
            taste,
            prompts=test_prompts,
            users=[prompt.user for prompt in sets.test],
            first=first.texts,
            new=new.texts,
            seed=seed,
        ),
        prompts=test_prompts,
        first_texts=first.texts,
        new_texts=new.texts,
        first_finished=first.finished,
        new_finished=new.finished,
        collected=collected,
        card=card,
        iterations=_iterations(state, run["id"]),
        stage_seconds=_stage_seconds(run),
        phase_seconds=clock.seconds,
        seconds=clock.total,
        traffic=seen,
        swap_at=swapped_at,
        idle=idle,
        trained_until=trained_until,
    )


def fix_user_hashes(state: Path, seed: int) -> None:
    """Users are split by a keyed hash; a key made from the seed makes the split repeatable."""
    secrets = state / "secrets"
    secrets.mkdir(parents=True, mode=0o700)
    with open(os.open(secrets / "user.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(hashlib.sha256(f"demonstration {seed}".encode()).digest())


def placed(sets: PromptSets, keyring: Keyring) -> list[Prompt]:
    """The prompts of training and validation, each by a user named so that the split agrees.

    One user a prompt, because the gate counts users.
    """
    names = (f"user-{number}" for number in itertools.count())
    by_split: dict[Split, list[Prompt]] = {
        "train": list(sets.training),
        "validation": list(sets.validation),
    }
    done: list[Prompt] = []
    while any(by_split.values()):
        name = next(names)
        waiting = by_split.get(split_of(keyring.hashed("default", "user", name), SPLIT), [])
        if waiting:
            done.append(replace(waiting.pop(), user=name))
    return done


async def label_keys(state: Path) -> dict[str, str]:
    """A key for each held-out rater, as ops would hand them out: names to secrets."""
    settings = Settings(state_dir=state)
    async with connect(os.environ.get(PREFIX + "REDIS_URL") or redis_url(settings)) as redis:
        return {
            name: (await create_key(redis, name=name, tenant="default", scopes=("label",)))[1]
            for name in rater_names(0, HELDOUT_RATERS)[1]
        }


@contextlib.contextmanager
def _service(
    environment: Mapping[str, str], port: int, state: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """`instructloop up`, stopped at the end as Ctrl-C would."""
    with (state / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "up", "--port", str(port)],
            env=dict(environment),
            cwd=state,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def _wait_until_ready(url: str, service: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            if service.poll() is not None:
                raise StartError("the service did not start: see up.log in its state folder")
            if time.monotonic() > deadline:
                raise StartError(f"the service was not ready after {READY_SECONDS} s")
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def _client(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits
    ) as client:
        yield client


async def _answers(client: httpx.AsyncClient, prompts: Sequence[str], max_tokens: int) -> Answers:
    """One sampled answer (T = 1) to each prompt, by whatever version is live; not logged."""
    slots = asyncio.Semaphore(24)

    async def ask(prompt: str) -> tuple[str, bool, str]:
        body = {
            "model": "instructloop",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 1.0,
            "store": False,
            "user": "examiner",
        }
        async with slots:
            reply = await client.post("/v1/chat/completions", json=body)
        choice = reply.raise_for_status().json()["choices"][0]
        text = choice["message"]["content"] or ""
        return text, choice["finish_reason"] == "stop", reply.headers["x-policy-version"]

    replies = await asyncio.gather(*[ask(prompt) for prompt in prompts])
    versions = {version for _, _, version in replies}
    if len(versions) != 1:
        raise InstructLoopError(f"answers came from several versions: {sorted(versions)}")
    return Answers(
        version=versions.pop(),
        texts=tuple(text for text, _, _ in replies),
        finished=tuple(finished for _, finished, _ in replies),
    )


async def _idle_traffic(url: str, key: str, prompts: Sequence[str]) -> TrafficReport:
    """What one client sees while nothing else happens."""
    traffic = Traffic(base_url=url, api_key=key, prompts=prompts, pause_seconds=0.2)
    async with flowing(traffic, most_clients=1) as seen:
        while len(seen.first_chunks) < IDLE_STREAMS and not seen.failures:
            await asyncio.sleep(0.1)
    return seen


async def _round(
    client: httpx.AsyncClient,
    taste: Judge,
    traffic: Traffic,
    *,
    voters: dict[str, str],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], float]:
    """One round of learning; held-out raters vote when the gate asks them.

    Returns the run, and when its training was over by the clock of the traffic.
    """
    reply = await client.post("/v1/loop/runs", json={})
    run_id = reply.raise_for_status().json()["run_id"]
    deadline, said, voting = time.monotonic() + ROUND_SECONDS, "", None
    trained_until = math.inf
    over = asyncio.Event()
    try:
        while True:
            run = (await client.get(f"/v1/loop/runs/{run_id}")).raise_for_status().json()
            if run["outcome"] != "running":
                return dict(run), trained_until
            if run["stage"] != said:
                said = run["stage"]
                say(f"  {said}")
            if said in ("vote", "gate") and voting is None:
                trained_until = traffic.elapsed
                traffic.clients, traffic.pause_seconds = SWAP_CLIENTS, 0.05
                voting = asyncio.create_task(
                    vote_tasks(
                        judge=taste,
                        base_url=str(client.base_url),
                        label_keys=voters,
                        until=over,
                    )
                )
            if time.monotonic() > deadline:
                raise InstructLoopError(f"the round did not end within {ROUND_SECONDS} s")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        over.set()
        if voting is not None:
            await voting


async def _swapped(client: httpx.AsyncClient, run: Mapping[str, Any]) -> str:
    """Wait until the engine serves what was promoted; the version that is live then."""
    if run["outcome"] != "promoted":
        policies = (await client.get("/v1/policies")).raise_for_status().json()["policies"]
        return str(run["version"] or policies[-1]["version"])
    for _ in range(600):
        models = (await client.get("/v1/models")).raise_for_status().json()["data"]
        if f"instructloop@{run['version']}" in {model["id"] for model in models}:
            await asyncio.sleep(2.0)  # streams that began before the swap end within it
            return str(run["version"])
        await asyncio.sleep(0.1)
    raise InstructLoopError(f"no engine serves {run['version']} a minute after its promotion")


def _iterations(state: Path, run_id: str) -> list[dict[str, Any]]:
    path = state / "runs" / run_id / "policy" / "out" / "figures.json"
    return list(json.loads(path.read_text())["iterations"]) if path.exists() else []


def _stage_seconds(run: Mapping[str, Any]) -> dict[str, float]:
    return {
        stage: round(state["finished_at"] - state["started_at"], 1)
        for stage, state in run["states"].items()
        if state.get("finished_at") and state.get("started_at")
    }


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
