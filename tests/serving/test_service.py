"""Health, readiness and models: what is there, what is missing."""

from core import keys
from core.redis_client import connect
from tests.conftest import eventually
from tests.serving.conftest import announce, running_gateway


async def readiness(gateway):
    async with gateway.http.get(gateway.url + "/readyz") as response:
        return response.status, await response.json()


async def test_readiness_says_what_is_missing_until_it_is_there(redis, gateway_settings):
    async with running_gateway(gateway_settings, redis) as gateway:
        status, said = await readiness(gateway)
        assert (status, said["ready"]) == (503, False)
        assert said["missing"] == ["engine: no replica is ready"]
        await announce(redis, "unix:/nowhere", state="starting")
        await announce(redis, "unix:/nowhere", name="r1", state="ready")
        await eventually(lambda: _is_ready(gateway))
        status, said = await readiness(gateway)
        assert (status, said["missing"]) == (200, [])
        await eventually(lambda: _is_whole(gateway))


async def _is_ready(gateway) -> bool:
    return (await readiness(gateway))[0] == 200


async def _is_whole(gateway) -> bool:
    return (await readiness(gateway))[1]["degraded"] == []


async def test_a_gateway_without_redis_starts_says_so_and_heals(
    redis_server, gateway_settings, state_dir
):
    settings = gateway_settings.model_copy(update={"redis_url": redis_server.url})
    async with connect(redis_server.url) as redis:
        async with running_gateway(settings, redis) as first:
            secret = first.secret
        redis_server.kill()
        settings = settings.model_copy(update={"state_dir": state_dir})
        async with running_gateway(settings, redis, with_key=False) as gateway:
            status, said = await readiness(gateway)
            assert status == 503
            assert "API keys: Redis has not answered yet" in said["missing"]
            assert any("Redis does not answer" in line for line in said["degraded"])
            headers = {"x-api-key": secret}
            async with gateway.http.get(gateway.url + "/v1/models", headers=headers) as response:
                assert response.status == 503
            redis_server.start()
            await announce(redis, "unix:/nowhere")
            await eventually(lambda: _is_ready(gateway))
            await eventually(lambda: _is_whole(gateway))


async def test_a_redis_that_forgets_is_told_and_feedback_refused(redis_server, gateway_settings):
    settings = gateway_settings.model_copy(update={"redis_url": redis_server.url})
    async with connect(redis_server.url) as redis:
        await redis.config_set("appendfsync", "everysec")
        async with running_gateway(settings, redis) as gateway:
            line = "durability: Redis has appendfsync = everysec, feedback needs always"
            await eventually(lambda: _says(gateway, line))
            body = {"completion_id": "chatcmpl-x", "thumb": "up"}
            async with gateway.post("/v1/feedback", body) as response:
                assert response.status == 503


async def _says(gateway, line: str) -> bool:
    return line in (await readiness(gateway))[1]["degraded"]


async def test_models_are_the_alias_and_each_version_that_is_served(redis, gateway_settings):
    await announce(redis, "unix:/a", name="a", version="v0001")
    await announce(redis, "unix:/b", name="b", version="v0001")
    await announce(redis, "unix:/c", name="c", version="v0000", state="starting")
    async with running_gateway(gateway_settings, redis) as gateway:
        async with gateway.get("/v1/models") as response:
            names = [model["id"] for model in (await response.json())["data"]]
        assert names == ["instructloop", "instructloop@v0001"]
        async with gateway.get("/v1/models/instructloop@v0000") as response:
            assert response.status == 404


async def test_metrics_are_not_on_a_port_that_others_reach(redis, gateway_settings):
    group = gateway_settings.gateway.model_copy(update={"host": "0.0.0.0"})
    settings = gateway_settings.model_copy(update={"gateway": group})
    async with running_gateway(settings, redis) as gateway, gateway.get("/metrics") as response:
        assert response.status == 404


async def test_replicas_and_target_are_shown_as_figures(redis, gateway_settings):
    await announce(redis, "unix:/a", version="v0003")
    async with running_gateway(gateway_settings, redis) as gateway:
        await redis.set(keys.target(), "v0003")
        await eventually(lambda: _shows(gateway, 'policy_version_info{version="v0003"} 1.0'))
        await redis.set(keys.target(), "v0004")
        await eventually(lambda: _shows(gateway, 'policy_version_info{version="v0003"} 0.0'))
        assert await _shows(gateway, 'replicas{state="ready",version="v0003"} 1.0')
        await announce(redis, "unix:/a", version="v0004", state="swapping")
        await eventually(lambda: _shows(gateway, 'replicas{state="ready",version="v0003"} 0.0'))


async def _shows(gateway, line: str) -> bool:
    async with gateway.get("/metrics") as response:
        return f"instructloop_{line}" in await response.text()
