"""How the gateway's memory grows with the requests that it has answered.

Slices of about a thousand requests, each over new connections; after each the resident memory is
read, and a straight line is laid through what was read after the warm-up.
"""

from deploy.bench.client import closed_loop
from deploy.bench.engine import chat_request
from deploy.bench.maths import slope
from deploy.bench.progress import Tick
from deploy.bench.targets import Service, taking_from_inbox

REQUESTS = 100_000
_CLIENTS = 32
_TIMES = 32
_WARM_UP_SHARE = 0.1


def slices(requests: int) -> tuple[int, int]:
    """How many slices warm up, and how many are then measured: at least two."""
    measured = max(2, requests // (_CLIENTS * _TIMES))
    return max(1, round(measured * _WARM_UP_SHARE)), measured


async def memory_slope(service: Service, requests: int, tick: Tick) -> float:
    """MiB in 100,000 requests."""
    warm_up, measured = slices(requests)
    request = chat_request(service.secret)
    answered, resident = [], []
    async with taking_from_inbox(service.redis_url):
        for number in range(-warm_up, measured):
            tick("memory: warming up" if number < 0 else "memory")
            await closed_loop(
                service.gateway.address, request, clients=_CLIENTS, seconds=3600.0, times=_TIMES
            )
            if number >= 0:
                answered.append(number * _CLIENTS * _TIMES)
                resident.append(service.gateway.resident_bytes())
    return slope(answered, resident) * REQUESTS / (1 << 20)
