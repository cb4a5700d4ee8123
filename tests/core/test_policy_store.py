"""Versions kept elsewhere: under a prefix of the writer's own, proven before they appear here."""

import json
import sys
import uuid

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

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


@pytest.fixture(scope="module")
def s3_port():
    """A server that speaks S3, on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def s3(s3_port, monkeypatch):
    """A bucket, and the variables by which the driver finds it."""
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}"),
        ("AWS_ACCESS_KEY_ID", "tests"),
        ("AWS_SECRET_ACCESS_KEY", "tests"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket = f"kept-{uuid.uuid4().hex}"
    files.mkdir(bucket)
    yield f"s3://{bucket}/policies"
    type(files).clear_instance_cache()


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
    there.remove(prefix)
    assert there.prefixes() == []
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


async def test_a_version_goes_to_s3_and_back_and_leaves_nothing(
    redis, shared_redis, keyring, state_dir, tmp_path, s3
):
    there = PolicyStore(tmp_path / "there" / "policies", s3)
    card = await publish(redis, shared_redis, keyring, state_dir, s3)
    prefix = await registry.prefix(redis, "v0001")
    assert there.prefixes() == [prefix]
    files = [p for p in (state_dir / "policies" / "v0001").iterdir() if p.is_file()]
    assert there.size(prefix) == sum(path.stat().st_size for path in files)
    verify(there.fetch(card, prefix), card, like=None, public_key=keyring.public_key())
    there.strip(prefix)
    assert there.lineage(card, prefix) == ["fb-1", "fb-2"]
    there.remove(prefix)
    there.remove(prefix)
    assert there.prefixes() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "EndpointConnectionError"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": "/"}, "NoCredentialsError"),
    ],
    ids=["endpoint", "credentials"],
)
def test_what_a_driver_raises_of_its_own_is_no_crash(s3, tmp_path, monkeypatch, change, said):
    for name, value in {**change, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unavailable, match=rf"\(s3\) cannot be reached: {said}"):
        PolicyStore(tmp_path / "policies", s3).prefixes()


def test_a_driver_that_is_not_installed_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    model_folder(tmp_path / "policies" / "v0001")
    with pytest.raises(Unavailable, match=r"s3fs.*pip install -r deploy/locks/s3\.txt"):
        PolicyStore(tmp_path / "policies", "s3://bucket/policies").put("v0001", token=1)


def test_the_size_of_a_version_is_known_before_it_is_fetched(tmp_path, url):
    folder = model_folder(tmp_path / "policies" / "v0001")
    store = PolicyStore(tmp_path / "policies", url)
    prefix = store.put("v0001", token=3)
    assert store.size(prefix) == sum(path.stat().st_size for path in folder.iterdir()) > 0
    assert (store.size("v0002-3"), store.size("")) == (0, 0)
