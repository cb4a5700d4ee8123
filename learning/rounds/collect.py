"""Making room when a round has ended: old weights and outputs go; cards, figures and logs stay.

Before a version loses its weights the registry notes it, so that nobody promotes what is half gone.
All steps can be repeated: killed in the middle, the next round finishes. Called under the learning
lease, so no stage runs meanwhile. What may go is decided in retention.py.
"""

import asyncio
import json
import logging
import shutil
from pathlib import Path

from core import canary, keys, lineage, loop, registry
from core.errors import Unavailable
from core.policy_store import PolicyStore
from core.records import ALL_STAGES, Replica
from core.redis_client import Redis
from learning.rounds.folders import Folders
from learning.rounds.lease_keeper import Lease
from learning.rounds.publish import reward_model_cards
from learning.rounds.retention import Facts, Kept, decide
from learning.rounds.stage_inputs import Sources
from learning.rounds.work import Work

_CARD = frozenset({"card.json", lineage.FILE})
_FIGURES = frozenset({"figures.json", "manifest.json"})
_log = logging.getLogger(__name__)


async def collect(work: Work, lease: Lease) -> Kept:
    """Remove what nobody needs; returns what stays. Raises LeaseLost, OSError."""
    facts = await read_facts(work)
    kept = decide(facts, work.settings.retention)
    noted = await registry.collected(work.redis)
    prefixes = await registry.prefixes(work.redis)
    for version in (card.version for card in facts.cards):
        lease.check()
        if version in noted or (
            version not in kept.versions and await registry.collect(work.redis, version)
        ):
            _strip(work.folders.policy(version), _CARD)
            if version != work.settings.learning.anchor:
                _strip(work.folders.anchor(version), frozenset())
            await _strip_elsewhere(work, version, prefixes.get(version, ""))
    for name in facts.reward_models:
        lease.check()
        if name not in kept.reward_models:
            _strip(work.folders.reward_models / name, _CARD)
    for run in facts.runs:
        lease.check()
        if run.id not in kept.runs:
            _remove_outputs(work.folders, run.id)
    await _remove_orphans(work, lease)
    return kept


async def _strip_elsewhere(work: Work, version: str, prefix: str) -> None:
    """The same where versions are kept for other machines; the next round tries again."""
    if not (prefix and work.settings.policies_url):
        return
    store = PolicyStore(work.folders.policies, work.settings.policies_url)
    try:
        await asyncio.to_thread(store.strip, prefix)
    except Unavailable as error:
        _log.warning("%s is kept elsewhere for now: %s", version, error.message)


async def _remove_orphans(work: Work, lease: Lease) -> None:
    """Prefixes of workers that lost their lease before the registry knew of them."""
    store = PolicyStore(work.folders.policies, work.settings.policies_url)
    registered = {*(await registry.prefixes(work.redis)).values()}
    try:
        for prefix in await asyncio.to_thread(store.prefixes):
            token = prefix.rpartition("-")[2]
            if prefix not in registered and token.isdigit() and int(token) < lease.token:
                lease.check()
                await asyncio.to_thread(store.remove, prefix)
    except Unavailable as error:
        _log.warning("nothing is removed there for now: %s", error.message)


async def read_facts(work: Work) -> Facts:
    """The registry, the heartbeats, the runs, and what lies on the disk."""
    redis, folders = work.redis, work.folders
    runs = await loop.list_runs(redis, 0)
    quarantined = {raw.decode() for raw in await redis.hkeys(keys.quarantined())}
    return Facts(
        cards=await registry.cards(redis),
        target=await registry.target(redis),
        history=[raw.decode() for raw in await redis.lrange(keys.target_history(), 0, -1)],
        unusable=await registry.collected(redis) | quarantined,
        served=await _served(redis),
        canary=await canary.held_versions(redis),
        runs=runs,
        sources={run.id: read for run in runs if (read := _sources(folders, run.id))},
        outputs=frozenset(
            (run.id, stage)
            for run in runs
            for stage in ALL_STAGES
            if folders.out(run.id, stage).is_dir()
        ),
        reward_models={card.version: card.run for card in reward_model_cards(folders)},
    )


async def _served(redis: Redis) -> frozenset[str]:
    """What engines say that they serve."""
    names = [raw.decode() for raw in await redis.smembers(keys.replicas())]
    raw = await redis.mget([keys.replica(name) for name in names]) if names else []
    versions = {Replica.model_validate_json(text).version for text in raw if text}
    return frozenset(versions - {""})


def _sources(folders: Folders, run_id: str) -> Sources | None:
    path = folders.run(run_id) / "sources.json"
    return Sources(**json.loads(path.read_text())) if path.exists() else None


def _remove_outputs(folders: Folders, run_id: str) -> None:
    """What the stages of a run made, but for its figures."""
    for stage in ALL_STAGES:
        _strip(folders.out(run_id, stage), _FIGURES)
        for path in folders.stage(run_id, stage).glob("*"):
            if path.name.startswith(("checkpoint", "out.partial", "tensorboard")):
                _remove(path)


def _strip(folder: Path, but: frozenset[str]) -> None:
    """Leave only these files in a folder."""
    for path in folder.glob("*"):
        if path.name not in but:
            _remove(path)


def _remove(path: Path) -> None:
    _log.info("removing %s", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
