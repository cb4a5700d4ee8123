"""What comes before processes that start one by one, and what `up` leaves to them."""

import asyncio
import json

import pytest

from core import registry
from core.auth import digest_of, list_keys
from core.errors import StartError
from core.records import Card
from core.setting_groups import EngineSettings
from deploy import init as module
from deploy.init import init
from deploy.up import up


@pytest.fixture
def elsewhere(settings, shared_redis):
    """An installation whose engines somebody else runs: it needs no model here."""
    engine = EngineSettings(urls=("http://127.0.0.1:9",))
    return settings.model_copy(update={"engine": engine, "redis_url": shared_redis.url})


async def test_it_makes_the_first_version_and_an_admin_key_once(elsewhere, redis):
    said: list[str] = []
    for _ in range(2):
        await _in_thread(lambda: init(elsewhere, say=said.append))
    path = elsewhere.state_dir / "admin.key"
    assert path.stat().st_mode & 0o077 == 0
    (key,) = await list_keys(redis)
    assert key.digest == digest_of(path.read_text().strip())
    assert key.scopes == ("admin",)
    assert [card.version for card in await registry.cards(redis)] == ["v0000"]
    assert await registry.target(redis) == "v0000"
    assert said.count("v0000 is registered") == 2
    assert path.read_text().strip() not in " ".join(said)


async def test_the_model_s_folder_and_the_store_get_the_first_version(
    settings, shared_redis, redis, tmp_path
):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    told = {"redis_url": shared_redis.url, "model": str(model), "policies_url": str(tmp_path / "p")}
    told["secrets_dir"] = tmp_path / "secrets"
    settings = settings.model_copy(update=told)
    await _in_thread(lambda: init(settings, say=lambda _: None))
    prefix = await registry.prefix(redis, "v0000")
    stored = Card.model_validate_json((tmp_path / "p" / prefix / "card.json").read_bytes())
    assert stored == await registry.card(redis, "v0000")
    assert (tmp_path / "secrets" / "signing.key").exists()
    assert not (settings.state_dir / "secrets").exists()


def test_without_redis_it_says_so(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "REDIS_TIMEOUT_SECONDS", 0.0)
    nowhere = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/no.sock"})
    with pytest.raises(StartError, match="INSTRUCTLOOP_REDIS_URL"):
        init(nowhere, say=lambda _: None)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"listen": "0.0.0.0:8100"}, "INSTRUCTLOOP_ENGINE__LISTEN"),
        ({"name": "pod-7"}, "INSTRUCTLOOP_ENGINE__NAME"),
    ],
)
def test_up_keeps_its_engines_on_sockets(settings, told, named):
    settings = settings.model_copy(update={"engine": EngineSettings(**told)})
    with pytest.raises(StartError, match=named):
        up(settings, learning=False, say=lambda _: None)
    assert not (settings.state_dir / "lock").exists()


def test_up_refuses_records_in_a_cluster_without_a_redis_for_messages(settings):
    """Before anything is started: workers would refuse, again and again, where nobody looks."""
    elsewhere = settings.model_copy(update={"redis_url": "redis+cluster://127.0.0.1:9"})
    with pytest.raises(StartError, match="set INSTRUCTLOOP_REDIS_BROKER_URL"):
        up(elsewhere, learning=False, say=lambda _: None)
    assert not (settings.state_dir / "lock").exists()


async def _in_thread(act) -> None:
    await asyncio.to_thread(act)
