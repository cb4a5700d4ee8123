"""An engine on a machine of its own: which versions it copies to its disk, and which it keeps."""

import errno
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from core import keys, registry
from core.errors import CorruptVersion
from core.metrics import SWAPS
from core.policy_copies import Copies
from core.policy_store import PolicyStore
from core.setting_groups import EngineSettings
from learning.rounds.fetching import fetch_versions
from learning.rounds.folders import Folders
from learning.rounds.lease_keeper import leased
from learning.rounds.publish import publish_candidate
from serving import agent as agents
from serving import agent_copies
from serving.agent import Agent
from serving.agent_copies import NotFetched, loadable, trim
from tests.learning.test_publish import fields, model_folder


class Fleet:
    """A worker's machine that publishes, an engine's machine that fetches."""

    def __init__(self, redis, server, keyring, state_dir, settings, tmp_path) -> None:
        self.redis, self.server, self.keyring, self.state_dir = redis, server, keyring, state_dir
        self.url = f"memory://{tmp_path.name}"
        self.there = tmp_path / "there"
        self.settings = settings.model_copy(
            update={"state_dir": self.there, "policies_url": self.url}
        )

    def agent(self, name="engine-0", **engine) -> Agent:
        group = EngineSettings(**engine)
        settings = self.settings.model_copy(update={"engine": group})
        return Agent(name, settings, self.keyring, self.redis, self.there / f"{name}.sock")

    async def publish(self, version: str, *, live: bool = True) -> None:
        model = model_folder(self.state_dir / f"model-{version}", seed=int(version[1:]))
        async with leased(self.redis, self.server.url) as lease:
            await publish_candidate(
                self.redis,
                self.keyring,
                Folders.of(self.state_dir),
                model=model,
                fields=fields(version),
                checksums={},
                lease=lease,
                trained_on={},
                kept_at=self.url,
            )
        if live:
            await registry.promote(self.redis, version, who="tests", why="next")

    def here(self) -> list[str]:
        return sorted(p.name for p in (self.there / "policies").glob("[!.]*"))


@pytest.fixture
async def fleet(redis, shared_redis, keyring, state_dir, settings, tmp_path):
    yield Fleet(redis, shared_redis, keyring, state_dir, settings, tmp_path)
    fsspec.filesystem("memory").store.clear()


async def serve(agent: Agent, version: str) -> None:
    """What a swap does with copies."""
    agent.wanted = version
    await loadable(agent, version, like=None)
    agent.serving = version
    await trim(agent)


async def test_the_live_version_the_one_before_and_so_many_others_stay(fleet):
    agent = fleet.agent(copies=1)
    for number in range(1, 6):
        await fleet.publish(f"v000{number}")
        await serve(agent, f"v000{number}")
    assert fleet.here() == ["v0003", "v0004", "v0005"]
    await registry.rollback(fleet.redis, who="tests", why="worse", expected="v0005")
    await serve(agent, "v0004")
    assert "v0004" in fleet.here()
    assert (await loadable(agent, "v0001", like=None)).folder.is_dir()  # fetched once more


async def test_a_canary_s_versions_and_those_in_use_stay_also_after_a_crash(fleet, monkeypatch):
    agent = fleet.agent(copies=0)
    for number in range(1, 6):
        await fleet.publish(f"v000{number}", live=number < 5)

    async def held(redis):
        return frozenset({"v0001", "v0005"})

    monkeypatch.setattr(agent_copies.canary, "held_versions", held)
    beside = fleet.agent("engine-1", copies=0)
    await loadable(beside, "v0002", like=None)
    beside.serving = "v0002"
    for version in ("v0001", "v0005", "v0003", "v0004"):
        await serve(agent, version)
    assert fleet.here() == ["v0001", "v0002", "v0003", "v0004", "v0005"]
    beside.copies.release(but=[])  # it died
    monkeypatch.undo()
    again = fleet.agent(copies=0)
    agent.copies.release(but=[])
    await serve(again, "v0004")
    assert fleet.here() == ["v0003", "v0004"]


async def test_copies_stay_within_their_disk_and_what_does_not_fit_is_said(fleet):
    for number in range(1, 5):
        await fleet.publish(f"v000{number}")
    size = PolicyStore(fleet.there, fleet.url).size(await registry.prefix(fleet.redis, "v0001"))
    agent = fleet.agent(copies=9, copies_gib=2.5 * size / (1 << 30))
    for version in ("v0001", "v0002", "v0003", "v0004"):
        await serve(agent, version)
    assert fleet.here() == ["v0003", "v0004"]
    little = fleet.agent(copies_gib=0.5 * size / (1 << 30))
    agent.copies.release(but=[])
    with pytest.raises(NotFetched, match=r"engine\.copies_gib"):
        await loadable(little, "v0002", like=None)


def disk(monkeypatch, fleet, *, free: int) -> None:
    """A disk with so much room beside the copies that are on it."""
    whole = free + Copies(fleet.there / "policies").size()

    def usage(path):
        return SimpleNamespace(free=whole - Copies(fleet.there / "policies").size())

    monkeypatch.setattr(agent_copies.shutil, "disk_usage", usage)


