"""What is read from replies: choices, counts, versions, errors."""

import orjson

from serving.transcript import Kind, Transcript


def event(content) -> bytes:
    return b"data: " + (content if isinstance(content, bytes) else orjson.dumps(content)) + b"\n\n"


def delta(index: int, reason: str | None = None, **said) -> bytes:
    choice = {"index": index, "delta": said, "finish_reason": reason}
    return event({"id": "chatcmpl-1", "choices": [choice]})


def test_interleaved_choices_are_put_together_by_index():
    transcript = Transcript()
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
    transcript = Transcript()
    for count in (1, 2, 3):
        piece = {"choices": [{"index": 0, "text": "x"}], "usage": usage(4, count)}
        assert transcript.see(event(piece)) is Kind.DATA
    assert transcript.choices()[0]["tokens"] == 3


def test_tool_calls_are_put_together_from_their_pieces():
    transcript = Transcript()
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
    unary = Transcript()
    calls = [
        {"id": c["id"], "function": {"name": c["name"], "arguments": c["arguments"]}} for c in whole
    ]
    unary.read(orjson.dumps({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}))
    assert unary.choices()[0]["tool_calls"] == whole


def test_an_error_makes_the_reply_unfit_and_a_cut_answer_too():
    broken = Transcript()
    broken.see(delta(0, content="x"))
    assert broken.see(event({"error": {"message": "dead", "code": 500}})) is Kind.ERROR
    assert broken.verdict == "engine"
    cut = Transcript()
    cut.see(delta(0, content="x", reason="abort"))
    assert cut.verdict == "aborted"


def test_tokens_without_text_are_unfit_and_an_answer_that_ended_empty_is_not():
    """With NaN in its weights vLLM says 200, no text, and that the length was reached."""
    for reason, verdict in (("length", "no_text"), ("stop", None)):
        transcript = Transcript()
        transcript.see(delta(0, content=""))
        transcript.see(delta(0, content="", reason=reason))
        assert transcript.verdict == verdict


def test_an_error_before_anything_else_leaves_the_reply_unbegun():
    transcript = Transcript()
    transcript.see(b": keep-alive\n\n")
    transcript.see(event({"error": {"message": "full"}}))
    assert not transcript.begun
    transcript.see(delta(0, content=""))
    assert transcript.begun


def test_comments_of_our_guard_add_versions_in_order_and_others_nothing():
    transcript = Transcript()
    transcript.served_by("v0001")
    for comment in (b": ping\n\n", b": policy-version v0002\n\n", b": policy-version v0002\n\n"):
        assert transcript.see(comment) is Kind.COMMENT
    assert transcript.versions == ["v0001", "v0002"]


def test_what_is_no_json_is_recorded_as_unreadable_and_raises_nothing():
    for body in (b"<html>", b"[1]", b"null", b'{"choices": null}'):
        transcript = Transcript()
        transcript.read(body)
        assert transcript.choices() == []
    assert transcript.error is None
