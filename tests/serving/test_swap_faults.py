"""Swaps that break at every step under traffic: no request fails and no token is misattributed.

The long version is tests/soak/test_swaps_soak.py. A failure names the round and its faults; the
seed is fixed, so that it happens again.
"""

import asyncio

import pytest

from core import keys, registry
from core.engine.client import EngineClient
from core.errors import EngineError
from core.metrics import ATTESTATIONS, SWAPS
from serving import agent_records
from tests.conftest import eventually
from tests.serving.fault_engine import Fault
from tests.serving.swap_rig import Rig, broken_swaps, swap_rig

pytestmark = pytest.mark.thorough

ROUNDS, SEED = 24, 3


@pytest.fixture
def rig_of(gateway_settings, redis, keyring, monkeypatch):
    def make(**options):
        return swap_rig(gateway_settings, redis, keyring, monkeypatch, **options)

    return make


def counted(counter, outcome: str) -> float:
    return counter.labels(outcome=outcome)._value.get()


def all_is_well(rig: Rig) -> bool:
    heard = rig.heard
    return (heard.untrue, heard.failed, rig.cut_for_nothing()) == ([], [], [])


@pytest.mark.timeout(150)
async def test_swaps_with_faults_fail_no_request_and_misattribute_no_token(rig_of):
    async with rig_of(seed=SEED) as rig:
        await broken_swaps(rig, ROUNDS)
        assert sum(rig.struck.values()) > ROUNDS / 2
        assert rig.heard.replies > ROUNDS
        assert rig.heard.crossed > 0


@pytest.mark.timeout(60)
async def test_three_replicas_swap_one_after_the_other_and_one_that_joins_ends_right(
    rig_of, monkeypatch
):
    async with rig_of(replicas=3) as rig:
        monkeypatch.setattr(agent_records, "SWAP_LEASE_SECONDS", 2.0)
        swapping: list[int] = []

        async def watch() -> None:
            while True:
                states = [life.agent.state for life in rig.lives.values()]
                swapping.append(states.count("swapping"))
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        await rig.round()
        version = await rig.publish()
        await registry.promote(rig.redis, version, who="test", why="two at once")
        rig.begin("engine-3")  # joins in the middle
        rig.kill("engine-0")  # starts again in the middle
        await eventually(rig.settled, seconds=20.0)
        watching.cancel()
        assert {life.agent.serving for life in rig.lives.values()} == {version}
        assert max(swapping) == 1
        assert all_is_well(rig)


@pytest.mark.timeout(60)
async def test_an_engine_that_always_fails_makes_one_replica_give_up_and_no_other(rig_of):
    gave_up = counted(SWAPS, "gave_up")
    async with rig_of() as rig:
        old = await registry.target(rig.redis)
        rig.engines["engine-0"].faults = [Fault("stage", "error") for _ in range(20)]
        version = await rig.publish()
        await registry.promote(rig.redis, version, who="test", why="it is good")
        first, second = (rig.lives[f"engine-{n}"].agent for n in (0, 1))
        await eventually(lambda: second.serving == version)
        await eventually(lambda: first.attempts.get(version) == 3 and first.state == "ready")
        assert (first.serving, second.serving) == (old, version)
        assert "did not go in" in first.detail
        assert counted(SWAPS, "gave_up") == gave_up + 1
        assert not await rig.redis.hexists(keys.quarantined(), version)
        assert await registry.target(rig.redis) == version
        rig.engines["engine-0"].faults = []
        newer = await rig.publish()  # another wish, another chance
        await registry.promote(rig.redis, newer, who="test", why="the next")
        await eventually(rig.settled)
        assert first.serving == newer
        assert all_is_well(rig)


