"""What training may read: one folder with rankings, ratings, demonstrations and prompts.

Reads the records that ingest and the routes wrote, and writes the tables that dataset.py makes of
them, whole or not at all. Knows no model. The next reader is learning/reward_model/dataset.py.
"""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core import keys
from core.keyring import Keyring
from core.records import LabelingTask
from core.redis_client import Redis, redis_errors
from core.registry import timestamp
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import store
from feedback.archive import prompts_since
from feedback.dataset import Gathered, Manifest, assemble
from feedback.held_answers import hold_back_answers
from feedback.holding import hold_back
from feedback.pii.second_look import second_look
from feedback.raters import observe_agreement, verdicts
from feedback.split import prompt_opening
from feedback.tables import Table, write_tables
from feedback.texts import Messages
from feedback.unranked import further_answers

__all__ = ["Manifest", "gather", "read_manifest", "write_snapshot"]
_DAY_SECONDS = 86_400


async def write_snapshot(
    redis: Redis, keyring: Keyring, settings: Settings, target: Path, *, now: float | None = None
) -> Manifest:
    """Write the folder `target`; an existing one is replaced. Raises Unavailable.

    Files: manifest.json, and as Parquet rankings, ratings, demonstrations, prompts, unranked
    prompts with their answers (columns in tables.py), and fates, which says what became of each
    piece of feedback.
    """
    moment = time.time() if now is None else now
    gathered = await gather(redis, settings.log, now=moment)
    feedback = await hold_back(redis, gathered.feedback, gathered.completions, settings.feedback)
    tasks = await hold_back_answers(redis, gathered.tasks, settings.feedback)
    gathered = replace(gathered, feedback=feedback, tasks=tasks)
    observe_agreement(
        verdicts(
            gathered.tasks, gathered.feedback, gathered.completions, settings=settings.feedback
        )
    )
    if settings.log.pii_second_tier:
        gathered = await second_look(gathered, keyring=keyring, settings=settings)

    def digest(tenant: str, messages: Messages) -> str:
        opening = prompt_opening(messages, settings.log.duplicate_prefix_chars)
        return keyring.hashed(tenant, "opening", opening)

    tables, manifest = assemble(
        gathered, settings, digest=digest, now=moment, created_at=timestamp()
    )
    _write_folder(target, tables, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a snapshot folder."""
    return Manifest.model_validate_json((folder / "manifest.json").read_text())


async def gather(redis: Redis, log: LogSettings, *, now: float) -> Gathered:
    """Read all records. Prompts count for `window_days`. Raises Unavailable."""
    with redis_errors():
        comparisons = await redis.hget(keys.counts(), "comparisons")
        num_users = int(await redis.scard(keys.users()))
        since = int((now - log.window_days * _DAY_SECONDS) * 1000)
        counted = await redis.zrangebyscore(keys.prompts(), since, "+inf", withscores=True)
        task_ids = await redis.zrange(keys.labeling_open("training"), 0, -1)
        tasks = [await redis.get(keys.labeling_task(i.decode())) for i in task_ids]
    feedback = await store.get_all(redis)
    moments = await prompts_since(redis, since) | {t.decode(): int(at) for t, at in counted}
    prompt_tokens = sorted(moments, key=lambda token: (moments[token], token))
    about = {output.token for said in feedback for output in said.outputs}
    completions = await store.completions(redis, sorted(about.union(prompt_tokens)))
    with redis_errors():
        completions |= await further_answers(redis, prompt_tokens, completions)
    return Gathered(
        feedback=feedback,
        completions=completions,
        prompt_tokens=prompt_tokens,
        tasks=[LabelingTask.model_validate_json(raw) for raw in tasks if raw],
        num_users=num_users,
        recorded_comparisons=int(comparisons or 0),
    )


def _write_folder(target: Path, tables: Mapping[str, Table], manifest: Manifest) -> None:
    """Complete beside the target, then in its place."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True, mode=0o700)
    write_tables(tables, beside)
    (beside / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
