"""One agent at a time speaks for a replica's name, wherever it runs."""

import asyncio
import fcntl
import socket

import pytest

from core import keys
from core.canary import SECOND_ENGINE
from core.errors import StartError
from core.records import Replica
from core.redis_client import connect
from core.setting_groups import EngineSettings
from serving import agent as agents
from serving import agent_records, agent_state
from serving.agent import Agent
from serving.agent_start import prepared, replica_name
from tests.conftest import eventually
from tests.redis_fleet import redis_fleet


def agent_at(settings, keyring, redis, state_dir, address: str | None, name="pod") -> Agent:
    engine = EngineSettings(name=name, listen=address)
    settings = settings.model_copy(update={"engine": engine})
    return Agent(name, settings, keyring, redis, state_dir / f"{name}.sock")


@pytest.fixture
def make(settings, keyring, redis, state_dir):
    return lambda address, **more: agent_at(settings, keyring, redis, state_dir, address, **more)


async def heard(redis, name="pod") -> Replica:
    return Replica.model_validate_json(await redis.get(keys.replica(name)))


async def test_a_replica_is_announced_at_its_port_or_at_its_socket(make, redis, state_dir):
    away = make("0.0.0.0:8100")
    await agent_records.claim(away)
    assert (await heard(redis)).url == f"http://{socket.gethostname()}:8100"
    near = make(None, name="near")
    await agent_records.claim(near)
    assert (await heard(redis, "near")).url == f"unix:{state_dir}/near.sock"
    told = EngineSettings(listen="0.0.0.0:8100", advertise="http://10.1.2.3:8100")
    away.settings = away.settings.model_copy(update={"engine": told})
    assert away.url == "http://10.1.2.3:8100"


async def test_a_second_of_the_name_waits_for_the_first_to_fall_silent_and_then_takes_over(
    make, redis, monkeypatch
):
    monkeypatch.setattr(agent_records, "HEARTBEAT_SECONDS", 0.04)
    monkeypatch.setattr(agent_records, "HEARTBEAT_EXPIRES_SECONDS", 1)
    first, second = make("127.0.0.1:8100"), make("127.0.0.1:8200")
    await agent_records.claim(first)
    waits = asyncio.create_task(agent_records.claim(second))
    for _ in range(5):
        await agent_records.say_state(first)
        await asyncio.sleep(0.04)
    assert not waits.done()
    await asyncio.wait_for(waits, 10)  # the first one says no more
    assert (await heard(redis)).url == second.url
    assert not second.superseded


async def test_a_second_of_the_name_is_refused_while_the_first_lives(make, redis, monkeypatch):
    monkeypatch.setattr(agent_records, "CLAIM_SECONDS", 0.1)
    monkeypatch.setattr(agent_records, "HEARTBEAT_SECONDS", 0.04)
    first = make("127.0.0.1:8100")
    await agent_records.claim(first)
    with pytest.raises(StartError, match="INSTRUCTLOOP_ENGINE__NAME") as caught:
        await agent_records.claim(make("127.0.0.1:8200"))
    assert "alive at http://127.0.0.1:8100:" in caught.value.message
    assert (await heard(redis)).url == first.url


async def test_the_next_agent_at_the_same_place_takes_over_at_once_and_the_last_one_yields(
    make, redis
):
    first, second = make("127.0.0.1:8100"), make("127.0.0.1:8100")
    await agent_records.claim(first)
    await agent_records.claim(second)
    second.state = "ready"
    await agent_records.say_state(first)
    assert not first.stopping.is_set()  # nobody was heard yet
    await agent_records.say_state(second)
    await agent_records.say_state(first)
    assert first.stopping.is_set()
    assert first.superseded == second.holder
    await agent_records.forget(first)
    assert (await heard(redis)).state == "ready"
    await agent_records.forget(second)
    assert not await redis.exists(keys.replica("pod"), keys.replica_holder("pod"))
    assert await redis.smembers(keys.replicas()) == set()


