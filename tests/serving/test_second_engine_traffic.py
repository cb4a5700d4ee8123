"""A canary on one replica with a second engine beside it, under traffic, with real agents."""

from collections import Counter

import pytest

from core import canary, keys, loop
from core.canary import SECOND_ENGINE
from tests.conftest import eventually
from tests.serving.swap_rig import swap_rig
from tests.serving.test_canary_agents import serving


@pytest.mark.parametrize("ending", ["promoted", "stopped"])
async def test_it_comes_and_leaves_and_no_request_fails(
    gateway_settings, redis, keyring, monkeypatch, ending
):
    async with swap_rig(gateway_settings, redis, keyring, monkeypatch, replicas=1) as rig:
        await loop.heartbeat(redis)
        await redis.set(keys.canary_room(), "1")
        version = await rig.publish()
        on = await canary.start(redis, version, share=0.5, who="test", why="to see")
        asked = rig.heard.replies
        await eventually(lambda: rig.heard.replies > asked + 8)  # before it is there
        assert serving(rig) == Counter({on.parent: 1})
        rig.begin(SECOND_ENGINE)
        await eventually(lambda: serving(rig) == {on.parent: 1, version: 1}, seconds=20)
        assert rig.lives[SECOND_ENGINE].agent.serving == version
        asked = rig.heard.replies
        await eventually(lambda: rig.heard.replies > asked + 8)
        live = await canary.end(redis, on, ending, who="test", why="seen")
        await eventually(lambda: rig.lives["engine-0"].agent.serving == live, seconds=20)
        leaving = rig.lives.pop(SECOND_ENGINE)
        leaving.agent.stopping.set()
        await eventually(leaving.task.done, seconds=20)
        assert leaving.task.exception() is None
        rig.engines.pop(SECOND_ENGINE)
        await eventually(rig.settled, seconds=20)
        asked = rig.heard.replies
        await eventually(lambda: rig.heard.replies > asked + 8)
        assert serving(rig) == {live: 1}
        assert (rig.heard.failed, rig.heard.untrue, rig.cut_for_nothing()) == ([], [], [])
