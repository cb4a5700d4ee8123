"""Ten thousand planted items go the real way; none is in any store, log, metric, export, snapshot.

Prompts with system and tool messages and tool calls, answers in streams that cut items in pieces,
metadata, comments, demonstrations and labeling notes go in over HTTP; the mass of prompts is put
into the inbox as the gateway does it. The client's own reply is what the engine said.
"""

import json
import logging
import time
from typing import get_args

import orjson
import pytest

from core import keys
from core.auth import create_key
from core.keyring import Keyring
from core.records import Completion
from core.redis_client import connect
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import labeling, store
from feedback.compaction import compact
from feedback.export import read_rows
from feedback.export_columns import What
from feedback.export_files import write_export
from feedback.export_shapes import FORMATS
from feedback.ingest import ingest_batch
from feedback.pii.worker import PiiWorker
from feedback.snapshot import write_snapshot
from tests.feedback.factory import entry, put
from tests.feedback.pii.canaries import canaries, probes
from tests.feedback.pii.stores import everything, left
from tests.feedback.test_labeling import task
from tests.serving.conftest import announce, running_gateway
from tests.serving.engine_double import EngineDouble

TOTAL, OVER_HTTP, PER_PROMPT = 10_000, 900, 25
WHATS = get_args(What)
SEPARATORS = (" | ", "\n", ", then ", "; ", " and ")


class Source:
    """Canaries, each given out once."""

    def __init__(self, count: int) -> None:
        self.all = canaries(count, seed=20)
        self.used = 0

    def take(self, count: int) -> list[str]:
        self.used += count
        assert self.used <= len(self.all)
        return self.all[self.used - count : self.used]

    def text(self, count: int, *, says="Look at these:") -> str:
        taken = self.take(count)
        return f"{says} " + SEPARATORS[self.used % len(SEPARATORS)].join(taken) + " please"

    @property
    def probes(self) -> list[str]:
        return [probe for canary in self.all[: self.used] for probe in probes(canary)]


def chat_body(source: Source, *, stream: bool) -> dict:
    """A request with something personal in every field that has text."""
    call = {"id": "call_1", "type": "function", "function": {
        "name": "pay", "arguments": json.dumps({"to": source.text(2), "list": [source.text(1)]}),
    }}  # fmt: skip
    return {
        "model": "instructloop",
        "messages": [
            {"role": "system", "content": source.text(3, says="You serve this customer:")},
            {"role": "user", "content": source.text(4)},
            {"role": "assistant", "content": source.text(1), "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": source.text(2)},
            {"role": "user", "content": [{"type": "text", "text": source.text(2)}]},
        ],
        "user": source.text(1),
        "metadata": {"ticket": source.text(1), "instructloop_note": "x"},
        "stream": stream,
    }


def in_pieces(text: str) -> tuple[str, ...]:
    """The words of a stream: three characters each, so that every item is cut."""
    return tuple(text[i : i + 3] for i in range(0, len(text), 3))


async def over_http(gateway, double: EngineDouble, source: Source) -> list[str]:
    """Ask, rate, show; gives the completion ids. Replies arrive as the engine said them."""
    ids = []
    for number in range(26):
        said = source.text(4, says="Here they are:")
        double.words = in_pieces(said)
        stream = number % 2 == 0
        body = chat_body(source, stream=stream)
        async with gateway.post("/v1/chat/completions", body) as reply:
            content = await reply.text()
            assert reply.status == 200, content
        if stream:
            events = [orjson.loads(e[6:]) for e in content.split("\n\n") if e[6:7] == "{"]
            deltas = [c["delta"].get("content") or "" for e in events for c in e["choices"]]
            assert "".join(deltas) == said
            ids.append(events[0]["id"])
        else:
            assert orjson.loads(content)["choices"][0]["message"]["content"] == said
            ids.append(orjson.loads(content)["id"])
        await _say(gateway, source, ids[-1])
    return ids


async def _say(gateway, source: Source, cid: str) -> None:
    for path, body in (
        ("feedback", {"completion_id": cid, "thumb": "up", "comment": source.text(4)}),
        ("demonstrations", {"completion_id": cid, "text": source.text(4)}),
        ("demonstrations", {"messages": [{"role": "user", "content": source.text(4)}],
                            "text": source.text(4), "rater": source.text(1)}),
    ):  # fmt: skip
        async with gateway.post(f"/v1/{path}", body) as reply:
            assert reply.status == 201, await reply.text()


async def label(gateway, redis, source: Source) -> None:
    """A rater leaves notes on one task and skips another."""
    tasks = [task(name).model_copy(update={"user": "ab" * 16}) for name in ("t1", "t2")]
    await labeling.open_tasks(redis, tasks)
    for scope_name in ("one", "two"):
        _, secret = await create_key(redis, name=scope_name, tenant="acme", scopes=["label"])
        headers = {"Authorization": f"Bearer {secret}"}
        async with gateway.get("/v1/labeling/next", headers=headers) as reply:
            shown = await reply.json()
        path = f"/v1/labeling/{shown['id']}"
        names = [o["output_id"] for o in shown["outputs"]]
        body = {
            "ranking": [[name] for name in names],
            "outputs": [{"output_id": n, "notes": source.text(3)} for n in names],
        }
        if scope_name == "two":
            path, body = f"{path}/skip", {"reason": source.text(4)}
        async with gateway.post(path, body, headers=headers) as reply:
            assert reply.status == 201, await reply.text()


