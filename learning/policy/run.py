"""The state of a PPO run: models, optimisers, the weight average, and where it stands.

A checkpoint holds all of it, between any two optimiser steps, with the answers that the current
iteration learns from; so a run that was killed goes on where it was. Knows no engine and no
losses; learning/policy/train.py moves it along.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from core.hyperparameters import PolicySettings
from learning.policy.experience import Experience, on_device
from learning.training.models import (
    RewardModel,
    freeze_bottom,
    load_policy,
    load_reward_model,
    save_folder,
)
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group
from learning.training.rollouts import Rollouts


@dataclass(frozen=True, slots=True)
class Models:
    """The four models. `reference` is the KL anchor; it and `reward_model` stay as they are."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: RewardModel
    value: RewardModel


@dataclass(slots=True)
class PolicyRun:
    """What changes while the run goes on."""

    models: Models
    policy_optimiser: MasterAdamW
    value_optimiser: MasterAdamW
    average: list[Tensor]
    """fp32, the moving average of the policy's weights, as the optimiser orders them"""
    kl_coef: float
    ptx_coef: float | None = None
    """None until calibrated, at the first step"""
    iteration: int = 0
    step: int = 0
    """Optimiser steps done in this iteration"""
    policy_steps: int = 0
    """Of the policy, in the whole run"""
    experience: Experience | None = None
    """None until the iteration's answers are there"""
    values: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """(num_answers, length), of the value model"""
    stopped: str | None = None
    """Why the run ended before its last iteration"""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the current iteration, so far"""
    step_figures: list[dict[str, float]] = field(default_factory=list)
    """Of the policy's optimiser steps in the current iteration"""
    history: list[dict[str, float]] = field(default_factory=list)
    """Figures of the finished iterations"""


def new_run(
    *, parent: Path, anchor: Path, reward_model: Path, settings: PolicySettings
) -> PolicyRun:
    """A run before its first step: the policy from the parent, the value model from the reward
    model with its bias (appendix C.4)."""
    models = Models(
        policy=on_device(load_policy(parent)),
        reference=on_device(load_policy(anchor).requires_grad_(False)),
        reward_model=on_device(load_reward_model(reward_model).requires_grad_(False)),
        value=on_device(load_reward_model(reward_model)),
    )
    models.value.bias.requires_grad_(True)
    freeze_bottom(models.value, settings.value_frozen_share)
    policy_optimiser = _optimiser(models.policy, settings)
    return PolicyRun(
        models=models,
        policy_optimiser=policy_optimiser,
        value_optimiser=_optimiser(models.value, settings),
        average=[master.detach().clone() for master in policy_optimiser.masters],
        kl_coef=settings.kl_coef,
    )


def _optimiser(model: torch.nn.Module, settings: PolicySettings) -> MasterAdamW:
    return MasterAdamW(model.parameters(), betas=settings.adam_betas, eps=settings.adam_eps)


@torch.no_grad()
def update_average(average: Sequence[Tensor], masters: Sequence[Tensor], *, decay: float) -> None:
    """average = decay x average + (1 - decay) x masters, in place."""
    torch._foreach_lerp_(list(average), [m.detach() for m in masters], 1.0 - decay)


@torch.no_grad()
def export(run: PolicyRun, folder: Path, *, parent: Path) -> float:
    """Write the averaged weights as a bf16 model folder with the parent's tokeniser.

    Returns the share of weights that differ from the parent's after rounding to bf16. The policy
    in memory holds the average afterwards.
    """
    for parameter, averaged in zip(run.policy_optimiser.parameters, run.average, strict=True):
        parameter.copy_(averaged)
    save_folder(run.models.policy, folder, tokenizer_from=parent)
    return changed_share(folder, parent)


def changed_share(folder: Path, parent: Path) -> float:
    """Share of the numbers in two checkpoints of one model that differ as they are written."""
    changed = total = 0
    before = _by_name(parent)
    for name, file in _by_name(folder).items():
        with safe_open(file, "pt") as new, safe_open(before[name], "pt") as old:
            a, b = new.get_tensor(name), old.get_tensor(name)
            changed += int((a != b.to(a.dtype)).sum())
            total += a.numel()
    return changed / total


def _by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    return files


# --- checkpoints ----------------------------------------------------------------------------

_PLAIN = (
    "kl_coef", "ptx_coef", "iteration", "step", "policy_steps", "values", "stopped", "figures",
    "step_figures", "history",
)  # fmt: skip


def save_checkpoint(run: PolicyRun, path: Path) -> None:
    """Write the whole state so that a reader sees the old file or the new one."""
    state: dict[str, Any] = {name: getattr(run, name) for name in _PLAIN}
    state |= {
        "policy_optimiser": run.policy_optimiser.state_dict(),
        "value_optimiser": run.value_optimiser.state_dict(),
        "average": run.average,
        "experience": None if run.experience is None else _packed_up(run.experience),
    }
    beside = path.with_name(path.name + ".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


def load_checkpoint(run: PolicyRun, path: Path) -> None:
    """Take up a state that `save_checkpoint` wrote for a run with the same inputs."""
    state = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    for name in _PLAIN:
        setattr(run, name, state[name])
    run.values = run.values.clone()
    run.policy_optimiser.load_state_dict(state["policy_optimiser"])
    run.value_optimiser.load_state_dict(state["value_optimiser"])
    for averaged, saved in zip(run.average, state["average"], strict=True):
        averaged.copy_(saved)
    run.experience = None if state["experience"] is None else _unpacked(state["experience"])


def _packed_up(experience: Experience) -> dict[str, Any]:
    rollouts = experience.rollouts
    return {
        "groups": [
            (list(group.prompt), [list(answer) for answer in group.answers])
            for group in rollouts.groups
        ],
        "rollouts": {
            name: getattr(rollouts, name) for name in ("mask", "engine_logprobs", "ended")
        },
        "tables": {
            name: getattr(experience, name)
            for name in ("scores", "logprobs", "ref_logprobs", "rewards", "entropy")
        },
    }


def _unpacked(state: dict[str, Any]) -> Experience:
    groups = tuple(Group(prompt=prompt, answers=answers) for prompt, answers in state["groups"])
    return Experience(rollouts=Rollouts(groups=groups, **state["rollouts"]), **state["tables"])
