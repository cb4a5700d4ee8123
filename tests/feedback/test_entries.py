"""What the gateway seals is read as it ever was; only what is named goes on unfiltered."""

import orjson
import pytest
from pydantic import ValidationError

from core.records import Completion, Reply
from feedback.entries import Entry, bare_record, entry_texts, with_clear_texts
from feedback.pii.record import Filtered
from tests.feedback.factory import entry


def read(keyring, **fields) -> Entry:
    return Entry.model_validate(orjson.loads(orjson.dumps(entry(keyring, **fields))))


def test_an_entry_with_fields_of_a_newer_gateway_is_read(keyring):
    got = read(
        keyring,
        invented="who knows",
        choices=[{"text": "a", "finish_reason": "stop", "invented": 1}],
    )
    assert (got.choices[0].text, got.choices[0].tokens) == ("a", None)


@pytest.mark.parametrize("choice", [{"text": None, "finish_reason": "tool_calls"}, {}])
def test_an_answer_without_text_is_an_empty_one(keyring, choice):
    got = read(keyring, choices=[choice])
    assert (got.choices[0].text, got.choices[0].finish_reason) == (
        "",
        choice.get("finish_reason"),
    )


def test_an_entry_that_lacks_something_is_refused(keyring):
    whole = entry(keyring)
    for name in ("token", "messages", "choices", "policy_versions"):
        with pytest.raises(ValidationError):
            Entry.model_validate({k: v for k, v in whole.items() if k != name})


def test_a_record_takes_over_no_words_but_filtered_ones(keyring):
    """Also not those in fields that somebody adds to both models one day."""
    raw = read(keyring, prompt="secret", answers=("secret",), metadata={"secret": "secret"})
    raw = raw.model_copy(update={"user": "secret", "sampling": {"stop": "secret", "top_p": 0.5}})
    bare = bare_record(raw, user="u" * 32, split="test")
    assert "secret" not in bare.model_dump_json()
    assert (bare.sampling, bare.split, bare.counted, bare.user) == (
        {"top_p": 0.5},
        "test",
        False,
        "u" * 32,
    )
    assert entry_texts(raw) == ["secret"] * 4
    same = set(Reply.model_fields) - {"user", "messages", "choices", "metadata", "sampling"}
    assert all(getattr(bare, name) == getattr(raw, name) for name in same)
    done = with_clear_texts(bare, raw, Filtered(("q", "a", "k", "v"), {"NAME": 2}, "test-1"))
    assert (done.messages[0]["content"], done.choices[0].text) == ("q", "a")
    assert (done.metadata, done.pii, done.choices[0].tokens) == ({"k": "v"}, {"NAME": 2}, 3)
    assert Completion.model_validate_json(done.model_dump_json()) == done
