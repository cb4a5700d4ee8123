"""The stage `sft`: two fine-tunings of the first policy on demonstrations (the paper, C.1 and C.3).

    python -m learning.sft.train RUN/sft

`out/anchor` is what PPO starts from and is held to: few epochs, with plain text mixed in.
`out/model` is the SFT policy itself: more epochs, residual dropout, and of its epochs the one that
learning/sft/selection.py likes best. All arithmetic is in learning/sft/steps.py. The same code runs
as one process or as many under torchrun (learning/training/distributed.py), of which the first
writes.
"""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from core.hyperparameters import SftSettings
from learning.policy.experience import on_device
from learning.policy.setup import encoder, prepare_process
from learning.reward_model.dataset import read_demonstrations
from learning.reward_model.steps import cosine_rate
from learning.sft.selection import Judge, selection
from learning.sft.steps import (
    add_gradient,
    batches,
    mean_loss,
    residual_dropout,
    with_pretraining_text,
)
from learning.training import pretraining_text
from learning.training.checkpoints import (
    load_checkpoint,
    read_notes,
    remove_checkpoint,
    save_checkpoint,
)
from learning.training.distributed import (
    any_process,
    gathered,
    is_first,
    num_processes,
    processes,
    rank,
    shard,
    wait,
)
from learning.training.memory import announce, memory_figures, need_of
from learning.training.models import layers_of, load_policy, save_folder
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group
from learning.training.stage import Interrupted, NotEnoughData, Stage, run, write_json

_TEXT_TOKENS = 64
"""Of one sequence of the pretraining mix."""
_CHECK_EVERY = 50
"""Optimiser steps between checkpoints; one is written after each epoch, too."""
_COPY_BYTES = 2
"""Of each weight, in the copy of the best epoch."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One of the two fine-tunings."""

    name: str
    examples: list[Group]
    epochs: int
    batch_size: int
    learning_rate: float
    dropout: float
    judge: Judge | None
    """None: the last epoch is the one that is kept."""
    bar: tuple[float, float]
    """Where its part of the stage's progress begins and ends."""


@dataclass(slots=True)
class Done:
    """How far a fine-tuning is; with the optimiser's state, a checkpoint."""

    recipe: str
    before: float
    """The loss at the beginning, nats per answer token."""
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    """After each epoch, by the judge."""
    best: list[Tensor] = field(default_factory=list)
    """Weights of the best epoch so far, bf16."""


def train_sft(stage: Stage) -> dict[str, Any]:
    """Run the stage; returns its figures. Raises NotEnoughData, Interrupted."""
    prepare_process(stage)
    with processes():
        return _train(stage)


def _train(stage: Stage) -> dict[str, Any]:
    settings = SftSettings.model_validate(stage.inputs["settings"])
    tokenizer = AutoTokenizer.from_pretrained(stage.path("anchor"), local_files_only=True)
    demonstrations = read_demonstrations(stage.path("snapshot"), tokenizer, split="train")
    if len(demonstrations) < settings.min_demonstrations:
        raise NotEnoughData(
            f"{len(demonstrations)} demonstrations to train on, and {settings.min_demonstrations} "
            "are needed (learning.sft.min_demonstrations): collect more better answers"
        )
    anchor = _anchor_recipe(stage, settings, demonstrations, tokenizer)
    figures = {"anchor": _tuned(stage, anchor, settings, stage.folder / "anchor")}
    with selection(stage, settings, tokenizer) as (chosen_by, judge):
        recipe = _sft_recipe(settings, demonstrations, judge)
        figures["sft"] = _tuned(stage, recipe, settings, stage.partial / "model")
    if is_first():
        shutil.copytree(stage.folder / "anchor", stage.partial / "anchor")
        shutil.rmtree(stage.folder / "anchor")
    return figures | {"demonstrations": len(demonstrations), "chosen_by": chosen_by}


# --- the two recipes ------------------------------------------------------------------------


def _anchor_recipe(
    stage: Stage,
    settings: SftSettings,
    demonstrations: list[Group],
    tokenizer: PreTrainedTokenizerBase,
) -> Recipe:
    pieces = pretraining_text.sequences(
        pretraining_text.mix_texts(stage.inputs.get("pretraining_text")),
        encoder(tokenizer),
        length=_TEXT_TOKENS,
    )
    text = pretraining_text.draw(pieces, count=len(pieces), seed=stage.inputs["seed"])
    return Recipe(
        name="anchor",
        examples=with_pretraining_text(
            demonstrations, text, share=settings.anchor_pretraining_share
        ),
        epochs=settings.anchor_epochs,
        batch_size=settings.batch_demonstrations,
        learning_rate=settings.anchor_learning_rate,
        dropout=0.0,
        judge=None,
        bar=(0.0, 0.3),
    )


def _sft_recipe(settings: SftSettings, demonstrations: list[Group], judge: Judge | None) -> Recipe:
    return Recipe(
        name="sft",
        examples=demonstrations,
        epochs=settings.epochs,
        batch_size=settings.batch_demonstrations,
        learning_rate=settings.learning_rate,
        dropout=settings.residual_dropout,
        judge=judge,
        bar=(0.3, 0.98),
    )


# --- one fine-tuning ------------------------------------------------------------------------


