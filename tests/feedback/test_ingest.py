import asyncio
import base64
import time

import orjson
import pytest

from core import keys
from core.errors import Unavailable
from core.records import Completion, Feedback
from core.redis_client import connect
from core.setting_groups import LogSettings
from core.settings import Settings
from feedback import intake, store
from feedback.ingest import GROUP, ingest_batch, retry_quarantine
from feedback.pii.worker import PiiFailed
from feedback.schemas import DemonstrationRequest, FeedbackRequest
from tests.feedback.factory import EmailFilter, api_key, completion_id, entry, put


def with_log(settings: Settings, **log) -> Settings:
    return settings.model_copy(update={"log": LogSettings(**log)})


async def record(redis, token) -> Completion:
    return Completion.model_validate_json(await redis.get(keys.completion(token)))


async def pending(redis) -> int:
    return (await redis.xpending(keys.inbox(), GROUP))["pending"]


async def outcomes(redis, entries) -> list[str]:
    return [(await record(redis, e["token"])).outcome for e in entries]


async def retry(redis, keyring, settings, pii, *, after: float) -> int:
    """What is due `after` seconds from now."""
    return await retry_quarantine(redis, keyring, settings, pii, limit=10, now=time.time() + after)


async def test_an_entry_becomes_a_record_without_personal_data(redis, keyring, settings):
    one = entry(
        keyring,
        prompt="Write to ann@example.org.",
        answers=("Dear ann@example.org,", "Dear bob@example.org,"),
        metadata={"ticket": "ann@example.org"},
    )
    await put(redis, keyring, one)
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10) == 1
    got = await record(redis, one["token"])
    assert got.messages == [{"role": "user", "content": "Write to <EMAIL_1>."}]
    assert [c.text for c in got.choices] == ["Dear <EMAIL_1>,", "Dear <EMAIL_2>,"]
    assert got.metadata == {"ticket": "<EMAIL_1>"}
    assert (got.pii, got.pii_version, got.outcome) == ({"EMAIL": 2}, "emails-1", "pii_filtered")
    assert got.sampling == {"temperature": 1.0}  # stop strings are text of the user
    assert got.user == keyring.hashed("acme", "user", "ann")
    assert (got.counted, got.choices[0].tokens) == (True, 3)
    assert await redis.xlen(keys.inbox()) == await pending(redis) == 0
    assert await redis.zrange(keys.prompts(), 0, -1) == [one["token"].encode()]
    assert await redis.hget(keys.counts(), "prompts") == b"1"
    everything = b"".join([await redis.dump(k) for k in await redis.keys("*")])
    assert b"example.org" not in everything


async def test_an_empty_inbox_is_nothing_to_do(redis, keyring, settings):
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10) == 0


async def test_a_user_counts_up_to_the_cap_within_the_window(redis, keyring, settings):
    settings = with_log(settings, prompts_per_user=3, window_days=2)
    day, now = 86_400, time.time()
    old = [entry(keyring, prompt=f"old {i}?", created_at=now - 3 * day) for i in range(3)]
    new = [entry(keyring, prompt=f"new {i}?", created_at=now - 60 + i) for i in range(5)]
    bob = entry(keyring, prompt="from bob?", user="bob")
    await put(redis, keyring, *old, *new, bob)
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=100) == 9
    assert await outcomes(redis, old) == ["logged"] * 3
    assert await outcomes(redis, new) == ["logged"] * 3 + ["over_user_cap"] * 2
    assert await outcomes(redis, [bob]) == ["logged"]
    assert await redis.zcard(keys.prompts()) == 7
    ann = keyring.hashed("acme", "user", "ann")
    assert await redis.zcard(keys.user_prompts(ann)) == 3  # those out of the window are dropped
    assert await redis.scard(keys.user_completions(ann)) == 8
    assert (await record(redis, new[4]["token"])).counted is False


async def test_prompts_with_a_long_common_opening_are_duplicates(redis, keyring, settings):
    settings = with_log(settings, duplicate_prefix_chars=20)
    opening = "Summarise this letter: "
    entries = [
        entry(keyring, prompt=opening + "one"),
        entry(keyring, prompt=opening.upper() + "two", user="bob"),
        entry(keyring, prompt="Summarise this."),
        entry(keyring, prompt="Summarise this.", user="eve"),
        entry(keyring, prompt="Summarise this. Now.", user="eve"),
        entry(keyring, prompt="Summarise this.", tenant="other", id=completion_id(keyring)),
    ]
    await put(redis, keyring, *entries)
    await ingest_batch(redis, keyring, settings, EmailFilter(), limit=100)
    assert await outcomes(redis, entries) == [
        "logged", "duplicate", "logged", "duplicate", "logged", "logged",
    ]  # fmt: skip
    assert await redis.zcard(keys.prompts()) == 4


