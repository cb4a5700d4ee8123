"""Where Celery's messages travel: the broker's URL and options, and what cannot be one.

Run state is never in the broker, so losing it loses nothing but a tick. Knows URLs; Celery is
learning/worker/tasks.py's.
"""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from core.errors import StartError, Unavailable
from core.redis_address import login_of, read_address, tls_options_of, with_settings
from core.redis_check import info_of
from core.redis_client import connect, redis_errors, redis_url
from core.redis_finders import sentinel_options
from core.settings import Settings

_OWN_DATABASE = 1
"""Of our own Redis; the records are in 0."""
_OURS = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")


def broker_url(settings: Settings) -> str:
    """The broker as Celery wants it: the setting, else the Redis of the records.

    Our own Redis on its socket becomes `redis+socket://:PASSWORD@PATH?virtual_host=DATABASE`,
    Sentinels `sentinel://HOST:PORT/DATABASE;sentinel://...`. Raises StartError for a Cluster URL.
    """
    return as_celery(broker_address(settings))


def broker_address(settings: Settings) -> str:
    """The same as we spell it, with what the settings say of TLS. Raises StartError."""
    chosen = settings.redis_broker_url
    url = with_settings(chosen, settings) if chosen else redis_url(settings, database=_OWN_DATABASE)
    if "cluster" in urlsplit(url).scheme:
        raise _no_cluster()
    return url


def as_celery(url: str) -> str:
    """`unix://` and `redis+sentinel://` in Celery's spelling; others as they are, less options."""
    if not url.startswith(_OURS):
        return url
    address = read_address(url)
    if address.sentinels:
        return ";".join(
            f"sentinel://{login_of(address)}{f'[{host}]' if ':' in host else host}:{port}"
            f"/{address.database}"
            for host, port in address.sentinels
        )
    if not url.startswith("unix://"):
        return address.url.partition("?")[0] if address.is_tls else address.url
    parts = urlsplit(address.url)
    database = dict(parse_qsl(parts.query)).get("db", "0")
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{login}{parts.path}?virtual_host={database}"


def transport_options(settings: Settings) -> dict[str, Any]:
    """What kombu needs to find the master by Sentinels; nothing for one Redis."""
    url = broker_address(settings)
    address = read_address(url) if url.startswith(_OURS) else None
    if address is None or not address.sentinels:
        return {}
    return {"master_name": address.service, "sentinel_kwargs": sentinel_options(address)}


def tls_options(settings: Settings) -> dict[str, Any]:
    """Celery's settings for a broker over TLS; nothing for another."""
    url = broker_address(settings)
    address = read_address(url) if url.startswith(_OURS) else None
    return (
        {"broker_use_ssl": tls_options_of(address)}
        if address is not None and address.is_tls
        else {}
    )


def as_redis(url: str) -> str:
    """Celery's spelling of a socket in ours, for a client that looks at the broker."""
    if not url.startswith("redis+socket://"):
        return url
    parts = urlsplit(url)
    database = dict(parse_qsl(parts.query)).get("virtual_host", "0")
    return f"unix://{parts.netloc}{parts.path}?db={database}"


async def check_broker(url: str) -> None:
    """Raises StartError when the broker, as we spell it, is a Redis Cluster: Celery cannot use one.

    A broker that does not answer, or is no Redis, is not judged here: Celery says what it misses.
    """
    url = as_redis(url)
    if not url.startswith(_OURS):
        return
    async with connect(url) as client:
        try:
            with redis_errors():
                answer = await info_of(client, "cluster")
        except Unavailable:
            return
    if int(answer.get("cluster_enabled", 0)):
        raise _no_cluster()


def _no_cluster() -> StartError:
    return StartError(
        "the Celery broker cannot be a Redis Cluster: set INSTRUCTLOOP_REDIS_BROKER_URL to a "
        "single Redis or to Sentinels (a small one is enough, it holds no records)"
    )
