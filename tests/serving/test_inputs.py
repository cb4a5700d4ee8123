"""Prompts of the Responses and the Messages API: what is taken, and as what it is logged."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BadRequest, InstructLoopError, NotFound, TooLarge
from feedback.texts import texts_of
from serving import fields
from serving.apis import MESSAGES, RESPONSES
from serving.requests import Limits, engine_body, parse

LIMITS = Limits(max_choices=5, max_prompt_chars=100)
HELLO = [{"role": "user", "content": "Hello"}]


def respond(input="Hello", **said):
    return parse(RESPONSES, orjson.dumps({"input": input, **said}), LIMITS)


def message(messages=HELLO, **said):
    return parse(MESSAGES, orjson.dumps({"messages": messages, "max_tokens": 9, **said}), LIMITS)


def refused(read, *said, **more) -> InstructLoopError:
    with pytest.raises(InstructLoopError) as caught:
        read(*said, **more)
    return caught.value


def call(name: str, arguments: str) -> dict:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_conversation_of_response_items_becomes_chat_messages():
    asked = respond(
        [
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [part("hm")]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {
                "type": "message",
                "id": "m",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "It rains.", "annotations": []}],
            },
        ],
        instructions="Answer.",
    )
    assert asked.prompt == [
        {"role": "system", "content": "Answer."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [call("look", "{}")],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It rains."},
    ]
    assert asked.trains
    words = ["Answer.", "Be brief.", "Hi", "hm", "c1", "look", "{}", "rain", "c1", "It rains."]
    assert sorted(texts_of(asked.prompt)) == sorted(words)


def part(text: str, kind: str = "text") -> dict:
    return {"type": kind, "text": text}


def test_a_conversation_of_anthropics_blocks_becomes_chat_messages():
    asked = message(
        [
            {"role": "user", "content": [part("Look"), part("twice")]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    part("I look."),
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "sky"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [part("rain")]},
                    {**part("So?"), "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
        system=[part("Be "), part("brief.")],
    )
    assert asked.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part("Look"), part("twice")]},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning": "hm",
            "tool_calls": [call("look", '{"at":"sky"}')],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "user", "content": "So?"},
    ]


def test_what_the_engine_gets_is_what_was_said():
    items = [{"type": "message", "role": "user", "content": [part("Hi", "input_text")]}]
    sent = orjson.loads(engine_body(respond(items, stream=True), model="m", steering={}))
    assert sent == {"model": "m", "input": items, "store": False, "stream": True}
    blocks = [{"role": "user", "content": [part("Hi")]}]
    sent = orjson.loads(engine_body(message(blocks), model="m", steering={"priority": 0}))
    assert sent == {"model": "m", "messages": blocks, "max_tokens": 9}


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background", "prompt"])
def test_what_needs_a_server_that_remembers_is_refused_with_what_to_do(name):
    error = refused(respond, **{name: "resp_1"})
    assert (error.status, error.param, error.code) == (400, name, "unknown_parameter")
    assert "not supported: " in error.message
    assert respond(**{name: None}).prompt == HELLO
    assert respond(background=False).prompt == HELLO


@pytest.mark.parametrize("kind", ["web_search", "file_search", "mcp", "code_interpreter", 3, None])
def test_hosted_tools_are_refused(kind):
    error = refused(respond, tools=[{"type": kind}])
    assert (error.status, error.param) == (400, "tools[0].type")
    if kind is not None:
        error = refused(message, tools=[{"type": kind, "name": "x"}])
        assert (error.status, error.param) == (400, "tools[0].type")
    for tools in (3, [3]):
        assert refused(respond, tools=tools).status == 400
    assert not respond(tools=[{"type": "function", "name": "f"}]).trains


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([], "input"),
        (3, "input"),
        ([3], "input[0]"),
        ([{"type": "item_reference", "id": "x"}], "input[0]"),
        ([{"type": "computer_call"}], "input[0].type"),
        ([{"type": []}], "input[0].type"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": [], "content": "x"}], "input[0].role"),
        ([{"role": "user", "content": 3}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": "x", "image_url": "y"}], "input[0]"),
        ([{"type": "function_call", "call_id": "c", "name": "f"}], "input[0]"),
        ([{"type": "reasoning", "encrypted_content": "x"}], "input[0]"),
    ],
)
def test_items_that_are_not_text_are_refused_by_their_place(items, param):
    error = refused(respond, items)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        ([3], "messages[0]"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": "x", "name": "y"}], "messages[0]"),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": []}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0][0]"),
        (
            [{"role": "user", "content": [{**part("x"), "source": {"url": "file:///etc"}}]}],
            "messages[0].content[0]",
        ),
    ],
)
def test_blocks_that_are_not_text_are_refused_by_their_place(messages, param):
    error = refused(message, messages)
    assert (error.status, error.param) == (400, param)


def test_the_whole_prompt_counts_towards_its_limit():
    long = "x" * 60
    for read in (
        lambda: respond(long, instructions=long),
        lambda: respond([{"role": "user", "content": long}] * 2),
        lambda: message([{"role": "user", "content": long}], system=long),
        lambda: message([{"role": "user", "content": [part(long), part(long)]}]),
    ):
        assert refused(read).status == 413


def test_an_unfinished_answer_that_is_to_be_continued_does_not_train():
    said = {"role": "assistant", "content": "It", "type": "message"}
    whole = respond([*HELLO, {**said, "status": "completed"}])
    partial = respond([*HELLO, {**said, "status": "incomplete"}])
    assert (whole.trains, partial.trains) == (True, False)
    assert whole.canonical != partial.canonical


def test_the_end_user_is_named_where_each_api_names_it():
    assert message(metadata={"user_id": "ada", "page": "x"}).user == "ada"
    assert message(metadata={"user_id": "ada", "page": "x"}).metadata == {"page": "x"}
    assert message(metadata={"user_id": None}).user is None
    assert respond(metadata={"user_id": "ada"}).user is None
    assert respond(safety_identifier="ada").user == "ada"


def test_fields_of_other_apis_are_unknown():
    for read, name in (
        (respond, "n"),
        (respond, "max_tokens"),
        (respond, "messages"),
        (message, "n"),
        (message, "stream_options"),
        (message, "system_prompt"),
        (message, "mcp_servers"),
    ):
        error = refused(read, **{name: {}})
        assert (error.status, error.param) == (400, name)


@pytest.mark.parametrize("read", [respond, message])
@pytest.mark.parametrize("name", sorted(fields.STEERING))
def test_what_steers_the_engine_is_refused_by_name(read, name):
    error = refused(read, **{name: None})
    assert (error.status, error.param) == (400, name)


def test_what_is_nested_too_deeply_is_refused():
    deep: dict = {}
    for _ in range(400):
        deep = {"x": deep}
    use = {"type": "tool_use", "id": "c", "name": "f", "input": deep}
    for body in (
        b'{"input":' + b"[" * 5000,
        b'{"input":"x","text":' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
        b'{"input":"x","temperature":NaN}',
        b'{"input":"\xff"}',
        b'{"input":"\\ud800"}',
    ):
        with pytest.raises(BadRequest):
            engine_body(parse(RESPONSES, body, LIMITS), model="m", steering={})
    with pytest.raises(BadRequest):
        parse(MESSAGES, deep_json([{"role": "assistant", "content": [use]}]), LIMITS)


def deep_json(messages: list) -> bytes:
    return json.dumps({"messages": messages, "max_tokens": 1}).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "output", "name", "x"]), inner
        )
    ),
    max_leaves=8,
)
SAID = st.sampled_from(
    [
        *("text", "message", "user", "assistant", "thinking", "tool_use", "tool_result"),
        *("reasoning", "function_call", "function_call_output", "custom_tool_call"),
    ]
)


@settings(deadline=None)
@given(
    api=st.sampled_from([RESPONSES, MESSAGES]),
    prompt=st.lists(
        st.dictionaries(st.sampled_from(["type", "role", "content", "summary"]), SAID | JSON)
    ),
    said=st.dictionaries(
        st.sampled_from(sorted({*fields.RESPONSES_ENGINE, *fields.MESSAGES_ENGINE, *fields.OURS})),
        JSON,
    ),
)
def test_whatever_is_said_is_taken_or_refused(api, prompt, said):
    try:
        body = orjson.dumps({**said, api.prompt_field: prompt})
    except orjson.JSONEncodeError:
        return
    try:
        asked = parse(api, body, LIMITS)
    except (BadRequest, NotFound, TooLarge):
        return
    passed = orjson.loads(engine_body(asked, model="m", steering={}))
    ours = {api.prompt_field, "model", "stream", "store"}
    assert passed.keys() <= api.engine_fields.keys() | ours
    assert isinstance(asked.prompt, list)