async def test_a_duplicate_does_not_use_up_the_cap(redis, keyring, settings):
    settings = with_log(settings, prompts_per_user=2)
    prompts = ("a?", "a?", "a?", "b?", "c?")
    entries = [entry(keyring, prompt=prompt) for prompt in prompts]
    await put(redis, keyring, *entries)
    await ingest_batch(redis, keyring, settings, EmailFilter(), limit=100)
    assert await outcomes(redis, entries) == [
        "logged", "duplicate", "duplicate", "logged", "over_user_cap",
    ]  # fmt: skip


async def test_who_opted_out_leaves_no_text(redis, keyring, settings):
    ann = keyring.hashed("acme", "user", "ann")
    await redis.sadd(keys.opted_out(), ann)
    one = entry(keyring, prompt="A private thing", answers=("A private answer",))
    await put(redis, keyring, one)
    pii = EmailFilter()
    assert await ingest_batch(redis, keyring, settings, pii, limit=10) == 1
    got = await record(redis, one["token"])
    assert (got.outcome, got.messages, got.choices, got.counted) == ("opted_out", [], (), False)
    assert pii.records == 0
    assert await redis.zcard(keys.prompts()) == 0


async def test_what_must_not_train_is_kept_but_does_not_count(redis, keyring, settings):
    one = entry(keyring, trains=False)
    await put(redis, keyring, one)
    await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10)
    got = await record(redis, one["token"])
    assert (got.counted, got.trains, got.outcome) == (False, False, "logged")
    assert await redis.exists(keys.prompts()) == 0


async def test_an_entry_that_comes_twice_is_recorded_once(redis, keyring, settings):
    one = entry(keyring)
    await put(redis, keyring, one, one)
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10) == 2
    assert await redis.hget(keys.counts(), "prompts") == b"1"
    assert await redis.zcard(keys.prompts()) == 1
    assert await redis.xlen(keys.inbox()) == 0


async def test_what_the_filter_cannot_clear_is_tried_again_then_quarantined(
    redis, keyring, settings
):
    settings = with_log(settings, max_deliveries=3)
    bad, good = entry(keyring, prompt="poison"), entry(keyring, prompt="fine?")
    await put(redis, keyring, bad, good)
    pii = EmailFilter(fail="poison")

    async def batch(filter_=pii):
        return await ingest_batch(
            redis, keyring, settings, filter_, limit=10, retry_after_seconds=0.0
        )

    assert await batch() == 1
    assert await outcomes(redis, [good]) == ["logged"]
    assert await batch() == 0
    assert await batch() == 0
    assert (await redis.hlen(keys.quarantine()), await pending(redis)) == (0, 1)
    assert await batch() == 0  # the fourth delivery is one too many
    assert (await redis.hlen(keys.quarantine()), await pending(redis)) == (1, 0)
    assert await redis.xlen(keys.inbox()) == 0
    assert await redis.exists(keys.completion(bad["token"])) == 0
    (sealed,) = await redis.hvals(keys.quarantine())
    assert b"poison" not in sealed
    assert b"poison" in keyring.open(sealed)

    assert await retry(redis, keyring, settings, pii, after=61) == 0
    assert await redis.hlen(keys.quarantine()) == 1
    assert await retry(redis, keyring, settings, EmailFilter(), after=180) == 1
    assert await outcomes(redis, [bad]) == ["logged"]
    assert await redis.hlen(keys.quarantine()) == 0


async def test_what_cannot_be_opened_or_read_ends_in_quarantine_too(redis, keyring, settings):
    settings = with_log(settings, max_deliveries=1)
    await redis.xadd(keys.inbox(), {"sealed": b"not sealed by us, but long enough to try"})
    await redis.xadd(keys.inbox(), {"sealed": keyring.seal(b"{")})
    await redis.xadd(keys.inbox(), {"sealed": keyring.seal(orjson.dumps({"token": "x"}))})
    await redis.xadd(keys.inbox(), {"other": b""})
    for _ in range(3):
        await ingest_batch(
            redis, keyring, settings, EmailFilter(), limit=10, retry_after_seconds=0.0
        )
    assert await redis.xlen(keys.inbox()) == 0
    assert await redis.hlen(keys.quarantine()) == 4
    assert await retry(redis, keyring, settings, EmailFilter(), after=61) == 0
    assert await redis.hlen(keys.quarantine()) == 4


async def test_a_filter_that_does_not_start_stops_the_batch_and_loses_nothing(
    redis, keyring, settings
):
    class Broken:
        def filter_record(self, texts, *, deadline_seconds):
            raise PiiFailed("start")

    await put(redis, keyring, entry(keyring), entry(keyring, prompt="another?"))
    with pytest.raises(PiiFailed):
        await ingest_batch(redis, keyring, settings, Broken(), limit=10)
    assert await redis.xlen(keys.inbox()) == 2
    done = await ingest_batch(
        redis, keyring, settings, EmailFilter(), limit=10, retry_after_seconds=0.0
    )
    assert done == 2


