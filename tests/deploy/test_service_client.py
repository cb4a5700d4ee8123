"""The patient client against a real HTTP server that refuses for now."""

import time
from collections import deque
from email.utils import formatdate

import pytest

from deploy.simulate.service_client import Refused, service_client
from tests.deploy.contract_server import KEY, Fault, Service, free_socket, serving


@pytest.fixture
async def service():
    service = Service()
    async with serving(service):
        yield service


async def test_patience_ends(service):
    service.faults["POST rankings"] = deque([Fault(503)] * 50)
    async with service_client(service.url, KEY, patience_seconds=0.3) as client:
        began = time.monotonic()
        with pytest.raises(Refused, match="503"):
            await client.post("/v1/rankings", {"ranking": []}, idempotency_key="x")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [("7", 7.0, 7.0), ("100000", 60.0, 60.0), ("nonsense", 0.0, 0.25), (None, 0.0, 0.25)],
)
async def test_retry_after_is_honoured_in_seconds(service, said, low, high):
    slept = await _slept(service, said)

    assert low <= slept <= high


async def test_retry_after_is_honoured_as_a_date(service):
    slept = await _slept(service, formatdate(time.time() + 20, usegmt=True))

    assert 15 <= slept <= 20


async def _slept(service: Service, retry_after: str | None) -> float:
    service.faults["GET labeling"] = deque([Fault(429, retry_after)])
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with service_client(service.url, KEY) as client:
        client.sleep = sleep
        await client.get("/v1/labeling/next")
    assert len(pauses) == client.retries == 1
    return pauses[0]


async def test_pauses_grow_while_nobody_answers_and_the_error_says_where():
    listener = free_socket()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with service_client(url, KEY, patience_seconds=0.6) as client:
        client.sleep = sleep
        with pytest.raises(Refused, match=rf"GET /healthz at {url}: ConnectError"):
            await client.get("/healthz")
    assert len(pauses) >= 2
    assert 0.125 <= pauses[0] <= 0.25
    assert 0.25 <= pauses[1] <= 0.5


async def test_a_retried_post_carries_the_same_idempotency_key(service):
    service.completions["c"] = ("p", ["a", "b"])
    ranking = {"ranking": [[{"completion_id": "c", "choice": i}] for i in range(2)], "rater": "r"}
    service.faults["POST rankings"] = deque(
        [Fault(503, "0", late=True), Fault(504, "0", late=True)]
    )
    async with service_client(service.url, KEY) as client:
        reply = await client.post("/v1/rankings", ranking, idempotency_key="k")

    assert reply.json() == {"id": "record-0", "status": "recorded"}
    assert service.rankings == [ranking]
    assert list(service.by_idempotency_key) == ["k"]
