"""An iteration's answers: sampled by the first process's engine, scored by all processes.

The engine goes on while what it has finished is scored, part by part. Between any two of its parts
a run may be asked to leave; what was gathered by then is lost, and the next start gathers it again.
Knows no optimiser; learning/policy/train.py learns from the result.
"""

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.engine.client import Sample
from learning.policy.experience import Experience, answer_scores, experience_of, policy_logprobs
from learning.policy.figures import timed
from learning.policy.run import PolicyRun, save_checkpoint, whole_policy
from learning.policy.setup import Setup
from learning.training.distributed import any_process, told_by_first
from learning.training.learner_engine import LearnerEngine
from learning.training.lora import without_adapters
from learning.training.rollouts import (
    Layout,
    Rollouts,
    finished_groups,
    in_parts,
    layouts,
    order_of,
    rollouts_of,
)
from learning.training.stage import Interrupted, Stage

SCORED_PARTS = 4
"""Of an iteration's prompts: while one is scored the engine answers those after it."""


def gather(stage: Stage, setup: Setup, run: PolicyRun, engine: LearnerEngine | None) -> Experience:
    """Answers of the present policy with scores, log-probabilities and rewards."""
    settings, models = setup.settings, run.models
    rollouts, scores = _sample_and_score(stage, setup, run, engine)
    parts = layouts_of(setup, run, rollouts, epoch=0)
    with timed(run, "logprobs"):
        logprobs, entropy = policy_logprobs(
            models.policy, rollouts, parts, temperature=settings.temperature
        )
    leave_if_asked(stage, run)
    with timed(run, "ref_logprobs"), without_adapters(models.reference) as anchor:
        ref_logprobs, _ = policy_logprobs(anchor, rollouts, parts, temperature=settings.temperature)
    return experience_of(
        rollouts,
        scores,
        logprobs,
        ref_logprobs,
        entropy=entropy,
        kl_coef=run.kl_coef,
        missing_eos_score=settings.missing_eos_score,
    )


def _sample_and_score(
    stage: Stage, setup: Setup, run: PolicyRun, engine: LearnerEngine | None
) -> tuple[Rollouts, Tensor]:
    """All answers and their scores, (num_answers,); the seconds of `rollouts` are those in which
    nothing was there to be scored."""
    prompts = setup.prompts_of(run.iteration)
    samples: list[list[Sample]] = []
    scores: list[Tensor] = []
    sampled = _sampled(setup, run, engine, whole_policy(run) if run.policy_steps else None)
    with closing(sampled) as parts:
        while True:
            with timed(run, "rollouts"):
                part = told_by_first(lambda: next(parts, None))
            if part is None:
                return rollouts_of(prompts, samples), torch.cat(scores)
            own = prompts[len(samples) : len(samples) + len(part)]
            with timed(run, "scores"):
                scores.append(_scores(setup, run, rollouts_of(own, part)))
            samples += part
            leave_if_asked(stage, run)


def _sampled(
    setup: Setup, run: PolicyRun, engine: LearnerEngine | None, whole: PreTrainedModel | None
) -> Generator[list[list[Sample]], None, None]:
    """Answers by the first process's engine with the whole of the policy, in parts."""
    assert engine is not None, "the first process has it"
    settings, prompts = setup.settings, setup.prompts_of(run.iteration)
    if whole is not None:
        engine.load_model(whole, version=f"iteration-{run.iteration}")
        del whole  # it may be a copy, and scoring wants the memory
    answers = engine.answers(
        [prompt.ids for prompt in prompts],
        n=settings.answers_per_prompt,
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=setup.sampling_seed(run.iteration),
    )
    yield from in_parts(answers, count=len(prompts), parts=SCORED_PARTS)


def _scores(setup: Setup, run: PolicyRun, rollouts: Rollouts) -> Tensor:
    groups = finished_groups(rollouts, end_token=int(setup.tokenizer.eos_token_id))
    with without_adapters(run.models.reward_model) as judge:
        return answer_scores(judge, groups, token_budget=setup.settings.token_budget)


def layouts_of(setup: Setup, run: PolicyRun, rollouts: Rollouts, epoch: int) -> list[Layout]:
    """The minibatches of an epoch; the old log-probabilities are computed on those of epoch 0."""
    order = order_of(len(rollouts.groups), f"{setup.seed}/{run.iteration}/{epoch}")
    return layouts(
        rollouts,
        minibatches=setup.settings.minibatches,
        token_budget=setup.settings.token_budget,
        order=order,
    )


def leave_if_asked(stage: Stage, run: PolicyRun) -> None:
    if any_process(stage.stopping):
        save_checkpoint(run, stage.checkpoint)
        raise Interrupted(f"stopped in iteration {run.iteration + 1}; the next start goes on")
