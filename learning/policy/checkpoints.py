"""Which weights of a run are released: the last, their average, or earlier averages.

A reward model can be pleased in ways that nobody else is, and the longer a run the more it finds
them; an average lags behind, which in a short run costs half of what was learned. So there is a way
back: from the last weights (0) over the average after the last iteration (1) to those after earlier
ones (2, 3, ...), with the points on the lines between them. Answers to held-out users' prompts say
how far to go: to where the KL from the anchor keeps its limit, and from there on as long as the
next is better by more than its standard error, by score less beta times KL. That only ranks: people
judge what is released. Knows folders and the learner's engine; the run is learning/policy/train.py.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learning.policy.experience import answer_scores, policy_logprobs
from learning.policy.rewards import replace_unfinished
from learning.policy.run import PolicyRun, whole_policy
from learning.policy.setup import Setup
from learning.training.distributed import is_first, put, told_by_first, wait
from learning.training.learner_engine import LearnerEngine, saved_tensors
from learning.training.lora import adapters, has_adapters, without_adapters
from learning.training.rollouts import Rollouts, finished_groups, layouts, rollouts_of

_FILE = "model.safetensors"
_LAST = "last"
_BETWEEN = "between"
_SEED = 700_000_001
_HALVINGS = 2
"""Of the line on which the KL crosses its limit: each costs an answer to each prompt."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What weights did on the validation prompts."""

    objectives: Tensor
    """(prompts,): equation 2 without its last term, on one answer to each"""
    kl_per_token: float
    """From the anchor, nats"""


@dataclass(frozen=True, slots=True)
class Choice:
    """How far back from the last weights those lie that are released, and what was measured."""

    back: float
    """0: the last weights; 1: their average; 2, 3, ...: the averages of the iterations before"""
    iteration: int
    """Counted from 1, of the later one of the weights that they lie between"""
    measured: dict[float, Measured] = field(default_factory=dict)
    """By how far back"""


def keep_average(run: PolicyRun, folder: Path, *, most: int) -> None:
    """Write the averaged weights as they would be released; older ones than the last `most` go."""
    names = _names(run)
    averages = {
        names[id(parameter)]: averaged
        for parameter, averaged in zip(run.policy_optimiser.parameters, run.average, strict=True)
    }
    tensors = _tensors(run, averages)
    if is_first():
        _write(tensors, folder / str(run.iteration))
        for number in kept_iterations(folder)[:-most]:
            shutil.rmtree(folder / str(number))
    wait()


def kept_iterations(folder: Path) -> list[int]:
    """The iterations whose averaged weights are there, in order."""
    names = [path.parent.name for path in folder.glob(f"*/{_FILE}")]
    return sorted(int(name) for name in names if name.isdigit())


def forget_later(folder: Path, iteration: int) -> None:
    """A run that resumes before them will make these iterations again."""
    for number in kept_iterations(folder):
        if number > iteration:
            shutil.rmtree(folder / str(number))


def best_checkpoint(
    setup: Setup,
    run: PolicyRun,
    engine: LearnerEngine | None,
    folder: Path,
    *,
    leave_if_asked: Callable[[], None] = lambda: None,
) -> Choice:
    """Look back from the last weights; nothing is measured where there is no choice.

    `leave_if_asked` is called before each measurement.
    """
    kept = told_by_first(lambda: kept_iterations(folder))
    if not kept or not setup.validation:
        return Choice(1.0, kept[-1] if kept else run.iteration)
    last = _tensors(run)
    if is_first():
        _write(last, folder / _LAST)
    wait()
    places = _places(folder)
    found: dict[float, Measured] = {}

    def measured(back: float) -> Measured:
        if back not in found:
            leave_if_asked()
            at = _folder_at(run, places, back, between=folder / _BETWEEN)
            found[back] = measure(setup, run, engine, at, f"{back:g}")
        return found[back]

    def keeps_limit(back: float) -> bool:
        if back == 0.0 and run.stopped is not None:
            return False  # more answers than here have said so
        kl = measured(back).kl_per_token
        return told_by_first(lambda: kl <= setup.settings.stop_kl_per_token)

    best = nearest_within(keeps_limit, furthest=len(places) - 1)
    for earlier in range(math.floor(best) + 1, len(places)):
        both = measured(earlier).objectives, measured(best).objectives
        if not (told_by_first(partial(is_better, *both)) and keeps_limit(earlier)):
            break
        best = float(earlier)
    number = kept[-max(math.floor(best), 1)]
    return Choice(best, number, dict(sorted(found.items())))


def nearest_within(keeps_limit: Callable[[float], bool], *, furthest: int) -> float:
    """The least way back at which a limit is kept, to a quarter of the step on which that begins.

    Where it is nowhere kept, the furthest: then the gate's own limit, which is wider, decides.
    """
    inside = next((float(at) for at in range(furthest + 1) if keeps_limit(float(at))), None)
    if inside is None or inside == 0.0:
        return float(furthest) if inside is None else inside
    outside = inside - 1.0
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2.0
        if keeps_limit(middle):
            inside = middle
        else:
            outside = middle
    return inside