async def test_a_full_disk_takes_old_copies_first_and_is_a_condition_that_heals(fleet, monkeypatch):
    for number in range(1, 5):
        await fleet.publish(f"v000{number}")
    agent = fleet.agent(copies=9)
    for version in ("v0001", "v0002", "v0003"):
        await serve(agent, version)
    disk(monkeypatch, fleet, free=0)
    await loadable(agent, "v0004", like=None)
    assert fleet.here() == ["v0003", "v0004"]

    shutil.rmtree(fleet.there / "policies" / "v0004")
    disk(monkeypatch, fleet, free=0)
    counted = SWAPS.labels("not_fetched")._value.get()
    agent.client, agent.state, agent.wanted = object(), "ready", "v0004"
    for _ in range(9):
        await agents._swap_in_turn(agent, "v0004")
    assert (agent.state, agent.serving, agent.refused) == ("ready", "v0003", set())
    assert "make room" in agent.detail
    assert SWAPS.labels("not_fetched")._value.get() == counted + 9
    later = time.monotonic() + agents.LONGEST_RETRY_SECONDS + 1
    assert not agent.may_try("v0004", now=time.monotonic())
    assert agent.may_try("v0004", now=later)  # however often it was asked for
    monkeypatch.undo()
    assert (await loadable(agent, "v0004", like=None)).folder.is_dir()
    assert agent.unfetched == {}


async def test_an_engine_that_starts_on_a_full_disk_serves_what_it_has(fleet, monkeypatch):
    await fleet.publish("v0001")
    await serve(fleet.agent(), "v0001")
    await fleet.publish("v0002")
    agent = fleet.agent("engine-1")
    launched = []

    async def launch(agent, loadable):
        launched.append(loadable.version)

    monkeypatch.setattr(agents, "_launch", launch)
    monkeypatch.setattr(agents, "_delay", lambda failures: 0.0)
    disk(monkeypatch, fleet, free=3)
    await agents._start(agent, "v0002")
    assert (launched, agent.state) == ([], "failed")
    await agents._start(agent, "v0002")
    assert launched == ["v0001"]
    assert not await fleet.redis.hexists(keys.quarantined(), "v0002")


async def test_of_versions_that_all_could_not_be_fetched_each_has_its_turn(fleet):
    """The wanted one may be too large for this disk, and the one before it may come after all."""
    for number in range(1, 4):
        await fleet.publish(f"v000{number}")
    agent = fleet.agent()
    tried = []
    for _ in range(4):
        version = await agents._best_to_start(agent, "v0003")
        tried.append(version)
        agents._could_not_fetch(agent, version, NotFetched("the store is away"))
    assert tried == ["v0003", "v0002", "v0001", "v0003"]
    agent.unfetched |= {"v0003": 9}
    assert await agents._best_to_start(agent, "v0003") == "v0002"


async def test_an_engine_that_cannot_tidy_its_disk_serves_on(fleet, monkeypatch):
    await fleet.publish("v0001")
    agent = fleet.agent()
    agent.wanted = "v0001"
    await loadable(agent, "v0001", like=None)
    agent.serving = "v0001"

    def fails(*what, **how):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("trim", "release"):
        monkeypatch.setattr(Copies, name, fails)
        await trim(agent)
    assert agent.serving == "v0001"


async def test_a_disk_that_fills_while_a_version_comes_is_no_fault_of_the_version(
    fleet, monkeypatch
):
    await fleet.publish("v0001")

    def full(self, source, target, **options):
        del self, source, options
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", full)
    with pytest.raises(NotFetched, match="disk that was written to is full"):
        await loadable(fleet.agent(), "v0001", like=None)
    assert [path.name for path in (fleet.there / "policies").iterdir()] == [".copies"]


async def test_a_copy_that_went_bad_here_is_fetched_again_and_condemns_nobody(fleet):
    await fleet.publish("v0001")
    first, second = fleet.agent(), fleet.agent("engine-1")
    await serve(first, "v0001")
    weights = fleet.there / "policies" / "v0001" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-4])  # as after a loss of power
    with pytest.raises(NotFetched, match="Another engine here"):
        await loadable(second, "v0001", like=None)
    first.copies.release(but=[])
    await loadable(second, "v0001", like=None)
    assert weights.read_bytes() == sound
    second.copies.release(but=[])
    assert second.copies.drop("v0001")
    prefix = await registry.prefix(fleet.redis, "v0001")
    with fsspec.open(f"{fleet.url}/{prefix}/config.json", "w"):
        pass
    with pytest.raises(CorruptVersion):  # what is kept there is bad itself
        await loadable(second, "v0001", like=None)


async def test_a_version_that_a_worker_of_this_machine_reads_is_its_own(fleet):
    await fleet.publish("v0001")
    await fleet.publish("v0002")
    await fleet.publish("v0003")
    work = SimpleNamespace(
        settings=fleet.settings, folders=Folders.of(fleet.there), redis=fleet.redis
    )
    agent = fleet.agent(copies=0)
    await serve(agent, "v0001")
    await fetch_versions(work, ["v0001"])
    for version in ("v0002", "v0003"):
        await serve(agent, version)
    assert fleet.here() == ["v0001", "v0002", "v0003"]
    assert sorted(p.name for p in (fleet.there / "policies" / ".copies").iterdir()) == [
        "v0002",
        "v0003",
    ]
