"""Versions kept elsewhere: under a prefix of the writer's own, proven before they appear here."""

import json

import fsspec
import pytest

from core import keys, lineage, registry
from core.errors import CorruptVersion, LeaseLost, NotFound, Unavailable
from core.policy_store import PolicyStore
from core.records import Card
from core.versions import verify
from learning.rounds.folders import Folders
from learning.rounds.lease_keeper import leased
from learning.rounds.publish import publish_base, publish_candidate
from tests.learning.test_publish import fields, model_folder

TRAINED_ON = {"fb-1": "ranking", "fb-2": "rating"}


@pytest.fixture(params=["file", "folder", "memory"])
def url(request, tmp_path):
    """A second folder, by its URL and by its path, and a store that has no folders at all."""
    yield {
        "file": f"file://{tmp_path}/kept",
        "folder": str(tmp_path / "kept"),
        "memory": f"memory://kept-{tmp_path.name}",
    }[request.param]
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def there(tmp_path, url):
    """Another machine: its own folder, the same URL."""
    return PolicyStore(tmp_path / "there" / "policies", url)


async def publish(redis, server, keyring, state_dir, url, version="v0001"):
    wanted = fields(version)
    wanted["data"] |= lineage.card_data(TRAINED_ON)
    async with leased(redis, server.url) as lease:
        return await publish_candidate(
            redis,
            keyring,
            Folders.of(state_dir),
            model=model_folder(state_dir / f"model-{version}"),
            fields=wanted,
            checksums={},
            lease=lease,
            trained_on=TRAINED_ON,
            kept_at=url,
        )


async def test_another_machine_fetches_what_was_published(
    redis, shared_redis, keyring, state_dir, url, there
):
    card = await publish(redis, shared_redis, keyring, state_dir, url)
    prefix = await registry.prefix(redis, "v0001")
    assert prefix.startswith("v0001-")
    assert there.lineage(card, prefix) == ["fb-1", "fb-2"]
    assert not there.local.exists()  # the list came without the weights
    folder = there.fetch(card, prefix)
    verify(folder, card, like=None, public_key=keyring.public_key())
    assert Card.model_validate_json((folder / "card.json").read_text()) == card
    assert there.fetch(card, prefix) == folder
    assert [path.name for path in there.local.iterdir()] == ["v0001"]


async def test_the_first_version_is_kept_there_too(redis, settings, state_dir, url, there):
    elsewhere = settings.model_copy(update={"policies_url": url})
    card = await publish_base(redis, elsewhere, model_folder(state_dir / "base"))
    assert there.fetch(card, await registry.prefix(redis, "v0000")).is_dir()
    assert await publish_base(redis, elsewhere, state_dir / "base") == card


async def test_a_stale_worker_leaves_a_prefix_that_nobody_reads(
    redis, shared_redis, keyring, state_dir, url, there
):
    local = PolicyStore(state_dir / "policies", url)
    model_folder(local.local / "v0001")
    stale = await registry.acquire_fence(redis)
    orphan = local.put("v0001", token=stale)
    await registry.acquire_fence(redis)
    card = Card(**fields("v0001"), weights_sha256="0" * 64)
    with pytest.raises(LeaseLost):
        await registry.publish(redis, card, fencing_token=stale, prefix=orphan)
    assert await registry.prefix(redis, "v0001") == ""
    assert await redis.hlen(keys.policy_prefixes()) == 0
    assert there.prefixes() == [orphan]


async def test_what_was_changed_there_never_appears_here(
    redis, shared_redis, keyring, state_dir, url, there
):
    card = await publish(redis, shared_redis, keyring, state_dir, url)
    prefix = await registry.prefix(redis, "v0001")
    with fsspec.open(f"{url}/{prefix}/config.json", "w") as file:
        json.dump({"max_position_embeddings": 1}, file)
    with pytest.raises(CorruptVersion, match="not what its card names"):
        there.fetch(card, prefix)
    assert list(there.local.iterdir()) == []
    with fsspec.open(f"{url}/{prefix}/{lineage.FILE}", "w") as file:
        file.write("fb-1\n")
    with pytest.raises(CorruptVersion, match="not the list"):
        there.lineage(card, prefix)


async def test_weights_go_there_too_and_lineage_stays(
    redis, shared_redis, keyring, state_dir, url, there
):
    card = await publish(redis, shared_redis, keyring, state_dir, url)
    prefix = await registry.prefix(redis, "v0001")
    there.strip(prefix)
    there.strip(prefix)
    assert there.lineage(card, prefix) == ["fb-1", "fb-2"]
    with pytest.raises(CorruptVersion):
        there.fetch(card, prefix)
    there.remove(prefix)
    with pytest.raises(NotFound):
        there.fetch(card, prefix)


def test_without_a_url_there_is_only_the_folder(tmp_path):
    here = PolicyStore(tmp_path / "policies")
    card = Card(**fields("v0001"), weights_sha256="0" * 64)
    assert (here.put("v0001", token=7), here.prefixes()) == ("", [])
    assert here.fetch(card, "v0001-7") == tmp_path / "policies" / "v0001"


def test_what_cannot_be_reached_is_tried_again_later(tmp_path):
    model_folder(tmp_path / "policies" / "v0001")
    for url in ("nothing-knows-this://x", f"file://{tmp_path}/policies/v0001/config.json/below"):
        with pytest.raises(Unavailable, match="cannot be reached"):
            PolicyStore(tmp_path / "policies", url).put("v0001", token=1)
