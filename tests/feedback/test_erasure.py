import asyncio
import base64
import json
import multiprocessing
import random
import time
from pathlib import Path

import orjson
import pyarrow.parquet as parquet
import pytest

from core import keys, loop, registry
from core.errors import NotFound
from core.ids import token_of
from core.keyring import Keyring
from core.records import Answer, Run
from core.settings import Settings
from feedback import erasure, intake, labeling, quarantine, store
from feedback.erasing import FILE, erase_what_is_due, log_is_unread
from feedback.ingest import ingest_batch
from feedback.schemas import FeedbackRequest
from feedback.sealing import seal_texts
from feedback.snapshot import write_snapshot
from tests.feedback.erasing_child import erase_and_die
from tests.feedback.factory import EmailFilter, api_key, entry, put
from tests.feedback.test_labeling import task
from tests.feedback.test_snapshot import World

pytestmark = pytest.mark.thorough

CANARY = "canaryxylophone"
KILLS = 16


@pytest.fixture
def settings(state_dir) -> Settings:
    return Settings(state_dir=state_dir, log={"pii_second_tier": False})


@pytest.fixture
async def world(redis, keyring, settings):
    """Ann, who goes, and Bob, who stays; both asked the same once, and each rated the other."""
    await redis.hset(keys.api_keys(), "0a0b0c0d", api_key().model_dump_json())
    world = World(redis, keyring, settings)
    world.at = time.time() - 60
    return world


async def fill(world) -> dict[str, str]:
    """Everything that may hold something of Ann, and as much of Bob."""
    redis, ids, at = world.redis, {}, world.at
    ids["ann"] = await world.ask(f"{CANARY} ann asks?", f"{CANARY} one", "two", at=at)
    mail = f"mail {CANARY}@example.org please"
    ids["mail"] = await world.ask(mail, f"{CANARY} sent", at=at)
    ids["bob"] = await world.ask("Name a lake.", "Como", "Garda", user="bob", at=at)
    ids["both"] = await world.ask("Name a sea.", f"{CANARY} sea", at=at)
    ids["sea"] = await world.ask("Name a sea.", "North Sea", "Baltic", user="bob", at=at)
    ids["vote"] = await world.rank("r1", [(ids["ann"], 0)], [(ids["ann"], 1)], at=at)
    ids["mixed"] = await world.rank(
        "r1", [(ids["both"], 0)], [(ids["sea"], 0)], [(ids["sea"], 1)], at=at
    )
    ids["anns"] = await world.rate("ann", ids["bob"], 1, at=at, thumb="up")
    ids["bobs"] = await world.rate("bob", ids["bob"], 0, at=at, thumb="down")
    ids["shown"] = await world.show("r1", f"{CANARY} better", at=at, completion_id=ids["ann"])
    ids["free"] = await world.show("ann", f"{CANARY} free", at=at, prompt="A desert:")
    await store.mark_used(redis, [ids["vote"]], "v0001")
    await redis.hset(keys.held_decisions(), ids["anns"], "x")
    await redis.hset(keys.disagreement(), mapping={token_of(ids[n]): 0.5 for n in ("ann", "bob")})
    await put_runs(world)
    late = entry(world.keyring, prompt=f"{CANARY} late?", created_at=at)
    held = entry(world.keyring, prompt=f"{CANARY} held?", created_at=at)
    ids["late"], ids["held"] = late["id"], held["id"]
    await comment(world, "r1", ids["late"])
    await put(redis, world.keyring, late, entry(world.keyring, prompt="bob's?", user="bob"))
    async with redis.pipeline(transaction=True) as step:
        sealed = world.keyring.seal(orjson.dumps(held))
        quarantine.put(step, f"{quarantine.PROMPT}1-0", sealed, now=time.time())
        await step.execute()
    await open_tasks(world)
    return ids


async def comment(world, rater: str, cid: str) -> None:
    who = world.who(rater)
    sealed = seal_texts({"comment": CANARY}, world.keyring)
    body = FeedbackRequest(completion_id=cid, comment="x")
    said = intake.rating(body, who, keyring=world.keyring, sealed=sealed, now=world.at)
    await store.record(world.redis, said, reply="{}")


