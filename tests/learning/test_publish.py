"""Publishing in steps that may be cut short: one version, whole, fenced, promoted at most once."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from core import keys, lineage, registry
from core import lease as lease_record
from core.errors import CorruptVersion, LeaseLost, StartError
from core.versions import verify, verify_signature, weights_sha256
from learning.rounds import publish as publishing
from learning.rounds.folders import Folders
from learning.rounds.lease_keeper import leased
from learning.rounds.publish import (
    keep_reward_model,
    place_version,
    promote_once,
    publish_base,
    publish_candidate,
    reserve_version,
    reward_model_cards,
)


def model_folder(path, seed=0):
    path.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    save_file({"layer.weight": weights}, path / "model.safetensors")
    config = {"max_position_embeddings": 2048, "dtype": "bfloat16"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.fixture
def folders(state_dir):
    return Folders.of(state_dir)


@pytest.fixture
def base(state_dir):
    return model_folder(state_dir / "base")


def fields(version, run="r1"):
    return {
        "version": version,
        "parent": "v0000",
        "created_at": registry.timestamp(),
        "kind": "ppo-ptx",
        "algorithm": {},
        "data": {"run": run},
        "reward_model": "rm0001",
        "anchor": "v0000",
        "figures": {},
        "gate": {"passed": True, "reasons": []},
        "compatible": {},
    }


async def publish(redis, redis_url, keyring, folders, model, version):
    async with leased(redis, redis_url) as lease:
        return await publish_candidate(
            redis,
            keyring,
            folders,
            model=model,
            fields=fields(version),
            checksums={"layer.weight": "abc"},
            lease=lease,
        )


async def test_the_base_is_v0000_live_verified_and_made_once(
    redis, settings, keyring, folders, base
):
    first = await publish_base(redis, settings, base)
    again = await publish_base(redis, settings, base)
    assert first == again
    assert [card.version for card in await registry.cards(redis)] == ["v0000"]
    assert await registry.target(redis) == "v0000"
    verify(folders.policy("v0000"), first, like=None, public_key=keyring.public_key())
    assert first.compatible["context_length"] == 2048
    assert first.compatible["tokenizer"] is not None
    assert await registry.next_version(redis) == "v0001"


async def test_publishing_the_base_again_disturbs_no_worker(redis, settings, base):
    await publish_base(redis, settings, base)
    token = await lease_record.take(redis)
    await publish_base(redis, settings, base)
    assert int(await redis.get(keys.fence())) == token


async def test_a_state_folder_that_began_with_another_model_is_refused(redis, settings, base):
    await publish_base(redis, settings, base)
    other = settings.model_copy(update={"model": "org/other"})
    with pytest.raises(StartError, match="began with the model smollm2"):
        await publish_base(redis, other, base)


async def test_engines_of_others_need_no_folder_for_the_base(redis, settings, folders):
    card = await publish_base(redis, settings, None)
    assert (card.weights_sha256, await registry.target(redis)) == ("", "v0000")
    assert not folders.policy("v0000").exists()


async def test_a_base_is_taken_up_where_a_kill_left_it(redis, settings, folders, base, monkeypatch):
    async def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    for step in ("publish", "promote"):
        with monkeypatch.context() as patch:
            patch.setattr(publishing.registry, step, killed)
            with pytest.raises(KeyboardInterrupt):
                await publish_base(redis, settings, base)
    await publish_base(redis, settings, base)
    assert [card.version for card in await registry.cards(redis)] == ["v0000"]
    assert await registry.target(redis) == "v0000"


async def test_a_candidate_is_whole_signed_and_has_its_checksums(
    redis, shared_redis, settings, keyring, folders, base, state_dir
):
    await publish_base(redis, settings, base)
    model = model_folder(state_dir / "candidate", seed=1)
    card = await publish(redis, shared_redis.url, keyring, folders, model, "v0001")
    verify(
        folders.policy("v0001"),
        card,
        like=folders.policy("v0000"),
        public_key=keyring.public_key(),
    )
    assert await registry.card(redis, "v0001") == card
    assert await redis.hgetall(keys.policy_checksums("v0001")) == {b"layer.weight": b"abc"}
    assert card.weights_sha256 == weights_sha256(model)


@pytest.mark.parametrize("cut", ["copy_model", "write_synced", "appear", "registry.publish"])
async def test_a_kill_between_any_two_steps_leaves_one_version_after_the_next_try(
    redis, shared_redis, settings, keyring, folders, base, state_dir, monkeypatch, cut
):
    await publish_base(redis, settings, base)
    model = model_folder(state_dir / "candidate", seed=1)
    owner, _, name = cut.rpartition(".")
    where = publishing.registry if owner else publishing
    real = getattr(where, name)

    def killed_after(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    async def killed_after_publishing(*args, **kwargs):
        await real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed_after_publishing if owner else killed_after)
        with pytest.raises(KeyboardInterrupt):
            await publish(redis, shared_redis.url, keyring, folders, model, "v0001")
    card = await publish(redis, shared_redis.url, keyring, folders, model, "v0001")
    assert [c.version for c in await registry.cards(redis)] == ["v0000", "v0001"]
    assert await registry.card(redis, "v0001") == card
    verify(folders.policy("v0001"), card, like=None, public_key=keyring.public_key())
    assert sorted(path.name for path in folders.policies.iterdir()) == ["v0000", "v0001"]


async def test_a_stale_worker_registers_nothing(
    redis, shared_redis, settings, keyring, folders, base, state_dir
):
    await publish_base(redis, settings, base)
    model = model_folder(state_dir / "candidate", seed=1)
    async with leased(redis, shared_redis.url) as lease:
        await registry.acquire_fence(redis)  # another worker was given the lease
        with pytest.raises(LeaseLost):
            await publish_candidate(
                redis,
                keyring,
                folders,
                model=model,
                fields=fields("v0001"),
                checksums={},
                lease=lease,
            )
    assert [card.version for card in await registry.cards(redis)] == ["v0000"]


async def test_a_number_under_which_an_old_folder_lies_is_not_given_out(
    redis, settings, folders, base
):
    await publish_base(redis, settings, base)
    shutil.copytree(folders.policy("v0000"), folders.policy("v0001"))
    assert await reserve_version(redis, folders) == "v0002"


async def two_versions(redis, shared_redis, settings, keyring, folders, base, state_dir):
    await publish_base(redis, settings, base)
    model = model_folder(state_dir / "candidate", seed=1)
    await publish(redis, shared_redis.url, keyring, folders, model, "v0001")


async def promoted(redis, version: str, *, parent: str) -> str | None:
    token = await registry.acquire_fence(redis)
    return await promote_once(redis, version, parent=parent, why="better", fencing_token=token)


async def test_promoting_twice_is_promoting_once(
    redis, shared_redis, settings, keyring, folders, base, state_dir
):
    await two_versions(redis, shared_redis, settings, keyring, folders, base, state_dir)
    for _ in range(2):
        assert await promoted(redis, "v0001", parent="v0000") is None
    assert await redis.lrange(keys.target_history(), 0, -1) == [b"v0000"]


async def test_a_worker_that_was_overtaken_promotes_nothing(
    redis, shared_redis, settings, keyring, folders, base, state_dir
):
    await two_versions(redis, shared_redis, settings, keyring, folders, base, state_dir)
    stale = await registry.acquire_fence(redis)
    await registry.acquire_fence(redis)
    with pytest.raises(LeaseLost):
        await promote_once(redis, "v0001", parent="v0000", why="better", fencing_token=stale)
    assert await registry.target(redis) == "v0000"
    assert await redis.llen(keys.target_history()) == 0


async def test_a_version_that_was_rolled_back_by_hand_is_not_promoted_again(
    redis, shared_redis, settings, keyring, folders, base, state_dir
):
    await two_versions(redis, shared_redis, settings, keyring, folders, base, state_dir)
    await promoted(redis, "v0001", parent="v0000")
    await registry.rollback(redis, who="ops", why="complaints")
    obstacle = await promoted(redis, "v0001", parent="v0000")
    assert "rolled back" in obstacle
    assert await registry.target(redis) == "v0000"


async def test_a_live_version_that_changed_meanwhile_is_not_replaced(
    redis, shared_redis, settings, keyring, folders, base, state_dir
):
    await two_versions(redis, shared_redis, settings, keyring, folders, base, state_dir)
    await registry.promote(redis, "v0001", who="ops", why="by hand")
    await registry.rollback(redis, who="ops", why="no")
    model = model_folder(state_dir / "third", seed=2)
    await publish(redis, shared_redis.url, keyring, folders, model, "v0002")
    obstacle = await promoted(redis, "v0002", parent="v0001")
    assert obstacle == "v0001 is not the live version any more, so it was not replaced"
    assert await registry.target(redis) == "v0000"


def reward_model_fields(run):
    return {
        "run": run,
        "created_at": registry.timestamp(),
        "algorithm": {"epochs": 2},
        "data": {},
        "anchor": "v0000",
        "figures": {"accuracy": {"validation": 0.7}},
    }


def test_reward_models_are_kept_once_for_a_run_and_numbered(folders, keyring, state_dir):
    names = []
    for owner, run in enumerate(["r1", "r1", "r2"]):
        model = state_dir / run
        if not model.exists():
            model_folder(model)
        kept = keep_reward_model(
            folders, keyring, model=model, fields=reward_model_fields(run), owner=owner
        )
        names.append(kept.version)
    assert names == ["rm0001", "rm0001", "rm0002"]
    assert [card.run for card in reward_model_cards(folders)] == ["r1", "r2"]
    assert kept.weights_sha256 == weights_sha256(folders.reward_models / "rm0002")


async def test_the_card_on_disk_is_the_registered_one_and_bears_a_valid_signature(
    redis, settings, keyring, folders, base
):
    card = await publish_base(redis, settings, base)
    on_disk = json.loads((folders.policy("v0000") / "card.json").read_text())
    assert on_disk == json.loads(card.model_dump_json())
    verify_signature(card, keyring.public_key())


async def test_a_version_carries_the_list_of_what_it_learned_from(redis, keyring, folders, base):
    trained_on = {"fb-2": "rating", "fb-1": "ranking"}
    wanted = fields("v0001")
    wanted["data"] |= lineage.card_data(trained_on)
    made = place_version(
        folders, keyring, model=base, fields=wanted, owner=1, trained_on=trained_on
    )
    folder = folders.policy("v0001")
    assert lineage.read_ids(folder, made) == ["fb-1", "fb-2"]
    assert (folder / lineage.FILE).read_text() == "fb-1\nfb-2\n"
    verify(folder, made, like=None, public_key=keyring.public_key())
    (folder / lineage.FILE).unlink()  # what serves needs no list
    verify(folder, made, like=None, public_key=keyring.public_key())
    copied = place_version(folders, keyring, model=folder, fields=fields("v0002"), owner=1)
    assert copied.weights_sha256 == made.weights_sha256


def test_a_list_that_is_not_the_one_in_the_card_publishes_nothing(keyring, folders, base):
    wanted = fields("v0001")
    wanted["data"] |= lineage.card_data({"fb-1": "rating"})
    with pytest.raises(CorruptVersion):
        place_version(folders, keyring, model=base, fields=wanted, owner=1, trained_on=["fb-2"])
    assert not folders.policy("v0001").exists()
