"""How old words are when weights that learned from them first serve: each once, on a real Redis."""

import time

import pytest

from core import keys, metrics, registry
from core.lineage import FILE, as_text, card_data
from core.records import Answer, Feedback, LabelingTask
from core.settings import Settings
from learning.rounds.freshness import look
from tests.core.test_registry import card

HOUR = 3600.0


@pytest.fixture
def settings(state_dir):
    return Settings(state_dir=state_dir)


def measured() -> tuple[float, float]:
    """How many words, and their ages in seconds together."""
    found = {}
    for family in metrics.registry().collect():
        for one in family.samples:
            found[one.name] = one.value
    name = "instructloop_freshness_seconds"
    return found[f"{name}_count"], found[f"{name}_sum"]


async def say(redis, name: str, age: float) -> None:
    then = time.time() - age
    said = Feedback(
        id=name,
        kind="rating",
        tenant="acme",
        key_id="k",
        rater="r",
        created_at=then,
        updated_at=then,
        rating=5,
    )
    await redis.set(keys.feedback(name), said.model_dump_json())


async def answer(redis, name: str, *ages: float) -> None:
    answers = tuple(
        Answer(rater=f"r{age}", heldout_rater=False, ranking=(), answered_at=time.time() - age)
        for age in ages
    )
    task = LabelingTask(
        id=name,
        tenant="acme",
        mode="training",
        run_id="",
        user="u",
        messages=[],
        outputs=(),
        created_at=0.0,
        answers=answers,
    )
    await redis.set(keys.labeling_task(name), task.model_dump_json())


async def publish(redis, settings, version: str, parent: str | None, *ids: str) -> None:
    kinds = dict.fromkeys(ids, "rating")
    folder = settings.state_dir / "policies" / version
    folder.mkdir(parents=True)
    (folder / FILE).write_text(as_text(kinds))
    data = {"data": card_data(kinds)} if ids else {}
    token = await registry.acquire_fence(redis)
    await registry.publish(
        redis, card(version, parent).model_copy(update=data), fencing_token=token
    )


async def live(redis, version: str) -> None:
    await registry.promote(redis, version, who="a test", why="a test")
    await redis.hset(keys.probes(version), "engine-0", registry.timestamp())


async def test_what_a_version_brings_is_measured_once_when_a_replica_serves_it(redis, settings):
    await say(redis, "fb-1", 2 * HOUR)
    await say(redis, "fb-2", 5 * HOUR)
    await answer(redis, "task-1", 1 * HOUR, 3 * HOUR)
    await publish(redis, settings, "v0000", None)
    await publish(redis, settings, "v0001", "v0000", "fb-1", "fb-2", "task-1", "fb-erased")
    count, total = measured()
    await live(redis, "v0000")
    assert await look(redis, settings) == 0
    await registry.promote(redis, "v0001", who="a test", why="a test")
    assert await look(redis, settings) == 0, "no replica serves it yet"
    await redis.hset(keys.probes("v0001"), "engine-0", registry.timestamp())
    assert await look(redis, settings) == 4
    assert await look(redis, settings) == 0
    after, all_of_it = measured()
    assert after - count == 4
    assert all_of_it - total == pytest.approx(11 * HOUR, abs=60)


async def test_the_next_version_measures_what_its_parent_did_not_have(redis, settings):
    for name, age in (("fb-1", 50), ("fb-2", 4), ("fb-3", 3)):
        await say(redis, name, age * HOUR)
    await publish(redis, settings, "v0001", None, "fb-1")
    await publish(redis, settings, "v0002", "v0001", "fb-1", "fb-2", "fb-3")
    await live(redis, "v0001")
    assert await look(redis, settings) == 1
    await live(redis, "v0002")
    count, total = measured()
    assert await look(redis, settings) == 2
    after, all_of_it = measured()
    assert (after - count, all_of_it - total) == (2, pytest.approx(7 * HOUR, abs=60))


async def test_a_version_that_comes_back_brings_nothing_again(redis, settings):
    await say(redis, "fb-1", HOUR)
    await publish(redis, settings, "v0001", None, "fb-1")
    await publish(redis, settings, "v0002", "v0001", "fb-1")
    for version, words in (("v0001", 1), ("v0002", 0), ("v0001", 0)):
        await live(redis, version)
        assert await look(redis, settings) == words


async def test_two_workers_measure_it_once(redis, settings):
    await say(redis, "fb-1", HOUR)
    await publish(redis, settings, "v0001", None, "fb-1")
    await live(redis, "v0001")
    assert sorted([await look(redis, settings), await look(redis, settings)]) == [0, 1]


async def test_without_a_target_or_a_list_there_is_nothing_to_measure(redis, settings):
    assert await look(redis, settings) == 0
    await publish(redis, settings, "v0001", None)
    await live(redis, "v0001")
    assert await look(redis, settings) == 0
