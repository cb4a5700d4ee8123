"""Which weights of a run are released: the last, or earlier ones that did better on new prompts.

A reward model can be pleased in ways that nobody else is, and the longer a run the more it finds
them. So the averaged weights of the last iterations are kept, and answers to held-out users'
prompts say which of them has the best objective, score less beta times the KL from the anchor. From
the last one it goes back as long as the one before is better by more than its standard error. That
only ranks: people judge what is released. Knows folders and the learner's engine; the run itself is
learning/policy/train.py's.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from learning.policy.experience import answer_scores, policy_logprobs
from learning.policy.rewards import replace_unfinished
from learning.policy.run import PolicyRun
from learning.policy.setup import Setup
from learning.training.learner_engine import LearnerEngine, saved_tensors
from learning.training.rollouts import finished_groups, layouts, rollouts_of

_FILE = "model.safetensors"
_SEED = 700_000_001


@dataclass(frozen=True, slots=True)
class Choice:
    """The iteration whose weights are released, counted from 1, and what was measured."""

    iteration: int
    objectives: dict[int, float] = field(default_factory=dict)
    """Mean over validation prompts, by iteration; those that were looked at"""


def keep_average(run: PolicyRun, folder: Path, *, most: int) -> None:
    """Write the averaged weights as they would be released; older ones than the last `most` go."""
    target = folder / str(run.iteration)
    target.mkdir(parents=True, exist_ok=True)
    save_file(_averaged(run), target / _FILE)
    for number in kept_iterations(folder)[:-most]:
        shutil.rmtree(folder / str(number))


def kept_iterations(folder: Path) -> list[int]:
    """The iterations whose weights are there, in order."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{_FILE}"))


def forget_later(folder: Path, iteration: int) -> None:
    """A run that resumes before them will make these iterations again."""
    for number in kept_iterations(folder):
        if number > iteration:
            shutil.rmtree(folder / str(number))


def best_checkpoint(setup: Setup, run: PolicyRun, engine: LearnerEngine, folder: Path) -> Choice:
    """Look back from the last weights that were kept; nothing is measured where there is no
    choice."""
    kept = kept_iterations(folder)
    if len(kept) < 2 or not setup.validation:
        return Choice(kept[-1] if kept else run.iteration)
    found: dict[int, Tensor] = {}  # (prompts,) each

    def objective(number: int) -> Tensor:
        if number not in found:
            found[number] = objectives(setup, run, engine, folder / str(number), str(number))
        return found[number]

    best = kept[-1]
    for earlier in reversed(kept[:-1]):
        if not is_better(objective(earlier), objective(best)):
            break
        best = earlier
    return Choice(best, {number: float(each.mean()) for number, each in sorted(found.items())})


def is_better(earlier: Tensor, later: Tensor) -> bool:
    """Whether earlier weights did better on the same prompts (prompts,), beyond one standard
    error of the paired difference."""
    difference = earlier - later
    error = float(difference.std(correction=1)) / math.sqrt(len(difference))
    return float(difference.mean()) > (error if math.isfinite(error) else 0.0)


def objectives(
    setup: Setup, run: PolicyRun, engine: LearnerEngine, folder: Path, name: str
) -> Tensor:
    """(prompts,): equation 2 without its last term, on one answer to each validation prompt."""
    settings = setup.settings
    engine.load_folder(folder, version=f"checkpoint-{name}")
    samples = engine.generate(
        [prompt.ids for prompt in setup.validation],
        n=1,
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=setup.seed + _SEED,
    )
    rollouts = rollouts_of(setup.validation, samples)
    groups = finished_groups(rollouts, end_token=int(setup.tokenizer.eos_token_id))
    scores = answer_scores(run.models.reward_model, groups, token_budget=settings.token_budget)
    paid = replace_unfinished(scores, rollouts.ended, missing_eos_score=settings.missing_eos_score)
    order = range(len(rollouts.groups))
    parts = layouts(rollouts, minibatches=1, token_budget=settings.token_budget, order=order)
    ref_logprobs, _ = policy_logprobs(
        run.models.reference, rollouts, parts, temperature=settings.temperature
    )
    gaps = torch.where(rollouts.mask, rollouts.engine_logprobs - ref_logprobs, 0.0)
    return paid - settings.kl_coef * gaps.sum(dim=1)


@torch.no_grad()
def take_back(run: PolicyRun, folder: Path, choice: Choice) -> None:
    """Make the chosen iteration's weights the run's average, as it stands in the file."""
    if choice.iteration == max(kept_iterations(folder), default=choice.iteration):
        return
    names = _names(run)
    with safe_open(folder / str(choice.iteration) / _FILE, "pt") as file:
        for parameter, averaged in zip(run.policy_optimiser.parameters, run.average, strict=True):
            averaged.copy_(file.get_tensor(names[id(parameter)]))


def _averaged(run: PolicyRun) -> dict[str, Tensor]:
    """The policy's tensors by name, with the average in the place of what is trained."""
    names = _names(run)
    trained = {
        names[id(parameter)]: averaged.to(parameter.dtype).cpu().contiguous()
        for parameter, averaged in zip(run.policy_optimiser.parameters, run.average, strict=True)
    }
    return saved_tensors(run.models.policy) | trained


def _names(run: PolicyRun) -> dict[int, str]:
    return {id(parameter): name for name, parameter in run.models.policy.named_parameters()}


def validation_figures(choice: Choice) -> dict[str, Sequence[float] | float | dict[str, float]]:
    """What the card says of the choice."""
    return {
        "checkpoint_iteration": float(choice.iteration),
        "validation_objective": {str(n): value for n, value in choice.objectives.items()},
    }
