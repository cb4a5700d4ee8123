"""What happens in each phase of a demonstration: answer, collect, idle, learn, swap.

Every function here acts through the HTTP API alone, as raters, users and ops would. Knows nothing
of the service's process or of the report; deploy/demo/run.py says in which order they come.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from core.errors import InstructLoopError
from core.keyring import Keyring
from core.records import Split
from deploy.demo.service import HELDOUT_RATERS, SPLIT
from deploy.demo.traffic import Traffic, TrafficReport, flowing
from deploy.simulate.judges import Judge
from deploy.simulate.prompt import Collected
from deploy.simulate.prompt_sets import Prompt, PromptSets
from deploy.simulate.run import collect, vote_tasks
from feedback.split import split_of

ANSWERS = 6
RATERS = 6
ROUND_SECONDS = 3600
POLL_SECONDS = 1.0
IDLE_STREAMS = 12
SWAP_CLIENTS = 4
"""Streams that run around the swap; before it, while training has the cores, there is one."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one version answered to the test prompts."""

    version: str
    texts: tuple[str, ...]
    finished: tuple[bool, ...]


async def ask_all(client: httpx.AsyncClient, prompts: Sequence[str], max_tokens: int) -> Answers:
    """One sampled answer (T = 1) to each prompt, by whatever version is live; not logged."""
    slots = asyncio.Semaphore(24)

    async def ask(prompt: str) -> tuple[str, bool, str]:
        async with slots:
            return await _ask(client, prompt, max_tokens)

    replies = await asyncio.gather(*[ask(prompt) for prompt in prompts])
    versions = {version for _, _, version in replies}
    if len(versions) != 1:
        raise InstructLoopError(f"answers came from several versions: {sorted(versions)}")
    return Answers(
        version=versions.pop(),
        texts=tuple(text for text, _, _ in replies),
        finished=tuple(finished for _, finished, _ in replies),
    )


async def _ask(client: httpx.AsyncClient, prompt: str, max_tokens: int) -> tuple[str, bool, str]:
    """The text of one answer, whether it ended by itself, and the version that gave it."""
    body = {
        "model": "instructloop",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 1.0,
        "store": False,
        "user": "examiner",
    }
    reply = await client.post("/v1/chat/completions", json=body)
    choice = reply.raise_for_status().json()["choices"][0]
    text = choice["message"]["content"] or ""
    return text, choice["finish_reason"] == "stop", reply.headers["x-policy-version"]


# --- collect --------------------------------------------------------------------------------


async def collect_rankings(
    url: str, key: str, taste: Judge, sets: PromptSets, *, state: Path, seed: int
) -> Collected:
    """Raters have the prompts of training and validation answered, and rank the answers."""
    return await collect(
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


async def idle_traffic(url: str, key: str, prompts: Sequence[str]) -> TrafficReport:
    """What one client sees while nothing else happens."""
    traffic = Traffic(base_url=url, api_key=key, prompts=prompts, pause_seconds=0.2)
    async with flowing(traffic, most_clients=1) as seen:
        while len(seen.first_chunks) < IDLE_STREAMS and not seen.failures:
            await asyncio.sleep(0.1)
    return seen


# --- learn ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Round:
    """A round under way, and the raters who vote in it once the gate asks them."""

    client: httpx.AsyncClient
    taste: Judge
    traffic: Traffic
    voters: Mapping[str, str]
    """Names of held-out raters to their keys"""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    voting: "asyncio.Task[int] | None" = None
    trained_until: float = math.inf
    """When training was over, by the clock of the traffic"""


async def learn(this: Round, say: Callable[[str], None]) -> dict[str, Any]:
    """One round of learning to its end; returns the run.

    Raises InstructLoopError when it does not end in time.
    """
    reply = await this.client.post("/v1/loop/runs", json={})
    run_id = reply.raise_for_status().json()["run_id"]
    deadline, said = time.monotonic() + ROUND_SECONDS, ""
    try:
        while True:
            run = (await this.client.get(f"/v1/loop/runs/{run_id}")).raise_for_status().json()
            if run["outcome"] != "running":
                return dict(run)
            if run["stage"] != said:
                said = run["stage"]
                say(f"  {said}")
            if said in ("vote", "gate") and this.voting is None:
                _begin_voting(this)
            if time.monotonic() > deadline:
                raise InstructLoopError(f"the round did not end within {ROUND_SECONDS} s")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        this.over.set()
        if this.voting is not None:
            await this.voting


def _begin_voting(this: Round) -> None:
    """Training is over: more traffic for the swap to cross, and raters for the gate."""
    this.trained_until = this.traffic.elapsed
    this.traffic.clients, this.traffic.pause_seconds = SWAP_CLIENTS, 0.05
    this.voting = asyncio.create_task(
        vote_tasks(
            judge=this.taste,
            base_url=str(this.client.base_url),
            label_keys=this.voters,
            until=this.over,
        )
    )


# --- swap -----------------------------------------------------------------------------------


async def swapped(client: httpx.AsyncClient, run: Mapping[str, Any]) -> str:
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