async def put_runs(world) -> None:
    """A round that is over, with its snapshot and what evaluation wrote."""
    run = Run(id="run-1", stages=("snapshot",), created_at=world.at, version="v0002")
    run = run.model_copy(update={"outcome": "promoted", "finished_at": world.at + 1})
    await world.redis.set(keys.run(run.id), run.model_dump_json())
    await world.redis.zadd(keys.runs(), {run.id: int(world.at * 1000)})
    folder = world.settings.state_dir / "runs" / "run-1"
    await write_snapshot(
        world.redis, world.keyring, world.settings, folder / "snapshot" / "out", now=world.at + 1
    )
    out = folder / "evaluate" / "out"
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt_id": name, "user": world.keyring.hashed("acme", "user", name), "messages": text}
        for name, text in (("ann", CANARY), ("bob", "lake"))
    ]
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluate" / "checkpoint").write_text(CANARY)


async def open_tasks(world) -> None:
    """Ann's prompt with an answer of Bob's, and Bob's prompt with a word of Ann's."""
    ann, bob = (world.keyring.hashed("acme", "user", name) for name in ("ann", "bob"))
    shown = [{"role": "user", "content": CANARY}]
    say = {"role": "user", "content": "Name a lake."}
    tasks = [
        task("t-ann").model_copy(update={"user": ann, "messages": shown}),
        task("t-bob").model_copy(update={"user": bob, "messages": [say]}),
    ]
    await labeling.open_tasks(world.redis, tasks)
    ties = tuple((output.output_id,) for output in tasks[1].outputs)
    word = Answer(
        rater=world.who("ann").rater, heldout_rater=False, ranking=ties, answered_at=world.at
    )
    said = tasks[1].model_copy(update={"answers": (word,)})
    await world.redis.set(keys.labeling_task("t-bob"), said.model_dump_json())
    await world.redis.hincrby(keys.counts(), "comparisons", 6)
    await world.redis.hincrby(keys.counts(), "rankings", 1)
    decided = {world.who("ann").rater: "x", ann: "x"}
    await world.redis.hset(keys.held_decisions(), mapping=decided)


async def ask_erasure(world, user="ann") -> str:
    return await erasure.begin(
        world.redis, world.keyring, tenant="acme", user=user, now=time.time()
    )


async def erase(world) -> int:
    return await erase_what_is_due(world.redis, world.keyring, world.settings)


async def everything_in(redis) -> dict[bytes, bytes]:
    """Every key of Redis with all that is in it."""
    found = {}
    for key in await redis.keys("*"):
        kind = await redis.type(key)
        read = {
            b"string": lambda k: redis.get(k),
            b"hash": lambda k: redis.hgetall(k),
            b"set": lambda k: redis.smembers(k),
            b"zset": lambda k: redis.zrange(k, 0, -1, withscores=True),
            b"list": lambda k: redis.lrange(k, 0, -1),
            b"stream": lambda k: redis.xrange(k),
        }[kind]
        found[key] = repr((key, await read(key))).encode()
    return found


ALLOWED = (keys.tombstones(), keys.erasure(""), keys.audit(), keys.erasures_open())


async def traces(world, *marks: str) -> list[str]:
    """Where a mark is still found: keys of Redis, files of the state folder."""
    found = []
    for key, said in (await everything_in(world.redis)).items():
        if not key.decode().startswith(ALLOWED):
            found += [key.decode() for mark in marks if mark.encode() in said]
    for path in Path(world.settings.state_dir).rglob("*"):
        if path.is_file() and path.name != FILE:
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content = repr(parquet.read_table(path).to_pylist()).encode()
            found += [str(path) for mark in marks if mark.encode() in content]
    return found


def marks_of(world) -> list[str]:
    hashed = world.keyring.hashed("acme", "user", "ann")
    return [CANARY, hashed, world.who("ann").rater]


def plain(text: bytes) -> str:
    return text.decode()


