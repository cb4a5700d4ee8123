"""What training keeps in files of an erased person: rows of snapshots, answers to their prompts.

A snapshot's tables are written again without the person, each in the place of the old one; its
manifest keeps the hash that cards name, and says in `erased` that rows are gone since. A round that
reads the person now is cancelled first, and its files are seen to when it is over. Which policies
came of such a snapshot is noted for their history. Knows the folders of runs by name; learning/
makes them.
"""

import asyncio
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from core import keys, loop
from core.errors import Conflict
from core.ids import token_of
from core.records import Run
from core.redis_client import Redis
from feedback.erasure import Job
from feedback.tables import HASHED, SCHEMAS


@dataclass(frozen=True, slots=True)
class Person:
    """By what rows and lines of a person are known."""

    user: str
    raters: frozenset[str]
    tokens: frozenset[str]


async def erase_files(redis: Redis, state_dir: Path, job: Job) -> bool:
    """Clean the folders of all runs that began before the tombstone; False: do it again later."""
    raw = await redis.smembers(keys.erasure_tokens(job.id))
    person = Person(job.user, job.raters, frozenset(token.decode() for token in raw))
    runs = [r for r in await loop.list_runs(redis, 0) if r.created_at * 1000 <= job.at]
    snapshots = {run.id: _snapshot(state_dir, run.id) for run in runs}
    folders = {*snapshots.values()}
    held = {folder for folder in folders if await asyncio.to_thread(_num_rows, folder, person)}
    current = await loop.current_run(redis)
    if current and current.id in snapshots and not await _is_over(redis, current, snapshots, held):
        return False
    versions = [run.version for run in runs if run.version and snapshots[run.id] in held]
    if versions:
        noted = {f"version:{version}": "1" for version in versions}
        await redis.hset(keys.erasure(job.id), mapping=noted)
    for run in runs:
        folder = state_dir / "runs" / Path(run.id).name
        await asyncio.to_thread(_clean_run, folder, person, held=snapshots[run.id] in held)
    for out in sorted(held):
        count = await asyncio.to_thread(_num_rows, out, person)
        name = f"count:snapshot {out.parent.parent.name}"
        await redis.hsetnx(keys.erasure(job.id), name, count)  # the first look saw all of them
        await asyncio.to_thread(_clean_snapshot, out, person, job.at)
    return True


async def _is_over(redis: Redis, current: Run, snapshots: dict[str, Path], held: set[Path]) -> bool:
    """Whether the current run does not touch this person: else it is cancelled or waited for."""
    folder = snapshots[current.id]
    if not folder.is_dir():
        return current.stage not in ("", "snapshot")  # one may be being written now
    if folder not in held:
        return True
    if (await loop.read_notes(redis)).cancel != current.id:
        with suppress(Conflict):  # it ended meanwhile
            await loop.cancel(redis, current.id)
    return await loop.current_run(redis) is None


def _snapshot(state_dir: Path, run_id: str) -> Path:
    """The snapshot that a run learns from: its own, or that of an earlier run."""
    run = state_dir / "runs" / Path(run_id).name
    try:
        run_id = json.loads((run / "sources.json").read_text())["snapshot"]
    except (FileNotFoundError, ValueError, KeyError):
        run_id = run.name
    return state_dir / "runs" / Path(run_id).name / "snapshot" / "out"


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.parquet"
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist() if path.exists() else []
    return rows


def _theirs(row: dict[str, Any], person: Person) -> bool:
    """Whether a row is by this person, from them, or shows an answer of theirs."""
    if person.user in (row.get("user"), row.get("rater")) or row.get("rater") in person.raters:
        return True
    answers = [token_of(answer["completion_id"]) for answer in row.get("answers") or ()]
    names = [row.get("prompt_id"), row.get("group_id"), *answers]
    return any(name in person.tokens for name in names)


def _num_rows(folder: Path, person: Person) -> int:
    return sum(_theirs(row, person) for name in HASHED for row in _rows(folder, name))


def _clean_snapshot(folder: Path, person: Person, at: int) -> None:
    """Write the tables again without this person: last those by which they would be found again."""
    tables = {name: _rows(folder, name) for name in HASHED}
    theirs = [row for rows in tables.values() for row in rows if _theirs(row, person)]
    said = {row["feedback_id"] for row in theirs if "feedback_id" in row}
    fates = _rows(folder, "fates")
    left = [row for row in fates if row["feedback_id"] not in said]
    if len(left) < len(fates):
        _write_table(folder, "fates", left)
    _mark(folder, person, at)
    for name, rows in tables.items():
        kept = [row for row in rows if not _theirs(row, person)]
        if len(kept) < len(rows):
            _write_table(folder, name, kept)


def _write_table(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """In the place of the old one; whoever reads that goes on reading it."""
    beside = folder / f".{name}.{os.getpid()}.partial"
    parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), beside)
    beside.replace(folder / f"{name}.parquet")


def _mark(folder: Path, person: Person, at: int) -> None:
    """Say in the manifest that rows are gone, and name no rater who is."""
    path = folder / "manifest.json"
    if not path.exists():
        return
    manifest = json.loads(path.read_text())
    gone = {person.user, *person.raters}  # an end user who rated is known as such
    heldout = [rater for rater in manifest.get("heldout_raters", []) if rater not in gone]
    manifest |= {"heldout_raters": heldout, "erased": max(at, manifest.get("erased", 0))}
    _replace_text(path, json.dumps(manifest, indent=1))


def _clean_run(run: Path, person: Person, *, held: bool) -> None:
    """Lines of answers and votes; of a run that read this person also what was left half done."""
    for path in run.glob("*/out/*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not _theirs(json.loads(line), person)]
        if len(kept) < len(lines):
            _replace_text(path, "".join(kept))
    left = (*run.glob("*/checkpoint*"), *run.glob("*/out.partial*")) if held else ()
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _replace_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    beside.write_text(text)
    beside.replace(path)