@pytest.mark.timeout(60)
async def test_weights_that_change_while_they_serve_are_found_and_loaded_again(rig_of):
    async with rig_of() as rig:
        agent, engine = rig.lives["engine-0"].agent, rig.engines["engine-0"]
        version, found = agent.serving, counted(ATTESTATIONS, "mismatch")
        proofs = counted(ATTESTATIONS, "ok")
        often = agent.settings.engine.model_copy(update={"attest_seconds": 0.1})
        for life in rig.lives.values():
            life.agent.settings = agent.settings.model_copy(update={"engine": often})
        await eventually(lambda: counted(ATTESTATIONS, "ok") > proofs)
        assert set(await rig.redis.hgetall(keys.probes(version))) == {b"engine-0", b"engine-1"}
        engine.weights = "another"
        await eventually(lambda: rig.engines["engine-0"] is not engine)
        await eventually(rig.settled)
        assert counted(ATTESTATIONS, "mismatch") == found + 1
        failures = [e for e in await registry.history(rig.redis) if "attestation" in e["action"]]
        assert [(e["version"], e["replica"]) for e in failures] == [(version, "engine-0")]
        assert "1 parameters are not those of" in failures[0]["why"]
        assert not await rig.redis.hexists(keys.quarantined(), version)
        assert rig.heard.failed == []


@pytest.mark.timeout(60)
async def test_a_turn_is_kept_while_a_swap_takes_long_and_given_back_only_by_its_holder(
    rig_of, monkeypatch
):
    async with rig_of() as rig:
        monkeypatch.setattr(agent_records, "SWAP_LEASE_SECONDS", 3.0)
        first, second = (rig.lives[f"engine-{n}"].agent for n in (0, 1))
        lease = keys.swap_lease(0)
        async with agent_records.turn_to_swap(first) as mine:
            assert mine
            async with agent_records.turn_to_swap(second) as theirs:
                assert not theirs
            await rig.redis.pexpire(lease, 2500)

            async def is_longer() -> bool:
                return await rig.redis.pttl(lease) > 2500

            await eventually(is_longer)
            await rig.redis.set(lease, "somebody else")
        assert await rig.redis.get(lease) == b"somebody else"
        await rig.redis.delete(lease)
        async with agent_records.turn_to_swap(second) as theirs:
            assert theirs
        assert not await rig.redis.exists(lease)


@pytest.mark.parametrize(
    ("replicas", "share", "turns"),
    [(0, 0.1, 1), (2, 0.1, 1), (25, 0.1, 2), (500, 0.1, 50), (3, 1, 3)],
)
def test_a_share_of_many_replicas_swap_at_one_time_and_one_of_few(replicas, share, turns):
    assert agent_records.turns_at_once(replicas, share) == turns


async def test_two_of_twenty_have_a_turn_at_one_time(rig_of):
    async with rig_of() as rig:
        first, second = (rig.lives[f"engine-{n}"].agent for n in (0, 1))
        await rig.redis.sadd(keys.replicas(), *(f"other-{n}" for n in range(18)))
        async with agent_records.turn_to_swap(first) as mine:
            assert mine
            any_turn = f"{keys.PREFIX}swap-lease:*"
            taken = {key.decode() async for key in rig.redis.scan_iter(any_turn)}
            assert taken < {keys.swap_lease(0), keys.swap_lease(1)}

            async def gets_the_other() -> bool:
                async with agent_records.turn_to_swap(second) as theirs:
                    return theirs

            await eventually(gets_the_other)


async def test_a_version_that_was_condemned_without_redis_is_told_as_soon_as_it_answers(rig_of):
    async with rig_of(replicas=1) as rig:
        old = await registry.target(rig.redis)
        life = rig.lives["engine-0"]
        rig.engines["engine-0"].faults = [Fault("stage", "refuse")]
        version = await rig.publish()
        stage = EngineClient.stage

        async def and_redis_goes(client, folder):
            life.redis.away = True
            return await stage(client, folder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EngineClient, "stage", and_redis_goes)
            await registry.promote(rig.redis, version, who="test", why="it is bad")
            await eventually(lambda: version in life.agent.condemned)
        assert await registry.target(rig.redis) == version
        life.redis.away = False
        await eventually(rig.settled)
        assert await registry.target(rig.redis) == old
        assert await rig.redis.hexists(keys.quarantined(), version)
        assert all_is_well(rig)


async def test_a_reply_of_the_worker_that_is_none_is_an_error_of_the_engine(rig_of):
    async with rig_of(replicas=1) as rig:
        client = rig.lives["engine-0"].agent.client
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.engines["engine-0"], "_rpc", lambda method, kwargs: None)
            with pytest.raises(EngineError, match="parameter_checksums"):
                await client.checksums()