async def check_erased(world, ids) -> None:
    """Nothing of Ann is left, everything of Bob is."""
    assert await traces(world, *marks_of(world)) == []
    left = await store.completions(world.redis, map(token_of, ids.values()))
    assert left.keys() == {token_of(ids["bob"]), token_of(ids["sea"])}
    feedback = {said.id: said for said in await store.get_all(world.redis)}
    assert feedback.keys() == {ids["mixed"], ids["bobs"]}
    mixed = feedback[ids["mixed"]]
    assert [o.token for o in mixed.outputs] == [token_of(ids["sea"])] * 2
    best = [mixed.outputs[p].choice for tie in mixed.ranking for p in tie]
    assert best == [0, 1]
    assert await world.redis.exists(keys.labeling_task("t-ann")) == 0
    assert (await labeling.get_task(world.redis, "t-bob", tenant="acme")).answers == ()
    counts = {plain(k): int(v) for k, v in (await world.redis.hgetall(keys.counts())).items()}
    assert counts == {
        "prompts": 1, "ratings": 1, "rankings": 1, "demonstrations": 0, "comparisons": 1,
    }  # fmt: skip
    assert await world.redis.xlen(keys.inbox()) == 1
    assert await world.redis.hlen(keys.quarantine()) == 0
    assert await world.redis.hlen(keys.held_decisions()) == 0
    assert await world.redis.hkeys(keys.disagreement()) == [token_of(ids["bob"]).encode()]
    rows = parquet.read_table(
        world.settings.state_dir / "runs/run-1/snapshot/out/ratings.parquet"
    ).to_pylist()
    assert [row["text"] for row in rows] == ["Como"]


async def test_nothing_of_an_erased_user_is_left_and_everything_of_others_is(world):
    ids = await fill(world)
    found = await traces(world, *marks_of(world))
    assert len(found) > 20
    bob = await world.redis.get(keys.completion(token_of(ids["bob"])))
    erasure_id = await ask_erasure(world)
    assert (await erasure.receipt(world.redis, erasure_id)).state == "accepted"
    assert await erase(world) == 1
    await check_erased(world, ids)
    assert await world.redis.get(keys.completion(token_of(ids["bob"]))) == bob

    said = await erasure.receipt(world.redis, erasure_id, tenant="acme")
    assert said.state == "erased"
    assert said.versions == ["v0001", "v0002"]
    assert {k: v for k, v in said.counts.items() if not k.startswith("snapshot")} == {
        "completions": 3, "feedback": 6, "labeling": 2, "sealed": 2,
    }  # fmt: skip
    assert said.counts["snapshot run-1"] > 3
    signature = base64.b64decode(said.signature)
    world.keyring.public_key().verify(signature, erasure.receipt_bytes(said))
    with pytest.raises(NotFound):
        await erasure.receipt(world.redis, erasure_id, tenant="another")


async def test_the_history_of_versions_that_learned_from_the_user_says_so(world):
    await fill(world)
    erasure_id = await ask_erasure(world)
    await erase(world)
    for version in ("v0001", "v0002"):
        (told,) = await registry.history(world.redis, version)
        assert (told["action"], told["erasure"]) == ("erased", erasure_id)
    assert await registry.history(world.redis, "v0000") == []


async def test_the_old_commands_leave_the_file_of_redis(redis_server, state_dir, settings):
    from core.redis_client import connect

    async with connect(redis_server.url) as redis:
        keyring = Keyring(state_dir / "secrets")
        world = World(redis, keyring, settings)
        await world.ask(f"{CANARY}?", f"{CANARY}!", at=time.time() - 5)
        files = [p for p in (redis_server.state_dir / "redis").rglob("*") if p.is_file()]
        assert any(CANARY.encode() in path.read_bytes() for path in files)
        await ask_erasure(world)
        assert await erase(world) == 1
        files = [p for p in (redis_server.state_dir / "redis").rglob("*") if p.is_file()]
        assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


async def test_what_comes_late_is_dropped_with_what_was_said_about_it(world):
    await ask_erasure(world)
    await erase(world)
    late = entry(world.keyring, prompt=f"{CANARY}?", created_at=world.at)
    await comment(world, "r1", late["id"])
    await put(world.redis, world.keyring, late)
    pii = EmailFilter()
    assert await ingest_batch(world.redis, world.keyring, world.settings, pii, limit=9)
    assert (pii.records, await world.redis.xlen(keys.inbox())) == (0, 0)
    assert await store.completions(world.redis, [late["token"]]) == {}
    assert await store.get_all(world.redis) == []
    assert await traces(world, *marks_of(world)) == []


async def test_who_comes_back_later_begins_anew(world):
    await world.ask("Name a river.", "Elbe", at=world.at)
    await ask_erasure(world)
    await erase(world)
    back = await world.ask("Name a river.", "Rhine", at=time.time() + 1)
    again = await store.completions(world.redis, [token_of(back)])
    assert again[token_of(back)].counted
    assert await erase(world) == 0
    assert len(await store.completions(world.redis, [token_of(back)])) == 1