async def test_the_last_word_of_a_predecessor_that_a_failover_brings_back_stops_nobody(
    make, monkeypatch
):
    monkeypatch.setattr(agent_records, "HEARTBEAT_EXPIRES_SECONDS", 1)
    first, second = make("127.0.0.1:8100"), make("127.0.0.1:8100")
    with redis_fleet(replicas=1) as fleet:
        master, replica = fleet.nodes
        promoted = fleet.url.replace(str(master.port), str(replica.port))
        async with connect(fleet.url) as before, connect(promoted) as after:
            first.redis = second.redis = before
            await agent_records.claim(first)
            assert await before.wait(1, 2000) == 1
            await after.replicaof("NO", "ONE")  # what the master hears from here on is lost
            await agent_records.claim(second)
            second.redis = after
            await agent_records.say_state(second)
            assert await after.get(keys.replica_holder("pod")) == first.holder.encode()

            async def has_the_name() -> bool:
                await agent_records.say_state(second)
                return await after.get(keys.replica_holder("pod")) == second.holder.encode()

            await eventually(has_the_name)
            assert not second.stopping.is_set()
            assert second.superseded == ""


async def test_of_two_that_live_one_stops_after_a_failover_too(make, redis):
    """What the Redis knows again may also be the word of somebody who goes on."""
    first, second = make("127.0.0.1:8100"), make("127.0.0.1:8200")
    await agent_records.claim(first)
    for _ in range(2):
        await agent_records.say_state(first)
        await agent_records.say_state(second)
    assert second.stopping.is_set()
    assert second.superseded == first.holder
    assert not first.stopping.is_set()


async def test_an_agent_whose_name_was_taken_stops_its_engine_and_ends_with_an_error(
    make, redis, monkeypatch
):
    monkeypatch.setattr(agents, "FAREWELL_SECONDS", 0.0)
    monkeypatch.setattr(agents, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(agent_records, "HEARTBEAT_SECONDS", 0.02)
    first, second = make("127.0.0.1:8100"), make("127.0.0.1:8100")
    life = asyncio.create_task(agents.live(first))
    await eventually(lambda: redis.exists(keys.replica_holder("pod")))
    await agent_records.claim(second)
    beats = asyncio.create_task(agent_records.heartbeats(second))
    with pytest.raises(StartError, match="taken over"):
        await asyncio.wait_for(life, 10)
    beats.cancel()
    assert await redis.get(keys.replica_holder("pod")) == second.holder.encode()


async def test_a_replica_that_ended_without_a_word_is_forgotten_at_the_second_look(make, redis):
    living = make("127.0.0.1:8100")
    await agent_records.claim(living)
    await redis.sadd(keys.replicas(), "gone", "late")
    await agent_records.forget_silent(living)
    assert await redis.smembers(keys.replicas()) == {b"pod", b"gone", b"late"}
    await agent_records.claim(make("127.0.0.1:8300", name="late"))
    await agent_records.forget_silent(living)
    assert await redis.smembers(keys.replicas()) == {b"pod", b"late"}


def test_the_name_of_a_canary_s_engine_is_nobody_s(settings):
    engine = EngineSettings(name=SECOND_ENGINE)
    with pytest.raises(StartError, match="INSTRUCTLOOP_ENGINE__NAME"):
        replica_name(settings.model_copy(update={"engine": engine}), number=0)
    assert replica_name(settings, number=3) == "engine-3"


def test_two_agents_of_one_name_do_not_share_a_folder_nor_a_port(settings):
    with prepared(settings, "engine-0") as folder:
        with pytest.raises(StartError, match="--state-dir"), prepared(settings, "engine-0"):
            pass
        with prepared(settings, "engine-1"):
            pass
    with (folder / "engine-0.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is free again
    with socket.create_server(("127.0.0.1", 0)) as taken:
        engine = EngineSettings(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        busy = settings.model_copy(update={"engine": engine})
        with pytest.raises(StartError, match="INSTRUCTLOOP_ENGINE__LISTEN"), prepared(busy, "e"):
            pass


async def test_a_machine_that_is_renamed_keeps_its_agent(make, redis, monkeypatch):
    agent = make(None)
    await agent_records.claim(agent)
    monkeypatch.setattr(agent_state, "gethostname", lambda: "another")
    await agent_records.say_state(agent)
    assert not agent.stopping.is_set()
