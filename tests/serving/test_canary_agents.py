"""A canary with real agents: some replicas take the candidate up, and all follow how it ends."""

from collections import Counter

import pytest

from core import canary, keys, loop, registry
from learning.canary.watch import look
from tests.conftest import eventually
from tests.serving.swap_rig import swap_rig


def serving(rig) -> Counter:
    """How many replicas serve which version, ready."""
    agents = [life.agent for life in rig.lives.values()]
    return Counter(agent.serving for agent in agents if agent.state == "ready")


@pytest.fixture
async def rig(gateway_settings, redis, keyring, monkeypatch):
    async with swap_rig(gateway_settings, redis, keyring, monkeypatch, replicas=3) as rig:
        await loop.heartbeat(redis)
        yield rig
        await eventually(lambda: rig.heard.replies > 0)
        assert rig.heard.failed == []
        assert rig.heard.untrue == []
        assert rig.cut_for_nothing() == []


async def begun(rig, redis, *, tampered=False):
    version = await rig.publish(tampered=tampered)
    return await canary.start(redis, version, share=0.3, who="test", why="to see")


@pytest.mark.parametrize("ending", ["promoted", "rolled_back"])
async def test_one_of_three_takes_it_up_and_all_follow_its_end_without_a_failed_request(
    rig, redis, ending
):
    on = await begun(rig, redis)
    await eventually(lambda: serving(rig) == {on.candidate: 1, on.parent: 2}, seconds=20)
    asked = rig.heard.replies
    await eventually(lambda: rig.heard.replies > asked + 20)
    live = await canary.end(redis, on, ending, who="test", why="seen")
    assert live == (on.candidate if ending == "promoted" else on.parent)
    await eventually(rig.settled, seconds=20)
    assert serving(rig) == {live: 3}


async def test_a_candidate_that_is_not_what_its_card_says_ends_it(rig, redis):
    on = await begun(rig, redis, tampered=True)
    await eventually(lambda: redis.hexists(keys.quarantined(), on.candidate), seconds=20)
    assert serving(rig)[on.candidate] == 0
    assert (await look(redis, rig.settings)).action == "rollback"
    over = (await canary.read(redis)).canary
    assert (over.state, "could not load" in over.why) == ("rolled_back", True)
    await eventually(rig.settled, seconds=20)
    assert await registry.target(redis) == on.parent


async def test_a_replica_that_is_killed_comes_back_on_its_side(rig, redis):
    on = await begun(rig, redis)
    await eventually(lambda: serving(rig) == {on.candidate: 1, on.parent: 2}, seconds=20)
    (name,) = [n for n, life in rig.lives.items() if life.agent.serving == on.candidate]
    rig.kill(name)
    await eventually(lambda: rig.lives[name].agent.serving != on.candidate, seconds=20)
    await eventually(lambda: serving(rig) == {on.candidate: 1, on.parent: 2}, seconds=20)
    assert rig.lives[name].agent.serving == on.candidate