def is_better(earlier: Tensor, later: Tensor) -> bool:
    """Whether earlier weights did better on the same prompts (prompts,), beyond one standard
    error of the paired difference."""
    difference = earlier - later
    error = float(difference.std(correction=1)) / math.sqrt(len(difference))
    return float(difference.mean()) > (error if math.isfinite(error) else 0.0)


def measure(
    setup: Setup, run: PolicyRun, engine: LearnerEngine | None, folder: Path, name: str
) -> Measured:
    """Answer the validation prompts with the weights in a folder: the same seed for all weights."""
    settings = setup.settings

    def asked() -> Rollouts:
        assert engine is not None, "the first process has it"
        engine.load_folder(folder, version=f"checkpoint-{name}")
        samples = engine.generate(
            [prompt.ids for prompt in setup.validation],
            n=1,
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=setup.seed + _SEED,
        )
        return rollouts_of(setup.validation, samples)

    rollouts = told_by_first(asked)
    groups = finished_groups(rollouts, end_token=int(setup.tokenizer.eos_token_id))
    with without_adapters(run.models.reward_model) as judge:
        scores = answer_scores(judge, groups, token_budget=settings.token_budget)
    paid = replace_unfinished(scores, rollouts.ended, missing_eos_score=settings.missing_eos_score)
    order = range(len(rollouts.groups))
    parts = layouts(rollouts, minibatches=1, token_budget=settings.token_budget, order=order)
    with without_adapters(run.models.reference) as anchor:
        ref_logprobs, _ = policy_logprobs(anchor, rollouts, parts, temperature=settings.temperature)
    gaps = torch.where(rollouts.mask, rollouts.engine_logprobs - ref_logprobs, 0.0)
    return Measured(
        objectives=paid - settings.kl_coef * gaps.sum(dim=1),
        kl_per_token=float(gaps.sum()) / rollouts.num_tokens,
    )


@torch.no_grad()
def take_back(run: PolicyRun, folder: Path, choice: Choice) -> None:
    """Make the chosen weights the run's average, as they were measured."""
    if choice.back == 1.0:
        return
    names = _names(run)
    chosen = weights_at(_places(folder), choice.back)
    for parameter, averaged in zip(run.policy_optimiser.parameters, run.average, strict=True):
        put(chosen[names[id(parameter)]], averaged)


def weights_at(places: Sequence[Path], back: float) -> dict[str, Tensor]:
    """The weights so far back; between two places the point on the line, found in fp32."""
    later = load_file(places[math.floor(back)] / _FILE)
    if back == math.floor(back):
        return later
    earlier = load_file(places[math.ceil(back)] / _FILE)
    share = back - math.floor(back)
    return {
        name: torch.lerp(tensor.float(), earlier[name].float(), share).to(tensor.dtype)
        for name, tensor in later.items()
    }


def _folder_at(run: PolicyRun, places: Sequence[Path], back: float, *, between: Path) -> Path:
    """A folder with all weights of the policy so far back; adapters are merged."""
    adapted = has_adapters(run.models.policy)
    if back == math.floor(back) and not adapted:
        return places[math.floor(back)]
    whole = whole_policy(run, instead=weights_at(places, back)) if adapted else None
    if is_first():
        _write(saved_tensors(whole) if whole else weights_at(places, back), between)
    return between


def _places(folder: Path) -> list[Path]:
    """The last weights, then the averages, the latest first."""
    averages = [folder / str(number) for number in reversed(kept_iterations(folder))]
    return [folder / _LAST, *averages]


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _FILE)


def _tensors(run: PolicyRun, instead: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The policy's tensors by name, or others in their place; nothing in processes but the first.

    With LoRA the adapters alone, in all of them.
    """
    policy = run.models.policy
    if has_adapters(policy):
        return adapters(policy, instead)
    whole = whole_policy(run, instead=instead)
    if whole is None:
        return {}
    if whole is not policy or instead is None:
        return saved_tensors(whole)
    others = {name: each.to("cpu", policy.dtype).contiguous() for name, each in instead.items()}
    return saved_tensors(whole) | others


def _names(run: PolicyRun) -> dict[int, str]:
    return {id(parameter): name for name, parameter in run.models.policy.named_parameters()}


def validation_figures(choice: Choice) -> dict[str, float | dict[str, float]]:
    """What the card says of the choice."""
    measured = {f"{back:g}": each for back, each in choice.measured.items()}
    return {
        "checkpoint_iteration": float(choice.iteration),
        "checkpoint_back": choice.back,
        "validation_objective": {at: float(m.objectives.mean()) for at, m in measured.items()},
        "validation_kl_per_token": {at: m.kl_per_token for at, m in measured.items()},
    }
