"""Our policy's update in a measurement: `python -m deploy.bench.policy_child SPECIFICATION`.

What learning/policy/train.py does between one sampling and the next, on given answers: scores, old
and reference log-probabilities, value steps, policy steps with or without the pretraining term, and
the weight average. Rates are 0, so that every update is the same work.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from core.hyperparameters import PolicySettings
from core.process import keep_freed_memory
from deploy.bench.training_line import Line, Words
from learning.policy.experience import Experience, answer_scores, experience_of, policy_logprobs
from learning.policy.run import update_average
from learning.policy.updates import PtxBatch, policy_step, ptx_batch, value_step
from learning.training.models import freeze_bottom, init_reward_model, load_policy
from learning.training.optimizer import MasterAdamW
from learning.training.packing import Group
from learning.training.rollouts import Layout, Rollouts, layouts

_EMA_DECAY = 0.9


class Updates:
    """Four models, two optimisers, and the answers that every update learns from."""

    def __init__(self, specification: Words) -> None:
        self.settings = PolicySettings(
            value_frozen_share=specification["frozen_share"],
            minibatches=specification["minibatches"],
            learning_rate=0.0,
            value_learning_rate=0.0,
            stop_update_kl=None,
        )
        folder, settings = Path(specification["model"]), self.settings
        self.policy = load_policy(folder)
        self.reference = load_policy(folder).requires_grad_(False)
        self.reward_model = init_reward_model(folder, head_init_std=1e-3, seed=0)
        self.reward_model.requires_grad_(False)
        self.value = init_reward_model(folder, head_init_std=1e-3, seed=0)
        self.value.bias.requires_grad_(True)
        freeze_bottom(self.value, settings.value_frozen_share)
        self.policy_optimiser = MasterAdamW(self.policy.parameters(), eps=settings.adam_eps)
        self.value_optimiser = MasterAdamW(self.value.parameters(), eps=settings.adam_eps)
        self.average = [master.detach().clone() for master in self.policy_optimiser.masters]
        self.rollouts = _rollouts(specification)
        self.text = specification["ptx"]
        self.seconds: dict[str, float] = {}

    def update(self, *, ptx: bool) -> Words:
        """One iteration's learning; seconds of all and of each part."""
        self.seconds = {}
        began = time.perf_counter()
        settings, rollouts = self.settings, self.rollouts
        parts = layouts(
            rollouts,
            minibatches=settings.minibatches,
            token_budget=settings.token_budget,
            order=range(len(rollouts.groups)),
        )
        experience = self._experience(parts)
        values = torch.zeros(rollouts.mask.shape)  # (num_answers, length)
        with self._timed("value"):
            for layout in parts:
                value_step(
                    self.value,
                    self.value_optimiser,
                    experience,
                    layout,
                    values,
                    settings=settings,
                    fresh=True,
                )
        advantages = experience.advantages(
            values, discount=settings.discount, gae_lambda=settings.gae_lambda
        )
        with self._timed("policy with ptx" if ptx else "policy"):
            for layout in parts:
                self._policy_step(experience, layout, advantages, ptx=ptx)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "episodes": rollouts.num_answers, "parts": self.seconds}

    def _experience(self, parts: Sequence[Layout]) -> Experience:
        settings, rollouts = self.settings, self.rollouts
        with self._timed("scores"):
            scores = answer_scores(
                self.reward_model, rollouts.groups, token_budget=settings.token_budget
            )
        with self._timed("log-probabilities"):
            logprobs, entropy = policy_logprobs(self.policy, rollouts, parts, temperature=1.0)
            ref_logprobs, _ = policy_logprobs(self.reference, rollouts, parts, temperature=1.0)
        return experience_of(
            rollouts,
            scores,
            logprobs,
            ref_logprobs,
            entropy=entropy,
            kl_coef=settings.kl_coef,
            missing_eos_score=None,
        )

    def _policy_step(
        self, experience: Experience, layout: Layout, advantages: torch.Tensor, *, ptx: bool
    ) -> None:
        policy_step(
            self.policy,
            self.policy_optimiser,
            experience,
            layout,
            advantages,
            self._text() if ptx else PtxBatch(rows=(), num_tokens=0),
            settings=self.settings,
            ptx_coef=1.0 if ptx else 0.0,
            learning_rate=0.0,
        )
        update_average(self.average, self.policy_optimiser.masters, decay=_EMA_DECAY)

    def _text(self) -> PtxBatch:
        """A step's share of an iteration's pretraining sequences."""
        return ptx_batch(self.text, token_budget=self.settings.token_budget)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - began


def _rollouts(specification: Words) -> Rollouts:
    groups = tuple(Group(prompt, answers) for prompt, answers in specification["groups"])
    count = sum(len(group.answers) for group in groups)
    mask = torch.ones(count, len(groups[0].answers[0]), dtype=torch.bool)
    return Rollouts(
        groups=groups,
        mask=mask,
        engine_logprobs=torch.full(mask.shape, -2.0),
        ended=torch.zeros(count, dtype=torch.bool),
    )


def main(path: str) -> None:
    """Load, say so, and answer requests."""
    keep_freed_memory()  # as every stage does
    line = Line()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    updates = Updates(json.loads(Path(path).read_text()))
    line.tell({"ready": True})
    while True:
        line.tell(updates.update(ptx=bool(line.next()["ptx"])))


if __name__ == "__main__":
    main(sys.argv[1])
