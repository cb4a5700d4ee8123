"""What a demonstration saw, phase by phase, put together as the result that the report shows.

Reads the run's own figures of its PPO iterations, which no route serves: the one place where the
demonstration looks into the state folder of the service. Draws and writes nothing;
deploy/demo/report.py does.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.phases import Answers
from deploy.demo.report import DemoResult
from deploy.demo.scoring import compare
from deploy.demo.traffic import TrafficReport
from deploy.simulate.judges import Judge
from deploy.simulate.prompt import Collected
from deploy.simulate.prompt_sets import PromptSets


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the phases gave."""

    first: Answers
    new: Answers
    collected: Collected
    run: Mapping[str, Any]
    """The round at its end, as the API tells it"""
    card: Mapping[str, Any]
    idle: TrafficReport
    traffic: TrafficReport
    swapped_at: float
    trained_until: float
    """Both in seconds since the traffic began"""


def demo_result(
    seen: Seen, *, taste: Judge, sets: PromptSets, seed: int, state: Path, clock: Clock
) -> DemoResult:
    """Judge the two versions' answers and put everything into one result."""
    prompts = [prompt.prompt for prompt in sets.test]
    comparison = compare(
        taste,
        prompts=prompts,
        users=[prompt.user for prompt in sets.test],
        first=seen.first.texts,
        new=seen.new.texts,
        seed=seed,
    )
    return DemoResult(
        judge=taste.name,
        seed=seed,
        outcome=seen.run["outcome"],
        reason=seen.run["reason"],
        first_version=seen.first.version,
        new_version=seen.new.version,
        comparison=comparison,
        prompts=prompts,
        first_texts=seen.first.texts,
        new_texts=seen.new.texts,
        first_finished=seen.first.finished,
        new_finished=seen.new.finished,
        collected=seen.collected,
        card=seen.card,
        iterations=iterations(state, seen.run["id"]),
        stage_seconds=stage_seconds(seen.run),
        phase_seconds=clock.seconds,
        seconds=clock.total,
        traffic=seen.traffic,
        swap_at=seen.swapped_at,
        idle=seen.idle,
        trained_until=seen.trained_until,
    )


def iterations(state: Path, run_id: str) -> list[dict[str, Any]]:
    """The figures of each PPO iteration of a run; empty when it did not get there."""
    path = state / "runs" / run_id / "policy" / "out" / "figures.json"
    return list(json.loads(path.read_text())["iterations"]) if path.exists() else []


def stage_seconds(run: Mapping[str, Any]) -> dict[str, float]:
    """How long each finished stage of a run took, in the order of the run."""
    return {
        stage: round(state["finished_at"] - state["started_at"], 1)
        for stage, state in run["states"].items()
        if state.get("finished_at") and state.get("started_at")
    }
