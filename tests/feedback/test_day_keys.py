"""Keys of past days go when nothing waits for them, and not a moment before."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import keys
from core.keyring import DAY_SECONDS, Keyring, SealBroken, day_at, day_of
from core.records import Answer
from core.setting_groups import FeedbackSettings
from feedback import intake, labeling, quarantine, store
from feedback.day_keys import destroy_unneeded, destroy_when_due, needed_days
from feedback.schemas import FeedbackRequest
from feedback.sealing import open_texts, seal_texts, texts_day
from tests.feedback.factory import api_key, completion_id
from tests.feedback.test_labeling import task

NOW = 1_700_000_000.0
TODAY = day_at(NOW)


def days_ago(days):
    return NOW - days * DAY_SECONDS


@pytest.fixture
def sealed(keyring, monkeypatch):
    """Names of texts, sealed on a day."""

    def seal(days: float) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: days_ago(days))
            return seal_texts({"comment": "who"}, keyring)

    return seal


async def destroy(redis, keyring, state_dir, *, sealed_days=3):
    return await destroy_unneeded(
        redis, keyring, spool=state_dir / "spool", sealed_days=sealed_days, now=NOW
    )


async def test_what_nothing_needs_goes_after_its_days(redis, keyring, state_dir):
    texts = {day: keyring.seal(b"who", now=days_ago(day)) for day in range(7)}
    assert await destroy(redis, keyring, state_dir) == 3
    assert keyring.sealed_days() == {TODAY - day for day in range(4)}
    assert keyring.open(texts[3]) == b"who"
    for day in (4, 5, 6):
        with pytest.raises(SealBroken, match="destroyed"):
            keyring.open(texts[day])
    assert await destroy(redis, keyring, state_dir) == 0


async def test_who_waits_keeps_the_key_of_its_day_and_no_other(redis, keyring, state_dir, sealed):
    for day in range(5, 15):
        keyring.seal(b"done", now=days_ago(day))
    await redis.xadd(keys.inbox(), {"sealed": keyring.seal(b"spooled", now=days_ago(5))})
    await redis.xadd(keys.inbox(), {"sealed": keyring.seal(b"new", now=NOW)})
    who = intake.speaker(api_key(), "ann", keyring=keyring, settings=FeedbackSettings())
    body = FeedbackRequest(completion_id=completion_id(keyring), comment="x")
    said = intake.rating(body, who, keyring=keyring, sealed=sealed(7), now=days_ago(7))
    await store.record(redis, said, reply="{}")
    answers = tuple(
        Answer(rater="r", heldout_rater=False, ranking=(), sealed_notes=sealed(d), answered_at=0.0)
        for d in (9, 10)
    )
    noted = task().model_copy(update={"answers": answers})
    await labeling.open_tasks(redis, [noted])
    await redis.sadd(keys.feedback_text(), f"{quarantine.NOTES}{noted.id}", "nobody's")
    async with redis.pipeline() as step:
        quarantine.put(step, "prompt:1-0", keyring.seal(b"bad", now=days_ago(12)), now=NOW)
        quarantine.put(step, "fb-1", sealed(13), now=NOW)
        quarantine.put(step, "notes:t9", f"{sealed(13)} {sealed(14)}", now=NOW)
        await step.execute()
    needed = {TODAY - day for day in (0, 5, 7, 9, 10, 12, 13, 14)}
    assert await needed_days(redis) == needed
    assert await destroy(redis, keyring, state_dir) == 3
    assert keyring.sealed_days() == needed
    assert open_texts(said.sealed, keyring) == {"comment": "who"}
    await redis.flushall()
    assert await destroy(redis, keyring, state_dir) == 7
    assert keyring.sealed_days() == {TODAY}


async def test_many_entries_of_the_inbox_are_all_looked_at(redis, keyring):
    for number in range(250):
        await redis.xadd(keys.inbox(), {"sealed": keyring.seal(b"x", now=days_ago(number % 211))})
    assert await needed_days(redis) == {TODAY - day for day in range(211)}


async def test_a_spool_that_is_not_empty_keeps_all_of_them(redis, keyring, state_dir):
    keyring.seal(b"who", now=days_ago(9))
    spool = state_dir / "spool"
    spool.mkdir()
    (spool / "1-2.spool").write_bytes(b"entries")
    assert await destroy(redis, keyring, state_dir) == 0
    (spool / "1-2.spool").write_bytes(b"")
    assert await destroy(redis, keyring, state_dir) == 1


async def test_it_looks_once_an_hour(redis, keyring, state_dir):
    async def look():
        return await destroy_when_due(
            redis, keyring, spool=state_dir / "spool", sealed_days=3, now=NOW
        )

    keyring.seal(b"who", now=days_ago(9))
    assert await look() == 1
    keyring.seal(b"who", now=days_ago(8))
    assert await look() == 0
    await redis.delete(keys.day_keys_checked())
    assert await look() == 1


def test_a_process_that_sealed_yesterday_remembers_no_key_but_todays(keyring):
    keyring.seal(b"who", now=days_ago(1))
    keyring.destroy_days([TODAY - 1])
    keyring.seal(b"new day", now=NOW)
    again = keyring.seal(b"who", now=days_ago(1))  # a clock that went back makes a new key
    assert keyring.open(again) == b"who"
    assert keyring.sealed_days() == {TODAY, TODAY - 1}


@given(moment=st.floats(0, 4e9, allow_nan=False), text=st.text(max_size=20))
def test_sealed_text_names_its_day(tmp_path_factory, moment, text):
    keyring = Keyring(tmp_path_factory.getbasetemp() / "sealed")
    sealed = keyring.seal(text.encode(), now=moment)
    assert day_of(sealed) == day_at(moment) == int(moment) // 86_400
    assert keyring.open(sealed) == text.encode()


def test_texts_name_their_day_without_being_opened(keyring):
    sealed = seal_texts({"comment": "äöü", "messages": {"prompt": "p"}}, keyring)
    assert texts_day(sealed) == day_at(time.time())
    assert open_texts(sealed, keyring) == {"comment": "äöü", "messages": {"prompt": "p"}}
