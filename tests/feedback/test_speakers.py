import pyarrow.parquet as parquet
import pytest

from core import keys
from core.ids import token_of
from core.records import Feedback
from core.setting_groups import FeedbackSettings
from feedback import intake, store
from feedback.ingest import ingest_batch
from feedback.preferences import join
from feedback.schemas import FeedbackRequest, RankingRequest
from feedback.snapshot import write_snapshot
from feedback.speakers import end_user, with_speakers
from tests.feedback.factory import (
    EmailFilter,
    api_key,
    client_of,
    completion,
    completion_id,
    entry,
    make_app,
    put,
)

SETTINGS = FeedbackSettings()
APP, OTHER_APP = api_key(), api_key("other", key_id="0b0b0b0b")
NOW = 1_700_000_000.0
ANN, BOB = "a" * 32, "b" * 32


def unnamed(keyring, key=APP, **how):
    return intake.speaker(key, None, keyring=keyring, settings=SETTINGS, **how)


def rate(keyring, who, cid, **said):
    body = FeedbackRequest(completion_id=cid, **(said or {"thumb": "up"}))
    return intake.rating(body, who, keyring=keyring, sealed=None, now=NOW)


def rank(keyring, who, *ids):
    body = RankingRequest(ranking=[[{"completion_id": i}] for i in ids])
    return intake.ranking(body, who, keyring=keyring, now=NOW)


def logged(**users):
    return {token_of(i): completion(token_of(i), user=user) for i, user in users.items()}


def test_unnamed_feedback_of_an_application_is_the_end_users_and_of_others_the_keys(keyring):
    label = api_key(scopes=("label",), key_id="11111111")
    both = api_key(scopes=("feedback", "label"), key_id="12121212")
    named = intake.speaker(APP, "ann", keyring=keyring, settings=SETTINGS)
    assert unnamed(keyring).by_end_user
    for key_speaks in (
        unnamed(keyring, label),
        unnamed(keyring, both),
        unnamed(keyring, signed_in=True),
        named,
    ):
        assert not key_speaks.by_end_user


def test_an_end_users_next_word_replaces_the_last_whichever_key_brings_it(keyring):
    cid = completion_id(keyring)
    first = rate(keyring, unnamed(keyring), cid)
    second = rate(keyring, unnamed(keyring, OTHER_APP), cid, thumb="down")
    assert (first.id, first.by_end_user) == (second.id, True)
    named = intake.speaker(APP, "ann", keyring=keyring, settings=SETTINGS)
    assert rate(keyring, named, cid).id != first.id


def test_the_person_is_found_in_the_log_and_the_key_stands_in_until_then(keyring):
    cid, other = completion_id(keyring), completion_id(keyring)
    said = rate(keyring, unnamed(keyring), cid)
    (waiting,) = with_speakers([said], {}, settings=SETTINGS)
    assert waiting.rater == unnamed(keyring).rater
    (found,) = with_speakers([said], logged(**{cid: ANN}), settings=SETTINGS)
    assert found == said.model_copy(update={"rater": ANN, "heldout_rater": found.heldout_rater})
    across = rank(keyring, unnamed(keyring), cid, other)
    assert end_user(across, logged(**{cid: ANN, other: ANN})) == ANN
    assert end_user(across, logged(**{cid: ANN, other: BOB})) is None
    assert end_user(across, logged(**{cid: ANN})) is None


def test_a_named_rater_stays_who_they_are(keyring):
    cid = completion_id(keyring)
    named = intake.speaker(APP, "ann", keyring=keyring, settings=SETTINGS)
    said = rate(keyring, named, cid)
    assert with_speakers([said], logged(**{cid: BOB}), settings=SETTINGS) == [said]


@pytest.mark.parametrize(("share", "heldout"), [(0.0, False), (1.0, True)])
def test_by_share_it_is_the_person_who_is_held_out(keyring, share, heldout):
    cid = completion_id(keyring)
    said = rate(keyring, unnamed(keyring), cid)
    settings = FeedbackSettings(heldout_rater_share=share)
    (found,) = with_speakers([said], logged(**{cid: ANN}), settings=settings)
    assert found.heldout_rater is heldout