async def test_entries_of_a_dead_ingest_wait_their_time_and_then_go_one_by_one(
    redis, keyring, settings
):
    await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10)  # makes the group
    await put(redis, keyring, *(entry(keyring, prompt=f"{i}?") for i in range(25)))
    await redis.xreadgroup(GROUP, "dead", {keys.inbox(): ">"}, count=25)
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=100) == 0
    done = await ingest_batch(
        redis, keyring, settings, EmailFilter(), limit=100, retry_after_seconds=0.0
    )
    assert done == 25
    assert await redis.zcard(keys.prompts()) == 25


async def test_a_redis_that_goes_away_is_unavailable(redis_server, keyring, settings):
    async with connect(redis_server.url) as redis:
        await put(redis, keyring, entry(keyring))
        redis_server.kill()
        with pytest.raises(Unavailable):
            await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10)
        redis_server.start()
        assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10) == 1


# --- texts of feedback


async def say(redis, keyring, body, **sealed) -> Feedback:
    who = intake.speaker(api_key(), "ann", keyring=keyring, settings=Settings().feedback)
    raw = base64.b64encode(keyring.seal(orjson.dumps(sealed))).decode()
    make = intake.demonstration if isinstance(body, DemonstrationRequest) else intake.rating
    said = make(body, who, keyring=keyring, sealed=raw, now=time.time())
    await store.record(redis, said, reply="{}")
    return said


async def test_comments_and_demonstrations_are_filtered(redis, keyring, settings):
    comment = await say(
        redis,
        keyring,
        FeedbackRequest(completion_id=completion_id(keyring), comment="x"),
        comment="Ask ann@example.org",
    )
    demonstration = await say(
        redis,
        keyring,
        DemonstrationRequest(prompt="x", text="y"),
        text="Dear ann@example.org",
        messages={"prompt": "Write to bob@example.org and ann@example.org"},
    )
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10) == 2
    got = await store.get(redis, comment.id)
    assert (got.text, got.sealed) == ({"comment": "Ask <EMAIL_1>"}, None)
    got = await store.get(redis, demonstration.id)
    assert got.text == {"text": "Dear <EMAIL_1>"}
    assert got.messages == {"prompt": "Write to <EMAIL_2> and <EMAIL_1>"}
    assert got.pii_version == "emails-1"
    assert await redis.scard(keys.feedback_text()) == 0


async def test_text_that_cannot_be_cleared_waits_sealed_and_a_new_word_replaces_it(
    redis, keyring, settings
):
    body = FeedbackRequest(completion_id=completion_id(keyring), comment="x")
    said = await say(redis, keyring, body, comment="poison")
    bad = EmailFilter(fail="poison")
    assert await ingest_batch(redis, keyring, settings, bad, limit=10) == 0
    assert await redis.hkeys(keys.quarantine()) == [said.id.encode()]
    assert await retry(redis, keyring, settings, bad, after=61) == 0
    assert (await store.get(redis, said.id)).text is None
    assert await retry(redis, keyring, settings, EmailFilter(), after=180) == 1
    assert (await store.get(redis, said.id)).text == {"comment": "poison"}
    assert await redis.hlen(keys.quarantine()) == 0

    await say(redis, keyring, body, comment="poison again")
    await ingest_batch(redis, keyring, settings, bad, limit=10)
    await say(redis, keyring, body, comment="fine")
    assert await redis.hlen(keys.quarantine()) == 0
    assert await ingest_batch(redis, keyring, settings, bad, limit=10) == 1
    assert (await store.get(redis, said.id)).text == {"comment": "fine"}


async def test_a_filter_that_does_not_start_puts_nothing_that_was_said_into_quarantine(
    redis, keyring, settings
):
    class Broken:
        def filter_record(self, texts, *, deadline_seconds):
            raise PiiFailed("start")

    body = FeedbackRequest(completion_id=completion_id(keyring), comment="x")
    await say(redis, keyring, body, comment="fine")
    with pytest.raises(PiiFailed):
        await ingest_batch(redis, keyring, settings, Broken(), limit=10)
    assert await redis.hlen(keys.quarantine()) == 0
    assert await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10) == 1


async def test_what_is_said_while_the_filter_works_is_not_lost(redis, keyring, settings):
    body = FeedbackRequest(completion_id=completion_id(keyring), comment="x")
    said = await say(redis, keyring, body, comment="first")

    class Interrupted(EmailFilter):
        interrupted = False

        def filter_record(self, texts, *, deadline_seconds):
            if not self.interrupted:
                self.interrupted = True
                asyncio.run_coroutine_threadsafe(
                    say(redis, keyring, body, comment="second"), loop
                ).result()
            return super().filter_record(texts, deadline_seconds=deadline_seconds)

    loop = asyncio.get_running_loop()
    pii = Interrupted()
    assert await ingest_batch(redis, keyring, settings, pii, limit=10) == 0
    assert await ingest_batch(redis, keyring, settings, pii, limit=10) == 1
    assert (await store.get(redis, said.id)).text == {"comment": "second"}
