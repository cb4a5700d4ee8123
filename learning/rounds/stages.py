"""What each stage of a run does: here where it is quick, in a child process where it computes.

Every stage looks first whether it was done before, and makes its result appear at once. Knows
nothing of retries and outcomes; learning/rounds/runner.py makes those of what it gives back.
"""

import dataclasses
import time
from collections.abc import Sequence

from core import keys, logs, loop, registry
from core.errors import InstructLoopError, LeaseLost, NotFound, Unavailable, Unprocessable
from core.records import Run
from core.redis_client import redis_errors
from feedback.held_answers import hold_back_votes
from feedback.labeling import close_tasks
from feedback.snapshot import write_snapshot
from learning.evaluation.regression_suites import read_suites
from learning.reward_model.labeling_worth import publish_disagreement
from learning.rounds.child import log_line, numbers, read_figures
from learning.rounds.judging import judge_and_publish, snapshot_data
from learning.rounds.lease_keeper import Lease
from learning.rounds.publish import keep_reward_model
from learning.rounds.stage_inputs import CHILD_STAGES, FIRST, Sources, choose_sources
from learning.rounds.votes import advance_votes, read_rows
from learning.rounds.watching import run_child
from learning.rounds.work import Result, Work

_INGEST_SECONDS = 300.0
"""How long a snapshot waits for ingest at most."""


async def perform(work: Work, run: Run, lease: Lease) -> Result:
    """Do the current stage of a run.

    This is an edge: whatever a stage raises, but a lost lease or Redis, is a failure of the stage.
    """
    folder = work.folders.stage(run.id, run.stage)
    try:
        with redis_errors():
            return await _stage(work, run, lease)
    except (LeaseLost, Unavailable):
        raise
    except (Unprocessable, NotFound) as error:
        return Result("impossible", reason=error.message)
    except InstructLoopError as error:
        log_line(folder, error.message)
        return Result("failed", reason=error.message)
    except Exception as error:
        log_line(folder, logs.described(error))
        return Result("failed", reason=f"{type(error).__name__}: {error}")


async def _stage(work: Work, run: Run, lease: Lease) -> Result:
    earlier = [other.id for other in await loop.list_runs(work.redis, 0) if other.id != run.id]
    sources = choose_sources(work.folders, run, earlier)
    run = await _with_parent(work, run, sources, lease)
    if run.stage == run.stages[0] and "evaluate" in run.stages:
        read_suites(work.settings.learning.gate.suites)  # hours before they are asked
    if run.stage == "snapshot":
        await _close_left_open(work, earlier)
        result = await _write_snapshot(work, run, lease)
    elif run.stage in CHILD_STAGES:
        result = await run_child(work, run, sources, lease)
    elif run.stage == "vote":
        result = await _vote(work, run)
    else:
        result = await judge_and_publish(work, run, sources, lease)
    if run.stage == "reward_model" and result.kind == "done":
        _keep_reward_model(work, run, sources, lease)
        await publish_disagreement(work.redis, work.folders.out(run.id, "reward_model"))
    return result if result.run else dataclasses.replace(result, run=run)


async def _close_left_open(work: Work, earlier: Sequence[str]) -> None:
    """Votes on a run that was cancelled without a worker are not wanted any more."""
    for run_id in earlier[:1]:
        await close_tasks(work.redis, run_id)


async def _with_parent(work: Work, run: Run, sources: Sources, lease: Lease) -> Run:
    """The run with the version that it wants to replace, fixed at its start."""
    if run.parent:
        return run
    if sources.policy not in (None, run.id):
        parent = (await loop.get_run(work.redis, str(sources.policy))).parent
    else:
        parent = await registry.target(work.redis) or ""
    if not work.folders.policy(FIRST).is_dir() or not parent:
        raise NotFound("there is no first policy yet: start the service with `instructloop up`")
    run = run.model_copy(update={"parent": parent})
    await loop.save_run(work.redis, run, fencing_token=lease.token)
    return run


async def _write_snapshot(work: Work, run: Run, lease: Lease) -> Result:
    """Written once: a folder that a later stage may read already is never replaced."""
    out = work.folders.out(run.id, "snapshot")
    if not out.is_dir():
        if await _said_before_but_not_ingested(work, run):
            return Result("waiting", reason="what was logged so far is being filtered first")
        partial = out.with_name(f"out.partial-{lease.token}")
        await write_snapshot(work.redis, work.keyring, work.settings, partial)
        lease.check()
        partial.rename(out)
    return Result("done", figures=numbers(snapshot_data(work.folders, run.id)))


async def _said_before_but_not_ingested(work: Work, run: Run) -> bool:
    """Whether something that was said before the run began is not recorded yet.

    A snapshot without it would miss answers that people have ranked. Bounded, because ingest may
    be stuck on something that has nothing to do with this round.
    """
    if time.time() - run.created_at > _INGEST_SECONDS:
        return False
    oldest = await work.redis.xrange(keys.inbox(), count=1)
    if oldest and int(oldest[0][0].split(b"-")[0]) <= run.created_at * 1000:
        return True
    return bool(await work.redis.scard(keys.feedback_text()))


async def _vote(work: Work, run: Run) -> Result:
    folder = work.folders.stage(run.id, "vote")
    learning = work.settings.learning
    await hold_back_votes(work.redis, run.id, work.settings.feedback)
    done = await advance_votes(
        work.redis,
        run,
        read_rows(work.folders.out(run.id, "evaluate") / "answers.jsonl"),
        folder,
        min_users=learning.gate.min_users,
        wait_seconds=learning.evaluation.votes_wait_seconds,
    )
    if not done:
        return Result("waiting", reason="held-out raters are asked to vote")
    return Result("done", figures=numbers(read_figures(folder)))


def _keep_reward_model(work: Work, run: Run, sources: Sources, lease: Lease) -> None:
    learning = work.settings.learning
    keep_reward_model(
        work.folders,
        work.keyring,
        model=work.folders.out(run.id, "reward_model") / "model",
        fields={
            "run": run.id,
            "created_at": registry.timestamp(),
            "algorithm": learning.reward_model.model_dump(mode="json") | {"seed": learning.seed},
            "data": snapshot_data(work.folders, sources.snapshot),
            "anchor": learning.anchor,
            "figures": read_figures(work.folders.stage(run.id, "reward_model")),
        },
        owner=lease.token,
    )
