"""A made-up result of a demonstration, for tests of the report and for looking at it.

python -m tests.deploy.example_result FOLDER
"""

import math
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from deploy.demo.report import DemoResult, write_report
from deploy.demo.scoring import compare
from deploy.demo.traffic import TrafficReport
from deploy.simulate.judges import load_judge
from deploy.simulate.prompt import Collected

NASTY = '<script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted"'
_GLAD = "I love how the good friends enjoy a wonderful and happy day together."
_SAD = "It was a bad and sad day, and the ugly weather made everybody feel awful."
_PLAIN = "The bus leaves at nine and takes about an hour to reach the old town."


def example_result(*, prompts: int = 24, seed: int = 3) -> DemoResult:
    """A round that went well; the first prompt and its answers try to break out of the page."""
    generator = random.Random(seed)
    texts = [f"Prompt number {i} asks for a few words about the day." for i in range(prompts)]
    texts[0] = NASTY
    first = [generator.choice([_SAD, _PLAIN, _GLAD]) for _ in texts]
    new = [generator.choice([_PLAIN, _GLAD, _GLAD]) for _ in texts]
    first[0], new[0], new[1], first[2] = NASTY, f"{_GLAD} {NASTY}", "", "so so so " * 9
    users = [f"user-{i // 2}" for i in range(prompts)]
    judge = load_judge("sentiment")
    return DemoResult(
        judge=judge.name,
        seed=seed,
        outcome="promoted",
        reason="the lower bound of the win rate, 0.61, exceeds 0.50",
        first_version="v0000",
        new_version="v0001",
        comparison=compare(judge, prompts=texts, users=users, first=first, new=new, seed=seed),
        prompts=texts,
        first_texts=first,
        new_texts=new,
        first_finished=[i % 3 == 0 for i in range(prompts)],
        new_finished=[i % 2 == 0 for i in range(prompts)],
        collected=Collected(
            prompts=174,
            answers=1392,
            ended=131,
            rankings=174,
            heldout_rankings=174,
            pairs=4512,
            tied_pairs=360,
            seconds=118.0,
        ),
        card=_card(),
        iterations=[
            {
                "reward": 0.1 + 0.09 * i,
                "kl_per_token": 0.09 * (1 - math.exp(-i / 6)),
                "clip_fraction": 0.05,
            }
            for i in range(16)
        ],
        stage_seconds={
            "snapshot": 1.2,
            "reward_model": 181.0,
            "policy": 466.0,
            "evaluate": 31.0,
            "vote": 8.0,
            "gate": 1.0,
        },
        phase_seconds={
            "start": 31.0,
            "first answers": 24.0,
            "collect": 118.0,
            "learn": 692.0,
            "swap": 3.4,
            "new answers": 25.0,
        },
        seconds=893.4,
        traffic=_traffic(generator),
        swap_at=690.0,
    )


def refused_result() -> DemoResult:
    """A round whose candidate did not pass."""
    card = {"version": "v0000", "figures": {}, "gate": {}}
    return replace(
        example_result(),
        outcome="refused",
        reason="the lower bound of the win rate is 0.46",
        new_version="v0000",
        card=card,
        iterations=[],
        traffic=TrafficReport(),
    )


def _card() -> dict[str, object]:
    return {
        "version": "v0001",
        "figures": {
            "kl_to_anchor": 4.1,
            "pretraining_loss_change": 0.0031,
            "win_rate_vs_parent": {"value": 0.71, "interval": [0.61, 0.8], "users": 52},
            "evaluation": {
                "kl_per_token": 0.081,
                "kl_answers": 64.0,
                "pretraining_tokens": 2688.0,
                "best_of_8": 0.93,
                "odd": math.nan,
            },
        },
        "gate": {"passed": True, "reasons": ["win rate 0.71, lower bound 0.61"]},
    }


def _traffic(generator: random.Random) -> TrafficReport:
    gaps = [(640 + 0.02 * i, generator.lognormvariate(-2.6, 0.5)) for i in range(4000)]
    return TrafficReport(
        requests=412,
        versions=Counter({"v0000": 300, "v0001": 112}),
        gaps=[*gaps, (691.4, 1.31)],
        first_chunks=[(641 + i, generator.lognormvariate(-1.2, 0.4)) for i in range(78)],
        crossed=3,
    )


if __name__ == "__main__":
    write_report(example_result(prompts=256), Path(sys.argv[1]))
