"""How full Redis is, read from a real one."""

from core import metrics
from learning.worker.redis_memory import allowed, fullest, look


def shown() -> tuple[float, float]:
    return metrics.REDIS_MEMORY._value.get(), metrics.REDIS_MEMORY_LIMIT._value.get()


async def test_memory_in_use_is_shown_against_what_it_may_use(redis):
    await look(redis)
    used, machine = shown()
    assert 0 < used < machine
    await redis.config_set("maxmemory", 50_000_000)
    await redis.set("large", b"x" * 4_000_000)
    try:
        await look(redis)
        more, limit = shown()
    finally:
        await redis.config_set("maxmemory", 0)
    assert limit == 50_000_000
    assert more >= used + 4_000_000


async def test_a_redis_that_may_not_be_asked_changes_nothing(redis):
    await look(redis)
    before = shown()
    await redis.set("large", b"x" * 4_000_000)
    await redis.execute_command("ACL", "SETUSER", "default", "-info")
    try:
        await look(redis)
    finally:
        await redis.execute_command("ACL", "SETUSER", "default", "+info")
    assert shown() == before


def test_of_several_servers_the_one_with_the_least_room_counts():
    roomy = {"used_memory": 80, "maxmemory": 800}
    full = {"used_memory": 30, "maxmemory": 0, "total_system_memory": 40}
    assert fullest({"a:1": roomy, "b:2": full}) == full
    assert fullest(roomy) == roomy
    assert (allowed(roomy), allowed(full), allowed({})) == (800, 40, 0)
