"""What is read from replies: choices, counts, versions, errors."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import sse
from serving.replies import read_choices, read_message, read_response
from serving.transcript import Kind, Transcript


def event(content) -> bytes:
    return b"data: " + (content if isinstance(content, bytes) else orjson.dumps(content)) + b"\n\n"


def delta(index: int, reason: str | None = None, **said) -> bytes:
    choice = {"index": index, "delta": said, "finish_reason": reason}
    return event({"id": "chatcmpl-1", "choices": [choice]})


def test_interleaved_choices_are_put_together_by_index():
    transcript = Transcript(read_choices)
    for piece in (
        delta(1, content="B"),
        delta(0, content="A"),
        delta(1, content="b", reason="length"),
        delta(0, content="a", reason="stop"),
    ):
        assert transcript.see(piece) is Kind.DATA
    assert transcript.see(event({"choices": [], "usage": usage(5, 9)})) is Kind.USAGE
    assert transcript.see(event(b"[DONE]")) is Kind.DONE
    assert [(c["text"], c["finish_reason"]) for c in transcript.choices()] == [
        ("Aa", "stop"),
        ("Bb", "length"),
    ]
    # which choice had how many is not said when there are several
    assert [c["tokens"] for c in transcript.choices()] == [None, None]
    assert (transcript.prompt_tokens, transcript.completion_tokens) == (5, 9)
    assert transcript.finished
    assert transcript.verdict is None


def usage(prompt: int, completion: int) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def test_a_usage_that_comes_with_every_event_ends_with_the_total():
    transcript = Transcript(read_choices)
    for count in (1, 2, 3):
        piece = {"choices": [{"index": 0, "text": "x"}], "usage": usage(4, count)}
        assert transcript.see(event(piece)) is Kind.DATA
    assert transcript.choices()[0]["tokens"] == 3


def test_tool_calls_are_put_together_from_their_pieces():
    transcript = Transcript(read_choices)
    pieces = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 1, "function": {"arguments": "}"}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    for piece in pieces:
        transcript.see(delta(0, tool_calls=[piece]))
    whole = [
        {"id": "a", "name": "f", "arguments": '{"x":1}'},
        {"id": "b", "name": "g", "arguments": "{}"},
    ]
    assert transcript.choices()[0]["tool_calls"] == whole
    unary = Transcript(read_choices)
    calls = [
        {"id": c["id"], "function": {"name": c["name"], "arguments": c["arguments"]}} for c in whole
    ]
    unary.read(orjson.dumps({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}))
    assert unary.choices()[0]["tool_calls"] == whole


def test_an_error_makes_the_reply_unfit_and_a_cut_answer_too():
    broken = Transcript(read_choices)
    broken.see(delta(0, content="x"))
    assert broken.see(event({"error": {"message": "dead", "code": 500}})) is Kind.ERROR
    assert broken.verdict == "engine"
    cut = Transcript(read_choices)
    cut.see(delta(0, content="x", reason="abort"))
    assert cut.verdict == "aborted"


def test_tokens_without_text_are_unfit_and_an_answer_that_ended_empty_is_not():
    """With NaN in its weights vLLM says 200, no text, and that the length was reached."""
    for reason, verdict in (("length", "no_text"), ("stop", None)):
        transcript = Transcript(read_choices)
        transcript.see(delta(0, content=""))
        transcript.see(delta(0, content="", reason=reason))
        assert transcript.verdict == verdict


def test_an_error_before_anything_else_leaves_the_reply_unbegun():
    transcript = Transcript(read_choices)
    transcript.see(b": keep-alive\n\n")
    transcript.see(event({"error": {"message": "full"}}))
    assert not transcript.begun
    transcript.see(delta(0, content=""))
    assert transcript.begun


def test_comments_of_our_guard_add_versions_in_order_and_others_nothing():
    transcript = Transcript(read_choices)
    transcript.served_by("v0001")
    for comment in (b": ping\n\n", b": policy-version v0002\n\n", b": policy-version v0002\n\n"):
        assert transcript.see(comment) is Kind.COMMENT
    assert transcript.versions == ["v0001", "v0002"]


def test_what_is_no_json_is_recorded_as_unreadable_and_raises_nothing():
    for body in (b"<html>", b"[1]", b"null", b'{"choices": null}'):
        transcript = Transcript(read_choices)
        transcript.read(body)
        assert transcript.choices() == []
    assert transcript.error is None


def named(kind: str, **said) -> bytes:
    return b"event: " + kind.encode() + b"\n" + event({"type": kind, **said})


MESSAGE_STREAM = [
    named("message_start", message={"id": "chatcmpl-1", "usage": {"input_tokens": 5}}),
    named("ping"),
    named("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    named("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
    named("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    named("content_block_delta", index=1, delta={"type": "text_delta", "text": "É"}),
    named("content_block_delta", index=1, delta={"type": "text_delta", "text": "🙂"}),
    named("content_block_stop", index=1),
    named(
        "content_block_start",
        index=2,
        content_block={"type": "tool_use", "id": "c", "name": "f", "input": {}},
    ),
    named(
        "content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"a":'}
    ),
    named("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": "1}"}),
    named(
        "message_delta",
        delta={"stop_reason": "tool_use"},
        usage={"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 9},
    ),
    named("message_stop"),
]
RESPONSE_STREAM = [
    named("response.created", response={"id": "resp_1", "output": []}),
    named("response.in_progress", response={"id": "resp_1"}),
    named("response.output_item.added", output_index=0, item={"type": "message"}),
    named("response.output_text.delta", output_index=0, delta="É"),
    named("response.output_text.delta", output_index=0, delta="🙂"),
    named(
        "response.output_item.added",
        output_index=1,
        item={"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
    ),
    named("response.function_call_arguments.delta", output_index=1, delta='{"a":'),
    named("response.function_call_arguments.delta", output_index=1, delta="1}"),
]
RESPONSE_END = named(
    "response.completed",
    response={
        "id": "resp_1",
        "status": "completed",
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "É🙂"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'},
        ],
        "usage": {"input_tokens": 5, "output_tokens": 9},
    },
)
SAID = {"text": "É🙂", "tool_calls": [{"id": "c", "name": "f", "arguments": '{"a":1}'}]}


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 1500)))
@pytest.mark.parametrize(
    ("reader", "events"),
    [(read_message, MESSAGE_STREAM), (read_response, [*RESPONSE_STREAM, RESPONSE_END])],
)
def test_streams_of_other_apis_say_the_same_wherever_they_are_cut(reader, events, cuts):
    whole = b"".join(events)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    transcript, rest, kind = Transcript(reader), b"", None
    for start, end in zip(edges, edges[1:], strict=False):
        found, rest = sse.split(rest + whole[start:end])
        for piece in found:
            kind = transcript.see(piece)
    assert kind is Kind.DONE
    assert transcript.choices() == [{**SAID, "finish_reason": "tool_calls", "tokens": 9}]
    assert (transcript.prompt_tokens, transcript.completion_tokens) == (5, 9)
    assert transcript.verdict is None


def test_what_a_response_said_before_it_broke_off_is_known():
    transcript = Transcript(read_response)
    kinds = [transcript.see(piece) for piece in RESPONSE_STREAM]
    assert kinds[:3] == [Kind.PRELUDE, Kind.PRELUDE, Kind.DATA]
    assert transcript.choices() == [{**SAID, "finish_reason": None, "tokens": None}]
    assert not transcript.finished
    assert transcript.see(named("response.failed", response={})) is Kind.ERROR
    assert transcript.verdict == "engine"


@pytest.mark.parametrize(
    ("reader", "said", "verdict"),
    [
        (read_message, {"type": "message", "content": [{"type": "text", "text": "x"}]}, "aborted"),
        (read_message, {"type": "message", "content": [], "stop_reason": "max_tokens"}, "no_text"),
        (read_response, {"object": "response", "status": "cancelled"}, "aborted"),
        (read_response, {"object": "response", "status": "failed"}, "aborted"),
        (read_response, {"object": "response", "status": "incomplete", "output": []}, "no_text"),
        (read_response, {"object": "response", "status": "completed", "output": []}, None),
        (read_response, {"object": "response", "status": "completed", "output": [3]}, "unreadable"),
        (read_choices, {"choices": [{"logprobs": 3}]}, "unreadable"),
    ],
)
def test_what_was_cut_off_or_says_nothing_may_not_be_rated(reader, said, verdict):
    transcript = Transcript(reader)
    transcript.read(orjson.dumps(said))
    assert transcript.verdict == verdict


def test_tokens_of_several_choices_are_counted_where_the_reply_shows_each():
    def reply(total: int, **shown) -> list[int | None]:
        transcript = Transcript(read_choices)
        choices = [{"index": i, "text": "x", **shown} for i in range(2)]
        transcript.read(orjson.dumps({"choices": choices, "usage": usage(3, total)}))
        return [choice["tokens"] for choice in transcript.choices()]

    assert reply(6, token_ids=[7, 8, 9]) == [3, 3]
    assert reply(4, logprobs={"tokens": ["a", "b"]}) == [2, 2]
    assert reply(2, logprobs={"content": [{"token": "a"}]}) == [1, 1]
    # with `echo` the prompt's tokens are among those that are shown
    assert reply(2, logprobs={"tokens": ["prompt", "a"]}) == [None, None]
    assert reply(2) == [None, None]
