"""Reading requests: what is taken, what is refused by name, what goes on to the engine."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BadRequest, InstructLoopError, NotFound, TooLarge
from core.records import ApiKey
from serving import fields
from serving.apis import CHAT, TEXT
from serving.requests import Limits, engine_body, parse

LIMITS = Limits(max_choices=5, max_prompt_chars=1000)
MESSAGES = [{"role": "user", "content": "Hello"}]
KEY = ApiKey(id="0a0b0c0d", name="k", tenant="t", scopes=("complete",), digest="x", created_at=0.0)


def chat(**said):
    return parse(CHAT, orjson.dumps({"messages": MESSAGES, **said}), LIMITS)


def text(prompt, **said):
    return parse(TEXT, orjson.dumps({"prompt": prompt, **said}), LIMITS)


def sent(asked, **steering) -> dict:
    return orjson.loads(engine_body(asked, model="m", steering=steering))


def refused(read, **said) -> InstructLoopError:
    with pytest.raises(InstructLoopError) as caught:
        read(**said)
    return caught.value


def test_what_clients_say_reaches_the_engine_and_what_is_for_us_does_not():
    asked = chat(
        temperature=0.3,
        n=2,
        user="ada",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        model="instructloop",
    )
    assert sent(asked, cache_salt="s") == {
        "model": "m",
        "messages": MESSAGES,
        "temperature": 0.3,
        "n": 2,
        "cache_salt": "s",
    }
    assert (asked.user, asked.stored, asked.metadata) == ("ada", False, {"a": "b"})


def test_a_field_that_is_null_counts_as_not_said():
    asked = chat(temperature=None, n=None, stream=None, user=None, store=None, metadata=None)
    assert sent(asked) == {"model": "m", "messages": MESSAGES}
    assert asked.stored
    assert asked.user is None


def test_usage_is_always_asked_of_a_stream_and_the_clients_wish_remembered():
    assert sent(chat(stream=True))["stream_options"] == {"include_usage": True}
    assert not chat(stream=True).wants_usage
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = chat(stream=True, stream_options=options)
    assert asked.wants_usage
    assert sent(asked)["stream_options"] == options
    unwanted = {"include_usage": False, "continuous_usage_stats": True}
    asked = chat(stream=True, stream_options=unwanted)
    assert not asked.wants_usage
    assert sent(asked)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("name", sorted(fields.STEERING))
def test_what_steers_the_engine_is_refused_by_name(name):
    for read in (chat, lambda **said: text("x", **said)):
        error = refused(read, **{name: None})
        assert (error.status, error.param) == (400, name)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "input_audio", "input_audio": {"data": "x"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"image_url": "http://127.0.0.1/"},
        {"type": "text", "text": "x", "image_url": "http://127.0.0.1/"},
        {"type": "text", "image_url": "x"},
        {"type": "text", "text": 3},
        "http://127.0.0.1/",
    ],
)
def test_media_is_refused_wherever_it_hides(part):
    said = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    error = refused(chat, messages=said)
    assert (error.status, error.param) == (400, "messages[0].content[1]")


def test_text_parts_are_taken():
    said = [{"role": "user", "content": [{"type": "text", "text": "look"}]}]
    assert chat(messages=said).prompt == said


def test_a_reply_of_openais_client_can_be_sent_back_as_a_message():
    reply = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    asked = chat(messages=[*MESSAGES, reply, *MESSAGES])
    assert asked.prompt[1] == reply


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "url": "y"}]}, "messages[0]"),
        ({"n": 0}, "n"),
        ({"n": 6}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"store": "no"}, "store"),
        ({"user": 3}, "user"),
        ({"user": "x" * 257}, "user"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {"a" * 65: "x"}}, "metadata"),
        ({"model": 3}, "model"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": ["{{ x }}"]}}, "chat_template_kwargs"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_malformed_is_refused_with_its_name(said, param):
    error = refused(chat, **said)
    assert isinstance(error, BadRequest)
    assert error.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"messages": "\xff"}', b"\x00"])
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(BadRequest):
        parse(CHAT, body, LIMITS)


def test_nesting_beyond_all_measure_is_refused_and_not_an_error_of_ours():
    for depth in (300, 2000):
        deep = b'{"messages":[{"role":"user","content":"x"}],"tools":%b}' % (
            b"[" * depth + b"]" * depth
        )
        with pytest.raises(BadRequest):
            engine_body(parse(CHAT, deep, LIMITS), model="m", steering={})
        deep = deep.replace(b"tools", b"logit_bias")
        with pytest.raises(BadRequest):
            engine_body(parse(CHAT, deep, LIMITS), model="m", steering={})


def test_a_prompt_over_the_limit_is_too_large():
    with pytest.raises(TooLarge):
        chat(messages=[{"role": "user", "content": "x" * 600}] * 2)
    with pytest.raises(TooLarge):
        text(["x" * 600] * 2)
    assert chat(messages=[{"role": "user", "content": "x" * 500}] * 2).stored


def test_the_model_is_ours_or_a_pinned_version_and_nothing_else():
    assert chat().version is None
    assert chat(model="instructloop").version is None
    assert chat(model="instructloop@v0003").version == "v0003"
    for other in ("gpt-5", "instructloop@", "", "v0003"):
        with pytest.raises(NotFound):
            chat(model=other)


def test_the_end_user_is_named_or_else_the_key():
    assert chat(user="ada").end_user(KEY) == "ada"
    assert chat(safety_identifier="bob").end_user(KEY) == "bob"
    assert chat(user="ada", safety_identifier="bob").end_user(KEY) == "ada"
    assert chat(user="").end_user(KEY) == KEY.id


def test_only_one_text_is_logged_never_a_batch_or_token_ids():
    assert text("x").prompt == {"prompt": "x"}
    assert text(["x"]).prompt == {"prompt": "x"}
    for unlogged, choices in ((["x", "y"], 6), ([1, 2], 3), ([[1], [2]], 6)):
        asked = text(unlogged, n=3)
        assert asked.prompt is None
        assert not asked.stored
        assert asked.choices == choices
        assert sent(asked)["prompt"] == unlogged


def test_a_batch_has_no_more_answers_than_an_id_can_count():
    assert text(["x"] * 51, n=5).choices == 255
    error = refused(text, prompt=["x"] * 52, n=5)
    assert error.param == "n"
    assert "260" in error.message


@pytest.mark.parametrize("prompt", [None, [], [[]], ["x", 1], [True], 3, {"a": 1}, ["x"] * 129])
def test_a_prompt_of_another_shape_is_refused(prompt):
    assert refused(text, prompt=prompt).param == "prompt"


def test_equal_prompts_have_equal_bytes_and_what_the_model_sees_beside_counts():
    base = chat().canonical
    assert chat(temperature=2, user="x", n=3, tools=[], echo=False).canonical == base
    flipped = [{"content": "Hello", "role": "user"}]
    assert chat(messages=flipped).canonical == base
    others = [
        chat(messages=[{"role": "system", "content": "Hello"}]),
        chat(tools=[{"type": "function"}]),
        chat(documents=[{"text": "x"}]),
        chat(add_generation_prompt=False),
        text("Hello"),
    ]
    assert len({base, *(other.canonical for other in others)}) == 6


def test_what_the_messages_alone_do_not_show_never_trains():
    assert chat(echo=False, add_generation_prompt=True, tools=[]).trains
    assert not chat(tools=[{"type": "function"}]).trains
    assert not text("x", echo=True).trains
    assert not text("x", suffix="y").trains


def test_how_an_answer_was_drawn_is_logged_without_any_text():
    asked = chat(temperature=0.5, stop=["secret"], seed=3, max_tokens=9, bad_words=["x"])
    assert asked.sampling() == {
        "temperature": 0.5,
        "seed": 3,
        "max_tokens": 9,
        "n": 1,
        "stream": False,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    sorted({*fields.CHAT_ENGINE, *fields.OURS, *fields.HINTS, *fields.STEERING, "messages"})
)


@settings(deadline=None)
@given(said=st.dictionaries(NAMES, JSON))
def test_whatever_is_said_is_taken_or_refused_and_steering_never_passes(said):
    try:
        body = orjson.dumps({"messages": MESSAGES, **said})
    except orjson.JSONEncodeError:
        return
    try:
        asked = parse(CHAT, body, LIMITS)
    except (BadRequest, NotFound, TooLarge):
        return
    passed = orjson.loads(engine_body(asked, model="m", steering={}))
    assert not passed.keys() & fields.STEERING
    ours = {"messages", "model", "n", "stream", "stream_options"}
    assert passed.keys() <= CHAT.engine_fields.keys() | ours
