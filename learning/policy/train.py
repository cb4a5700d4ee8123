"""The stage `policy`: PPO-ptx from the live policy, equation 2 of the paper.

    python -m learning.policy.train RUN/policy

Each iteration samples answers with the learner's engine, scores them, updates the value model and
then the policy, whose new weights go into the engine. The result is a bf16 model folder with
weights between the last ones and their average. One process or many work at it; the first has the
engine and writes. This file says what comes after what, and when a run stops; all arithmetic is in
the modules it imports.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from core.hyperparameters import PolicySettings
from learning.policy.advantages import explained_variance
from learning.policy.alarms import alarms_said
from learning.policy.checkpoints import (
    best_checkpoint,
    forget_later,
    keep_average,
    take_back,
    validation_figures,
)
from learning.policy.experience import Experience
from learning.policy.figures import (
    experience_figures,
    iteration_figures,
    learned_figures,
    step_figures,
    summary,
    throughput,
    timed,
)
from learning.policy.gathering import gather, layouts_of, leave_if_asked
from learning.policy.rewards import adapted_kl_coef
from learning.policy.run import (
    Models,
    PolicyRun,
    export,
    load_checkpoint,
    load_models,
    memory_need,
    new_run,
    save_checkpoint,
    update_average,
)
from learning.policy.samples import sample_rows, write_samples
from learning.policy.setup import Setup, prepare_process, read_setup
from learning.policy.stops import divergence_named, stop_if_broken, stop_if_collapsed
from learning.policy.updates import (
    calibrated_ptx_coef,
    policy_step,
    value_step,
)
from learning.training.distributed import (
    is_first,
    num_processes,
    processes,
    told_by_first,
    wait,
)
from learning.training.learner_engine import LearnerEngine, stage_engine
from learning.training.memory import announce, memory_figures
from learning.training.rollouts import (
    Layout,
)
from learning.training.stage import Stage
from learning.training.stage import run as run_stage

_SHOWN = (
    "reward", "kl_to_anchor", "kl_per_token", "entropy", "clip_fraction", "ptx_loss",
    "broken_share", "engine_kl", "engine_alarms",
)  # fmt: skip
"""What the progress file says of an iteration, for people and metrics"""


def train_policy(stage: Stage) -> dict[str, Any]:
    """Run the stage; returns its figures. Raises Diverged, Interrupted or NotEnoughData."""
    prepare_process(stage)
    with processes():
        return _train(stage)


def _train(stage: Stage) -> dict[str, Any]:
    parent = stage.path("parent")
    setup = read_setup(stage)
    with _engine(stage) as engine:
        models = load_models(
            parent=parent,
            anchor=stage.path("anchor"),
            reward_model=stage.path("reward_model"),
            settings=setup.settings,
            seed=setup.seed,
        )
        if engine is not None:
            engine.wait()
        wait()
        need = memory_need(models, setup.settings, engine)
        announce(need, models.policy.device)
        run = _start_or_resume(stage, setup, models)
        while run.iteration < setup.settings.iterations and run.stopped is None:
            _iterate(stage, setup, run, engine)
        began = monotonic()
        choice = best_checkpoint(
            setup,
            run,
            engine,
            _kept(stage),
            leave_if_asked=partial(leave_if_asked, stage, run),
        )
        seconds = {"seconds_validation": round(monotonic() - began, 2)}
    take_back(run, _kept(stage), choice)
    changed = export(run, stage.partial / "model", parent=parent)
    if is_first():
        shutil.rmtree(_kept(stage), ignore_errors=True)
    return (
        summary(run, ema_decay=setup.ema_decay)
        | validation_figures(choice)
        | seconds
        | learned_figures(run, setup.retention)
        | {
            "changed_share": changed,
            "memory": memory_figures(need, run.models.policy.device),
            "processes": num_processes(),
        }
    )


@contextmanager
def _engine(stage: Stage) -> Iterator[LearnerEngine | None]:
    """The learner's engine, in the first process; the others have none."""
    if not is_first():
        yield None
        return
    with stage_engine(stage, "parent") as engine:
        yield engine


def _start_or_resume(stage: Stage, setup: Setup, models: Models) -> PolicyRun:
    run = new_run(models, setup.settings)
    if load_checkpoint(run, stage.checkpoint):
        stage.progress(_fraction(setup, run), f"resumed in iteration {run.iteration + 1}")
    if is_first():
        forget_later(_kept(stage), run.iteration)
    wait()
    return run


def _kept(stage: Stage) -> Path:
    """Where the averaged weights of the last iterations wait for the choice among them."""
    return stage.folder / "kept"


# --- one iteration: sample, score, learn, record --------------------------------------------


def _iterate(stage: Stage, setup: Setup, run: PolicyRun, engine: LearnerEngine | None) -> None:
    """A run that was interrupted within an iteration enters it where it left."""
    experience = run.experience or _begin(stage, setup, run, engine)
    if run.stopped is None:
        _learn(stage, setup, run, experience)
    _record(stage, setup, run, experience)


def _begin(stage: Stage, setup: Setup, run: PolicyRun, engine: LearnerEngine | None) -> Experience:
    """Gather an iteration's answers, and stop the run here if they are too far from the anchor."""
    run.figures, run.step_figures, run.step = {}, [], 0
    experience = gather(stage, setup, run, engine)
    run.figures |= told_by_first(
        lambda: experience_figures(experience, settings=setup.settings, tokenizer=setup.tokenizer)
    )
    run.values = torch.zeros(experience.mask.shape)  # (num_answers, length)
    run.experience = experience
    if is_first():
        _show_samples(stage, setup, run, experience)
    stop_if_collapsed(run)
    _check_kl(run, setup.settings)
    return experience