def _tuned(stage: Stage, recipe: Recipe, settings: SftSettings, target: Path) -> dict[str, Any]:
    """Fine-tune the first policy by a recipe into a folder, unless it is there; its figures."""
    kept = stage.folder / f"{recipe.name}.json"
    if target.is_dir() and kept.exists():
        return dict(json.loads(kept.read_text()))
    model = on_device(load_policy(stage.path("anchor")))
    budget = settings.token_budget
    need = need_of(
        [model], model, token_budget=budget, processes=num_processes(), copy_bytes=_COPY_BYTES
    )
    announce(need, model.device)
    shard(model, layers_of(model))
    optimizer = MasterAdamW(model.parameters(), betas=settings.adam_betas, eps=settings.adam_eps)
    done = _begun(stage, recipe, settings, model, optimizer)
    planned = batches(
        recipe.examples,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=int(stage.inputs["seed"]),
    )
    _steps(stage, recipe, settings, model, optimizer, done, planned)
    with torch.no_grad():
        for parameter, best in zip(optimizer.parameters, done.best, strict=True):
            parameter.copy_(best)
    figures = _figures(recipe, done, steps=len(planned))
    figures |= {"memory": memory_figures(need, model.device), "processes": num_processes()}
    whole = gathered(model, lambda: load_policy(stage.path("anchor")))
    if whole is not None:
        beside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        save_folder(whole, beside, tokenizer_from=stage.path("anchor"))
        write_json(kept, figures)
        os.replace(beside, target)
    remove_checkpoint(stage.checkpoint)
    wait()
    return figures


def _steps(
    stage: Stage,
    recipe: Recipe,
    settings: SftSettings,
    model: PreTrainedModel,
    optimizer: MasterAdamW,
    done: Done,
    planned: list[tuple[int, ...]],
) -> None:
    """Take the steps that are left; after each epoch ask the judge, and keep the best weights."""
    per_epoch = len(planned) // recipe.epochs
    while done.step < len(planned):
        started = time.monotonic()
        with torch.random.fork_rng(), residual_dropout(model, recipe.dropout):
            drawn = int(stage.inputs["seed"]) * 1_000_003 + done.step
            torch.manual_seed(drawn * num_processes() + rank())
            examples = [recipe.examples[place] for place in planned[done.step]]
            loss = add_gradient(model, examples, token_budget=settings.token_budget)
        rate = cosine_rate(
            done.step,
            num_steps=len(planned),
            peak=recipe.learning_rate,
            final_fraction=settings.final_learning_rate_fraction,
        )
        optimizer.step(learning_rate=rate, max_grad_norm=settings.max_grad_norm)
        done.step += 1
        took = time.monotonic() - started
        done.seconds += took
        done.losses.append(loss)
        if done.step % per_epoch == 0:
            _end_epoch(stage, recipe, model, optimizer, done, epoch=done.step // per_epoch)
        if done.step % per_epoch == 0 or done.step % _CHECK_EVERY == 0:
            _save(stage, optimizer, done)
        _report(stage, recipe, done, len(planned))
        speed = recipe.batch_size / took
        figures = {"loss": loss, "learning_rate": rate, "examples_per_second": speed}
        stage.scalars(done.step, figures, part=recipe.name)
        if any_process(stage.stopping):
            _save(stage, optimizer, done)
            raise Interrupted(f"stopped after step {done.step} of {recipe.name}")


def _end_epoch(
    stage: Stage,
    recipe: Recipe,
    model: PreTrainedModel,
    optimizer: MasterAdamW,
    done: Done,
    *,
    epoch: int,
) -> None:
    score = recipe.judge(model, epoch) if recipe.judge else float(epoch)
    if recipe.judge:
        stage.scalars(done.step, {"judged": score}, part=recipe.name)
    if not done.judged or score > max(done.judged):
        kept = torch.bfloat16
        done.best = [p.detach().to(kept, copy=True) for p in optimizer.parameters]
    done.judged.append(score)


def _figures(recipe: Recipe, done: Done, *, steps: int) -> dict[str, Any]:
    per_epoch = steps // recipe.epochs
    last = done.losses[-per_epoch:]
    figures: dict[str, Any] = {
        "examples": len(recipe.examples),
        "steps": steps,
        "seconds": round(done.seconds, 1),
        "loss_before": done.before,
        "loss_last_epoch": sum(last) / len(last),
        "chosen_epoch": done.judged.index(max(done.judged)) + 1,
    }
    return figures | ({"judged": done.judged} if recipe.judge else {})


def _report(stage: Stage, recipe: Recipe, done: Done, steps: int) -> None:
    start, end = recipe.bar
    left = done.seconds / done.step * (steps - done.step)
    stage.progress(
        start + (end - start) * done.step / steps,
        f"{recipe.name}: step {done.step} of {steps}, {left:.0f} s left",
        loss=done.losses[-1],
    )


# --- checkpoints ----------------------------------------------------------------------------


def _save(stage: Stage, optimizer: MasterAdamW, done: Done) -> None:
    """In place of the last checkpoint."""
    notes = dataclasses.asdict(dataclasses.replace(done, best=[]))
    save_checkpoint(stage.checkpoint, [optimizer], notes=notes, tensors=done.best)


def _begun(
    stage: Stage,
    recipe: Recipe,
    settings: SftSettings,
    model: PreTrainedModel,
    optimizer: MasterAdamW,
) -> Done:
    """Where the checkpoint of this recipe left off; the beginning where there is none."""
    notes = read_notes(stage.checkpoint)
    if notes is None or notes["recipe"] != recipe.name:
        before = mean_loss(model, recipe.examples, token_budget=settings.token_budget)
        return Done(recipe=recipe.name, before=before)
    best, _ = load_checkpoint(stage.checkpoint, [optimizer])
    return Done(**{**notes, "best": best})


if __name__ == "__main__":
    run(train_sft)