def test_records_from_before_load_and_keep_their_rater():
    old = (
        '{"created_at":1.0,"held":null,"id":"fb-1","kind":"rating","tenant":"acme",'
        '"key_id":"0a0b0c0d","rater":"r","updated_at":1.0,"outputs":[{"token":"t","choice":0}],'
        '"thumb":"up"}'
    )
    said = Feedback.model_validate_json(old)
    assert (said.by_end_user, said.signal) == (False, None)
    assert with_speakers([said], {"t": completion("t", user=ANN)}, settings=SETTINGS) == [said]


async def test_a_snapshot_counts_end_users_as_raters_and_caps_each(
    redis, keyring, settings, state_dir
):
    """Ann orders four answers (6 pairs), Bob two (1 pair), both through one key."""
    feedback = FeedbackSettings(heldout_raters=("nobody",), rater_share_cap=0.5)
    log = settings.log.model_copy(
        update={"test_share": 0.0, "validation_share": 0.0, "pii_second_tier": False}
    )
    settings = settings.model_copy(update={"feedback": feedback, "log": log})
    for user, answers in (("ann", 4), ("bob", 2), ("carl", 2), ("dora", 2)):
        cid = completion_id(keyring, prompt=f"For {user}?", choices=answers)
        one = entry(
            keyring,
            prompt=f"For {user}?",
            answers=[f"{user} {n}" for n in range(answers)],
            id=cid,
            user=user,
            created_at=NOW,
        )
        await put(redis, keyring, one)
        await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10)
        body = RankingRequest(
            ranking=[[{"completion_id": cid, "choice": n}] for n in range(answers)]
        )
        who = intake.speaker(APP, None, keyring=keyring, settings=feedback)
        said = intake.ranking(body, who, keyring=keyring, now=NOW)
        await store.record(redis, said, reply="{}")
    manifest = await write_snapshot(redis, keyring, settings, state_dir / "snap", now=NOW)
    rows = parquet.read_table(state_dir / "snap" / "rankings.parquet").to_pylist()
    ann, bob = (keyring.hashed("acme", "user", name) for name in ("ann", "bob"))
    assert manifest.counts["raters"] == 4
    by_rater = {row["rater"]: row for row in rows}
    assert {ann, bob} < by_rater.keys()
    assert {row["split"] for row in rows} == {"train"}
    assert by_rater[ann]["weight"] == pytest.approx(3 / 6)  # of 3 + 3 a half
    assert by_rater[bob]["weight"] == 1.0


async def test_a_signal_is_a_record_of_its_own_and_trains_only_where_that_is_set(
    redis, keyring, settings
):
    cid = completion_id(keyring)
    await put(redis, keyring, entry(keyring, id=cid))
    await ingest_batch(redis, keyring, settings, EmailFilter(), limit=10)
    app = make_app(redis, keyring, settings, APP)
    async with client_of(app, APP) as client:
        ids = []
        for body in ({"signal": "copy"}, {"signal": "regenerate"}, {"thumb": "up"}):
            reply = await client.post("/v1/feedback", json={"completion_id": cid, **body})
            assert reply.status_code == 201, reply.text
            ids.append(reply.json()["id"])
        assert len(set(ids)) == 3
        both = {"completion_id": cid, "signal": "copy", "thumb": "up"}
        assert (await client.post("/v1/feedback", json=both)).status_code == 422
        unknown = {"completion_id": cid, "signal": "sigh"}
        assert (await client.post("/v1/feedback", json=unknown)).status_code == 422
        state = (await client.get(f"/v1/feedback/{ids[0]}")).json()
        assert (state["kind"], state["status"]) == ("signal", "joined")
        assert state["reason"] == "signals do not train here"
    counts = await redis.hgetall(keys.counts())
    assert (counts[b"signals"], counts[b"ratings"]) == (b"2", b"1")


@pytest.mark.parametrize(("signal", "thumb"), [("copy", 1.0), ("regenerate", 0.0)])
def test_where_signals_train_a_copy_is_a_thumb_up_and_another_try_a_thumb_down(
    keyring, signal, thumb
):
    cid = completion_id(keyring)
    said = rate(keyring, unnamed(keyring), cid, signal=signal)
    about = {token_of(cid): completion(token_of(cid), user=ANN)}

    def joined(trains):
        return join(said, about, now=NOW, split_of=lambda *_: "train", signals_train=trains)

    assert joined(False).ratings == ()
    (row,) = joined(True).ratings
    assert (row.kind, row.value, row.text) == ("thumb", thumb, "one")
