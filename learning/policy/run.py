"""The state of a PPO run: models, optimisers, the weight average, and where it stands.

A checkpoint holds all of it, between any two optimiser steps, with the answers that the current
iteration learns from; so a run that was killed goes on where it was. Of many processes each keeps
its parts of the weights (learning/training/distributed.py). Knows no engine and no losses;
learning/policy/train.py moves it along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from core.hyperparameters import PolicySettings
from learning.policy.experience import Experience, on_device
from learning.training import checkpoints
from learning.training.distributed import (
    device,
    gathered,
    num_processes,
    own_part,
    shard,
    told_by_first,
)
from learning.training.lora import adapter_weights, add_adapters, has_adapters, merged
from learning.training.memory import GIB, GRADIENT_BYTES, LORA_RANK, STATE_BYTES, Need, need_of
from learning.training.models import (
    RewardModel,
    freeze_bottom,
    layers_of,
    load_policy,
    load_reward_model,
    save_folder,
)
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group
from learning.training.rollouts import Rollouts

_SCRATCH_BYTES = GIB // 4
"""Of passes of many kinds, and of code that is first used within the run."""
_AVERAGE_BYTES = 4
"""Of each weight of the policy, in the moving average."""


@dataclass(frozen=True, slots=True)
class Models:
    """The four models. `reference` is the KL anchor; it and `reward_model` stay as they are.

    With LoRA they need not be models of their own, but are what `policy` and `value` began as: to
    be used within `without_adapters`, which changes nothing where there are none.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: RewardModel
    value: RewardModel
    parent: Path
    """Where the policy was read from"""


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


def load_models(
    *, parent: Path, anchor: Path, reward_model: Path, settings: PolicySettings, seed: int = 0
) -> Models:
    """The policy from the parent, the value model from the reward model with its bias (C.4).

    With LoRA the adapters of both are drawn from the seed.
    """
    if settings.lora_rank:
        return _load_adapted(parent, anchor, reward_model, settings, seed)
    models = Models(
        policy=on_device(load_policy(parent)),
        reference=on_device(load_policy(anchor).requires_grad_(False)),
        reward_model=on_device(load_reward_model(reward_model).requires_grad_(False)),
        value=on_device(load_reward_model(reward_model)),
        parent=parent,
    )
    models.value.bias.requires_grad_(True)
    freeze_bottom(models.value, settings.value_frozen_share)
    return models


def _load_adapted(
    parent: Path, anchor: Path, reward_model: Path, settings: PolicySettings, seed: int
) -> Models:
    """Two models with adapters, and one more where the policy does not begin at the anchor."""
    adapt = partial(
        add_adapters,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        targets=settings.lora_targets,
        seed=seed,
    )
    policy, value = load_policy(parent), load_reward_model(reward_model)
    adapt(policy)
    adapt(value.classifier, frozen_share=settings.value_frozen_share, heads=["score"])
    on_device(policy)
    same = parent.samefile(anchor)
    reference = policy if same else on_device(load_policy(anchor).requires_grad_(False))
    return Models(policy, reference, reward_model=on_device(value), value=value, parent=parent)


