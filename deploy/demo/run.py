"""`make demo`: the whole loop once, on this machine, by raters with a taste, through HTTP alone.

feedback -> reward model -> PPO-ptx -> gate -> hot swap, while requests keep flowing; then the
raters' own judge compares the new version with the first on prompts that nobody trained on. This
file is the order of the phases; what each does is in deploy/demo/phases.py, the service under test
in deploy/demo/service.py, and what becomes of it all in deploy/demo/result.py.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from core.errors import InstructLoopError, StartError
from deploy.demo.phases import Round, ask_all, collect_rankings, idle_traffic, learn, swapped
from deploy.demo.report import DemoResult, write_report
from deploy.demo.result import Clock, Seen, demo_result
from deploy.demo.service import (
    demo_environment,
    fix_user_hashes,
    free_port,
    label_keys,
    running_service,
    service_client,
    wait_until_ready,
)
from deploy.demo.traffic import Traffic, flowing
from deploy.simulate.judges import Judge, load_judge
from deploy.simulate.prompt_sets import PromptSets, bundled_prompts, choose

TRAINING_PROMPTS = 200
VALIDATION_PROMPTS = 50
TEST_PROMPTS = 200


@dataclass(frozen=True, slots=True)
class Demo:
    """What all phases of one demonstration share."""

    taste: Judge
    sets: PromptSets
    seed: int
    state: Path
    clock: Clock
    say: Callable[[str], None]


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
    demo = Demo(taste, sets, seed, state, Clock(), say)
    result = asyncio.run(_demo(demo, environment, port or free_port()))
    write_report(result, out)
    say(f"report: {out / 'report.html'}")
    if result.outcome != "promoted":
        raise InstructLoopError(f"the round ended as {result.outcome}: {result.reason}")


async def _demo(demo: Demo, environment: Mapping[str, str], port: int) -> DemoResult:
    """Start the service, turn the loop, stop the service."""
    fix_user_hashes(demo.state, demo.seed)
    url = f"http://127.0.0.1:{port}"
    with running_service(environment, port, demo.state) as service:
        with demo.clock.phase("start", demo.say):
            await wait_until_ready(url, service)
        key = (demo.state / "admin.key").read_text().strip()
        async with service_client(url, key) as client:
            seen = await _turn(demo, client, key)
        return demo_result(
            seen,
            taste=demo.taste,
            sets=demo.sets,
            seed=demo.seed,
            state=demo.state,
            clock=demo.clock,
        )


async def _turn(demo: Demo, client: httpx.AsyncClient, key: str) -> Seen:
    """The phases, in order."""
    taste, clock, say, url = demo.taste, demo.clock, demo.say, str(client.base_url)
    test_prompts = [prompt.prompt for prompt in demo.sets.test]
    with clock.phase("first answers", say):
        first = await ask_all(client, test_prompts, taste.max_tokens)
    with clock.phase("collect", say):
        collected = await collect_rankings(
            url, key, taste, demo.sets, state=demo.state, seed=demo.seed
        )
    voters = await label_keys(demo.state)
    with clock.phase("idle", say):
        idle = await idle_traffic(url, key, test_prompts)
    traffic = Traffic(base_url=url, api_key=key, prompts=test_prompts, pause_seconds=10.0)
    this = Round(client, taste, traffic, voters)
    async with flowing(traffic) as flow:
        with clock.phase("learn", say):
            run = await learn(this, say)
        with clock.phase("swap", say):
            swapped_at = traffic.elapsed
            version = await swapped(client, run)
        traffic.clients = 0
    with clock.phase("new answers", say):
        new = await ask_all(client, test_prompts, taste.max_tokens)
    return Seen(
        first=first,
        new=new,
        collected=collected,
        run=run,
        card=(await client.get(f"/v1/policies/{version}")).raise_for_status().json(),
        idle=idle,
        traffic=flow,
        swapped_at=swapped_at,
        trained_until=this.trained_until,
    )
