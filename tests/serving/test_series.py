"""However odd what comes in: it makes no new series."""

import random
import string

from core import metrics
from tests.serving.conftest import CHAT

ROUTES = 60


def series() -> set[tuple]:
    """Every series that is exposed now."""
    return {
        (sample.name, *sorted(sample.labels.items()))
        for family in metrics.registry().collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def odd(draw: random.Random) -> str:
    letters = string.ascii_letters + "äß🙂%20{}'\"\\"
    return "".join(draw.choice(letters) for _ in range(draw.randint(1, 30)))


async def flood(gateway, double, seed: int) -> None:
    """Paths, methods, models, versions, fields, users, ids, engine errors that nobody expects."""
    draw = random.Random(seed)
    async with gateway.post("/v1/chat/completions", CHAT) as reply:
        completion = (await reply.json())["id"]
    for _ in range(12):
        word = odd(draw)
        path = word.replace("%", "").replace("\\", "").replace("?", "")
        for method in ("GET", "POST", "PUT", "TRACE"):
            headers = {"Authorization": f"Bearer {draw.choice([gateway.secret, word.encode()])}"}
            where = f"{gateway.url}/v1/{path}"
            async with gateway.http.request(method, where, headers=headers) as reply:
                assert reply.status in (401, 404, 405)
        bodies = (
            ("/v1/chat/completions", {**CHAT, "model": word}),
            ("/v1/chat/completions", {**CHAT, "model": f"instructloop@{word}"}),
            ("/v1/chat/completions", {**CHAT, "user": word, "metadata": {word: word}}),
            ("/v1/chat/completions", {**CHAT, word: word}),
            ("/v1/feedback", {"completion_id": word, "thumb": "up"}),
            ("/v1/feedback", {"completion_id": completion, "thumb": word}),
            ("/v1/feedback", {"completion_id": completion, "rating": 3, "rater": word}),
            ("/v1/feedback", {"completion_id": completion, "flags": {word: True}}),
            ("/v1/rankings", {"ranking": [[{"completion_id": word, "choice": 0}]]}),
        )
        for path, body in bodies:
            async with gateway.post(path, body) as reply:
                assert reply.status in (200, 201, 400, 404, 422)
    for status in (429, 500, 503):
        double.status = status
        async with gateway.post("/v1/chat/completions", CHAT) as reply:
            assert reply.status >= 400
    double.status = None


async def test_a_second_flood_of_other_odd_things_makes_no_new_series(gateway, double):
    await flood(gateway, double, 1)
    before = series()
    for engine in gateway.app.state.services.replicas._engines.values():
        engine.breaker.close()
    await flood(gateway, double, 2)
    assert series() - before == set()
    routes = {dict(one[1:]).get("route") for one in series()}
    assert len(routes) < ROUTES
    assert all(route is None or "🙂" not in route for route in routes)