def memory_need(models: Models, settings: PolicySettings, engine: object = None) -> Need:
    """What a run will take beside the models that are there, and would with LoRA instead.

    An engine that has a `model` has it in this process.
    """
    others = [models.reference, models.reward_model, getattr(engine, "model", None)]
    need = need_of(
        [models.policy, models.value],
        models.policy,
        token_budget=settings.token_budget,
        processes=num_processes(),
        copy_bytes=_AVERAGE_BYTES,
        beside=[model for model in others if model is not None],
        scratch=_SCRATCH_BYTES,
    )
    copied = sum(p.nbytes for p in models.policy.parameters()) * (device().type == "cpu")
    if settings.lora_rank:
        return replace(need, whole=copied)
    adapters = adapter_weights(models.policy, rank=LORA_RANK)  # the value model has no more
    state = (2 * STATE_BYTES + GRADIENT_BYTES + _AVERAGE_BYTES) * adapters
    lora = replace(need, optimiser=state // num_processes(), whole=copied)
    return replace(need, whole=copied * (num_processes() > 1), lora=lora)


def new_run(models: Models, settings: PolicySettings) -> PolicyRun:
    """A run before its first step; many processes share the models from now on."""
    for policy in dict.fromkeys((models.policy, models.reference)):  # with LoRA both may be one
        shard(policy, layers_of(policy))
    for scored in dict.fromkeys((models.reward_model, models.value)):
        shard(scored, layers_of(scored.classifier), exact=[scored.score])
    policy_optimiser = _optimiser(models.policy, settings)
    return PolicyRun(
        models=models,
        policy_optimiser=policy_optimiser,
        value_optimiser=_optimiser(models.value, settings),
        average=[master.detach().clone() for master in policy_optimiser.masters],
        kl_coef=settings.kl_coef,
    )


def whole_policy(
    run: PolicyRun, *, instead: Mapping[str, Tensor] | None = None
) -> PreTrainedModel | None:
    """The policy with all of its weights, or others by name, in the first of many processes; None
    in the rest. Where there is one process it is the policy itself, but for adapters: those are
    merged into a copy."""
    whole = merged if has_adapters(run.models.policy) else gathered
    return whole(run.models.policy, partial(load_policy, run.models.parent), instead=instead)


def _optimiser(model: torch.nn.Module, settings: PolicySettings) -> MasterAdamW:
    return MasterAdamW(model.parameters(), betas=settings.adam_betas, eps=settings.adam_eps)


@torch.no_grad()
def update_average(average: Sequence[Tensor], masters: Sequence[Tensor], *, decay: float) -> None:
    """average = decay x average + (1 - decay) x masters, in place."""
    parts = [own_part(averaged) for averaged in average]
    torch._foreach_lerp_(parts, [own_part(m.detach()) for m in masters], 1.0 - decay)


@torch.no_grad()
def export(run: PolicyRun, folder: Path, *, parent: Path) -> float:
    """Write the averaged weights as a bf16 model folder with the parent's tokeniser.

    Returns the share of weights that differ from the parent's after rounding to bf16. The policy
    in memory holds the average afterwards.
    """
    for parameter, averaged in zip(run.policy_optimiser.parameters, run.average, strict=True):
        parameter.copy_(averaged)
    whole = whole_policy(run)
    if whole is not None:
        save_folder(whole, folder, tokenizer_from=parent)
    return told_by_first(lambda: changed_share(folder, parent))


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
    "kl_coef", "ptx_coef", "iteration", "step", "policy_steps", "stopped", "figures",
    "step_figures", "history",
)  # fmt: skip
_TABLES = ("scores", "logprobs", "ref_logprobs", "rewards")
_SAMPLED = ("mask", "engine_logprobs", "ended")


def save_checkpoint(run: PolicyRun, path: Path) -> None:
    """Write the whole state so that a reader sees the old one or the new one."""
    notes: dict[str, Any] = {name: getattr(run, name) for name in _PLAIN}
    whole = {"values": run.values}
    if (experience := run.experience) is not None:
        groups = [(group.prompt, group.answers) for group in experience.rollouts.groups]
        notes["experience"] = {"groups": groups, "entropy": experience.entropy}
        whole |= {name: getattr(experience, name) for name in _TABLES}
        whole |= {name: getattr(experience.rollouts, name) for name in _SAMPLED}
    checkpoints.save_checkpoint(
        path,
        [run.policy_optimiser, run.value_optimiser],
        notes=notes,
        tensors=run.average,
        whole=whole,
    )


def load_checkpoint(run: PolicyRun, path: Path) -> bool:
    """Take up a state that `save_checkpoint` wrote for a run with the same inputs; whether there
    was one."""
    notes = checkpoints.read_notes(path)
    if notes is None:
        return False
    optimisers = [run.policy_optimiser, run.value_optimiser]
    run.average, whole = checkpoints.load_checkpoint(path, optimisers)
    for name in _PLAIN:
        setattr(run, name, notes[name])
    run.values = whole["values"]
    run.experience = None
    if "experience" in notes:
        told = notes["experience"]
        groups = tuple(Group(prompt=prompt, answers=answers) for prompt, answers in told["groups"])
        rollouts = Rollouts(groups=groups, **{name: whole[name] for name in _SAMPLED})
        tables = {name: whole[name] for name in _TABLES}
        run.experience = Experience(rollouts=rollouts, entropy=told["entropy"], **tables)
    return True
