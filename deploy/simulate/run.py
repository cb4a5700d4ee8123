"""Raters with a known taste, who use the service as anybody could: through its public HTTP API.

`collect` asks for K answers to each prompt and ranks them; `vote_tasks` lets held-out raters work
on labeling tasks. What they think is deploy/simulate/raters.py, what they like is a judge;
this file sends it. Knows nothing of Redis, engines or training. One prompt's work is in
deploy/simulate/prompt.py.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.errors import InstructLoopError, StartError
from deploy.simulate.journal import open_journal
from deploy.simulate.judges import Judge, load_judge
from deploy.simulate.prompt import Collected, Plan, digest, work_on
from deploy.simulate.prompt_sets import Prompt, bundled_prompts, read_prompts
from deploy.simulate.raters import marks, rank, rater_names
from deploy.simulate.service_client import Refused, ServiceClient, service_client

POLL_SECONDS = 0.5
_GONE = frozenset({404, 409, 410})


async def collect(
    *,
    judge: Judge,
    prompts: Sequence[Prompt],
    base_url: str,
    api_key: str,
    raters: int,
    heldout_raters: int = 0,
    answers: int = 8,
    max_tokens: int = 40,
    seed: int = 0,
    noise: float = 0.0,
    concurrency: int = 4,
    journal: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Collected:
    """Have every prompt answered `answers` times and ranked by one rater.

    Where there are held-out raters, one of them ranks the same answers too. With a journal a run
    that was cut short goes on where it stopped. Raises InstructLoopError when the service refuses
    or stays away, or when the judge fails.
    """
    began, counts, done = time.monotonic(), Collected(), 0
    names, heldout_names = rater_names(raters, heldout_raters)
    slots = asyncio.Semaphore(concurrency)
    async with service_client(base_url, api_key, connections=2 * concurrency) as client:
        plan = Plan(
            client=client,
            judge=judge,
            names=names,
            heldout_names=heldout_names,
            answers=answers,
            max_tokens=max_tokens,
            seed=seed,
            noise=noise,
            journal=open_journal(journal),
            counts=counts,
        )

        async def work(index: int, prompt: Prompt) -> None:
            nonlocal done
            async with slots:
                await work_on(plan, index, prompt)
            done += 1
            on_progress(done, len(prompts))

        await _all(work(index, prompt) for index, prompt in enumerate(prompts))
        counts.retries = client.retries
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


async def vote_tasks(
    *,
    judge: Judge,
    base_url: str,
    label_keys: Mapping[str, str],
    until: asyncio.Event | None = None,
    noise: float = 0.0,
    seed: int = 0,
    poll_seconds: float = POLL_SECONDS,
) -> int:
    """Let raters work on labeling tasks; returns the number of tasks they answered.

    In labeling a rater is an API key: `label_keys` maps the raters' names to their keys. Without
    `until` they stop when no task is left, else when it is set. Raises InstructLoopError as
    `collect` does.
    """
    answered: list[str] = []

    async def work(name: str, key: str) -> None:
        async with service_client(base_url, key, connections=2) as client:
            while until is None or not until.is_set():
                reply = await client.get("/v1/labeling/next")
                if reply.status_code != httpx.codes.NO_CONTENT:
                    task = reply.json()
                    said = _opinion(task, judge, rater=name, noise=noise, seed=seed)
                    if await _answer(client, task["id"], said):
                        answered.append(task["id"])
                    else:
                        await asyncio.sleep(poll_seconds)
                elif until is None:
                    return
                else:
                    await _wait(until, poll_seconds)

    await _all(work(name, key) for name, key in label_keys.items())
    return len(answered)


def main(
    *,
    judge: str,
    raters: int,
    heldout_raters: int,
    prompts: Path | None,
    base_url: str,
    api_key: str,
    answers: int,
    seed: int,
    noise: float,
    max_tokens: int,
    concurrency: int,
    limit: int | None = None,
    journal: Path | None = None,
) -> Collected:
    """`instructloop simulate`: collect with a progress bar, then say what was said.

    `prompts` unset takes the bundled prompts of the judge's form. Raises InstructLoopError.
    """
    taste = load_judge(judge)
    chosen = _chosen(prompts, taste, seed=seed, limit=limit)
    _refuse_without_service(base_url)
    console = Console(stderr=True)
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(chosen))
        counts = asyncio.run(
            collect(
                judge=taste,
                prompts=chosen,
                base_url=base_url,
                api_key=api_key,
                raters=raters,
                heldout_raters=heldout_raters,
                answers=answers,
                max_tokens=max_tokens,
                seed=seed,
                noise=noise,
                concurrency=concurrency,
                journal=journal,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )
    said = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in asdict(counts).items())
    sys.stdout.write(f"{taste.name}: {said}\n")
    return counts


def _chosen(path: Path | None, taste: Judge, *, seed: int, limit: int | None) -> list[Prompt]:
    if path is not None:
        return read_prompts(path)[:limit]
    fitting = [prompt for prompt in bundled_prompts() if prompt.form == taste.form]
    random.Random(seed).shuffle(fitting)
    return fitting[:limit]


def _refuse_without_service(base_url: str) -> None:
    try:
        httpx.get(f"{base_url}/healthz", timeout=10.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StartError(
            f"no service answers at {base_url} ({error}): start it with `make up`, or give --url"
        ) from None


def _opinion(
    task: dict[str, Any], judge: Judge, *, rater: str, noise: float, seed: int
) -> dict[str, Any]:
    """What a rater says of a labeling task: marks within the task, and an order."""
    asked = [m["content"] for m in task["messages"] if m.get("role") == "user"]
    prompt = str(asked[-1]) if asked else ""
    outputs = task["outputs"]
    scores = [judge.score(prompt, output["text"]) for output in outputs]
    # equal texts must get equal errors, however the outputs were shuffled: rank distinct texts
    score_of = {output["text"]: score for output, score in zip(outputs, scores, strict=True)}
    texts = sorted(score_of)
    ranking = rank(
        [score_of[text] for text in texts], noise=noise, seed=seed, rater=rater, about=prompt
    )
    ids: dict[str, list[str]] = {}
    for output in outputs:
        ids.setdefault(output["text"], []).append(output["output_id"])
    return {
        "outputs": [
            {"output_id": output["output_id"], "rating": mark, "flags": {}, "notes": ""}
            for output, mark in zip(outputs, marks(scores), strict=True)
        ],
        "ranking": [[name for i in tie for name in ids[texts[i]]] for tie in ranking],
    }


async def _answer(client: ServiceClient, task_id: str, said: dict[str, Any]) -> bool:
    """Send an opinion; whether it was taken, or the task was given to others or closed by then."""
    try:
        await client.post(f"/v1/labeling/{task_id}", said, idempotency_key=digest(task_id, said))
    except Refused as error:
        if error.status_code in _GONE:
            return False
        raise
    return True


async def _all(work: Any) -> None:  # an iterable of coroutines
    """Do all of it at once; the first failure stops the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except* InstructLoopError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        failure = first
    else:
        return
    raise failure


async def _wait(until: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(until.wait(), timeout=seconds)
    except TimeoutError:
        return
