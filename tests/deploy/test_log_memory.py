import pytest

from deploy.bench.log_memory import log_memory, slope
from deploy.bench.redis_memory import redis_memory


def test_the_slope_is_that_of_the_nearest_line():
    assert slope([(0, 1), (10, 21), (20, 41)]) == pytest.approx(2.0)
    assert slope([(0, 0), (1, 3), (2, 0)]) == pytest.approx(0.0)


async def test_redis_holds_less_than_half_once_most_is_archived():
    figures = await log_memory(completions=5_000, step=1_000, keep=500)
    assert figures["completions"] == 5_000
    assert figures["archived"] >= 3_500
    assert figures["bytes_in_redis_before"] > 1_000
    assert figures["bytes_in_redis_after"] < figures["bytes_in_redis_before"] / 2
    assert 50 < figures["bytes_on_disk"] < 1_000


async def test_every_kind_of_record_has_its_price_and_more_text_costs_more():
    figures = await redis_memory(count=200)
    assert len(figures) == 8
    assert all(300 < cost < 5_000 for cost in figures.values()), figures
    thumb = figures["thumb"]
    assert thumb < figures["rating with two flags and a comment"] < figures["ranking of 4 answers"]
    assert thumb < figures["thumb, with an Idempotency-Key, for a day"]
