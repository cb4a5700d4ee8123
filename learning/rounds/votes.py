"""Votes of held-out raters on a candidate beside its parent, for the gate.

Evaluate's answers become labeling tasks: a prompt with the candidate's and the parent's answers
(and the anchor's, where that is another version), under names that do not say who wrote which.
Nobody waits here: the stage is entered again at every tick until there are enough votes or the time
is over. Labeling itself is feedback/labeling.py's; the comparisons go to learning/gate/gate.py.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.records import Answer, LabelingOutput, LabelingTask, Run
from core.redis_client import Redis
from feedback import store
from feedback.labeling import MIN_OUTPUTS, close_tasks, open_tasks, tasks_of
from learning.gate.comparisons import Comparison, Other, Row, by_ranking
from learning.training.stage import write_json

OTHERS: tuple[Other, ...] = ("parent", "anchor")
FILES: dict[Other, str] = {"parent": "votes.jsonl", "anchor": "votes-anchor.jsonl"}


async def advance_votes(
    redis: Redis, run: Run, rows: Sequence[Row], folder: Path, *, min_users: int, wait_seconds: int
) -> bool:
    """Open the tasks, or look at them; True once `folder/out` holds the votes."""
    if (folder / "out").is_dir():
        return True
    opened_at = await _open_once(redis, run, rows, folder) if wait_seconds else 0.0
    tasks = await tasks_of(redis, run.id) if wait_seconds else []
    if time.time() - opened_at < wait_seconds and not enough_votes(tasks, min_users=min_users):
        return False
    _write_votes(folder, {name: comparisons(run.id, tasks, rows, against=name) for name in OTHERS})
    await close_tasks(redis, run.id)
    return True


async def _open_once(redis: Redis, run: Run, rows: Sequence[Row], folder: Path) -> float:
    """When the tasks were opened, in seconds; opens them the first time."""
    path = folder / "opened.json"
    if path.exists():
        return float(json.loads(path.read_text())["at"])
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    tenants = await _tenants(redis, rows)
    tasks = [
        voting_task(run.id, row, tenant, now)
        for row, tenant in zip(rows, tenants, strict=True)
        if tenant and len(row["outputs"]) >= MIN_OUTPUTS
    ]
    await open_tasks(redis, tasks)
    write_json(path, {"at": now, "tasks": len(tasks)})
    return now


async def _tenants(redis: Redis, rows: Sequence[Row]) -> list[str | None]:
    """Whose prompt each row is: raters see their own tenant's only, and nothing erased."""
    found = await store.completions(redis, [row["prompt_id"] for row in rows])
    return [found[p].tenant if (p := row["prompt_id"]) in found else None for row in rows]


def voting_task(run_id: str, row: Row, tenant: str, now: float) -> LabelingTask:
    """The task of one row; its id and the names of its outputs follow from run and row."""
    outputs = [
        LabelingOutput(
            output_id=blind_name(run_id, row["prompt_id"], output["output_id"]),
            text=output["text"],
            policy=output["policy"],
            finish_reason=output["finish_reason"],
        )
        for output in row["outputs"]
    ]
    return LabelingTask(
        id=blind_name(run_id, row["prompt_id"]),
        tenant=tenant,
        mode="evaluation",
        run_id=run_id,
        user=row["user"],
        messages=_messages(row),
        outputs=tuple(sorted(outputs, key=lambda output: output.output_id)),
        created_at=now,
    )


def blind_name(*parts: str) -> str:
    """A name that says nothing, the same each time, another for each prompt."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:20]


def enough_votes(tasks: Sequence[LabelingTask], *, min_users: int) -> bool:
    """Whether every task has a held-out rater's vote, and that covers enough users.

    It looks at how many there are, never at what they say. Without tasks nobody is waited for.
    """
    if not tasks:
        return True
    voted = [task for task in tasks if any(_counts(a) for a in task.answers)]
    return len(voted) == len(tasks) and len({task.user for task in voted}) >= min_users


def comparisons(
    run_id: str, tasks: Sequence[LabelingTask], rows: Sequence[Row], *, against: Other = "parent"
) -> list[Comparison]:
    """What the held-out raters said, one comparison for each vote."""
    by_id = {blind_name(run_id, row["prompt_id"]): row for row in rows}
    found = [
        by_ranking(_blinded(run_id, by_id[task.id]), answer.ranking, against=against)
        for task in tasks
        if task.id in by_id
        for answer in task.answers
        if _counts(answer)
    ]
    return [comparison for comparison in found if comparison is not None]


def read_votes(folder: Path, *, against: Other = "parent") -> list[Comparison]:
    """The votes of a finished stage, from its folder `out`; none against an anchor that is the
    parent."""
    path = folder / "out" / FILES[against]
    lines = path.read_text().splitlines() if path.exists() else []
    return [Comparison(**json.loads(line)) for line in lines]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Evaluate's answers.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_votes(folder: Path, votes: Mapping[Other, Sequence[Comparison]]) -> None:
    partial = folder / "out.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for against, theirs in votes.items():
        lines = [json.dumps(asdict(vote)) + "\n" for vote in theirs]
        (partial / FILES[against]).write_text("".join(lines))
    over_parent = votes["parent"]
    write_json(
        partial / "figures.json",
        {"votes": len(over_parent), "users": len({vote.user for vote in over_parent})},
    )
    os.replace(partial, folder / "out")


def _counts(answer: Answer) -> bool:
    return answer.heldout_rater and not answer.held


def _blinded(run_id: str, row: Row) -> Row:
    outputs = [
        {**output, "output_id": blind_name(run_id, row["prompt_id"], output["output_id"])}
        for output in row["outputs"]
    ]
    return {**row, "outputs": outputs}


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]] | dict[str, str]:
    """As the record has it: snapshots keep messages as JSON text."""
    messages = row["messages"]
    parsed: list[dict[str, Any]] | dict[str, str]
    parsed = json.loads(messages) if isinstance(messages, str) else messages
    return parsed