async def ingest_all(redis, keyring, settings) -> None:
    pii = PiiWorker()
    try:
        while await ingest_batch(redis, keyring, settings, pii, limit=50):
            pass
    finally:
        pii.close()


@pytest.mark.slow
async def test_no_planted_item_is_anywhere(redis_server, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    source = Source(TOTAL)
    log = LogSettings(prompts_per_user=10_000, pii_seconds=30)
    settings = Settings(state_dir=redis_server.state_dir, redis_url=redis_server.url, log=log)
    engine = EngineDouble()
    keyring = Keyring(settings.state_dir / "secrets")
    async with connect(redis_server.url) as redis, engine.listening() as url:
        await announce(redis, url)
        async with running_gateway(settings, redis) as gateway:
            ids = await over_http(gateway, engine, source)
            await label(gateway, redis, source)
            await gateway.logged_once(len(ids))
            sent = source.used
            assert sent >= OVER_HTTP
            while source.used + PER_PROMPT <= TOTAL:
                number = source.used
                prompt, answer = source.text(PER_PROMPT - 5), source.text(5)
                one = entry(keyring, prompt=prompt, answers=(answer,), user=f"user-{number}")
                await put(redis, keyring, one)
            source.take(TOTAL - source.used)
            await ingest_all(redis, keyring, settings)
            async with gateway.get("/metrics") as reply:
                metrics_text = await reply.text()
        await write_snapshot(redis, keyring, settings, settings.state_dir / "snapshot")
        await check_that_all_is_there(redis, len(ids))
        await move_most_to_the_archive(redis, settings)
        await export_all(redis, keyring, settings)
        stores = await everything(
            redis, settings.state_dir, caplog.text, metrics_text, *capfd.readouterr()
        )
    assert any(b"completion" in stores[name] for name in stores if ".aof" in name)
    assert any(name.endswith("prompts.parquet rows") for name in stores)
    assert any(name.startswith("archive/") and name.endswith(" rows") for name in stores)
    exports = {name: stores[name] for name in stores if name.startswith("exports/")}
    assert len(exports) == len(WHATS) * len(FORMATS) + len(WHATS)  # Parquet also as rows
    for what in ("demonstrations", "prompts", "ratings"):
        assert exports[f"exports/{what}-jsonl.jsonl"].count(b"<") > 5
    assert left(source.probes, stores) == {}


async def export_all(redis, keyring, settings) -> None:
    """Everything that can leave, in each format, into the folder that is searched."""
    (settings.state_dir / "exports").mkdir()
    for what in WHATS:
        rows = list(
            await read_rows(redis, keyring, settings, what=what, tenant=None, now=time.time())
        )
        assert rows
        for form in FORMATS:
            path = settings.state_dir / "exports" / f"{what}-{form}.{form}"
            write_export(rows, path, what=what, form=form, force=False, progress=lambda _: None)


async def move_most_to_the_archive(redis, settings) -> None:
    """All but a few records are in Parquet files after this; the others stay in Redis."""
    few = settings.model_copy(update={"log": settings.log.model_copy(update={"keep_in_redis": 50})})
    assert await compact(redis, few, now=time.time(), least=1) > 300


async def check_that_all_is_there(redis, num_http: int) -> None:
    """Nothing was lost or kept back: the texts are there, without the items."""
    assert await redis.xlen(keys.inbox()) == 0
    assert await redis.hlen(keys.quarantine()) == 0
    assert await redis.scard(keys.feedback_text()) == 0
    records = [
        Completion.model_validate_json(await redis.get(key))
        async for key in redis.scan_iter(keys.completion("*"))
    ]
    assert len(records) > num_http + 300
    assert all(record.pii_version for record in records)
    hidden = [sum(record.pii.values()) for record in records]
    assert sorted(hidden)[len(hidden) // 2] >= PER_PROMPT
    for record in records:
        calls = [m.get("tool_calls") for m in record.messages if m.get("tool_calls")]
        for call in [c for several in calls for c in several]:
            assert set(json.loads(call["function"]["arguments"])) == {"to", "list"}
    said = await store.get_all(redis)
    assert sum(bool(f.text) for f in said) == 3 * num_http
    assert all("<" in text for f in said for text in (f.text or {}).values())


async def test_the_search_finds_what_is_left_whatever_its_clothes(redis, state_dir) -> None:
    planted = canaries(9, seed=1)
    held = [probe for canary in planted for probe in probes(canary)]
    (state_dir / "some.log").write_text(f"oops {planted[0]}")
    await redis.set("instructloop:x", planted[1].replace(" ", "-"))
    await redis.hset("instructloop:h", "field", planted[2])
    await redis.xadd("instructloop:s", {"f": planted[3]})
    stores = await everything(redis, state_dir, planted[4])
    found = left(held, stores)
    assert set(found) == {
        "some.log", "redis instructloop:x", "redis instructloop:h", "redis instructloop:s", "more",
    }  # fmt: skip
    assert set().union(*found.values()) == {p for c in planted[:5] for p in probes(c)}
