"""What the pages are shown with: answers in Markdown, tasks to label, versions, a run."""

import json
import time

from core import keys, lineage, registry
from core.records import Card, LabelingOutput, LabelingTask, Run, StageState
from core.redis_client import Redis
from feedback import labeling

MARKDOWN = (
    "## Rivers\n\nThe **Seine** flows",
    " through *Paris*:\n\n",
    "- it rises in Burgundy\n",
    "- it ends in Le Havre\n\n",
    "```python\nprint('Seine')\n```\n\n",
    "See [the article](https://example.org/seine) or `river`.",
)
NASTY = (
    "<img src=x onerror=\"document.title='broken'\">",
    "<script>document.title='broken'</script>\n\n",
    "[click](javascript:document.title='broken') ",
    '<a href="https://evil.example">a</a> **bold <b>tag</b>**',
)
ANSWERS = (
    "Use **short** sentences. Say one thing at a time, and stop when it is said.",
    "Writing well is a matter of rewriting. Read it aloud, cut every third word, and ask a friend.",
    "Write write write write write write write write.",
    "1. Know your reader.\n2. Begin with the point.\n3. End with what they should do.",
)

TRAINED_ON = {f"fb-{number:02d}": "ranking" for number in range(12)} | {"task-1": "labeling"}
"""What versions learned from."""


def task(name="t1", *, mode="training", answers=ANSWERS) -> LabelingTask:
    """A task of four answers or more."""
    return LabelingTask(
        id=name,
        tenant="acme",
        mode=mode,
        run_id="run-1",
        user="u" * 32,
        messages=[{"role": "user", "content": f"How do I write more clearly? ({name})"}],
        outputs=tuple(
            LabelingOutput(output_id=f"own-{at}", text=text, policy=f"v000{at % 2}")
            for at, text in enumerate(answers)
        ),
        created_at=0.0,
    )


async def open_tasks(redis: Redis, *tasks: LabelingTask) -> None:
    """Offer tasks to raters."""
    await labeling.open_tasks(redis, tasks)


async def read_task(redis: Redis, name="t1") -> LabelingTask:
    """A task as it is kept."""
    return LabelingTask.model_validate_json(await redis.get(keys.labeling_task(name)))


def card(
    version: str, parent: str | None, *, win: tuple[float, float, float] | None = None
) -> Card:
    """A card as learning writes it."""
    figures, gate, data = {}, {"passed": True, "reasons": []}, {}
    if win is not None:
        rate = {"value": win[0], "interval": list(win[1:]), "judge": "held-out raters"}
        rate["judgements"] = 50
        figures = {
            "reward": 1.4888,
            "kl_to_anchor": 0.3795,
            "win_rate_vs_parent": rate,
            "win_rate_vs_sft": rate,
            "pretraining_loss_change": -0.0168,
            "length_change": -0.257,
            "regressions": [],
        }
        passed = win[1] > 0.5
        words = "is above" if passed else "is not above"
        reason = f"held-out raters preferred it in {win[0]:.1%} of 50 comparisons; 50 % {words}"
        gate = {"passed": passed, "reasons": [reason]}
        data = {"snapshot": "s-1", "sha256": "ab" * 32, "comparisons": 7214, "rankings": 500}
        data |= {"ratings": 12, "demonstrations": 3, "prompts": 250, "raters": 10, "run": "r-1"}
        data |= lineage.card_data(TRAINED_ON)
    return Card(
        version=version,
        parent=parent,
        created_at=registry.timestamp(),
        kind="base" if parent is None else "ppo-ptx",
        algorithm={},
        data=data,
        reward_model=None if parent is None else "rm0001",
        anchor=None if parent is None else "v0000",
        weights_sha256="0" * 64,
        figures=figures,
        gate=gate,
        compatible={},
    )


async def publish(redis: Redis, *cards: Card) -> None:
    """Register versions; the first is made live."""
    for one in cards:
        fence = await registry.acquire_fence(redis)
        await registry.publish(redis, one, fencing_token=fence)
    await registry.promote(redis, cards[0].version, who="the test", why="it is the first")


async def put_run(redis: Redis, state_dir, *, finished: bool) -> Run:
    """A run: over and with curves, or in the middle of its policy stage."""
    began = time.time() - 400
    done = StageState(started_at=began, finished_at=began + 60, fraction=1.0)
    half = StageState(
        started_at=began + 120,
        fraction=0.5,
        message="iteration 6 of 12",
        figures={"reward": 0.9, "kl_to_anchor": 0.4},
    )
    stages = ("snapshot", "reward_model", "policy", "evaluate", "gate")
    states = dict.fromkeys(stages, done) if finished else dict.fromkeys(stages[:2], done)
    run = Run(
        id="r-1",
        stages=stages,
        outcome="promoted" if finished else "running",
        created_at=began,
        finished_at=began + 390 if finished else None,
        stage="" if finished else "policy",
        states=states if finished else {**states, "policy": half},
        version="v0001" if finished else None,
    )
    await redis.set(keys.run(run.id), run.model_dump_json())
    await redis.zadd(keys.runs(), {run.id: int(began * 1000)})
    if not finished:
        await redis.set(keys.run_current(), run.id)
        return run
    out = state_dir / "runs" / run.id / "policy" / "out"
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"reward": 0.13 + 0.12 * i, "kl_to_anchor": 0.05 * i**1.5} for i in range(12)]
    (out / "figures.json").write_text(json.dumps({"iterations": rows}))
    return run
