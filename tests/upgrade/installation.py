"""An installation with a little of everything, made by the service itself; its people are made up.

Ann asks and rates, Bob rates, Erin was erased, and something that Erin said before reaches the
inbox after that. What the service reads out of it is `answers`.
"""

import json
import time
from typing import Any

import orjson

from core import audit_log, keys, lineage, loop, registry
from core.auth import create_key, list_keys
from core.keyring import Keyring
from core.records import Answer, LabelingTask
from core.redis_check import check_redis
from core.redis_client import Redis
from core.schema import check_folder
from core.settings import Settings
from core.versions import verify_signature
from deploy.status import read_status
from feedback import erasure, export, labeling, quarantine, store, user_data
from feedback.erasing import erase_what_is_due
from feedback.ingest import ingest_batch
from learning.rounds.folders import Folders
from learning.rounds.publish import place_version
from serving.usage import FIELDS
from tests.feedback.factory import EmailFilter, entry, put
from tests.feedback.test_labeling import task
from tests.learning.test_publish import fields, model_folder
from tests.serving.conftest import announce, running_gateway
from tests.serving.engine_double import EngineDouble

ERIN = "erin-of-the-fixture"
ERINS = "a word that only Erin said"
ONCE = "the-same-request"
LEARNED = {"fb-1": "ranking", "fb-2": "demonstration"}
"""What v0001 says that it learned from."""


def settings_of(state_dir, redis_url) -> Settings:
    return Settings(
        state_dir=state_dir,
        redis_url=redis_url,
        log={"pii_second_tier": False, "split_by_prompt_under_users": 0},
    )


async def fill(redis: Redis, settings: Settings) -> dict[str, Any]:
    """Everything; what a reader has to know of it."""
    check_folder(settings.state_dir)
    await check_redis(redis)
    keyring = Keyring(settings.secrets)
    await _publish(redis, keyring, settings)
    async with EngineDouble(words=(" a", " lake")).listening(
        settings.state_dir / "engine.sock"
    ) as engine:
        await announce(redis, engine)
        async with running_gateway(settings, redis) as gateway:
            asked = await _talk(gateway)
            while await ingest_batch(redis, keyring, settings, EmailFilter(), limit=100):
                pass
            await _say(gateway, asked)
    await _tasks(redis, keyring, asked["erin"])
    await _rounds(redis)
    erased = await erasure.begin(redis, keyring, tenant="acme", user=ERIN, now=time.time())
    await erase_what_is_due(redis, keyring, settings)
    assert (await erasure.receipt(redis, erased)).state == "erased"
    await _waiting(redis, keyring)
    await audit_log.mirror(redis, keyring, settings.state_dir)
    about = {"ann": asked["ann"], "erasure": erased, "secret": gateway.secret}
    return about | {"key": (await list_keys(redis))[0].id}


async def _publish(redis: Redis, keyring: Keyring, settings: Settings) -> None:
    model = model_folder(settings.state_dir / "base")
    token = await registry.acquire_fence(redis)
    for version, parent, learned in (("v0000", None, {}), ("v0001", "v0000", LEARNED)):
        assert await registry.next_version(redis) == version
        data = {"run": "r1", **lineage.card_data(learned)}
        card = place_version(
            Folders.of(settings.state_dir),
            keyring,
            model=model,
            fields=fields(version) | {"parent": parent, "data": data},
            owner=token,
            trained_on=learned,
        )
        await registry.publish(redis, card, fencing_token=token)
        await registry.promote(redis, version, who="the fixture", why="to have one")
    await registry.rollback(redis, who="the fixture", why="to have a history")
    await redis.hset(keys.policy_checksums("v0000"), "layer.weight", "abc")


async def _talk(gateway) -> dict[str, str]:
    asked = {}
    for name, user, prompt, more in (
        ("ann", "ann", "Name a lake.", {"n": 2}),
        ("bob", "bob", "Name a river.", {}),
        ("erin", ERIN, ERINS, {}),
    ):
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "instructloop", "messages": messages, "user": user, **more}
        async with gateway.post("/v1/chat/completions", body) as response:
            assert response.status == 200, await response.text()
            asked[name] = (await response.json())["id"]
    return asked


async def _say(gateway, asked: dict[str, str]) -> None:
    ann, bob, erin = asked["ann"], asked["bob"], asked["erin"]
    best_first = [[{"completion_id": ann}], [{"completion_id": ann, "choice": 1}]]
    for path, body in (
        ("feedback", {"completion_id": ann, "thumb": "up", "rater": "bob"}),
        ("feedback", {"completion_id": ann, "rating": 6, "flags": {"fails_task": False}}),
        ("feedback", {"completion_id": bob, "comment": "Short, and a@b.org says so."}),
        ("feedback", {"completion_id": bob, "signal": "copy", "rater": "bob"}),
        ("feedback", {"completion_id": bob, "thumb": "down", "rater": ERIN}),
        ("feedback", {"completion_id": erin, "thumb": "up", "rater": "bob"}),
        ("rankings", {"ranking": best_first, "rater": "bob"}),
        ("demonstrations", {"completion_id": bob, "text": "The Elbe.", "rater": "ann"}),
        ("demonstrations", {"prompt": "A desert:", "text": "The Gobi.", "rater": "ann"}),
    ):
        once = {"Idempotency-Key": ONCE} if body.get("rating") else {}
        async with gateway.post(f"/v1/{path}", body, headers=once) as response:
            assert response.status == 201, await response.text()


