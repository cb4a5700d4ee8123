"""An iteration's answers: sampled by the first process's engine, scored by all processes.

Between any two of its parts a run may be asked to leave; what was gathered by then is lost, and the
next start gathers it again. Knows no optimiser; learning/policy/train.py learns from the result.
"""

from learning.policy.experience import Experience, answer_scores, experience_of, policy_logprobs
from learning.policy.figures import timed
from learning.policy.run import PolicyRun, save_checkpoint, whole_policy
from learning.policy.setup import Setup
from learning.training.distributed import any_process, told_by_first
from learning.training.learner_engine import LearnerEngine
from learning.training.rollouts import (
    Layout,
    Rollouts,
    finished_groups,
    layouts,
    order_of,
    rollouts_of,
)
from learning.training.stage import Interrupted, Stage


def gather(stage: Stage, setup: Setup, run: PolicyRun, engine: LearnerEngine | None) -> Experience:
    """Answers of the present policy with scores, log-probabilities and rewards."""
    settings, models = setup.settings, run.models
    with timed(run, "rollouts"):
        rollouts = _sample(setup, run, engine)
    leave_if_asked(stage, run)
    with timed(run, "scores"):
        groups = finished_groups(rollouts, end_token=int(setup.tokenizer.eos_token_id))
        scores = answer_scores(models.reward_model, groups, token_budget=settings.token_budget)
    leave_if_asked(stage, run)
    parts = layouts_of(setup, run, rollouts, epoch=0)
    with timed(run, "logprobs"):
        logprobs, entropy = policy_logprobs(
            models.policy, rollouts, parts, temperature=settings.temperature
        )
    leave_if_asked(stage, run)
    with timed(run, "ref_logprobs"):
        ref_logprobs, _ = policy_logprobs(
            models.reference, rollouts, parts, temperature=settings.temperature
        )
    return experience_of(
        rollouts,
        scores,
        logprobs,
        ref_logprobs,
        entropy=entropy,
        kl_coef=run.kl_coef,
        missing_eos_score=settings.missing_eos_score,
    )


def _sample(setup: Setup, run: PolicyRun, engine: LearnerEngine | None) -> Rollouts:
    """Answers by the first process's engine, in all."""
    settings = setup.settings
    whole = whole_policy(run) if run.policy_steps else None
    prompts = setup.prompts_of(run.iteration)

    def asked() -> Rollouts:
        assert engine is not None, "the first process has it"
        if whole is not None:
            engine.load_model(whole, version=f"iteration-{run.iteration}")
        samples = engine.generate(
            [prompt.ids for prompt in prompts],
            n=settings.answers_per_prompt,
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=setup.sampling_seed(run.iteration),
        )
        return rollouts_of(prompts, samples)

    return told_by_first(asked)


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