def _show_samples(stage: Stage, setup: Setup, run: PolicyRun, experience: Experience) -> None:
    prompts = setup.prompts_of(run.iteration)
    rows = sample_rows(experience, prompts, setup.tokenizer, iteration=run.iteration + 1)
    write_samples(stage.partial, rows)


def _check_kl(run: PolicyRun, settings: PolicySettings) -> None:
    """Stop before the next update once the policy is too far from the anchor.

    What will be released is chosen nearer to it: learning/policy/checkpoints.py.
    """
    reached = run.figures["kl_per_token"]
    if reached > settings.stop_kl_per_token:
        run.stopped = (
            f"the KL from the anchor reached {reached:.3f} nats per token "
            f"(limit {settings.stop_kl_per_token:.3f})"
        )


def _learn(stage: Stage, setup: Setup, run: PolicyRun, experience: Experience) -> None:
    """The iteration's optimiser steps from where the run stands, leaving between two if asked.

    Those that are left once the policy has moved enough are not made.
    """
    plan = step_plan(setup.settings, first=run.iteration == 0)
    while run.step < len(plan):
        model, epoch, number = plan[run.step]
        layout = layouts_of(setup, run, experience.rollouts, epoch)[number]
        with timed(run, model):
            if model == "value":
                _update_value(setup, run, experience, layout, fresh=epoch <= 0)
            elif not _update_policy(setup, run, experience, layout):
                left = sum(step[0] == "policy" for step in plan[run.step :])
                run.figures["policy_steps_left_out"] = float(left)
                run.step = len(plan) - 1
        run.step += 1
        leave_if_asked(stage, run)


def step_plan(settings: PolicySettings, *, first: bool) -> list[tuple[str, int, int]]:
    """(model, epoch, minibatch) of an iteration's steps; epochs below 0 are the value model's own.

    The value model goes first: its pass gives the values that the advantages need.
    """
    numbers = range(min(settings.minibatches, settings.prompts_per_iteration))
    alone = settings.value_only_iterations if first else 0
    plan = [("value", epoch, k) for epoch in range(-alone, 1) for k in numbers]
    plan += [("policy", 0, k) for k in numbers]
    for epoch in range(1, settings.inner_epochs):
        plan += [(model, epoch, k) for k in numbers for model in ("value", "policy")]
    return plan


def _update_value(
    setup: Setup, run: PolicyRun, experience: Experience, layout: Layout, *, fresh: bool
) -> None:
    with divergence_named(run):
        stats = value_step(
            run.models.value,
            run.value_optimiser,
            experience,
            layout,
            run.values,
            settings=setup.settings,
            fresh=fresh,
        )
    run.figures["value_loss"] = stats.loss
    run.figures["value_clip_fraction"] = stats.clip_fraction


def _update_policy(setup: Setup, run: PolicyRun, experience: Experience, layout: Layout) -> bool:
    """One step; False where the policy has moved enough for this iteration."""
    settings, model, optimiser = setup.settings, run.models.policy, run.policy_optimiser
    advantages = experience.advantages(
        run.values, discount=settings.discount, gae_lambda=settings.gae_lambda
    )
    ptx = setup.ptx_of(run.policy_steps)
    if run.ptx_coef is None:
        run.ptx_coef = calibrated_ptx_coef(
            model, optimiser, experience, layout, advantages, ptx, settings=settings
        )
    with divergence_named(run):
        step = policy_step(
            model,
            optimiser,
            experience,
            layout,
            advantages,
            ptx,
            settings=settings,
            ptx_coef=run.ptx_coef,
            learning_rate=setup.learning_rate(run.iteration),
        )
    if step is None:
        return False
    stop_if_broken(run, step)
    update_average(run.average, optimiser.masters, decay=setup.ema_decay)
    run.policy_steps += 1
    run.step_figures.append(step_figures(step))
    return True


# --- recording and leaving ------------------------------------------------------------------


def _record(stage: Stage, setup: Setup, run: PolicyRun, experience: Experience) -> None:
    """Close the iteration: its figures, the next beta, a checkpoint when one is due."""
    settings = setup.settings
    figures = iteration_figures(run.figures, run.step_figures)
    returns = experience.returns(
        run.values, discount=settings.discount, gae_lambda=settings.gae_lambda
    )
    figures |= throughput(figures, experience)
    figures |= {
        "explained_variance": explained_variance(run.values, returns, experience.mask),
        "learning_rate": setup.learning_rate(run.iteration),
        "kl_coef": run.kl_coef,
        "engine_alarms": told_by_first(partial(alarms_said, figures, iteration=run.iteration + 1)),
    }
    run.kl_coef = adapted_kl_coef(
        run.kl_coef,
        kl_per_answer=figures["kl_to_anchor"],
        target=settings.adaptive_kl_target,
        horizon=setup.kl_horizon,
        num_answers=experience.rollouts.num_answers,
    )
    run.history.append(figures)
    run.iteration += 1
    stage.scalars(run.iteration, figures)
    run.experience = None
    if run.step_figures and settings.checkpoints_kept > 1:
        keep_average(run, _kept(stage), most=settings.checkpoints_kept)
    last = run.iteration == settings.iterations or run.stopped is not None
    if last or run.iteration % settings.checkpoint_every == 0:
        save_checkpoint(run, stage.checkpoint)
    message = run.stopped or f"iteration {run.iteration} of {settings.iterations}"
    shown = {name: figures[name] for name in _SHOWN if name in figures}
    stage.progress(_fraction(setup, run), message, **shown)
    leave_if_asked(stage, run)


def _fraction(setup: Setup, run: PolicyRun) -> float:
    return run.iteration / setup.settings.iterations


if __name__ == "__main__":
    run_stage(train_policy)