async def _tasks(redis: Redis, keyring: Keyring, erins: str) -> None:
    """One that was answered, one that waits, one with Erin's prompt."""
    ann, erin = (keyring.hashed("acme", "user", name) for name in ("ann", ERIN))
    tasks = [
        task("t-done").model_copy(update={"user": ann}),
        task("t-open").model_copy(update={"user": ann}),
        task("t-erin").model_copy(
            update={"user": erin, "messages": [{"role": "user", "content": ERINS}]}
        ),
    ]
    await labeling.open_tasks(redis, tasks)
    await _answer(redis, tasks[0])
    await redis.hset(keys.held_decisions(), "r" * 32, "rejected")
    await redis.hset(keys.disagreement(), erins.removeprefix("chatcmpl-"), 0.5)


async def _answer(redis: Redis, done: LabelingTask) -> None:
    ties = tuple((output.output_id,) for output in done.outputs)
    said = Answer(rater="r" * 32, heldout_rater=False, ranking=ties, answered_at=time.time())
    answered = done.model_copy(update={"answers": (said,), "status": "done"})
    await redis.set(keys.labeling_task(done.id), answered.model_dump_json())
    await redis.zrem(keys.labeling_open("training"), done.id)


async def _rounds(redis: Redis) -> None:
    run = await loop.request_run(redis, stages=("snapshot", "sft"), wanted_by="the fixture")
    await loop.cancel(redis, run.id, who="the fixture")
    await loop.pause(redis, who="the fixture")
    await registry.promote(redis, "v0001", who="the fixture", why="to have a target before")


async def _waiting(redis: Redis, keyring: Keyring) -> None:
    """In the inbox: something of Ann's, and something of Erin's from before; and one held back."""
    before = time.time() - 60
    late = [
        entry(keyring, prompt="And a sea?", created_at=before),
        entry(keyring, prompt=ERINS, user=ERIN, created_at=before),
    ]
    await put(redis, keyring, *late)
    held = keyring.seal(orjson.dumps(entry(keyring, prompt="held", created_at=before)))
    async with redis.pipeline(transaction=True) as step:
        quarantine.put(step, f"{quarantine.PROMPT}1-0", held, now=time.time() + 10**9)
        await step.execute()
    await create_key(redis, name="rater", tenant="acme", scopes=["label"], who="the fixture")


# --- what the service reads out of it --------------------------------------------------------


async def answers(redis: Redis, settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
    """By the ordinary functions, as plain data; nothing that depends on the hour."""
    keyring = Keyring(settings.secrets)
    said = {
        "feedback": [one.model_dump(mode="json") for one in await store.get_all(redis)],
        "exports": {
            what: sorted(
                [
                    json.loads(orjson.dumps(row, default=str))
                    for row in await export.read_rows(
                        redis, keyring, settings, what=what, tenant="acme", now=about["now"]
                    )
                ],
                key=json.dumps,
            )
            for what in ("comparisons", "ratings", "demonstrations", "prompts")
        },
        "people": {name: await _held(redis, keyring, name) for name in ("ann", "bob", ERIN)},
        "receipt": (await erasure.receipt(redis, about["erasure"])).model_dump(mode="json"),
        "keys": [key.model_dump(mode="json") for key in await list_keys(redis)],
        "usage": await _usage(redis, about),
        "runs": [run.model_dump(mode="json") for run in await loop.list_runs(redis)],
        "paused": await loop.is_paused(redis),
        "comparisons": await loop.comparison_count(redis),
        "tasks": await labeling.task_counts(redis),
        "target": await registry.target(redis),
        "audit": await _audit(redis, keyring, settings),
        "versions": [await _version(redis, keyring, settings, v) for v in ("v0000", "v0001")],
        "warnings": (await read_status(redis))["warnings"],
    }
    return json.loads(json.dumps(said))


async def _held(redis: Redis, keyring: Keyring, user: str) -> dict[str, Any]:
    """What a user would be told, of the feedback only which."""
    page, given = [
        await user_data.read_page(
            redis, keyring, tenant="acme", user=user, cursor=cursor, limit=100
        )
        for cursor in ("", "given:0")
    ]
    return {
        "counts": page.counts,
        "erased_until": page.erased_until,
        "asked": {held.completion_id: held.outcome for held in page.completions},
        "given": sorted(said.id for said in given.feedback_given),
    }


async def _audit(redis: Redis, keyring: Keyring, settings: Settings) -> int:
    """How many lines the log outside Redis has, proven."""
    lines = audit_log.read_lines(settings.state_dir / audit_log.FILE)
    audit_log.check(lines, keyring.public_key())
    await audit_log.compare(redis, lines)
    return len(lines)


async def _usage(redis: Redis, about: dict[str, Any]) -> dict[str, int]:
    day = time.strftime("%Y-%m-%d", time.gmtime(about["now"]))
    names = [f"{about['key']}:{what}" for what in FIELDS]
    found = await redis.hmget(keys.usage(day), names)
    return {what: int(value or 0) for what, value in zip(FIELDS, found, strict=True)}


async def _version(
    redis: Redis, keyring: Keyring, settings: Settings, version: str
) -> dict[str, Any]:
    card = await registry.card(redis, version)
    verify_signature(card, keyring.public_key())
    said = card.model_dump(mode="json")
    if version == "v0001":
        ids = lineage.read_ids(Folders.of(settings.state_dir).policy(version), card)
        said["proven"] = [lineage.is_proven(lineage.inclusion(card, ids, name)) for name in ids]
    return said