async def test_a_restored_backup_does_not_bring_the_person_back(world):
    ids = await fill(world)
    backup = {key: await world.redis.dump(key) for key in await world.redis.keys("*")}
    erasure_id = await ask_erasure(world)
    await erase(world)
    await world.redis.flushall()
    for key, value in backup.items():
        await world.redis.restore(key, 0, value)
    assert await log_is_unread(world.redis, world.settings.state_dir)
    assert await erase(world) == 1
    await check_erased(world, ids)
    assert (await erasure.receipt(world.redis, erasure_id)).state == "erased"
    assert not await log_is_unread(world.redis, world.settings.state_dir)


async def test_asked_again_while_it_is_open_it_goes_on_until_the_new_moment(world):
    first = await ask_erasure(world)
    await world.redis.hset(keys.erasure(first), "done", "1:files")
    cid = await world.ask("Name a river.", "Elbe", at=time.time() + 1)
    second = await erasure.begin(
        world.redis, world.keyring, tenant="acme", user="ann", now=time.time() + 2
    )
    assert second == first
    assert await erase(world) == 1
    assert await store.completions(world.redis, [token_of(cid)]) == {}
    assert await ask_erasure(world) != first


async def test_a_round_that_reads_the_person_is_cancelled_and_then_cleaned(world):
    ids = await fill(world)
    run = Run(id="run-1", stages=("snapshot", "policy"), stage="policy", created_at=world.at)
    await world.redis.set(keys.run(run.id), run.model_dump_json())
    await world.redis.set(keys.run_current(), run.id)
    await loop.heartbeat(world.redis)  # a worker is there: it is asked, not overruled
    erasure_id = await ask_erasure(world)
    assert await erase(world) == 0
    assert (await loop.read_notes(world.redis)).cancel == "run-1"
    assert (await erasure.receipt(world.redis, erasure_id)).step == "archive"
    await world.redis.delete(keys.run_current())
    assert await erase(world) == 1
    await check_erased(world, ids)


async def test_a_file_that_cannot_be_read_holds_up_nobody_else(world, caplog):
    ids = await fill(world)
    broken = world.settings.state_dir / "runs/run-1/snapshot/out/prompts.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(b"no Parquet")
    await ask_erasure(world)
    assert await erase(world) == 0
    assert "cannot go on" in caplog.text
    broken.write_bytes(whole)
    assert await erase(world) == 1
    await check_erased(world, ids)


async def test_a_round_that_does_not_read_the_person_goes_on(world):
    await world.ask("Name a lake.", "Como", user="bob", at=world.at)
    await put_runs(world)
    run = Run(id="run-1", stages=("snapshot", "policy"), stage="policy", created_at=world.at)
    await world.redis.set(keys.run(run.id), run.model_dump_json())
    await world.redis.set(keys.run_current(), run.id)
    await ask_erasure(world)
    assert await erase(world) == 1
    assert (await loop.current_run(world.redis)).outcome == "running"


async def test_killed_at_any_line_it_finishes_later(world, shared_redis):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.feedback.erasing_child"])
    lines = context.Value("i", 0)

    async def run(at_line: int) -> int:
        lines.value = 0
        args = (shared_redis.url, world.settings, at_line, lines)
        child = context.Process(target=erase_and_die, args=args)
        child.start()
        await asyncio.to_thread(child.join, 60)
        return child.exitcode

    async def again() -> dict[str, str]:
        await world.redis.flushall()
        await world.redis.hset(keys.api_keys(), "0a0b0c0d", api_key().model_dump_json())
        (world.settings.state_dir / FILE).unlink(missing_ok=True)
        ids = await fill(world)
        await ask_erasure(world)
        return ids

    ids = await again()
    assert await run(-1) == 0
    await check_erased(world, ids)
    total = lines.value
    assert total > 200
    draw = random.Random(3)
    killed = 0
    for at_line in sorted({1, total - 1, *draw.sample(range(2, total - 1), KILLS)}):
        ids = await again()
        killed += await run(at_line) == -9  # sets come in any order: the last line may be earlier
        await erase(world)
        await check_erased(world, ids)
        assert not await erasure.is_open(world.redis)
    assert killed >= KILLS
