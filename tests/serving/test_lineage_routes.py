"""Lineage over HTTP: the ids that made a version, the proof of one, and who may ask."""

import pytest

from core import keys, lineage, registry
from core.auth import create_key
from core.lineage import Inclusion, is_proven
from core.records import Feedback, LabelingTask
from tests.serving.conftest import running_gateway
from tests.serving.test_policies import ask, card

TRAINED_ON = {f"fb-{number:02d}": "rating" for number in range(7)} | {"task-1": "labeling"}


def said(name, *, tenant="ops", key_id="k1"):
    return Feedback(
        id=name,
        kind="rating",
        tenant=tenant,
        key_id=key_id,
        rater="r",
        created_at=1.0,
        updated_at=1.0,
        thumb="up",
    )


@pytest.fixture
async def asked(redis, gateway_settings, state_dir):
    """A gateway, asked with an admin key, where v0001 learned from seven words and a task."""
    made = card("v0001", "v0000").model_copy(update={"data": lineage.card_data(TRAINED_ON)})
    for one in (card("v0000"), made.model_copy(update={"signature": "c2ln"})):
        fence = await registry.acquire_fence(redis)
        await registry.publish(redis, one, fencing_token=fence)
    folder = state_dir / "policies" / "v0001"
    folder.mkdir(parents=True)
    (folder / lineage.FILE).write_text(lineage.as_text(TRAINED_ON))
    async with running_gateway(gateway_settings, redis) as gateway:
        _, gateway.secret = await create_key(redis, name="a", tenant="ops", scopes=["admin"])
        yield gateway


async def test_the_ids_come_in_pages(asked):
    path = "/v1/policies/v0001/feedback"
    status, page = await ask(asked, "GET", f"{path}?limit=5")
    assert status == 200
    assert (page["count"], page["kinds"]) == (8, {"labeling": 1, "rating": 7})
    assert page["root"] == lineage.root_of(TRAINED_ON)
    assert page["feedback"] == [f"fb-{number:02d}" for number in range(5)]
    status, rest = await ask(asked, "GET", f"{path}?limit=5&after={page['next']}")
    assert (rest["feedback"], rest["next"]) == (["fb-05", "fb-06", "task-1"], None)
    assert (await ask(asked, "GET", f"{path}?limit=0"))[0] == 422


@pytest.mark.parametrize("feedback_id", ["fb-00", "fb-06", "task-1"])
async def test_a_proof_can_be_checked_with_nothing_but_the_card(asked, feedback_id):
    status, said = await ask(asked, "GET", f"/v1/policies/v0001/feedback/{feedback_id}")
    assert status == 200
    proof = Inclusion(**said)
    _, made = await ask(asked, "GET", "/v1/policies/v0001")
    assert is_proven(proof)
    assert (proof.root, proof.signature) == (made["data"]["feedback_root"], made["signature"])


async def test_what_is_not_there_is_not_found(asked, state_dir):
    for path in ("v0001/feedback/fb-99", "v0000/feedback", "v0009/feedback", "v0000/feedback/fb-0"):
        status, said = await ask(asked, "GET", f"/v1/policies/{path}")
        assert (status, said["error"]["type"]) == (404, "not_found_error"), path
    (state_dir / "policies" / "v0001" / lineage.FILE).unlink()
    status, said = await ask(asked, "GET", "/v1/policies/v0001/feedback")
    assert (status, "not on this machine" in said["error"]["message"]) == (404, True)


async def test_a_word_is_proven_to_its_tenant_and_the_list_to_admins_only(asked, redis):
    own, asked.secret = await create_key(redis, name="x", tenant="ops", scopes=["feedback"])
    labeler, label_secret = await create_key(redis, name="l", tenant="ops", scopes=["label"])
    records = [said("fb-00"), said("fb-01", tenant="other"), said("fb-02", key_id=labeler.id)]
    for record in records:
        await redis.set(keys.feedback(record.id), record.model_dump_json())

    async def statuses():
        path = "/v1/policies/v0001/feedback"
        found = [(await ask(asked, "GET", f"{path}/{record.id}"))[0] for record in records]
        return [*found, (await ask(asked, "GET", path))[0]]

    assert await statuses() == [200, 404, 200, 403]
    asked.secret = label_secret
    assert await statuses() == [404, 404, 200, 403]


@pytest.mark.parametrize("scope", ["feedback", "label"])
async def test_an_answer_to_a_task_is_proven_to_those_of_the_tasks_tenant(asked, redis, scope):
    task = LabelingTask(
        id="task-1",
        tenant="ops",
        mode="training",
        run_id="",
        user="u",
        messages={"prompt": "why?"},
        outputs=(),
        created_at=0.0,
    )
    await redis.set(keys.labeling_task(task.id), task.model_dump_json())
    path = "/v1/policies/v0001/feedback/task-1"
    for tenant, has, expected in (("ops", scope, 200), ("x", scope, 404), ("ops", "complete", 404)):
        _, asked.secret = await create_key(redis, name="k", tenant=tenant, scopes=[has])
        assert (await ask(asked, "GET", path))[0] == expected


async def test_a_version_says_which_replica_was_probed_when(asked, redis):
    await registry.record(redis, "probed", version="v0001", replica="engine-0")
    await registry.record(redis, "probed", version="v0001", replica="engine-1")
    later = "2999-01-01T00:00:00+00:00"
    await redis.hset(keys.probes("v0001"), "engine-1", later)
    _, made = await ask(asked, "GET", "/v1/policies/v0001")
    assert [probe["replica"] for probe in made["probes"]] == ["engine-0", "engine-1"]
    assert made["probes"][1]["at"] == later
    assert made["probes"][0]["at"] == made["history"][-2]["at"]


@pytest.mark.parametrize("why", ["", "  ", None])
async def test_a_change_of_the_live_version_says_why(asked, redis, why):
    body = {} if why is None else {"why": why}
    for path in ("v0001/promote", "rollback"):
        assert (await ask(asked, "POST", f"/v1/policies/{path}", body))[0] == 422
    assert await registry.target(redis) is None
