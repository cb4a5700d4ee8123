"""Our reward model in a measurement: `python -m deploy.bench.training_child SPECIFICATION`.

Steps are those of learning/reward_model/loop.py: gradients by row, clipping, AdamW on fp32 masters,
the small heads beside. With `packed` false every answer is read with a prompt of its own, which is
what most would write; the loss is the same. As several processes, which torchrun starts, all share
the work as a stage's do, and the first hears what is asked for and answers.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from core.hyperparameters import RewardModelSettings
from core.process import keep_freed_memory
from deploy.bench.training_line import Line, Words
from deploy.bench.training_maths import read_shape
from deploy.bench.training_products import products_per_second
from learning.reward_model.dataset import RankedGroup, Ranking
from learning.reward_model.disagreement import Heads
from learning.reward_model.preference_loss import count_right, num_untied_pairs, ranking_loss
from learning.reward_model.steps import Batch, Cuts, add_gradients, cosine_rate, scored_rows
from learning.training.distributed import is_first, processes, shard, told_by_first
from learning.training.models import RewardModel, freeze_bottom, init_reward_model, layers_of
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group


class RewardTrainer:
    """A reward model with its optimiser, and groups to train it on."""

    def __init__(self, specification: Words) -> None:
        self.settings = RewardModelSettings(frozen_share=specification["frozen_share"])
        self.packed = bool(specification["packed"])
        self.groups = {
            int(k): [_ranked(group) for group in groups]
            for k, groups in specification["data"]["train"].items()
        }
        self.heldout = [_ranked(group) for group in specification["data"]["heldout"]]
        settings = self.settings
        self.model = init_reward_model(
            Path(specification["model"]), head_init_std=settings.head_init_std, seed=0
        )
        freeze_bottom(self.model, settings.frozen_share)
        shard(self.model, layers_of(self.model.classifier), exact=[self.model.score])
        self.cuts = Cuts()
        self.optimizer = MasterAdamW(
            self.model.parameters(),
            fast=self.cuts.parameters(),
            fast_factor=settings.cut_rate_factor,
            betas=settings.adam_betas,
            eps=settings.adam_eps,
        )
        self.heads = Heads(
            settings.heads,
            self.model.head.shape[1],
            init_std=settings.head_init_std,
            betas=settings.adam_betas,
            eps=settings.adam_eps,
            seed=0,
        )
        size = specification["step_prompts"]
        self._next = {k: itertools.cycle(self._batches(k, size)) for k in self.groups}

    def step(self, batch: Sequence[RankedGroup], *, rate: float) -> None:
        """One optimiser step; a rate of 0 does the same work and leaves the weights."""
        if self.packed:
            whole = Batch(ranked=list(batch), judgements=[], ends_epoch=False)
            add_gradients(self.model, self.cuts, whole, self.settings, self.heads)
        else:
            _add_unpacked(self.model, batch, token_budget=self.settings.token_budget)
        self.optimizer.step(learning_rate=rate, max_grad_norm=self.settings.max_grad_norm)
        if self.packed:
            self.heads.step(learning_rate=rate)

    def speed(self, answers: int, steps: int) -> Words:
        """Seconds of so many steps at K = `answers`."""
        batches = [next(self._next[answers]) for _ in range(steps)]
        began = time.perf_counter()
        for batch in batches:
            self.step(batch, rate=0.0)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "comparisons": sum(g.rankings[0].num_pairs for b in batches for g in b),
        }

    def learn(self, answers: int) -> Words:
        """One epoch as the stage trains, and by prompt what of the held-out is right."""
        began = time.perf_counter()
        batches = list(self._batches(answers, self.settings.batch_prompts))
        for number, batch in enumerate(batches):
            rate = cosine_rate(
                number,
                num_steps=len(batches),
                peak=self.settings.learning_rate,
                final_fraction=self.settings.final_learning_rate_fraction,
            )
            self.step(batch, rate=rate)
        seconds = time.perf_counter() - began
        right, pairs = [], []
        with torch.no_grad():
            groups = [ranked.group for ranked in self.heldout]
            for row in scored_rows(self.model, groups, token_budget=self.settings.token_budget):
                for number, scores in row:
                    ranks = self.heldout[number].rankings[0].ranks
                    right.append(count_right(scores, torch.tensor(ranks)))
                    pairs.append(num_untied_pairs(ranks))
        return {"seconds": seconds, "right": right, "pairs": pairs}

    def _batches(self, answers: int, size: int) -> Iterator[list[RankedGroup]]:
        groups = self.groups[answers]
        return (groups[at : at + size] for at in range(0, len(groups), size))


def _ranked(group: dict[str, Any]) -> RankedGroup:
    places = tuple(range(len(group["ranks"])))
    ranking = Ranking(places, tuple(group["ranks"]), heldout_rater=False, weight=1.0)
    return RankedGroup(Group(group["prompt"], group["answers"]), (ranking,), "train")


def _add_unpacked(model: RewardModel, batch: Sequence[RankedGroup], *, token_budget: int) -> None:
    apart = [Group(r.group.prompt, [answer]) for r in batch for answer in r.group.answers]
    scores = torch.cat(
        [one for row in scored_rows(model, apart, token_budget=token_budget) for _, one in row]
    )
    parts = torch.split(scores, [len(r.group.answers) for r in batch])
    losses = [
        ranking_loss(part, torch.tensor(r.rankings[0].ranks)) / len(batch)
        for part, r in zip(parts, batch, strict=True)
    ]
    torch.autograd.backward([torch.stack(losses).sum()])


def main(path: str) -> None:
    """Load, say so, and answer requests."""
    keep_freed_memory()  # as every stage does
    line = Line()
    specification = json.loads(Path(path).read_text())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with processes():
        trained = RewardTrainer(specification) if "frozen_share" in specification else None
        reply: Words = {"ready": True}
        while True:
            if is_first():
                line.tell(reply)
            reply = _reply(told_by_first(line.next), trained, specification)


def _reply(asked: Words, trained: RewardTrainer | None, specification: Words) -> Words:
    match asked:
        case {"do": "products", "tokens": tokens}:
            shape = read_shape(Path(specification["model"]))
            rate = products_per_second(shape.matrices, tokens=tokens, layers=shape.layers)
            return {"per_second": rate}
        case {"do": "speed", "answers": answers, "steps": steps} if trained:
            return trained.speed(answers, steps)
        case {"do": "learn", "answers": answers} if trained:
            return trained.learn(answers)
        case other:
            raise ValueError(f"{other} is nothing to ask for")


if __name__ == "__main__":
    main(sys.argv[1])
