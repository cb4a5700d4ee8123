"""Where Celery's messages travel: the broker's URL, and what cannot be one.

Run state is never in the broker, so losing it loses nothing but a tick. Knows URLs; Celery is
learning/worker/tasks.py's.
"""

from urllib.parse import parse_qsl, urlsplit

from core.errors import StartError, Unavailable
from core.redis_client import connect, redis_errors, redis_url
from core.settings import Settings

_OWN_DATABASE = 1
"""Of our own Redis; the records are in 0."""
_CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster", "rediscluster", "redis-cluster")


def broker_url(settings: Settings) -> str:
    """The broker as Celery wants it: the setting, else the Redis of the records.

    Our own Redis on its socket becomes `redis+socket://:PASSWORD@PATH?virtual_host=DATABASE`.
    Raises StartError for a Cluster URL.
    """
    url = settings.redis_broker_url or redis_url(settings, database=_OWN_DATABASE)
    if urlsplit(url).scheme in _CLUSTER_SCHEMES:
        raise _no_cluster()
    return as_celery(url)


def as_celery(url: str) -> str:
    """`unix://[USER]:PASSWORD@PATH?db=N` in Celery's spelling; others as they are."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = dict(parse_qsl(parts.query)).get("db", "0")
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{login}{parts.path}?virtual_host={database}"


def as_redis(url: str) -> str:
    """The opposite, for a client that looks at the broker."""
    if not url.startswith("redis+socket://"):
        return url
    parts = urlsplit(url)
    database = dict(parse_qsl(parts.query)).get("virtual_host", "0")
    return f"unix://{parts.netloc}{parts.path}?db={database}"


async def check_broker(url: str) -> None:
    """Raises StartError when the broker is a Redis Cluster, where Celery cannot work.

    A broker that does not answer, or is no Redis, is not judged here: Celery says what it misses.
    """
    if not url.startswith(("redis://", "rediss://", "redis+socket://")):
        return
    async with connect(as_redis(url)) as client:
        try:
            with redis_errors():
                answer = await client.info("cluster")
        except Unavailable:
            return
    if int(answer.get("cluster_enabled", 0)):
        raise _no_cluster()


def _no_cluster() -> StartError:
    return StartError(
        "the Celery broker cannot be a Redis Cluster: set INSTRUCTLOOP_REDIS_BROKER_URL to a "
        "single Redis (a small one is enough, it holds no records)"
    )
