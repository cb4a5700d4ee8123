"""Whether a Redis may hold what people told us: what it is, how it is set up, who follows it.

Asked where a process starts; what is only advice is a sentence for people.
"""

from typing import Any

import redis

from core import schema
from core.errors import StartError
from core.redis_address import NODE_OF_CLUSTER
from core.redis_client import Redis, redis_errors
from core.redis_finders import in_cluster
from core.redis_scripts import wait_of

_WAIT = "INSTRUCTLOOP_REDIS_WAIT_REPLICAS"


async def check_redis(client: Redis) -> list[str]:
    """Whether this Redis may hold what people told us; returns warnings.

    Raises StartError when it does not answer, is of a Cluster and the URL does not say so, or holds
    a schema that this release cannot read. An instance without AOF and `appendfsync always`, one
    that evicts, or one whose replicas may lose what we promised is a warning; with
    `durability=strict` it also makes the feedback routes refuse.
    """
    try:
        await client.ping()
        if not in_cluster(client) and (await info_of(client, "cluster")).get("cluster_enabled"):
            raise StartError(NODE_OF_CLUSTER)
        await schema.refuse_other(client, mark_new=True)
    except redis.RedisError as error:
        raise StartError(
            f"Redis does not answer ({error}): start it, or correct INSTRUCTLOOP_REDIS_URL"
        ) from None
    return await _durability_warnings(client) + await _replica_warnings(client)


async def info_of(client: Redis, section: str) -> dict[str, Any]:
    """What a Redis says of itself; nothing where our user may not ask."""
    try:
        said: dict[str, Any] = await client.info(section)
    except redis.exceptions.NoPermissionError:
        return {}
    return said


async def _durability_warnings(client: Redis) -> list[str]:
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    try:
        answers = {name: (await client.config_get(name)).get(name) for name in wanted}
    except redis.ResponseError:
        return ["this Redis does not let us read its settings: durability is not checked"]
    return [
        f"Redis has {name} = {answers[name]}, feedback needs {value}"
        for name, value in wanted.items()
        if answers[name] != value
    ]


async def _replica_warnings(client: Redis) -> list[str]:
    """What a failover would lose, or what keeps every promise from coming true."""
    wanted = wait_of(client).replicas
    if not wanted and "finder" in client.connection_pool.connection_kwargs:
        return [f"a failover may lose what was just said: {_WAIT} is to be the number of replicas"]
    if not wanted:
        return []
    found = int((await info_of(client, "replication")).get("connected_slaves", 0))
    return [f"{found} replicas are there, {_WAIT} wants {wanted}"] if found < wanted else []


async def spare_replicas(client: Redis) -> str | None:
    """A word of advice where a replica could be promoted that need not have what we promised."""
    wanted = wait_of(client).replicas
    with redis_errors():
        found = int((await info_of(client, "replication")).get("connected_slaves", 0))
    if not 0 < wanted < found:
        return None
    return (
        f"{found} replicas are there and {wanted} must have what feedback promises: should the "
        f"master and those be lost together, so is that; {_WAIT}={found} rules it out"
    )
